"""VTAB-1k out of miniatures of every original format and of the extracted data.

Each miniature is written from labels that were chosen first; which images a task takes is worked out again from the
slices of TFDS that the benchmark states.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import logging
import pickle
import re
import struct
import sys
import typing
import urllib.error
import zlib
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np
import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from PIL import Image
from scipy.io import savemat
from tensorboard.summary.writer.record_writer import RecordWriter

from mixer_lightning.config.compose import compose, compose_one
from mixer_lightning.config.signatures import build
from mixer_lightning.data.decode import pixels
from mixer_lightning.data.sources.vtab import classes, fundus
from mixer_lightning.data.sources.vtab.subset import slices, stored_order
from mixer_lightning.data.sources.vtab.tasks import TASKS, vtab
from mixer_lightning.data.splits import choose
from mixer_lightning.data.transforms import Augment

CONF = Path(__file__).parents[2] / "conf"

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
#: Where BiT (arXiv 1912.11370, appendix F) leaves out random crops and flips.
NO_CROP = {"clevr_count", "clevr_dist", "dmlab", "kitti_dist", "dsprites_loc"}
NO_FLIP = {"dsprites_loc", "dsprites_ori", "smallnorb_azimuth"}


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


def parsed(text: str) -> tuple[str, int, int]:
    split, begin, end = re.fullmatch(r"(\w+)\[(\d+):(\d+)\]", text).groups()
    return split, int(begin), int(end)


def sizes(text: str) -> dict[str, int]:
    words = text.split()
    return {split: int(size) for split, size in zip(words[::2], words[1::2], strict=True)}


# ---- what is published


def test_there_are_nineteen():
    assert sorted(TASKS) == sorted(PUBLISHED)
    assert len(PUBLISHED) == 19


@pytest.mark.parametrize("name", PUBLISHED)
def test_slices_at_full_size(name):
    num_classes, splits, val, test = PUBLISHED[name]
    task = TASKS[name]
    assert (task.classes, task.sizes) == (num_classes, sizes(splits))
    assert slices(task, task.sizes) == {
        "train": ("train", 0, 800),
        "val": parsed(val),
        "test": parsed(test),
    }
    assert task.num_test == parsed(test)[2] - parsed(test)[1]


def test_the_order_is_that_of_tfds():
    """CIFAR-10 begins in TFDS with train_16399, train_01680, ..., as its documentation and many books print."""
    printed = [16399, 1680, 47917, 17307, 27051, 48736, 26263, 1456, 19135, 31598, 12970, 4223]
    assert stored_order("train", [str(row) for row in range(50_000)])[:12].tolist() == printed
    assert stored_order("test", [str(row) for row in range(50_000)])[:2].tolist() != printed[:2]


def test_tasks_may_be_named_on_the_command_line():
    annotations = typing.get_type_hints(vtab)
    assert list(typing.get_args(annotations["task"])) == list(TASKS)
    refused = compose("finetune", ["data=vtab"]).messages
    assert len(refused) == 1
    assert "'data.task' is missing" in refused[0]
    misspelt = compose("finetune", ["data=vtab", "data.task=pet"]).messages
    assert len(misspelt) == 1
    for name in PUBLISHED:
        assert f"'{name}'" in refused[0]
        assert f"'{name}'" in misspelt[0]
    with pytest.raises(ValueError, match=r"no task 'pet': did you mean 'pets'\?"):
        vtab(task="pet", root="x", split="train800")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_describes_every_task(name):
    lines = (CONF / "data" / "vtab.yaml").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith(f"#   {name} ")]
    assert row.split()[2:4] == [f"{TASKS[name].classes}", f"{TASKS[name].num_test:,}"]
    assert row.endswith(f"; {TASKS[name].source}")


@pytest.mark.parametrize("name", PUBLISHED)
def test_training_refuses_what_changes_a_label(name, tmp_path):
    put_extracted(tmp_path / name, train=4, val=2, test=3, num_classes=PUBLISHED[name][0])
    data = choose(load(name, tmp_path))
    recipe = compose_one("finetune", ["data=vtab", f"data.task={name}", "augment.flip=0.3"])
    changes = [kind for kind, where in (("crop", NO_CROP), ("flip", NO_FLIP)) if name in where]
    assert data.label_changes_with == tuple(changes)
    if not changes:
        data.refuse_label_changing(build(recipe.augment))
        return
    with pytest.raises(
        ValueError, match=f"^vtab_{name}: a label changes with a {' or a '.join(changes)}: use "
    ) as e:
        data.refuse_label_changing(build(recipe.augment))
    mend = str(e.value).rpartition(": use ")[2].split()
    wanted = {"crop": {"crop=none", "eval_crop=1.0"}, "flip": {"flip=0.0"}}
    assert set(mend) == {f"augment.{each}" for kind in changes for each in wanted[kind]}
    mended = compose_one("finetune", ["data=vtab", f"data.task={name}", *mend])
    data.refuse_label_changing(build(mended.augment))
    variant = "vtab" + "_uncropped" * (name in NO_CROP) + "_unflipped" * (name in NO_FLIP)
    protocol = compose_one("finetune", ["data=vtab", f"data.task={name}", f"transfer={variant}"])
    assert {**protocol.to_dict(), "choices": 0} == {**mended.to_dict(), "choices": 0}
    assert name in (CONF / "transfer" / f"{variant}.yaml").read_text().splitlines()[1]
    with pytest.raises(ValueError, match="label changes"):  # a centre crop of every image is one too
        replace(data, label_changes_with=("crop",)).refuse_label_changing(Augment(eval_crop=0.875))


def test_class_names():
    assert len(classes.flowers()) == 102
    for names, count in (
        (classes.CALTECH101, 102), (classes.CIFAR100, 100), (classes.DTD, 47), (classes.PETS, 37),
        (classes.RESISC45, 45), (classes.EUROSAT, 10),
    ):  # fmt: skip
        assert len(set(names)) == count
        assert names == sorted(names, key=str.lower)


# ---- miniatures


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


# ---- every task out of its originals


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_originals(tmp_path, name):
    made = MAKERS[name](tmp_path)
    data = load(name, tmp_path)
    assert data.name == f"vtab_{name}"
    assert list(data.splits) == ["train", "val", "test"]
    for part, (stored, keys) in chosen(name, made).items():
        images = data.splits[part]
        labels = images.labels(np.arange(len(images))).tolist()
        found = {made.called(images.key(i)): labels[i] for i in range(len(images))}
        assert found == {key: made.labels[stored][key] for key in keys}, part
        assert len(found) == len(images) > 0
        assert all(0 <= label < len(data.classes) for label in labels)
        for i in (0, len(images) - 1):
            image = pixels(images.read(i)).float()
            assert image.shape[0] == 3
            if name.startswith("dsprites"):
                row = int(made.called(images.key(i)))
                assert image[2].sum() == 255 * 7 * (row % 60 + 1)
                assert set(image.unique().tolist()) <= {0, 255}
            else:
                assert abs(image[0].mean() - shade(made.called(images.key(i)))) < 3, images.name(i)
    if name != "sun397":  # named by its folders
        assert len(data.classes) == PUBLISHED[name][0]


@pytest.mark.parametrize("name", PUBLISHED)
def test_all_thousand_are_both_together(tmp_path, name):
    MAKERS[name](tmp_path)
    apart, joined = load(name, tmp_path).splits, load(name, tmp_path, "trainval1000").splits
    assert list(joined) == ["train", "test"]

    def contents(images) -> list:
        labels = images.labels(np.arange(len(images))).tolist()
        return sorted(
            (images.name(i), label, bytes(np.asarray(pixels(images.read(i)))))
            for i, label in enumerate(labels)
        )

    assert contents(joined["train"]) == sorted(contents(apart["train"]) + contents(apart["val"]))
    assert contents(joined["test"]) == contents(apart["test"])
    keys = [joined["train"].key(i) for i in range(len(joined["train"]))]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize("name", PUBLISHED)
def test_other_sizes_than_the_published_ones_are_refused(tmp_path, name):
    made = MAKERS[name](tmp_path)
    with pytest.raises(ValueError, match=rf"^vtab_{name}: ") as caught:
        load(name, tmp_path, check_counts=True)
    found, published = len(made.labels["train"]), sizes(PUBLISHED[name][1])["train"]
    if name != "sun397":
        assert f"{found:,} images, but {published:,} were published" in str(caught.value)
    assert "check_counts=false" in str(caught.value) or name == "sun397"


@pytest.mark.parametrize("name", PUBLISHED)
def test_what_is_missing_is_said_and_where_it_belongs(tmp_path, name):
    with pytest.raises(FileNotFoundError) as caught:
        load(name, tmp_path)
    message = str(caught.value)
    assert message.startswith(f"vtab_{name}: ")
    assert str(tmp_path / name / "train800.txt") in message
    assert re.search(r"[a-z]\.(edu|org|net|com)\b|\.tar\.gz|\.rar|\.zip|\.mat|\.tgz", message), message


def test_dtd_at_its_full_size(tmp_path):
    base = tmp_path / "dtd/dtd/dtd"
    names = {
        each: [f"{classes.DTD[i // 40]}/{each}_{i:04}.jpg" for i in range(1880)]
        for each in ("train", "val", "test")
    }
    for each, keys in names.items():
        write(base / f"labels/{each}1.txt", "\n".join(keys))
        for key in keys:
            (base / "images" / key).parent.mkdir(parents=True, exist_ok=True)
            (base / "images" / key).touch()
    apart = vtab(task="dtd", root=str(tmp_path), split="train800")
    assert {part: len(images) for part, images in apart.splits.items()} == {
        "train": 800,
        "val": 200,
        "test": 1880,
    }
    joined = vtab(task="dtd", root=str(tmp_path), split="trainval1000")
    assert {part: len(images) for part, images in joined.splits.items()} == {"train": 1000, "test": 1880}
    with (base / "labels/test1.txt").open("a") as file:
        file.write("\nzigzagged/one_more.jpg")
    with pytest.raises(ValueError, match="test split has 1,881 images, but 1,880 were published"):
        vtab(task="dtd", root=str(tmp_path), split="train800")


def test_the_root_may_be_the_task_itself(tmp_path):
    make_pets(tmp_path)
    assert len(load("pets", tmp_path / "oxford_iiit_pet").splits["test"]) == 11


def test_images_that_are_not_there(tmp_path):
    make_dtd(tmp_path)
    (tmp_path / "dtd/dtd/dtd/images/banded/banded_test1.jpg").unlink()
    with pytest.raises(
        ValueError, match=r"dtd/images lacks 1 of 12 images, such as banded/banded_test1\.jpg"
    ):
        load("dtd", tmp_path)


DAMAGED = [
    ("svhn", "svhn/train_32x32.mat", b"no matrix at all" * 20),
    ("flowers", "flowers/flowers-102/setid.mat", b"x" * 300),
    ("cifar100", "cifar/cifar-100-python/test", b"\x80\x04cut"),
    ("pets", "oxford_iiit_pet/oxford-iiit-pet/annotations/test.txt", b"Abyssinian_1\n"),
    ("diabetic_retinopathy", "diabetic_retinopathy/trainLabels.csv", b"name,grade\n1_left,0\n"),
    ("clevr_count", "clevr/CLEVR_v1.0/scenes/CLEVR_val_scenes.json", b'{"scenes": ['),
    ("kitti_dist", "kitti/training/label_2/000003.txt", b"Car 0.0 0"),
    (
        "dsprites_loc",
        "dsprites/dsprites_ndarray_co1sh3sc6or40x32y32_64x64.npz",
        b"PK\x03\x04 and then no archive",
    ),
    ("smallnorb_azimuth", "smallnorb/smallnorb-5x01235x9x18x6x2x96x96-testing-info.mat", b"\0" * 40),
]


@pytest.mark.parametrize(("name", "file", "content"), DAMAGED)
def test_a_damaged_file_is_named(tmp_path, name, file, content):
    MAKERS[name](tmp_path)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(ValueError, match=f"cannot read {re.escape(str(tmp_path / file))} "):
        load(name, tmp_path)


def test_a_cut_matrix(tmp_path):
    make_smallnorb_elevation(tmp_path)
    path = tmp_path / "smallnorb/smallnorb-5x01235x9x18x6x2x96x96-testing-dat.mat"
    path.write_bytes(path.read_bytes()[: 5 * 2 * 96 * 96])
    with pytest.raises(ValueError, match=r"testing-dat\.mat \(EOFError: it ends after 4 images\)"):
        load("smallnorb_elevation", tmp_path)


def test_h5py_is_asked_for_where_it_is_needed(tmp_path, monkeypatch):
    make_patch_camelyon(tmp_path)
    monkeypatch.setitem(sys.modules, "h5py", None)
    with pytest.raises(ValueError, match=r"vtab_patch_camelyon: .*pip install h5py"):
        load("patch_camelyon", tmp_path)


def test_images_of_hdf5_travel_to_other_processes(tmp_path):
    make_patch_camelyon(tmp_path)
    images = load("patch_camelyon", tmp_path).splits["test"]
    before = np.asarray(images.read(3))
    assert (np.asarray(pickle.loads(pickle.dumps(images)).read(3)) == before).all()


# ---- TFRecord


def test_tfrecords_that_are_none_or_damaged(tmp_path):
    make_dmlab(tmp_path)
    path = tmp_path / "dmlab/dmlab-test.tfrecord-00001-of-00002"
    whole = path.read_bytes()
    path.write_bytes(whole[:-20])
    with pytest.raises(
        ValueError, match=r"00001-of-00002 ends inside the record at byte [\d,]+: it was cut off"
    ):
        load("dmlab", tmp_path)
    path.write_bytes(b"\x01" + whole[1:])
    with pytest.raises(ValueError, match="is no TFRecord file, or damaged at byte 0"):
        load("dmlab", tmp_path)
    with path.open("wb") as file:
        RecordWriter(file).write(b"\x0b\x0c\x0d")
    with pytest.raises(ValueError, match="cannot read the record at byte 0"):
        load("dmlab", tmp_path)
    with path.open("wb") as file:
        RecordWriter(file).write(example_message()().SerializeToString())
    with pytest.raises(ValueError, match="has records without image, filename and label"):
        load("dmlab", tmp_path)


def test_integers_in_tfrecords_packed_or_not(tmp_path):
    """A label of 3 as older writers put it: a bare varint instead of a packed list."""
    make_dmlab(tmp_path)
    name, image = b"bare.jpg", encoded("bare.jpg")

    def field(number: int, content: bytes) -> bytes:
        length = len(content)
        varint = bytes([length]) if length < 128 else bytes([length & 127 | 128, length >> 7])
        return bytes([number << 3 | 2]) + varint + content

    def entry(key: bytes, feature: bytes) -> bytes:
        return field(1, field(1, key) + field(2, feature))

    entries = entry(b"label", field(3, b"\x08\x03"))
    entries += entry(b"filename", field(1, field(1, name))) + entry(b"image", field(1, field(1, image)))
    for shard in range(2):
        with (tmp_path / f"dmlab/dmlab-test.tfrecord-0000{shard}-of-00002").open("wb") as file:
            if shard == 0:
                RecordWriter(file).write(field(1, entries))
    test = load("dmlab", tmp_path).splits["test"]
    assert (len(test), test.labels(np.array([0])).tolist(), test.key(0)) == (1, [3], "bare.jpg")
    assert test.read(0) == image


# ---- what TFDS drew by chance


def test_drawn_images_are_not_passed_off_as_the_published_ones(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    make_caltech101(tmp_path)
    load("caltech101", tmp_path)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "vtab_caltech101: not the published images" in caplog.text
    caplog.clear()
    made = make_sun397(tmp_path)
    load("sun397", tmp_path)
    assert [record.levelname for record in caplog.records] == ["INFO"]
    assert "vtab_sun397: the published images" in caplog.text
    caplog.clear()
    (tmp_path / "sun397/SUN397/a/abbey/sun_in_no_split.jpg").unlink()
    for each in ("tr", "va", "te"):
        (tmp_path / f"sun397/sun397_tfds_{each}.txt").unlink()
    data = load("sun397", tmp_path)
    assert "put them beside SUN397/" in caplog.text
    assert data.classes == SCENES
    everything = {key for labels in made.labels.values() for key in labels}
    assert {f"/{images.key(i)}" for images in data.splits.values() for i in range(len(images))} == everything


# ---- lists of names


def put_lists(folder: Path, **lists: list[str]) -> None:
    for kind, lines in lists.items():
        write(folder / f"{kind}.txt", "\n".join(lines) + "\n")


def keys_of(images) -> list[str]:
    return [images.key(i) for i in range(len(images))]


def test_lists_choose_among_the_originals(tmp_path):
    made = make_pets(tmp_path)
    names = sorted(made.labels["train"])
    listed = [f"{name} {made.labels['train'][name]}" for name in names]
    put_lists(tmp_path / "lists/pets", train800=listed[3:9], val200=listed[12:14])
    data = load("pets", tmp_path, lists=str(tmp_path / "lists"))
    assert sorted(keys_of(data.splits["train"])) == names[3:9]
    assert sorted(keys_of(data.splits["val"])) == names[12:14]
    assert sorted(keys_of(data.splits["test"])) == sorted(made.labels["test"])
    joined = load("pets", tmp_path, "trainval1000", lists=str(tmp_path / "lists/pets"))
    assert sorted(keys_of(joined.splits["train"])) == names[3:9] + names[12:14]
    put_lists(tmp_path / "pets", train800val200=listed[20:25])  # beside the originals, one list for both
    joined = load("pets", tmp_path, "trainval1000")
    assert sorted(keys_of(joined.splits["train"])) == names[20:25]
    with pytest.raises(
        FileNotFoundError, match=r"lacks train800\.txt and val200\.txt, needed for split=train800"
    ):
        load("pets", tmp_path)


def test_lists_of_visual_prompt_tuning(tmp_path):
    made = make_eurosat(tmp_path)
    keys = sorted(made.labels["train"])
    names = [key.partition("_")[2] for key in keys]  # "AnnualCrop_3.jpg", as TFDS' "filename"
    path = tmp_path / "splits.json"
    order = np.random.default_rng(0).permutation(len(names))[:20]
    test = {made.called(key) for key in keys_of(load("eurosat", tmp_path).splits["test"])}
    order = [i for i in order if keys[i] not in test]
    path.write_text(json.dumps({"vtab-dtd": [], "vtab-eurosat": [names[i] for i in order]}))
    data = load("eurosat", tmp_path, lists=str(path))
    assert len(data.splits["train"]) == len(order) * 4 // 5
    found = keys_of(data.splits["train"]) + keys_of(data.splits["val"])
    assert sorted(map(made.called, found)) == sorted(keys[i] for i in order)
    path.write_text(json.dumps({"vtab-dtd": []}))
    with pytest.raises(
        ValueError, match=r"vtab_eurosat: .*splits\.json has no lists for this task\. Expected"
    ):
        load("eurosat", tmp_path, lists=str(path))
    path.write_text("[")
    with pytest.raises(ValueError, match=r"vtab_eurosat: .*splits\.json is no JSON"):
        load("eurosat", tmp_path, lists=str(path))


def test_lists_that_cannot_be_right(tmp_path):
    made = make_caltech101(tmp_path)
    lists = tmp_path / "lists"
    train, val, test = ([f"accordion/image_{i:04}.jpg" for i in each] for each in ([1, 2, 3], [4], [5, 6]))
    put_lists(lists, train800=train, val200=val)
    with pytest.raises(ValueError, match=r"none for testing.*30 of each class by chance.*Give test\.txt too"):
        load("caltech101", tmp_path, lists=str(lists))
    put_lists(lists, test=test)
    data = load("caltech101", tmp_path, lists=str(lists))
    assert [keys_of(data.splits[part]) for part in ("train", "val", "test")] == [train, val, test]
    put_lists(lists, test=[*test, train[0]])
    with pytest.raises(
        ValueError, match="vtab_caltech101: the lists name an image twice, or one that is for testing"
    ):
        load("caltech101", tmp_path, lists=str(lists))
    put_lists(lists, test=["image_0001.jpg"])  # one in each class
    with pytest.raises(ValueError, match=r"image_0001\.jpg in .*lists names \d images"):
        load("caltech101", tmp_path, lists=str(lists))
    put_lists(lists, test=["accordion/image_9999.jpg"])
    with pytest.raises(ValueError, match=r"accordion/image_9999\.jpg in .*lists is not among the originals"):
        load("caltech101", tmp_path, lists=str(lists))
    put_lists(lists, test=["Faces/image_0001.jpg 36"])
    with pytest.raises(
        ValueError, match=r"gives Faces/image_0001\.jpg the label 36, but the originals say 37"
    ):
        load("caltech101", tmp_path, lists=str(lists))
    with pytest.raises(FileNotFoundError, match=r"data\.lists=.*nowhere does not exist"):
        load("caltech101", tmp_path, lists=str(tmp_path / "nowhere"))
    with pytest.raises(FileNotFoundError, match=r"no train800\.txt in data\.lists="):
        load("caltech101", tmp_path, lists=str(tmp_path / "caltech101/caltech101"))
    assert made.labels["train"]


def test_rows_in_lists_belong_to_the_split_that_the_task_takes_them_from(tmp_path):
    """SmallNORB's 800 are rows of the training set, its 200 rows of the test set."""
    made = make_smallnorb_azimuth(tmp_path)
    test = {row_of(key) for key in keys_of(load("smallnorb_azimuth", tmp_path).splits["test"])}
    free = [row for row in made.labels["test"] if row not in test][:2]
    put_lists(tmp_path / "smallnorb", train800=["4", "5", free[0]], val200=free)
    joined = load("smallnorb_azimuth", tmp_path, "trainval1000").splits["train"]
    expected = {f"train_{int(row):06}" for row in ("4", "5", free[0])} | {
        f"test_{int(row):06}" for row in free
    }
    assert set(keys_of(joined)) == expected


