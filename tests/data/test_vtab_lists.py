"""VTAB-1k out of extracted data, and lists of names that choose among the originals."""

from __future__ import annotations

import json
import logging

import numpy as np
import pytest
from vtab_miniatures import (
    PUBLISHED,
    keys_of,
    load,
    make_caltech101,
    make_eurosat,
    make_pets,
    make_smallnorb_azimuth,
    put_extracted,
    put_lists,
    row_of,
    shade,
)

from mixer_lightning.data.decode import pixels
from mixer_lightning.data.sources.vtab.tasks import vtab


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
    with pytest.raises(ValueError, match=r"vtab_eurosat: .*splits\.json is not JSON"):
        load("eurosat", tmp_path, lists=str(path))


def test_lists_that_cannot_be_right(tmp_path):
    made = make_caltech101(tmp_path)
    lists = tmp_path / "lists"
    train, val, test = ([f"accordion/image_{i:04}.jpg" for i in each] for each in ([1, 2, 3], [4], [5, 6]))
    put_lists(lists, train800=train, val200=val)
    with pytest.raises(ValueError, match=r"none for testing.*30 of each class at random.*Give test\.txt too"):
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
    (folder / "images").rename(tmp_path / "images")
    with pytest.raises(ValueError, match=r"svhn lacks 4 of 4 images, such as images/train800/000000\.jpg"):
        load("svhn", tmp_path)
    (tmp_path / "images").rename(folder / "images")
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


def test_an_unknown_split(tmp_path):
    with pytest.raises(
        ValueError, match=r"vtab_dtd: data\.split is 'train'; choose train800 or trainval1000\."
    ):
        load("dtd", tmp_path, "train")
