"""Class folders: what is found, in which order, and what is said when something is not there."""

from __future__ import annotations

import errno
import os
import shutil
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_lightning.data.decode import decode
from mixer_lightning.data.sources import Images, StorageError
from mixer_lightning.data.sources.disk import reading_below
from mixer_lightning.data.sources.folder import FolderImages, folder
from mixer_lightning.data.splits import choose


def draw(path: Path, shade: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (4, 3), (shade, 0, 0)).save(path)


def labels(images: Images) -> list[int]:
    found = images.labels(np.arange(len(images)))
    assert found.dtype == np.int64
    return found.tolist()


@pytest.fixture
def birds(tmp_path: Path) -> Path:
    for split, number in (("train", 3), ("val", 1)):
        for label, each in enumerate(("crow", "owl")):
            for i in range(number):
                draw(tmp_path / split / each / f"{i}.png", shade=100 * label + i)
    return tmp_path


def test_counts_order_and_labels(birds):
    data = folder(root=str(birds))
    assert data.classes == ["crow", "owl"]
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 6, "val": 2}
    train = data.splits["train"]
    assert labels(train) == [0, 0, 0, 1, 1, 1]
    assert train.labels(np.array([5, 0, 5])).tolist() == [1, 0, 1]
    assert [decode(train.read(i)).getpixel((0, 0))[0] for i in range(6)] == [0, 1, 2, 100, 101, 102]
    assert train.name(4) == str(birds / "train/owl/1.png")


def test_a_key_is_the_path_below_the_split_wherever_the_set_lies(birds):
    keys = [folder(root=str(birds)).splits["train"].key(i) for i in range(6)]
    assert keys == ["crow/0.png", "crow/1.png", "crow/2.png", "owl/0.png", "owl/1.png", "owl/2.png"]


def test_a_file_is_read_as_it_is(birds):
    images = folder(root=str(birds)).splits["train"]
    assert images.read(3) == (birds / "train/owl/0.png").read_bytes()
    (birds / "train/owl/0.png").write_bytes(b"")
    assert images.read(3) == b""
    (birds / "train/owl/0.png").unlink()
    with pytest.raises(FileNotFoundError):
        images.read(3)
    assert labels(images)[3] == 1


def test_suffixes_in_any_case_and_images_in_deeper_folders(birds):
    draw(birds / "train/owl/night/a.JPG")
    draw(birds / "train/owl/b.Tiff")
    draw(birds / "train/owl/c.webp")
    (birds / "train/owl/notes.txt").write_text("no image")
    draw(birds / "train/owl/.hidden.png")
    draw(birds / "train/.cache/x.png")
    data = folder(root=str(birds))
    assert data.classes == ["crow", "owl"]
    assert len(data.splits["train"]) == 6 + 3


def test_test_split_beside_or_instead_of_val(birds):
    draw(birds / "test/owl/0.png")
    assert set(folder(root=str(birds)).splits) == {"train", "val", "test"}
    assert labels(folder(root=str(birds)).splits["test"]) == [
        1
    ]  # labels are train's, though test has no crow
    (birds / "val").rename(birds / "old")
    assert set(folder(root=str(birds)).splits) == {"train", "test"}


def test_home_is_expanded(birds, monkeypatch):
    monkeypatch.setenv("HOME", str(birds.parent))
    assert len(folder(root=f"~/{birds.name}").splits["train"]) == 6


def test_missing_root(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"^birds: no folder .*nowhere\. .*data\.root.*<root>/train/<class>"
    ):
        folder(root=str(tmp_path / "nowhere"), name="birds")


def test_missing_train(tmp_path):
    (tmp_path / "val").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no folder .*/train\. Expected <root>/train/<class>"):
        folder(root=str(tmp_path))


