"""VTAB-1k out of miniatures of every original format.

Which images a task takes is worked out again from the slices of TFDS that the benchmark states.
"""

from __future__ import annotations

import logging
import os
import pickle
import re
import sys
import urllib.error

import numpy as np
import pytest
from tensorboard.summary.writer.record_writer import RecordWriter
from vtab_miniatures import (
    MAKERS,
    PUBLISHED,
    SCENES,
    chosen,
    encoded,
    example_message,
    load,
    make_caltech101,
    make_cifar100,
    make_dmlab,
    make_dtd,
    make_patch_camelyon,
    make_pets,
    make_smallnorb_elevation,
    make_sun397,
    shade,
    sizes,
    write,
)

from mixer_lightning.data.decode import pixels
from mixer_lightning.data.sources.vtab import classes
from mixer_lightning.data.sources.vtab.tasks import vtab


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise urllib.error.URLError("no network in tests")

    monkeypatch.setattr("urllib.request.urlopen", refuse)


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
    with pytest.raises(ValueError, match="is not a TFRecord file, or damaged at byte 0"):
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


def test_a_pickle_of_a_data_set_runs_no_code(tmp_path):
    make_cifar100(tmp_path)
    path, trace = tmp_path / "cifar/cifar-100-python/meta", tmp_path / "trace"

    class Program:
        def __reduce__(self):
            return os.mkdir, (str(trace),)

    path.write_bytes(pickle.dumps({"fine_label_names": Program()}))
    with pytest.raises(ValueError, match=f"cannot read {re.escape(str(path))} .* holds no code"):
        load("cifar100", tmp_path)
    assert not trace.exists()


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_arrays_are_unpickled_by_every_protocol(tmp_path, protocol):
    made = make_cifar100(tmp_path)
    for stored in made.labels:
        path = tmp_path / "cifar/cifar-100-python" / stored
        path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()), protocol))
    assert len(load("cifar100", tmp_path).splits["test"]) == 12
