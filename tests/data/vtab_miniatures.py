"""Miniatures of every original format of VTAB-1k, and of the extracted data; their labels are chosen first."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import pickle
import re
import struct
import zlib
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from scipy.io import savemat
from tensorboard.summary.writer.record_writer import RecordWriter

from mixer_lightning.data.sources.vtab import classes
from mixer_lightning.data.sources.vtab.tasks import vtab

#: Classes, sizes of TFDS' splits, the 200 and the test images in its notation (scenic's vtab_plainvit_config.py).
PUBLISHED = {
    "caltech101": (102, "train 3060 test 6084", "train[2754:2954]", "test[0:6084]"),
    "cifar100": (100, "train 50000 test 10000", "train[45000:45200]", "test[0:10000]"),
    "dtd": (47, "train 1880 validation 1880 test 1880", "validation[0:200]", "test[0:1880]"),
    "flowers": (102, "train 1020 validation 1020 test 6149", "validation[0:200]", "test[0:6149]"),
    "pets": (37, "train 3680 test 3669", "train[2944:3144]", "test[0:3669]"),
    "sun397": (397, "train 76128 validation 10875 test 21750", "validation[0:200]", "test[0:21750]"),
    "svhn": (10, "train 73257 test 26032", "train[65931:66131]", "test[0:26032]"),
    "patch_camelyon": (2, "train 262144 validation 32768 test 32768", "validation[0:200]", "test[0:32768]"),
    "eurosat": (10, "train 27000", "train[16200:16400]", "train[21600:27000]"),
    "resisc45": (45, "train 31500", "train[18900:19100]", "train[25200:31500]"),
    "diabetic_retinopathy": (
        5, "train 35126 validation 10906 test 42670", "validation[0:200]", "test[0:42670]",
    ),
    "clevr_count": (8, "train 70000 validation 15000", "train[63000:63200]", "validation[0:15000]"),
    "clevr_dist": (6, "train 70000 validation 15000", "train[63000:63200]", "validation[0:15000]"),
    "dmlab": (6, "train 65550 validation 22628 test 22735", "validation[0:200]", "test[0:22735]"),
    "kitti_dist": (4, "train 6347 validation 423 test 711", "validation[0:200]", "test[0:711]"),
    "dsprites_loc": (16, "train 737280", "train[589824:590024]", "train[663552:737280]"),
    "dsprites_ori": (16, "train 737280", "train[589824:590024]", "train[663552:737280]"),
    "smallnorb_azimuth": (18, "train 24300 test 24300", "test[0:200]", "test[12150:24300]"),
    "smallnorb_elevation": (9, "train 24300 test 24300", "test[0:200]", "test[12150:24300]"),
}  # fmt: skip


def parsed(text: str) -> tuple[str, int, int]:
    split, begin, end = re.fullmatch(r"(\w+)\[(\d+):(\d+)\]", text).groups()
    return split, int(begin), int(end)


def sizes(text: str) -> dict[str, int]:
    words = text.split()
    return {split: int(size) for split, size in zip(words[::2], words[1::2], strict=True)}


def shade(key: str) -> int:
    return 20 + zlib.crc32(key.encode()) % 200


def encoded(key: str, suffix: str = ".jpg", size: tuple[int, int] = (6, 5)) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (shade(key),) * 3).save(file, {".jpg": "JPEG", ".png": "PNG"}[suffix])
    return file.getvalue()


def write(path: Path, content: bytes | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content if isinstance(content, bytes) else content.encode())


class Miniature(NamedTuple):
    """What was written: the label of every image by its TFDS key, for every split of TFDS.

    `called` makes a TFDS key out of our own.
    """

    labels: dict[str, dict[str, int]]
    called: object = staticmethod(lambda key: key)


def dealt(keys: list[str], num_classes: int) -> dict[str, int]:
    """A label for each key, all over the range of classes."""
    return {key: (7 * i + 3) % num_classes for i, key in enumerate(keys)}


def make_caltech101(root: Path) -> Miniature:
    base = root / "caltech101/caltech101/101_ObjectCategories"
    folders = {
        "accordion": 0,
        "airplanes": 1,
        "BACKGROUND_Google": 4,
        "Faces": 37,
        "Faces_easy": 38,
        "yin_yang": 101,
    }
    everything = {f"{f}/image_{i:04}.jpg": label for f, label in folders.items() for i in range(1, 35)}
    for key in everything:
        write(base / key, encoded(key))
    write(base / "BACKGROUND_Google/tmp", "no image")
    train = set()
    for folder in folders:
        hashed = {
            key: hashlib.blake2b(key.encode(), digest_size=4).digest()[::-1]
            for key in everything
            if key.startswith(f"{folder}/")
        }
        train |= set(sorted(hashed, key=hashed.__getitem__)[:30])
    return Miniature(
        {
            "train": {key: label for key, label in everything.items() if key in train},
            "test": {key: label for key, label in everything.items() if key not in train},
        }
    )


def make_cifar100(root: Path) -> Miniature:
    base = root / "cifar/cifar-100-python"
    made = {}
    for stored, number in (("train", 50), ("test", 12)):
        made[stored] = dealt([str(row) for row in range(number)], 100)
        data = np.array([[shade(f"{row}")] * 3072 for row in range(number)], np.uint8)
        data[:, 1024:] = 9  # green and blue
        content = {"data": data, "fine_labels": list(made[stored].values()), "coarse_labels": [0] * number}
        write(base / stored, pickle.dumps(content))
    write(base / "meta", pickle.dumps({"fine_label_names": [f"fine {i}" for i in range(100)]}))
    return Miniature(made, lambda key: str(int(key)))


def make_dtd(root: Path) -> Miniature:
    base = root / "dtd/dtd/dtd"
    made = {}
    for stored, theirs in (("train", "train"), ("validation", "val"), ("test", "test")):
        labels = {
            f"{classes.DTD[label]}/{classes.DTD[label]}_{theirs}{i}.jpg": label
            for label in (0, 5, 30, 46)
            for i in range(3)
        }
        for key in labels:
            write(base / "images" / key, encoded(key))
        write(base / f"labels/{theirs}1.txt", "\n".join(labels) + "\n")
        write(base / f"labels/{theirs}2.txt", "other/fold.jpg\n")
        made[stored] = labels
    return Miniature(made)


def make_flowers(root: Path) -> Miniature:
    base = root / "flowers/flowers-102"
    labels = [(11 * i) % 102 for i in range(60)]
    order = np.random.default_rng(0).permutation(60) + 1
    ids = {"trnid": order[:20], "valid": order[20:35], "tstid": order[35:]}
    for number in range(1, 61):
        key = f"image_{number:05}.jpg"
        write(base / "jpg" / key, encoded(key))
    savemat(base / "imagelabels.mat", {"labels": [[label + 1 for label in labels]]})
    savemat(base / "setid.mat", {name: [numbers] for name, numbers in ids.items()})
    return Miniature(
        {
            stored: {f"image_{number:05}.jpg": labels[number - 1] for number in ids[theirs]}
            for stored, theirs in (("train", "trnid"), ("validation", "valid"), ("test", "tstid"))
        }
    )


def make_pets(root: Path) -> Miniature:
    base = root / "oxford_iiit_pet/oxford-iiit-pet"
    made = {}
    for stored, theirs, number in (("train", "trainval", 30), ("test", "test", 11)):
        labels = {}
        for i in range(number):
            label = (5 * i + 2) % 37
            labels[f"{classes.PETS[label]}_{theirs}_{i}.jpg"] = label
        for key in labels:
            write(base / "images" / key, encoded(key))
        lines = [f"{key[:-4]} {label + 1} 1 1" for key, label in labels.items()]
        write(base / f"annotations/{theirs}.txt", "\n".join(lines) + "\n")
        made[stored] = labels
    return Miniature(made)


SCENES = ["/a/abbey", "/b/bakery/shop", "/c/church/outdoor", "/z/zen_garden"]


def make_sun397(root: Path) -> Miniature:
    made = {}
    for stored, theirs, number in (("train", "tr", 5), ("validation", "va", 3), ("test", "te", 4)):
        made[stored] = {
            f"{scene}/sun_{theirs}{i}.jpg": label for label, scene in enumerate(SCENES) for i in range(number)
        }
        write(root / f"sun397/sun397_tfds_{theirs}.txt", "\n".join(made[stored]) + "\n")
        for key in made[stored]:
            write(root / f"sun397/SUN397{key}", encoded(key))
    write(root / "sun397/SUN397/a/abbey/sun_in_no_split.jpg", encoded(""))
    return Miniature(made, lambda key: f"/{key}")


def make_svhn(root: Path) -> Miniature:
    made = {}
    (root / "svhn").mkdir()
    for stored, number in (("train", 40), ("test", 9)):
        made[stored] = dealt([str(row) for row in range(number)], 10)
        x = np.zeros((32, 32, 3, number), np.uint8)
        x[:, :, 0] = [shade(str(row)) for row in range(number)]
        y = [[label or 10] for label in made[stored].values()]
        savemat(root / f"svhn/{stored}_32x32.mat", {"X": x, "y": y}, do_compression=True)
    return Miniature(made, lambda key: str(int(key)))


def make_patch_camelyon(root: Path) -> Miniature:
    made = {}
    for stored, theirs, number in (("train", "train", 20), ("validation", "valid", 6), ("test", "test", 8)):
        made[stored] = {f"{theirs}_{row}": row * row % 3 % 2 for row in range(number)}
        x = np.array([np.full((96, 96, 3), shade(key)) for key in made[stored]], np.uint8)
        y = np.array(list(made[stored].values())).reshape(-1, 1, 1, 1)
        for name, array in (("x", x), ("y", y)):
            path = root / f"patch_camelyon/camelyonpatch_level_2_split_{theirs}_{name}.h5"
            path.parent.mkdir(exist_ok=True)
            with h5py.File(path, "w") as file:
                file[name] = array
    return Miniature(made)


def class_folders(base: Path, names: list[str], form: str) -> Miniature:
    labels = {}
    for label in (0, 2, len(names) - 1):
        for i in range(1, 12):
            name = form.format(names[label], i)
            labels[f"{names[label]}_{name}"] = label
            write(base / names[label] / name, encoded(f"{names[label]}_{name}"))
    return Miniature({"train": labels}, lambda key: key.replace("/", "_"))


def make_eurosat(root: Path) -> Miniature:
    return class_folders(root / "eurosat/eurosat/2750", classes.EUROSAT, "{}_{}.jpg")


def make_resisc45(root: Path) -> Miniature:
    return class_folders(root / "resisc45/NWPU-RESISC45", classes.RESISC45, "{}_{:03}.jpg")


def make_diabetic_retinopathy(root: Path) -> Miniature:
    base = root / "diabetic_retinopathy"
    train = dealt([f"{i}_{side}" for i in range(12) for side in ("left", "right")], 5)
    made = {"train": train, "validation": {}, "test": {}}
    rows = []
    for i in range(30):
        stored = "validation" if i % 3 == 0 else "test"
        made[stored][f"{900 + i}_left"] = i % 5
        rows.append((f"{900 + i}_left", i % 5, "Public" if i % 3 == 0 else "Private"))
    for stored, labels in made.items():
        for key in labels:
            path = base / ("train" if stored == "train" else "test") / f"{key}.jpeg"
            write(path, encoded(key, size=(8, 8)))
    with (base / "trainLabels.csv").open("w") as file:
        csv.writer(file).writerows([("image", "level"), *train.items()])
    with (base / "retinopathy_solution.csv").open("w") as file:
        csv.writer(file).writerows([("image", "level", "Usage"), *rows])
    return Miniature(made, lambda key: Path(key).stem)


def make_clevr(root: Path, labelled: object) -> Miniature:
    """`labelled(i)` is the label of image i and the distances of its objects."""
    base = root / "clevr/CLEVR_v1.0"
    made = {}
    for stored, theirs, number in (("train", "train", 40), ("validation", "val", 16)):
        made[stored], scenes = {}, []
        for i in range(number):
            key = f"CLEVR_{theirs}_{i:06}.png"
            made[stored][key], depths = labelled(i)
            objects = [{"shape": "cube", "pixel_coords": [1, 2, z], "3d_coords": [0, 0, 9]} for z in depths]
            relations = {"left": [[1]], "front": [[]]}
            scenes.append(
                {"image_filename": key, "objects": objects, "relationships": relations, "image_index": i}
            )
            write(base / f"images/{theirs}/{key}", encoded(key, ".png"))
        scenes.reverse()
        write(
            base / f"scenes/CLEVR_{theirs}_scenes.json",
            json.dumps({"info": {"split": theirs, "objects of": "no"}, "scenes": scenes}),
        )
    return Miniature(made, lambda key: Path(key).name)


def make_clevr_count(root: Path) -> Miniature:
    return make_clevr(root, lambda i: (i % 8, [11.0] * (i % 8 + 3)))


def make_clevr_dist(root: Path) -> Miniature:
    nearest = [
        (0, 8.0),
        (0, 3.1),
        (1, 8.01),
        (1, 8.5),
        (2, 8.6),
        (2, 9.0),
        (3, 9.5),
        (4, 9.51),
        (4, 10.0),
        (5, 10.2),
    ]
    nearest.append((1, 8.500000001))  # 8.5 in single precision
    return make_clevr(root, lambda i: (nearest[i % 11][0], [12.0, nearest[i % 11][1], 10.5]))


def example_message():
    """`tf.train.Example` as its .proto file describes it, built by protobuf itself."""
    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="t", syntax="proto3")

    def message(name: str, *fields: tuple[str, int, int, str]) -> descriptor_pb2.DescriptorProto:
        made = file.message_type.add(name=name)
        for field, number, kind, of in fields:
            made.field.add(name=field, number=number, label=3 if of.endswith("*") else 1, type=kind,
                           type_name=of.rstrip("*") or None)  # fmt: skip
        return made

    message("BytesList", ("value", 1, 12, "*"))
    message("FloatList", ("value", 1, 2, "*"))
    message("Int64List", ("value", 1, 3, "*"))
    message(
        "Feature", ("bytes_list", 1, 11, ".t.BytesList"), ("float_list", 2, 11, ".t.FloatList"),
        ("int64_list", 3, 11, ".t.Int64List"),
    )  # fmt: skip
    features = message("Features", ("feature", 1, 11, ".t.Features.FeatureEntry*"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, label=1, type=9)
    entry.field.add(name="value", number=2, label=1, type=11, type_name=".t.Feature")
    message("Example", ("features", 1, 11, ".t.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("t.Example"))


def serialized(key: str, label: int) -> bytes:
    example = example_message()()
    feature = example.features.feature
    feature["label"].int64_list.value.append(label)
    feature["weight"].float_list.value.append(0.5)
    feature["image"].bytes_list.value.append(encoded(key))
    feature["filename"].bytes_list.value.append(key.encode())
    return example.SerializeToString()


def make_dmlab(root: Path) -> Miniature:
    made = {}
    (root / "dmlab").mkdir()
    for stored, number in (("train", 30), ("validation", 7), ("test", 9)):
        made[stored] = dealt([f"{stored}_{i}.jpg" for i in range(number)], 6)
        records = [serialized(key, label) for key, label in made[stored].items()]
        for shard in range(2):
            with (root / f"dmlab/dmlab-{stored}.tfrecord-0000{shard}-of-00002").open("wb") as file:
                writer = RecordWriter(file)
                for record in records[shard::2]:
                    writer.write(record)
    return Miniature(made)


def tfds_kitti_videos(videos: list[str]) -> tuple[set[str], set[str]]:
    """Test and validation videos by NumPy's global generator, as the builder of TFDS draws them."""
    state = np.random.get_state()
    np.random.seed(seed=123)
    test = set(np.random.choice(sorted(videos), max(1, 10 * len(videos) // 100), replace=False))
    rest = sorted(set(videos) - test)
    validation = set(np.random.choice(rest, max(1, 10 * len(videos) // 100), replace=False))
    np.random.set_state(state)
    return test, validation


def make_kitti_dist(root: Path) -> Miniature:
    base = root / "kitti"
    videos = [f"2011_09_26_drive_{i:04}_sync" for i in range(24)]
    lines = [f"2011_09_26 {video} {frame:010}" for video in videos for frame in range(3)]
    order = np.random.default_rng(1).permutation(len(lines))  # image i is frame order[i]
    write(base / "mapping/train_mapping.txt", "\n".join(lines) + "\n")
    write(base / "mapping/train_rand.txt", ",".join(str(i + 1) for i in order) + "\n")
    test, validation = tfds_kitti_videos(videos)
    cases = [
        (0, [("Car", 8.0), ("Car", 30.0)]),
        (1, [("Pedestrian", 2.0), ("Van", 8.2)]),
        (1, [("Truck", 20.0)]),
        (2, [("Car", 20.5), ("Tram", 1.0)]),
        (3, [("Cyclist", 4.0), ("DontCare", -1000.0)]),
        (3, []),
        (0, [("Van", -2.0)]),
    ]
    made: dict[str, dict[str, int]] = {"train": {}, "validation": {}, "test": {}}
    for image, frame in enumerate(order):
        label, objects = cases[image % len(cases)]
        rows = [f"{kind} 0.00 0 -1.57 1.0 2.0 3.0 4.0 1.5 1.6 3.7 -0.5 1.7 {z} 0.1" for kind, z in objects]
        key = f"{image:06}.png"
        write(base / f"training/label_2/{image:06}.txt", "\n".join(rows))
        write(base / f"training/image_2/{key}", encoded(key, ".png"))
        video = lines[frame].split()[1]
        stored = "test" if video in test else "validation" if video in validation else "train"
        made[stored][key] = label
    return Miniature(made, lambda key: Path(key).name)


def make_dsprites(root: Path, column: int) -> Miniature:
    number = 80
    latents = np.stack(
        [np.arange(number) * k % n for k, n in ((0, 1), (1, 3), (5, 6), (1, 40), (3, 32), (7, 32))], 1
    )
    images = np.zeros((number, 64, 64), np.uint8)
    for row in range(number):
        images[row, : row % 60 + 1, :7] = 1  # as many rows as the number says
    (root / "dsprites").mkdir()
    np.savez_compressed(
        root / "dsprites/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        imgs=images, latents_classes=latents.astype(np.int64), latents_values=latents * 0.5,
        metadata=np.array({"title": "dSprites"}, dtype=object),
    )  # fmt: skip
    halves = latents[:, column] * 2  # 2 places a class, or 2.5 angles
    per_class = 4 if column == 4 else 5
    return Miniature({"train": {str(row): int(halves[row] // per_class) for row in range(number)}}, row_of)


def row_of(key: str) -> str:
    return str(int(key.rpartition("_")[2]))


def make_dsprites_loc(root: Path) -> Miniature:
    return make_dsprites(root, 4)


def make_dsprites_ori(root: Path) -> Miniature:
    return make_dsprites(root, 3)


def norb_matrix(array: np.ndarray) -> bytes:
    magic = {"uint8": 0x1E3D4C55, "int32": 0x1E3D4C54}[str(array.dtype)]
    lengths = [*array.shape, *[1] * (3 - array.ndim)]
    return struct.pack(f"<{2 + len(lengths)}i", magic, array.ndim, *lengths) + array.tobytes()


def make_smallnorb(root: Path, column: int) -> Miniature:
    made = {}
    for stored, theirs, number in (
        ("train", "5x46789x9x18x6x2x96x96-training", 30),
        ("test", "5x01235x9x18x6x2x96x96-testing", 24),
    ):
        rows = np.arange(number)
        info = np.stack([rows % 10, rows % 9, rows * 5 % 18 * 2, rows % 6], axis=1).astype(np.int32)
        dat = np.zeros((number, 2, 96, 96), np.uint8)
        dat[:, 0] = np.array([shade(str(row)) for row in rows])[:, None, None]
        dat[:, 1] = 255  # the right camera
        for kind, array in (("dat", dat), ("info", info)):
            content = norb_matrix(array)
            file = root / f"smallnorb/smallnorb-{theirs}-{kind}.mat"
            if stored == "train":
                write(file.with_name(file.name + ".gz"), gzip.compress(content, 1))
            else:
                write(file, content)
        truth = info[:, 1] if column == 1 else rows * 5 % 18
        made[stored] = {str(row): int(truth[row]) for row in rows}
    return Miniature(made, row_of)


def make_smallnorb_azimuth(root: Path) -> Miniature:
    return make_smallnorb(root, 2)


def make_smallnorb_elevation(root: Path) -> Miniature:
    return make_smallnorb(root, 1)


MAKERS = {name.removeprefix("make_"): maker for name, maker in globals().items() if name.startswith("make_")}


def options(name: str) -> dict:
    return {"process": False} if name == "diabetic_retinopathy" else {}


def load(name: str, root: Path, split: str = "train800", **more):
    return vtab(task=name, root=str(root), split=split, **({"check_counts": False} | options(name) | more))


def chosen(name: str, made: Miniature) -> dict[str, tuple[str, list[str]]]:
    """Of each part, the split of TFDS and the keys: the published slices, scaled to the miniature."""
    _, published, val, test = PUBLISHED[name]
    order = {
        stored: sorted(labels, key=lambda key: hashlib.md5((stored + key).encode()).hexdigest())
        for stored, labels in made.labels.items()
    }

    def at(stored: str, position: int) -> int:
        return int(position * len(order[stored]) / sizes(published)[stored] + 1e-9)

    (val_split, val_begin, _), (test_split, test_begin, _) = parsed(val), parsed(test)
    starts = [("train", 0), (val_split, at(val_split, val_begin)), (test_split, at(test_split, test_begin))]
    found = {}
    for part, (stored, begin) in zip(("train", "val", "test"), starts, strict=True):
        later = [start for other, start in starts if other == stored and start > begin]
        found[part] = (stored, order[stored][begin : min(later, default=None)])
    return found


def put_extracted(
    folder: Path, *, train: int, val: int, test: int, num_classes: int = 10
) -> dict[str, list[int]]:
    made = {}
    for kind, number in (
        ("train800", train),
        ("val200", val),
        ("train800val200", train + val),
        ("test", test),
    ):
        names = [f"images/{kind}/{i:06}.jpg" for i in range(number)]
        made[kind] = [(3 * i + len(kind)) % num_classes for i in range(number)]
        for name in names:
            write(folder / name, encoded(name))
        lines = [f"{name} {label}\n" for name, label in zip(names, made[kind], strict=True)]
        write(folder / f"{kind}.txt", "".join(lines))
    return made


def put_lists(folder: Path, **lists: list[str]) -> None:
    for kind, lines in lists.items():
        write(folder / f"{kind}.txt", "\n".join(lines) + "\n")


def keys_of(images) -> list[str]:
    return [images.key(i) for i in range(len(images))]