def test_class_folders_alone_are_train_with_the_same_keys(birds):
    whole = folder(root=str(birds))
    bare = folder(root=str(birds / "train"))
    assert bare.classes == whole.classes
    assert set(bare.splits) == {"train"}
    images, same = bare.splits["train"], whole.splits["train"]
    assert [images.key(i) for i in range(len(images))] == [same.key(i) for i in range(len(same))]
    assert labels(images) == labels(same)
    shutil.rmtree(birds / "val")
    assert set(folder(root=str(birds)).splits) == {"train"}
    with pytest.raises(ValueError, match=r"neither a val nor a test .* val_split='train\[90%:\]'"):
        choose(bare)
    for i in range(20):
        draw(birds / "train/owl" / f"more{i}.png")
    cut = choose(folder(root=str(birds / "train")), train="train[:50%]", val="train[50%:]")
    assert sum(len(part) for part in cut.splits.values()) == 26
    assert set(cut.splits) == {"train", "val"}


@pytest.mark.parametrize(
    ("called", "meant"), [("validation", "val"), ("valid", "val"), ("Test", "test"), ("Train", "train")]
)
def test_a_split_by_another_name_is_no_class(birds, called, meant):
    if (birds / meant).is_dir():
        (birds / meant).rename(birds / f"my-{meant}")
    draw(birds / called / "owl/0.png")
    with pytest.raises(ValueError, match=rf"birds: .*/{called} is not a split\. Call it {meant}"):
        folder(root=str(birds), name="birds")


def test_images_without_class_folders(tmp_path):
    draw(tmp_path / "train/0.png")
    draw(tmp_path / "val/owl/0.png")
    with pytest.raises(ValueError, match=r"/train holds no class folders, but 1 image files.*<root>/train/"):
        folder(root=str(tmp_path))


def test_no_images_at_all(tmp_path):
    (tmp_path / "train/owl").mkdir(parents=True)
    (tmp_path / "val/owl").mkdir(parents=True)
    with pytest.raises(ValueError, match=r"no images under .*/train"):
        folder(root=str(tmp_path))


def test_an_empty_class_is_named(birds):
    (birds / "train/emu").mkdir()
    with pytest.raises(ValueError, match=r"1 class folder.*hold no image: 'emu'"):
        folder(root=str(birds))


def test_a_class_without_images_to_be_judged_by_is_no_mistake(birds, said):
    """Whether its folder is missing or empty."""
    (birds / "val/owl/0.png").unlink()
    (birds / "val/kiwi").mkdir()  # a class that train lacks, and this split too
    data = folder(root=str(birds))
    assert data.classes == ["crow", "owl"]
    assert labels(data.splits["val"]) == [0]
    assert f"folder: no image of 'kiwi', 'owl' in {birds / 'val'}" in said()
    (birds / "val/crow/0.png").unlink()
    with pytest.raises(ValueError, match=r"no images under .*/val"):
        folder(root=str(birds))


def test_a_hold_out_set_needs_no_train_unless_something_is_to_be_learnt(birds):
    shutil.rmtree(birds / "train")
    draw(birds / "test/emu/0.png")
    data = folder(root=str(birds))
    assert data.classes == ["crow", "emu", "owl"]
    assert labels(data.splits["val"]) == [0, 2]
    assert labels(data.splits["test"]) == [1]
    assert set(choose(data, training=False).splits) == {"val", "test"}
    assert set(choose(data, train="train[:90%]", test="none", training=False).splits) == {"val"}
    with pytest.raises(
        ValueError, match=r"no train split to learn from, only val and test\. Add one .*<root>/train/"
    ):
        choose(data)
    bare = folder(root=str(birds / "val"))
    assert set(choose(bare, training=False).splits) == {"test"}
    cut = choose(bare, train="train[:50%]", val="train[50%:]", training=False)
    assert set(cut.splits) == {"train", "val"}


def test_unknown_classes_in_another_split_are_listed(birds):
    draw(birds / "val/kiwi/0.png")
    draw(birds / "val/emu/0.png")
    with pytest.raises(ValueError, match=r"val has 2 class folder\(s\) that train/ lacks: 'emu', 'kiwi'"):
        folder(root=str(birds))


