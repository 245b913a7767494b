"""The same data, wherever and in whatever order they are stored, and data that only look the same."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_lightning.data import identity
from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.sources.arrays import Arrays
from mixer_lightning.data.sources.folder import folder
from mixer_lightning.data.splits import Joined, Subset, choose


def paint(root: Path, *, shift: int = 0) -> Path:
    """Twelve images of two classes, in files called by the same numbers."""
    for i in range(12):
        path = root / ("train" if i < 8 else "val") / "ab"[i % 2] / f"{i // 2}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i + shift).integers(0, 255, (4, 5, 3), np.uint8)).save(path)
    return root


def refused(now: Dataset, before: Dataset) -> str | None:
    try:
        identity.refuse_another(identity.record(now), identity.record(before), Path("runs/x"))
    except ValueError as error:
        return str(error)
    return None


def test_a_copy_elsewhere_is_the_same_data(tmp_path):
    assert refused(folder(root=str(paint(tmp_path / "a"))), folder(root=str(paint(tmp_path / "b")))) is None


def test_an_image_that_was_moved_to_another_class_is_noticed_at_equal_counts(tmp_path):
    before = folder(root=str(paint(tmp_path / "a")))
    other = paint(tmp_path / "b")
    for a, b in (("a", "b"), ("b", "a")):
        (other / "train" / a / "3.png").rename(other / "train" / b / "moved.png")
    assert "as many train images as here, but others" in (refused(folder(root=str(other)), before) or "")


def test_folders_that_changed_places_are_noticed_though_every_path_is_there(tmp_path):
    before = folder(root=str(paint(tmp_path / "a")))
    train = paint(tmp_path / "b") / "train"
    for name, to in (("a", "x"), ("b", "a"), ("x", "b")):
        (train / name).rename(train / to)
    assert "8 of 8 looked at are other files" in (refused(folder(root=str(tmp_path / "b")), before) or "")
    (train / "a").rename(train / "x")
    (train / "b").rename(train / "a")
    (train / "x").rename(train / "b")
    (train / "a/0.png").write_bytes((train / "a/0.png").read_bytes() + b"repaired")
    assert refused(folder(root=str(tmp_path / "b")), before) is None


def numbers(labels, pixels=None, rows=None) -> Dataset:
    pixels = np.arange(100 * 12, dtype=np.uint8).reshape(100, 2, 2, 3) if pixels is None else pixels
    images = Arrays("numbers", pixels, labels, rows=rows)
    return Dataset("numbers", ["even", "odd"], {"train": images})


def test_labels_and_pixels_of_rows(tmp_path):
    labels = np.arange(100) % 2
    flipped = labels.copy()
    flipped[[17, 18]] = [0, 1]
    assert refused(numbers(labels), numbers(labels)) is None
    assert "the same train images with other labels" in (refused(numbers(flipped), numbers(labels)) or "")
    turned = numbers(labels, np.arange(1200, dtype=np.uint8)[::-1].reshape(100, 2, 2, 3))
    assert "looked at are other files" in (refused(turned, numbers(labels)) or "")


def test_the_order_of_images_and_parts_is_no_difference():
    labels, order = np.arange(100) % 2, np.random.default_rng(0).permutation(100)
    whole = numbers(labels)
    pixels = whole.splits["train"].pixels
    shuffled = numbers(labels[order], pixels[order], rows=order.tolist())
    assert refused(shuffled, whole) is None
    images = whole.splits["train"]
    halves = Joined([Subset(images, np.arange(50, 100)), Subset(images, np.arange(50))])
    assert refused(Dataset("numbers", whole.classes, {"train": halves}), whole) is None


def test_several_labels_count_all():
    two = np.stack([np.arange(100) % 2, np.full(100, -1)], axis=1)
    three = two.copy()
    three[5, 1] = 0
    assert refused(numbers(two), numbers(two)) is None
    assert "other labels" in (refused(numbers(three), numbers(two)) or "")


@pytest.mark.parametrize(
    "missing", [("identity",), ("identity", "images"), ("identity", "images", "classes")]
)
def test_records_of_versions_that_recorded_less_are_enough(tmp_path, missing):
    now = identity.record(folder(root=str(paint(tmp_path))))
    before = {key: value for key, value in now.items() if key not in missing}
    assert identity.refuse_another(now, before, tmp_path) is None  # raises ValueError of other data


def test_what_is_in_a_split_counts_and_not_how_it_is_called(tmp_path):
    data = folder(root=str(paint(tmp_path)))
    cut = choose(data, train="train+val[:50%]", val="val[50%:]") if len(data.splits["val"]) else data
    assert "4 val there" in (refused(cut, data) or "")


def test_thirteen_million_images_in_shards_cost_no_python_loop():
    class Rows:
        """Images of an index: only whole arrays are asked for."""

        def __init__(self) -> None:
            self.values = np.random.default_rng(0).integers(0, 2**32, 2**19, dtype=np.uint32)
            self.calls = 0

        def __len__(self) -> int:
            return len(self.values)

        def labels(self, indices):
            self.calls += 1
            return np.zeros(len(indices), np.int64)

        def read(self, index):
            raise AssertionError

        key = name = read

        def hashes(self):
            return self.values

        def shard_sizes(self):
            return [len(self.values)]

        def prefetch(self, shards):
            raise AssertionError

        def mark(self, index):
            self.calls += 1
            return index

    rows = Rows()
    found = identity.identity(rows)
    assert rows.calls == 2 + identity.MARKED_IMAGES
    assert len(found["marks"]) == identity.MARKED_IMAGES


def test_images_named_as_bad_may_go_or_be_repaired_and_no_others(tmp_path):
    root = paint(tmp_path)
    before = folder(root=str(root))
    stored = identity.record(before)
    paths = sorted((root / "val").rglob("*.png"))
    bad = [{"split": "val", **identity.describe(before.splits["val"], i)} for i in range(3)]
    for i, content in enumerate([None, b"repaired", b"too"]):
        paths[i].unlink() if content is None else paths[i].write_bytes(content)
    data = folder(root=str(root))
    with pytest.raises(ValueError, match="4 val there, 8 train, 3 val here"):
        identity.refuse_another(identity.record(data), stored, root)
    now = identity.record(data, bad=bad)
    identity.refuse_another(now, stored, root)
    assert [each["key"] for each in identity.without(now)] == [bad[0]["key"]]
    assert identity.without(identity.record(data, bad=identity.without(now))) == identity.without(now)
    with pytest.raises(ValueError, match="other labels"):
        identity.refuse_another(identity.record(data, bad=[bad[0] | {"labels": [1]}, *bad[1:]]), stored, root)
    paths[3].unlink()
    paths[1].unlink()
    with pytest.raises(ValueError, match="4 val there, 8 train, 1 val here"):
        identity.refuse_another(identity.record(folder(root=str(root)), bad=bad), stored, root)