# ---- extracted data


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


@pytest.mark.parametrize("folder", ["svhn", "."])
def test_extracted_data(tmp_path, folder, caplog):
    caplog.set_level(logging.INFO)
    made = put_extracted(tmp_path / folder, train=8, val=3, test=5)
    for split, kinds in (
        ("train800", {"train": "train800", "val": "val200", "test": "test"}),
        ("trainval1000", {"train": "train800val200", "test": "test"}),
    ):
        data = load("svhn", tmp_path, split)
        assert data.classes == [str(digit) for digit in range(10)]
        assert list(data.splits) == list(kinds)
        for part, kind in kinds.items():
            images = data.splits[part]
            assert images.labels(np.arange(len(images))).tolist() == made[kind]
            assert abs(pixels(images.read(2)).float().mean() - shade(f"images/{kind}/000002.jpg")) < 3
    assert caplog.text.count("the extracted images in") == 2
    with pytest.raises(
        ValueError, match=r"^vtab_svhn: the train split has 8 images, but 800 were published\..*false"
    ):
        load("svhn", tmp_path, check_counts=True)


@pytest.mark.parametrize("name", PUBLISHED)
def test_every_task_reads_extracted_data(tmp_path, name):
    """Under our name and, where they differ, under that of the extracted data."""
    theirs = {
        "cifar100": "cifar", "flowers": "oxford_flowers102", "pets": "oxford_iiit_pet", "kitti_dist": "kitti",
        "smallnorb_azimuth": "smallnorb_azi", "smallnorb_elevation": "smallnorb_ele",
    }  # fmt: skip
    for i, folder in enumerate({name, theirs.get(name, name)}):
        made = put_extracted(
            tmp_path / str(i) / folder, train=4, val=2, test=3, num_classes=PUBLISHED[name][0]
        )
        data = load(name, tmp_path / str(i))
        assert len(data.classes) == PUBLISHED[name][0]
        assert data.splits["test"].labels(np.arange(3)).tolist() == made["test"]