# ---- what is an image, and what is left out


@pytest.fixture
def said(caplog):
    """What the source says while it is opened."""
    caplog.set_level("INFO", logger="mixer_lightning.data.sources.folder")
    return lambda: [record.getMessage() for record in caplog.records]


def test_all_that_pillow_reads_is_an_image_and_the_rest_is_counted_once(birds, said):
    for ending in ("jfif", "gif", "JPE", "avif", "pgm", "jp2"):
        draw(birds / f"train/owl/a.{ending}".replace("jfif", "jpg"))
        if ending == "jfif":
            (birds / "train/owl/a.jpg").rename(birds / "train/owl/a.jfif")
    for name in ("train/owl/a.txt", "train/crow/b.TXT", "val/owl/c.xml", "val/owl/README"):
        (birds / name).write_text("no image")
    data = folder(root=str(birds), name="birds")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 12, "val": 2}
    assert said() == ["birds: 4 files are not read, by ending: 2 .txt, 1 .xml, 1 without an ending"]


def test_nothing_is_said_where_nothing_is_left_out(birds, said):
    (birds / "train/owl/.DS_Store").write_text("hidden")
    (birds / "train/owl/._0.png").write_text("hidden")
    assert len(folder(root=str(birds)).splits["train"]) == 6
    assert said() == []


def test_pipes_and_sockets_are_not_read(birds, said):
    os.mkfifo(birds / "train/owl/pipe.jpg")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(birds / "train/owl/socket.jpg"))
        data = folder(root=str(birds), name="birds")
    assert len(data.splits["train"]) == 6
    assert said() == ["birds: 2 files are not read, by ending: 2 pipe, device or socket"]
    images = FolderImages(birds / "train", ["owl/pipe.jpg"], [0])  # became one after it was found
    with pytest.raises(ValueError, match="a named pipe, not a file"):
        images.read(0)


def test_links_are_followed_but_not_in_circles(birds):
    (birds / "train/owl/again").symlink_to(birds / "train/owl")
    (birds / "train/owl/up").symlink_to(birds / "train")
    draw(birds / "elsewhere/x.png")
    (birds / "train/owl/more").symlink_to(birds / "elsewhere")
    (birds / "train/owl/gone.png").symlink_to(birds / "nowhere.png")
    (birds / "train/owl/frames.jpg").mkdir()
    draw(birds / "train/owl/frames.jpg/y.png")
    train = folder(root=str(birds)).splits["train"]
    keys = {train.key(i) for i in range(len(train))}
    assert len(train) == len(keys) == 9
    assert {
        "owl/more/x.png",
        "owl/gone.png",
        "owl/frames.jpg/y.png",
    } < keys  # the link to nothing is a bad image


def test_names_that_are_not_utf8_are_read_and_shown(birds):
    owls = os.fsencode(birds / "train/owl")
    shutil.rmtree(birds / "val/owl")
    os.rename(owls, owls[:-3] + b"ow\xe9")  # noqa: PTH104
    draw(birds / "x.png")
    os.rename(os.fsencode(birds / "x.png"), owls[:-3] + b"ow\xe9/\xff.png")  # noqa: PTH104
    data = folder(root=str(birds))
    train = data.splits["train"]
    assert data.classes == ["crow", r"ow\xe9"]
    assert [train.key(i) for i in (5, 6)] == [r"ow\xe9/2.png", r"ow\xe9/\xff.png"]
    assert train.name(6).endswith(r"train/ow\xe9/\xff.png")
    assert decode(train.read(6)).size == (4, 3)
    draw(birds / "val/owl/0.png")
    with pytest.raises(ValueError, match=r"train/ lacks: 'owl'"):
        folder(root=str(birds))


@pytest.mark.parametrize("number", [errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ESTALE])
def test_what_the_machine_lacks_is_no_fault_of_an_image(tmp_path, number):
    with pytest.raises(StorageError, match=os.strerror(number)), reading_below(str(tmp_path)):
        raise OSError(number, os.strerror(number))
