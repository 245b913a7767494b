"""Shards as webdataset writes them, read back through our index; damage is found at the start."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_lightning.data.sources import BadImage
from mixer_lightning.data.sources import shards as shards_module
from mixer_lightning.data.sources.shards import _members, shards

webdataset = pytest.importorskip("webdataset")


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache"


def picture(shade: int) -> bytes:
    file = io.BytesIO()
    noise = np.random.default_rng(shade).integers(0, 256, (5, 4, 3), dtype=np.uint8)
    noise[0, 0] = shade
    Image.fromarray(noise).save(file, "PNG")
    return file.getvalue()


def write(path: Path, numbers: range, classes: int = 3) -> None:
    with webdataset.TarWriter(str(path)) as sink:
        for i in numbers:
            sink.write({"__key__": f"photo/{i:05d}", "png": picture(i), "cls": i % classes})


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "flowers"
    base.mkdir()
    write(base / "train-000.tar", range(4))
    write(base / "train-001.tar", range(4, 9))
    write(base / "val-000.tar", range(9, 11))
    (base / "dataset.json").write_text(json.dumps({"classes": ["aster", "broom", "clover"]}))
    return base


def test_every_sample_is_read_back(root):
    data = shards(root=str(root), name="blooms")
    assert (data.name, data.classes) == ("blooms", ["aster", "broom", "clover"])
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 9, "val": 2}
    train = data.splits["train"]
    for i in (8, 0, 3, 4, 7, 1):
        image, label = train[i]
        assert image.mode == "RGB"
        assert label == i % 3
        np.testing.assert_array_equal(np.asarray(image), np.asarray(Image.open(io.BytesIO(picture(i)))))
    assert train.name(5).startswith(f"{root}/train-001.tar: photo/00005.png")


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_our_reader_lists_what_tarfile_lists(tmp_path, form):
    path = tmp_path / "x.tar"
    names = ["a.jpg", "folder/b.jpg", f"{'deep/' * 18}{'n' * 60}.jpg", "empty.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += ["ä/ö.jpg", f"{'n' * 300}.jpg"]
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = (0 if name == "empty.jpg" else 500 + 300 * i), 1.5
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1  # a fraction makes an extended header
            tar.addfile(info, io.BytesIO(bytes([i]) * info.size))
        link = tarfile.TarInfo("link.jpg")
        link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
        tar.addfile(link)
    with tarfile.open(path) as tar:
        expected = [(info.name, info.offset_data, info.size) for info in tar if info.isreg()]
    with path.open("rb") as file:
        assert [(each.name, each.offset, each.size) for each in _members(file.fileno())] == expected
    assert len(expected) == len(names)


def test_a_shard_cut_anywhere_is_named(root):
    path = root / "train-001.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as tar:
        end_of_data = max(info.offset_data + info.size for info in tar)
    harmless = (end_of_data + 511) // 512 * 512 + 1024  # the two blocks of zeros; padding follows
    for end in [*range(0, harmless, 173), *range(0, harmless, 512), harmless - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=r"^shards: .*train-001\.tar: it is cut after"):
            shards(root=str(root))
    path.write_bytes(whole[:harmless])
    assert len(shards(root=str(root)).splits["train"]) == 9


def test_a_cut_after_the_index_was_made_is_noticed_too(root):
    shards(root=str(root))
    path = root / "val-000.tar"
    path.write_bytes(path.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"val-000\.tar: it is cut after 3,000 bytes"):
        shards(root=str(root))


def test_a_page_instead_of_a_shard_is_named(root):
    (root / "train-001.tar").write_bytes(b"<html>not found</html>" * 200)
    with pytest.raises(ValueError, match=r"train-001\.tar: there is no tar header at byte 0"):
        shards(root=str(root))


def test_a_shard_whose_copy_left_a_hole_of_zeros_is_named(root):
    path = root / "train-001.tar"
    whole = path.read_bytes()
    path.write_bytes(bytes(len(whole)))
    with pytest.raises(ValueError, match=r"train-001\.tar: from byte 0 on it is empty"):
        shards(root=str(root))
    path.write_bytes(whole[:3072] + bytes(2**21))
    with pytest.raises(ValueError, match=r"train-001\.tar: from byte 3,072 on it is empty"):
        shards(root=str(root))


def test_the_index_is_built_once_and_again_after_a_change(root, monkeypatch):
    built = []
    build = shards_module._build
    monkeypatch.setattr(
        shards_module,
        "_build",
        lambda name, paths, classes: built.append(paths[0].name) or build(name, paths, classes),
    )
    shards(root=str(root))
    shards(root=str(root))
    assert built == ["train-000.tar", "val-000.tar"]
    write(root / "train-001.tar", range(4, 7))
    assert len(shards(root=str(root)).splits["train"]) == 7
    assert built == ["train-000.tar", "val-000.tar", "train-000.tar"]
    os.utime(root / "val-000.tar", ns=(1, 1))
    shards(root=str(root))
    assert built[-1] == "val-000.tar"
    assert sorted(path.name for path in root.iterdir() if path.suffix == ".npz") == [
        "train-index.npz",
        "val-index.npz",
    ]


def test_a_damaged_index_is_built_anew(root):
    shards(root=str(root))
    index = root / "train-index.npz"
    for content in (b"", b"rubbish", index.read_bytes()[:300]):
        index.write_bytes(content)
        assert len(shards(root=str(root)).splits["train"]) == 9


def test_a_folder_that_cannot_be_written_keeps_its_index_in_the_cache(root, cache_home, monkeypatch):
    make = shards_module.tempfile.NamedTemporaryFile

    def refuse_root(**options):
        if Path(options["dir"]) == root:
            raise PermissionError("read-only file system")
        return make(**options)

    monkeypatch.setattr(shards_module.tempfile, "NamedTemporaryFile", refuse_root)
    assert len(shards(root=str(root)).splits["train"]) == 9
    assert not list(root.glob("*.npz"))
    assert len(list(cache_home.glob("mixer_lightning/*/train-index.npz"))) == 1
    monkeypatch.setattr(shards_module, "_build", None)  # may not be called again
    assert len(shards(root=str(root)).splits["train"]) == 9


def test_without_any_place_for_the_index_it_still_works(root, monkeypatch):
    monkeypatch.setattr(shards_module, "_save", lambda *_: False)
    assert len(shards(root=str(root)).splits["train"]) == 9


def test_missing_shards(tmp_path, root):
    with pytest.raises(FileNotFoundError) as caught:
        shards(root=str(tmp_path / "none"), name="imagenet21k")
    path = tmp_path / "none"
    assert str(caught.value).startswith(
        f"imagenet21k: no shards under {path}. Expected {path}/train-*.tar and dataset.json."
    )
    (root / "val-000.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither .*val-\*\.tar nor .*test-\*\.tar"):
        shards(root=str(root))


def test_size_of_the_head(root):
    assert len(shards(root=str(root), num_classes=5).classes) == 5
    assert shards(root=str(root), num_classes=5).classes[2:] == ["clover", "3", "4"]
    with pytest.raises(ValueError, match="num_classes is 2, but there are 3 classes"):
        shards(root=str(root), num_classes=2)
    (root / "dataset.json").write_text('{"classes": ["aster", "broom"]}')
    with pytest.raises(ValueError, match=r"labels go up to 2, but dataset\.json names only 2"):
        shards(root=str(root))
    (root / "dataset.json").unlink()
    assert shards(root=str(root)).classes == ["0", "1", "2"]
    (root / "dataset.json").write_text("[]")
    with pytest.raises(ValueError, match=r'dataset\.json .*Expected \{"classes"'):
        shards(root=str(root))


def write_sample(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))


@pytest.mark.parametrize(
    ("suffix", "content", "label"),
    [("cls", b"2\n", 2), ("cls", b"broom", 1), ("json", b'{"label": 2, "from": "x"}', 2)],
)
def test_ways_to_write_a_label(root, suffix, content, label):
    write_sample(root / "val-000.tar", {"a.png": picture(1), f"a.{suffix}": content})
    assert shards(root=str(root)).splits["val"][0][1] == label


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"a.png": b"x"}, "sample 'a' has no label"),
        ({"a.cls": b"1"}, "sample 'a' has 0 images"),
        ({"a.png": b"x", "a.jpg": b"x", "a.cls": b"1"}, "sample 'a' has 2 images"),
        ({"a.png": b"x", "a.cls": b"tulip"}, "a.cls holds 'tulip', not a class index"),
        ({"a.png": b"x", "a.cls": b"-1"}, "a.cls holds '-1', not a class index"),
        ({"a.png": b"x", "a.json": b'{"class": 1}'}, "a.json holds .*, not a class index"),
    ],
)
def test_samples_without_what_they_need(root, files, complaint):
    write_sample(root / "val-000.tar", files)
    with pytest.raises(ValueError, match=rf"val-000\.tar: .*{complaint}"):
        shards(root=str(root))


def test_notes_on_the_shard_are_no_samples(root):
    write_sample(root / "val-000.tar", {"__info__.json": b"{}", "a.png": picture(1), "a.cls": b"1"})
    assert len(shards(root=str(root)).splits["val"]) == 1


def test_a_bad_image_is_named_with_shard_and_file(root):
    write_sample(root / "val-000.tar", {"a.png": b"rubbish", "a.cls": b"1"})
    with pytest.raises(BadImage, match=r"val-000\.tar: a\.png \(at byte 512\): its 7 bytes are not an image"):
        shards(root=str(root)).splits["val"][0]


def test_workers_that_are_spawned_or_forked_read_the_same(root, monkeypatch):
    monkeypatch.setattr(shards_module, "OPEN_SHARDS", 1)
    train = shards(root=str(root)).splits["train"]
    expected = [np.asarray(train[i][0]) for i in (0, 8, 1, 7)]
    sent = pickle.loads(pickle.dumps(train))
    assert not sent._open
    for i, pixels in zip((0, 8, 1, 7), expected, strict=True):
        np.testing.assert_array_equal(np.asarray(sent[i][0]), pixels)
    before, write_end = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.write(write_end, b"".join(np.asarray(train[i][0]).tobytes() for i in (0, 8, 1, 7)))
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    assert os.read(before, 10_000) == b"".join(pixels.tobytes() for pixels in expected)
    os.close(before)
    os.close(write_end)