def test_extracted_data_of_the_published_size(tmp_path):
    put_extracted(tmp_path / "kitti", train=800, val=200, test=711, num_classes=4)
    data = vtab(task="kitti_dist", root=str(tmp_path), split="trainval1000")
    assert {part: len(images) for part, images in data.splits.items()} == {"train": 1000, "test": 711}
    (tmp_path / "kitti/test.txt").open("a").write("images/test/000000.jpg 1\n")
    with pytest.raises(ValueError, match="the test split has 712 images, but 711 were published"):
        vtab(task="kitti_dist", root=str(tmp_path), split="trainval1000")


def test_extracted_data_in_disorder(tmp_path):
    folder = tmp_path / "svhn"
    put_extracted(folder, train=4, val=2, test=3)
    (folder / "train800val200.txt").unlink()
    assert len(load("svhn", tmp_path, "trainval1000").splits["train"]) == 6
    (folder / "images/val200/000001.jpg").unlink()
    with pytest.raises(ValueError, match=r"svhn lacks 1 of 2 images, such as images/val200/000001\.jpg"):
        load("svhn", tmp_path)
    (folder / "val200.txt").write_text("images/val200/000000.jpg 10\n")
    with pytest.raises(
        ValueError, match=r"images/val200/000000\.jpg has no label or one that is not below 10"
    ):
        load("svhn", tmp_path)
    (folder / "test.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"vtab_svhn: no .*/svhn/test\.txt beside the lists"):
        load("svhn", tmp_path)
    (folder / "val200.txt").unlink()
    with pytest.raises(
        FileNotFoundError, match=r"vtab_svhn: .*/svhn lacks val200\.txt, needed for split=train800"
    ):
        load("svhn", tmp_path)


def test_photographs_of_other_tasks_are_not_processed(tmp_path):
    with pytest.raises(ValueError, match=r"vtab_dtd: data\.process=false is for diabetic_retinopathy only"):
        load("dtd", tmp_path, process=False)


def test_an_unknown_split(tmp_path):
    with pytest.raises(
        ValueError, match=r"vtab_dtd: data\.split is 'train'; choose train800 or trainval1000\."
    ):
        load("dtd", tmp_path, "train")


# ---- Ben Graham's processing


def retina(radius: int, size: tuple[int, int], inside: np.ndarray) -> np.ndarray:
    """`inside` where the eyeball is, black outside."""
    y, x = np.mgrid[: size[0], : size[1]]
    disc = (y - size[0] // 2) ** 2 + (x - size[1] / 2 + 0.5) ** 2 < radius**2
    return (inside * disc[:, :, None]).astype(np.uint8)


def test_an_even_eyeball_becomes_grey():
    done = fundus.process(retina(200, (420, 440), np.full((420, 440, 3), 90)))
    assert done.shape == (540, 540, 3)
    assert done.dtype == np.uint8
    y, x = np.mgrid[:540, :540] - 270
    assert (done[y**2 + x**2 > 270**2] == 128).all()  # cut off
    assert (
        done[y**2 + x**2 < 265**2] == 128
    ).all()  # the Gaussian reaches 30 pixels; the eyeball ends at 300


def test_four_times_the_difference_to_the_gaussian_mean():
    """At a radius of 300 nothing is scaled, and a pixel can be worked out by hand."""
    noise = np.random.default_rng(0).integers(60, 130, (700, 640, 3))
    photograph = retina(300, (700, 640), noise)
    done = fundus.process(photograph)
    weights = np.exp(-(np.arange(-30, 31) ** 2) / (2 * 10.0**2))
    weights = np.outer(weights, weights) / weights.sum() ** 2
    for y, x in ((0, 0), (100, -50), (-200, 120)):
        row, column = 350 + y, 320 + x
        patch = photograph[row - 30 : row + 31, column - 30 : column + 31].astype(float)
        mean = np.rint((patch * weights[:, :, None]).sum((0, 1)))
        expected = (4 * (photograph[row, column] - mean) + 128).clip(0, 255)
        assert np.abs(done[270 + y, 270 + x] - expected).max() <= 4  # one step of the rounded mean


def test_photographs_are_processed_when_read(tmp_path):
    made = make_diabetic_retinopathy(tmp_path)
    data = vtab(task="diabetic_retinopathy", root=str(tmp_path), split="train800", check_counts=False)
    image = data.splits["test"].read(0)
    assert isinstance(image, np.ndarray)
    assert image.shape == (540, 540, 3)
    assert (fundus.process(np.zeros((40, 50, 3), np.uint8)) == 128).all()  # a black photograph
    assert len(data.splits["train"]) == len(made.labels["train"])
