"""Shards as webdataset and `prepare` write them, read back through our index; damage is found at the start."""

from __future__ import annotations

import fcntl
import hashlib
import io
import json
import logging
import os
import subprocess
import sys
import tarfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import webdataset

from mixer_lightning.data.sources import StorageError, Stored, cache, index, names, prepared, samples
from mixer_lightning.data.sources.shards import shards
from mixer_lightning.data.stateless_random import hash32

ROW = np.dtype([("block", "<u4"), ("size", "<u4"), ("label", "<i4"), ("hash", "<u4")])


@pytest.fixture(autouse=True)
def cache_home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mixer_lightning"


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="mixer_lightning")
    return lambda: [record.getMessage() for record in caplog.records]


def picture(number: int) -> bytes:
    """Bytes of their own and a size of their own; nothing here decodes."""
    return f"picture {number} ".encode() * (20 + 7 * number)


def write(path: Path, numbers: range, classes: int = 3) -> None:
    with webdataset.TarWriter(str(path), encoder=False) as sink:
        for i in numbers:
            sink.write({"__key__": f"photo/{i:05d}", "png": picture(i), "cls": str(i % classes).encode()})


def write_files(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.fixture
def root(tmp_path: Path) -> Path:
    base = tmp_path / "flowers"
    base.mkdir()
    write(base / "train-000.tar", range(4))
    write(base / "train-001.tar", range(4, 9))
    write(base / "val-000.tar", range(9, 11))
    (base / "dataset.json").write_text(json.dumps({"classes": ["aster", "broom", "clover"]}))
    return base


def every(images) -> np.ndarray:
    return images.labels(np.arange(len(images)))


# -------------------------------------------------------------------------------------------- reading


def test_every_sample_is_read_back(root):
    data = shards(root=str(root), name="blooms")
    assert (data.name, data.classes) == ("blooms", ["aster", "broom", "clover"])
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 9, "val": 2}
    train = data.splits["train"]
    assert isinstance(train, Stored)
    assert train.shard_sizes() == [4, 5]
    for i in (8, 0, 3, 4, 7, 1):
        assert train.read(i) == picture(i)
        assert train.key(i) == f"photo/{i:05d}"
        assert f"{root}/train-00{int(i > 3)}.tar: photo/{i:05d}.png (at byte " in train.name(i)
    labels = train.labels(np.array([8, 0, 3, 4]))
    assert labels.dtype == np.int64
    assert labels.tolist() == [2, 0, 0, 1]
    assert train.hashes().dtype == np.uint32
    assert train.hashes().tolist() == [hash32(f"photo/{i:05d}") for i in range(9)]
    train.prefetch([1, 0])  # nothing to fetch


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_the_index_is_what_tarfile_and_webdataset_say(root, form):
    files = {}
    for i, key in enumerate(["a", "b" * 120, "ö/c", f"{'deep/' * 40}d", "e.f/g"]):
        files |= {f"{key}.cls": b"1", f"{key}.JPG": picture(i), f"{key}.txt": b"a note"}
    write_files(root / "train-000.tar", files, form)
    train = shards(root=str(root)).splits["train"]
    with tarfile.open(root / "train-000.tar") as tar:
        infos = [info for info in tar if info.name.endswith(".JPG")]
    rows = np.load(root / "train-index.npy")[:5]
    assert rows.dtype == ROW
    assert (rows["block"] * 512).tolist() == [info.offset_data for info in infos]
    assert rows["size"].tolist() == [info.size for info in infos]
    keys = [
        sample["__key__"] for sample in webdataset.WebDataset(str(root / "train-000.tar"), shardshuffle=False)
    ]
    assert [train.key(i) for i in range(5)] == keys
    assert rows["hash"].tolist() == [hash32(key) for key in keys]


def test_a_shard_without_samples_takes_no_part(root):
    write_files(root / "train-0005.tar", {"README": b"nothing here", "._a.jpg": b"of a file manager"})
    train = shards(root=str(root)).splits["train"]
    assert train.shard_sizes() == [4, 0, 5]
    assert [train.read(i) for i in range(9)] == [picture(i) for i in range(9)]
    assert train.key(4) == "photo/00004"


def test_threads_read_side_by_side(root, monkeypatch):
    monkeypatch.setattr(cache, "MAX_OPEN_FILES", 1)  # so that shards are closed under each other's hands
    train = shards(root=str(root)).splits["train"]
    before = len(list(Path("/proc/self/fd").iterdir()))
    orders = [np.random.default_rng(seed).integers(0, 9, 400) for seed in range(8)]
    together = threading.Barrier(8)

    def read(order) -> bool:
        together.wait()
        return all(train.read(int(i)) == picture(int(i)) for i in order)

    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(read, orders))
    assert len(list(Path("/proc/self/fd").iterdir())) <= before + 1


def test_a_shard_that_shrinks_or_vanishes_later_is_named(root):
    train = shards(root=str(root)).splits["train"]
    path = root / "train-001.tar"
    with tarfile.open(path) as tar:
        start = tar.getmember("photo/00004.png").offset_data
    with path.open("r+b") as file:
        file.truncate(start + 400)
    size = len(picture(4))
    with pytest.raises(
        StorageError, match=rf"train-001\.tar ends after 400 of the {size} bytes at byte {start:,}"
    ):
        train.read(4)
    assert train.name(8).startswith(f"{path}: ? (at byte ")
    path.unlink()
    again = shards(root=str(root), train="train-000.tar").splits["train"]
    (root / "train-000.tar").unlink()
    with pytest.raises(OSError, match=r"train-000\.tar"):
        again.read(0)


# -------------------------------------------------------------------------------------------- labels and classes


@pytest.mark.parametrize(
    ("suffix", "content", "label"),
    [
        ("cls", b"2\n", 2),
        ("cls", b"broom", 1),
        ("json", b'{"label": 2, "from": "x"}', 2),
        ("json", b'{"label": "broom"}', 1),
        ("json", b'{"labels": [2]}', 2),
    ],
)
def test_ways_to_write_a_label(root, suffix, content, label):
    write_files(root / "val-000.tar", {"a.png": picture(1), f"a.{suffix}": content})
    assert every(shards(root=str(root)).splits["val"]).tolist() == [label]


def test_several_labels(root):
    notes = [
        '{"labels": [2, 0]}',
        '{"label": 1}',
        '{"label": 0, "labels": ["aster", "broom", "clover"]}',
        '{"label": 2}',
    ]
    for shard, pair in enumerate((notes[:2], notes[2:])):
        files = {}
        for i, note in enumerate(pair):
            files |= {f"{i}.jpg": picture(i), f"{i}.json": note.encode()}
        write_files(root / f"train-00{shard}.tar", files)
    expected = [[2, 0, -1], [1, -1, -1], [0, 1, 2], [2, -1, -1]]
    for _ in range(2):  # built, then as kept
        train = shards(root=str(root)).splits["train"]
        assert every(train).tolist() == expected
        assert train.labels(np.array([2, 0])).tolist() == [expected[2], expected[0]]
    assert np.load(root / "train-labels.npy").dtype == np.dtype("<i4")
    assert np.load(root / "train-index.npy")["label"].tolist() == [2, 1, 0, 2]
    (root / "dataset.json").write_text('{"classes": ["aster", "broom"]}')
    files = {"0.jpg": b"x", "0.json": b'{"labels": [0, 2]}'}
    write_files(root / "train-000.tar", files)
    (root / "train-001.tar").unlink()
    with pytest.raises(ValueError, match="labels go up to 2"):
        shards(root=str(root))


def test_ids_are_not_taken_for_labels(root):
    files = {"a.png": picture(1), "a.cls": b"2000000"}
    write_files(root / "val-000.tar", files)
    (root / "dataset.json").unlink()
    with pytest.raises(
        ValueError, match=r"labels go up to 2,000,000, but there are 10 images: .* ids"
    ) as caught:
        shards(root=str(root))
    assert "set data.num_classes=2000001" in str(caught.value)
    assert len(shards(root=str(root), num_classes=2_000_001).classes) == 2_000_001
    for label, accepted in ((100_999, True), (101_000, False)):  # of 10 images
        write_files(root / "val-000.tar", {"a.png": picture(1), "a.cls": str(label).encode()})
        if accepted:
            assert len(shards(root=str(root)).classes) == label + 1
        else:
            with pytest.raises(ValueError, match="labels go up to 101,000"):
                shards(root=str(root))


def test_shards_hold_the_formats_that_folders_hold(root, said, monkeypatch):
    """Of several images in a sample the one that every reader decodes is meant; what a plugin reads is counted."""
    monkeypatch.setattr(samples, "IMAGE_SUFFIXES", tuple(s for s in names.IMAGE_SUFFIXES if s != "heic"))
    monkeypatch.setattr(names, "IMAGE_SUFFIXES", samples.IMAGE_SUFFIXES)
    suffixes = sorted(samples.IMAGE_SUFFIXES)
    files: dict[str, bytes] = {}
    for i, suffix in enumerate(suffixes):
        files |= {f"{i:03d}.{suffix}": picture(i), f"{i:03d}.cls": b"1"}
    files |= {"x.tif": b"mask", "x.jpg": picture(3), "x.cls": b"0"}
    files |= {f"y{i}.{name}": b"1" for i in range(3) for name in ("heic", "cls")}
    write_files(root / "train-000.tar", files)
    images = shards(root=str(root), train="train-000.tar").splits["train"]
    assert [images.read(i) for i in range(len(suffixes))] == [picture(i) for i in range(len(suffixes))]
    assert images.read(len(suffixes)) == picture(3)
    assert len(images) == len(suffixes) + 1
    (line,) = [line for line in said() if "left out" in line]
    assert line.startswith(
        "shards: 3 images in .heic (pip install 'mixer-lightning[heic]' reads HEIF) are left"
    )


@pytest.mark.parametrize(
    ("files", "complaint"),
    [
        ({"a.png": b"x"}, "sample 'a' has no label"),
        ({"a.cls": b"1"}, "sample 'a' has 0 images"),
        ({"a.png": b"x", "a.jpg": b"x", "a.cls": b"1"}, "sample 'a' has 2 images"),
        ({"a.png": b"x", "a.cls": b"tulip"}, "a.cls holds 'tulip', not a class index"),
        ({"a.png": b"x", "a.cls": b"-1"}, "a.cls holds '-1', not a class index"),
        ({"a.png": b"x", "a.cls": b""}, "a.cls holds '', not a class index"),
        ({"a.png": b"x", "a.json": b'{"class": 1}'}, "a.json holds .*, not a class index"),
        ({"a.png": b"x", "a.json": b'{"label": true}'}, "a.json holds .*, not a class index"),
        ({"a.png": b"x", "a.json": b'{"labels": []}'}, "a.json holds .*, not a class index"),
        ({"a.png": b"x", "a.json": b'{"labels": [1, "tulip"]}'}, "a.json holds .*, not a class index"),
        ({"a.png": b"x", "a.json": b"{"}, "a.json holds .*, not a class index"),
    ],
)
def test_samples_without_what_they_need(root, files, complaint):
    write_files(root / "val-000.tar", files)
    with pytest.raises(ValueError, match=rf"val-000\.tar: .*{complaint}"):
        shards(root=str(root))


def test_samples_side_by_side_of_one_name_are_refused(root):
    with tarfile.open(root / "train-9.tar", "w") as tar:
        for number in range(2):
            for name, data in (("image.png", picture(number)), ("image.cls", b"1")):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    with pytest.raises(ValueError, match=r"train-9\.tar: sample 'image' has image\.png twice"):
        shards(root=str(root))


def test_notes_on_the_shard_are_no_samples(root):
    write_files(root / "val-000.tar", {"__info__.json": b"{}", "a.png": picture(1), "a.cls": b"1"})
    assert len(shards(root=str(root)).splits["val"]) == 1


def test_size_of_the_head(root):
    assert shards(root=str(root), num_classes=5).classes == ["aster", "broom", "clover", "3", "4"]
    with pytest.raises(ValueError, match="num_classes is 2, but there are 3 classes"):
        shards(root=str(root), num_classes=2)
    (root / "dataset.json").write_text('{"classes": ["aster", "broom"]}')
    with pytest.raises(ValueError, match=r"labels go up to 2, but dataset\.json names only 2"):
        shards(root=str(root))
    (root / "dataset.json").unlink()
    assert shards(root=str(root)).classes == ["0", "1", "2"]
    for text in ("[]", "{", '{"classes": []}', '{"classes": "ab"}', '{"splits": {}}'):
        (root / "dataset.json").write_text(text)
        with pytest.raises(ValueError, match=r"dataset\.json"):
            shards(root=str(root))


# -------------------------------------------------------------------------------------------- which shards


def test_missing_shards(tmp_path, root):
    path = tmp_path / "none"
    with pytest.raises(FileNotFoundError) as caught:
        shards(root=str(path), name="imagenet21k")
    assert str(caught.value) == (
        f"imagenet21k: no shards under {path}. Expected {path}/train-*.tar and dataset.json. Make them with: "
        "mixer prepare data=imagenet21k source=<archives> output=<path>"
    )
    (root / "val-000.tar").unlink()
    assert list(shards(root=str(root)).splits) == ["train"]  # others cut it by hash


@pytest.mark.parametrize(
    ("pattern", "count"),
    [
        ("train-{000..001}.tar", 9),
        ("train-*.tar", 9),
        ("*/../train-00[1].tar", 5),
        ("{val,train}-000.tar", 6),
        (["val-*.tar", "train-001.tar"], 7),
        ("{root}/train-000.tar", 4),
        ("file://{root}/train-000.tar", 4),
        (["{root}/val-*.tar"], 2),
    ],
)
def test_shards_by_pattern(root, tmp_path, pattern, count):
    (root / "more").mkdir()
    if isinstance(pattern, str):
        pattern = pattern.replace("{root}", str(root))
    else:
        pattern = [each.replace("{root}", str(root)) for each in pattern]
    data = shards(root=str(root), train=pattern)
    assert len(data.splits["train"]) == count
    if pattern == "{val,train}-000.tar":  # in the order of the braces
        assert data.splits["train"].read(0) == picture(9)
    assert len(shards(root=str(root)).splits["train"]) == 9  # the index of one is not the other's


def test_a_root_with_the_marks_of_a_pattern_in_its_name(root):
    odd = root.with_name("[a]{b,c}*")
    root.rename(odd)
    for pattern in (None, "train-*.tar", "train-{000..001}.tar"):
        assert len(shards(root=str(odd), train=pattern).splits["train"]) == 9


def test_patterns_that_name_nothing_or_twice(root):
    with pytest.raises(
        FileNotFoundError, match=r"data\.train=.* names .*train-002\.tar, which does not exist \(nor do 1"
    ):
        shards(root=str(root), train="train-{000..003}.tar")
    with pytest.raises(FileNotFoundError, match=r"data\.val=x-\*\.tar names no shards"):
        shards(root=str(root), val="x-*.tar")
    with pytest.raises(ValueError, match=r"names .*train-001\.tar more than once"):
        shards(root=str(root), train=["train-*.tar", "train-001.tar"])
    with pytest.raises(ValueError, match=r"data\.train=train-\{0\.\.1\.tar"):
        shards(root=str(root), train="train-{0..1.tar")
    with pytest.raises(ValueError, match=r"set data\.train='pipe:cat x' instead"):
        shards(root="pipe:cat x")


# -------------------------------------------------------------------------------------------- damage


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (None, "it is cut after"),
        (b"", "it is cut after 0 bytes"),
        (b"rubbish " * 300, "there is no tar header at byte 0"),
        (b"<html>not found</html>" * 200, "there is no tar header at byte 0"),
        (bytes(2**21), "from byte 0 on it is empty"),
    ],
)
@pytest.mark.parametrize("is_known", [False, True])
def test_a_damaged_shard_is_named(root, content, complaint, is_known):
    path = root / "train-001.tar"
    whole = path.read_bytes()
    if is_known:
        shards(root=str(root))
    with tarfile.open(path) as tar:
        boundary = [info.offset for info in tar][4]
    for cut in (
        [content]
        if content is not None
        else [whole[:end] for end in (boundary, boundary + 99, boundary + 600)]
    ):
        path.write_bytes(cut)
        with pytest.raises(ValueError, match=rf"^shards: .*train-001\.tar: {complaint}"):
            shards(root=str(root))


# -------------------------------------------------------------------------------------------- keeping the index


def test_the_index_is_built_once_and_again_after_a_change(root, said):
    def built() -> int:
        return sum("reading the headers" in line for line in said())

    shards(root=str(root))
    shards(root=str(root))
    assert built() == 2  # train and val
    write(root / "train-001.tar", range(4, 7))
    assert len(shards(root=str(root)).splits["train"]) == 7
    assert built() == 3
    os.utime(root / "val-000.tar", ns=(1, 1))
    shards(root=str(root))
    assert built() == 4
    (root / "dataset.json").write_text('{"classes": ["a", "b", "c"]}')  # labels may be written as names
    shards(root=str(root))
    assert built() == 6
    about = json.loads((root / "train-index.json").read_text())
    sizes = [(path.name, path.stat().st_size) for path in sorted(root.glob("train-*.tar"))]
    assert [(each["name"], each["bytes"]) for each in about["shards"]] == sizes
    assert [each["samples"] for each in about["shards"]] == [4, 3]


@pytest.mark.parametrize("file", ["train-index.npy", "train-index.json"])
def test_a_damaged_index_is_built_anew(root, file):
    shards(root=str(root))
    whole = (root / file).read_bytes()
    for content in (
        b"",
        b"rubbish",
        whole[:-5],
        whole + b"\0",
        whole.replace(b"<u4", b"<f4").replace(b"finger", b"f"),
    ):
        (root / file).write_bytes(content)
        train = shards(root=str(root)).splits["train"]
        assert [train.read(i) for i in range(9)] == [picture(i) for i in range(9)]
        assert (root / file).read_bytes() == whole


def test_a_folder_that_cannot_be_written_keeps_its_index_in_the_cache(root, cache_home, said):
    for split in ("train", "val"):
        (root / f".{split}-index.lock").mkdir()  # for root, too, this file cannot be opened
    for _ in range(2):
        assert len(shards(root=str(root)).splits["train"]) == 9
    assert not list(root.glob("*.npy"))
    assert len(list(cache_home.glob("indexes/*/train-index.npy"))) == 1
    assert sum("reading the headers" in line for line in said()) == 2
    elsewhere = root.parent / "fast"
    shards(root=str(root), cache=str(elsewhere))
    assert len(list(elsewhere.glob("indexes/*/train-index.npy"))) == 1


def test_without_any_place_for_the_index_it_still_works(root, said):
    (root.parent / "file").touch()
    for split in ("train", "val"):
        (root / f".{split}-index.lock").mkdir()
    train = shards(root=str(root), cache=str(root.parent / "file" / "cache")).splits["train"]
    assert [train.read(i) for i in range(9)] == [picture(i) for i in range(9)]
    assert any("rebuilt each time" in line for line in said())


def test_a_full_disk_only_costs_the_index(root, monkeypatch, said):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(index, "atomic_write", full)
    assert len(shards(root=str(root)).splits["train"]) == 9
    assert any("No space left" in line for line in said())


OTHER = """
import logging, sys
logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stdout)
sys.stdout.reconfigure(line_buffering=True)
from mixer_lightning.data.sources.shards import shards
try:
    print(len(shards(root=sys.argv[1], verify=sys.argv[2]).splits["train"]))
except ValueError as error:
    print(error)
"""


def other_process(root: Path, verify: str = "size") -> subprocess.Popen[str]:
    """Another process that opens the same set and prints what it logs, and how many images there are."""
    return subprocess.Popen(
        [sys.executable, "-c", OTHER, str(root), verify], stdout=subprocess.PIPE, text=True
    )


def what_another_says(root: Path, verify: str = "size") -> list[str]:
    return other_process(root, verify).communicate(timeout=300)[0].splitlines()


def test_of_two_processes_one_builds_and_the_other_waits(root):
    with (root / ".train-index.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        both = [other_process(root) for _ in range(2)]
        first = [process.stdout.readline() for process in both]
    texts = [line + process.communicate(timeout=300)[0] for line, process in zip(first, both, strict=True)]
    assert all(line.startswith("shards: waiting for another process") for line in first)
    assert all(text.splitlines()[-1] == "9" for text in texts)
    assert sum("reading the headers of 2 train shards" in text for text in texts) == 1


def test_an_error_is_handed_on_to_processes_that_run_already(root, monkeypatch):
    """Only one of many processes may be heard, and the launcher ends them all when one fails."""
    (root / "train-001.tar").write_bytes(b"rubbish " * 200)
    *_, error = what_another_says(root)
    assert "train-001.tar: there is no tar header" in error
    with monkeypatch.context() as patched:
        patched.setattr(index, "build", None)  # not read again
        with pytest.raises(ValueError, match="no tar header") as caught:
            shards(root=str(root))
        assert str(caught.value) == error
    assert "reading the headers" in what_another_says(root)[0]  # a new run finds out for itself
    write(root / "train-001.tar", range(4, 9))
    assert len(shards(root=str(root)).splits["train"]) == 9


def test_an_error_of_this_process_is_not_taken_for_granted(root, monkeypatch):
    def broken(*_, **__):
        raise OSError("the network is down")

    with monkeypatch.context() as patched:
        patched.setattr(index, "build", broken)
        with pytest.raises(OSError, match="the network is down"):
            shards(root=str(root))
    assert len(shards(root=str(root)).splits["train"]) == 9


# -------------------------------------------------------------------------------------------- sets made by prepare


def prepared_set(root: Path, *, several: bool = False) -> Path:
    """dataset.json and index as documented, by tarfile's account of where things are."""
    splits = {}
    for split in ("train", "val"):
        rows, labels, listed = [], [], []
        for path in sorted(root.glob(f"{split}-*.tar")):
            with tarfile.open(path) as tar:
                infos = [info for info in tar if info.name.endswith(".png")]
            for info in infos:
                number = int(info.name[-9:-4])
                rows.append((info.offset_data // 512, info.size, number % 3, hash32(info.name[:-4])))
                labels.append([number % 3, (number + 1) % 3 if number % 2 else -1])
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
            listed.append(
                {"name": path.name, "bytes": path.stat().st_size, "samples": len(infos), "sha256": digest}
            )
        np.save(root / f"{split}-index.npy", np.array(rows, dtype=ROW))
        if several:
            np.save(root / f"{split}-labels.npy", np.array(labels, dtype="<i4"))
        splits[split] = {"samples": len(rows), "labels_per_image": 1 + several, "shards": listed}
    about = {
        "name": "flowers",
        "classes": ["aster", "broom", "clover"],
        "splits": splits,
        "options": {},
        "versions": {},
    }
    (root / "dataset.json").write_text(json.dumps(about))
    return root


@pytest.fixture
def made(root):
    return prepared_set(root)


def test_a_prepared_set_is_taken_as_it_is(made, said, monkeypatch):
    monkeypatch.setattr(index, "build", None)
    write(made / "train-extra.tar", range(2))  # dataset.json does not list it
    data = shards(root=str(made), num_classes=4)
    train = data.splits["train"]
    assert (train.shard_sizes(), len(data.splits["val"]), len(data.classes)) == ([4, 5], 2, 4)
    assert [train.read(i) for i in range(9)] == [picture(i) for i in range(9)]
    assert every(train).tolist() == [i % 3 for i in range(9)]
    assert train.hashes().tolist() == [hash32(train.key(i)) for i in range(9)]
    assert said() == []
    assert not list(made.glob(".*"))


def test_a_prepared_set_with_several_labels(root):
    train = shards(root=str(prepared_set(root, several=True))).splits["train"]
    assert every(train).tolist() == [[i % 3, (i + 1) % 3 if i % 2 else -1] for i in range(9)]


@pytest.mark.parametrize("verify", ["size", "full"])
def test_shards_that_are_not_those_of_dataset_json_are_named_together(made, verify):
    size = {path.name: path.stat().st_size for path in made.glob("*.tar")}
    (made / "train-000.tar").unlink()
    with (made / "train-001.tar").open("r+b") as file:
        file.truncate(5000)
    with (made / "val-000.tar").open("ab") as file:
        file.write(b"more")
    with pytest.raises(ValueError, match="3 of 3 shards") as caught:
        shards(root=str(made), name="blooms", verify=verify)
    told = str(caught.value)
    assert told.startswith(f"blooms: 3 of 3 shards under {made} are not those of dataset.json: ")
    assert f"train-000.tar is missing ({size['train-000.tar']:,} bytes)" in told
    assert f"train-001.tar has 5,000 bytes instead of {size['train-001.tar']:,}" in told
    assert f"val-000.tar has {size['val-000.tar'] + 4:,} bytes instead of {size['val-000.tar']:,}" in told
    assert told.endswith("mixer prepare data=folder source=<source> output=<path>")


def alter(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[700] ^= 1
    path.write_bytes(content)


def test_an_altered_shard_is_found_by_its_checksum(made):
    shards(root=str(made), verify="full")
    alter(made / "train-001.tar")
    shards(root=str(made))  # of the same size: nothing to see
    for _ in range(2):
        with pytest.raises(ValueError, match=r"1 of 3 shards .*: train-001\.tar has another sha256"):
            shards(root=str(made), verify="full")


def test_checksums_are_compared_once_by_processes_that_run_together(made, monkeypatch):
    compares = "shards: comparing the sha256 of 3 shards"
    assert what_another_says(made, "full") == [compares, "9"]
    with monkeypatch.context() as patched:
        patched.setattr(prepared, "sha256_of", None)
        assert len(shards(root=str(made), verify="full").splits["train"]) == 9
    assert what_another_says(made, "full") == [compares, "9"]  # begun after that
    alter(made / "val-000.tar")
    with pytest.raises(ValueError, match="has another sha256"):
        shards(root=str(made), verify="full")


def test_checksums_need_a_prepared_set(root):
    with pytest.raises(
        ValueError, match=r"verify=full needs the checksums that prepare writes into .*dataset\.json"
    ):
        shards(root=str(root), verify="full")
    with pytest.raises(ValueError, match="verify=full needs"):
        shards(root=str(prepared_set(root)), val="val-*.tar", verify="full")


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: path.write_bytes(path.read_bytes()[:-16]),
        lambda path: path.write_bytes(path.read_bytes() + bytes(16)),
        lambda path: np.save(path, np.load(path)[:-1]),
        lambda path: np.save(path, np.arange(9)),
        lambda path: path.write_bytes(b"rubbish"),
    ],
)
def test_a_prepared_index_that_does_not_fit_is_named(made, damage):
    damage(made / "train-index.npy")
    with pytest.raises(ValueError, match=r"^shards: .*train-index\.npy.* Copy it again, or make"):
        shards(root=str(made))


@pytest.mark.parametrize("verify", ["size", "full"])
@pytest.mark.parametrize("name", ["../../mine.txt", "MINE", "val-index.npy", "train-000.tar"])
def test_a_dataset_json_names_no_files_of_others_as_its_index(made, tmp_path, name, verify):
    """Of a remote set, what differs from its checksum would be removed."""
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    about = json.loads((made / "dataset.json").read_text())
    about["splits"]["train"]["arrays"] = [{"name": name.replace("MINE", str(mine)), "sha256": "0" * 64}]
    (made / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(
        ValueError, match=r"arrays must be among train-index\.npy and train-labels\.npy, found"
    ):
        shards(root=str(made), verify=verify)
    assert mine.read_text() == "mine"


def test_a_dataset_json_that_contradicts_itself(made):
    about = json.loads((made / "dataset.json").read_text())
    for key, value in (("samples", 8), ("shards", 5), ("shards", [{"name": "train-000.tar"}])):
        wrong = json.loads(json.dumps(about))
        wrong["splits"]["train"][key] = value
        (made / "dataset.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"cannot read .*dataset\.json"):
            shards(root=str(made))
    del about["splits"]["train"]
    (made / "dataset.json").write_text(json.dumps(about))
    assert set(shards(root=str(made)).splits) == {"val"}  # enough to be judged by
    del about["splits"]["val"]
    (made / "dataset.json").write_text(json.dumps(about | {"splits": {}}))
    for path in made.glob("*.tar"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no shards under"):
        shards(root=str(made))


@pytest.mark.parametrize("several", [False, True])
def test_fewer_classes_than_labels_are_refused_at_opening(root, several):
    about = json.loads((prepared_set(root, several=several) / "dataset.json").read_text())
    about["classes"] = ["aster", "broom"]
    (root / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(
        ValueError,
        match=r"^blooms: labels go up to 2, but dataset\.json names only 2 classes. Name all 3 in .*/dataset\.json",
    ):
        shards(root=str(root), name="blooms")


@pytest.mark.parametrize(
    ("place", "key", "value"),
    [
        ("splits.val.shards[0]", "bytes", "10240"),
        ("splits.val.shards[0]", "samples", "2"),
        ("splits.val.shards[0]", "samples", 2.0),
        ("splits.val.shards[0]", "bytes", -1),
        ("splits.val.shards[0]", "bytes", None),
        ("splits.val.shards[0]", "sha256", 5),
        ("splits.val.shards[0]", "name", ["val-000.tar"]),
        ("splits.val", "samples", "2"),
        ("splits.val", "labels_per_image", "1"),
    ],
)
def test_a_wrong_type_in_dataset_json_is_named(made, place, key, value):
    about = json.loads((made / "dataset.json").read_text())
    node = about["splits"]["val"]
    (node["shards"][0] if "shards" in place else node)[key] = value
    (made / "dataset.json").write_text(json.dumps(about))
    with pytest.raises(ValueError, match="must be a") as caught:
        shards(root=str(made), name="blooms")
    assert str(caught.value).startswith(f"blooms: cannot read {made}/dataset.json ({place}.{key} must be a ")
    assert repr(value) in str(caught.value)


def test_patterns_go_before_a_prepared_split(made):
    data = shards(root=str(made), val="train-000.tar")
    assert {split: len(images) for split, images in data.splits.items()} == {"train": 9, "val": 4}


# -------------------------------------------------------------------------------------------- what lies beside samples


def test_what_webdataset_passes_over_is_left_out_and_counted(root, said):
    """Beside, before and between the files of samples; the samples are those of webdataset, in its order."""
    names = ["LICENSE.txt", "README", "0.cls", "0.png", "._1.cls", "1.cls", ".DS_Store", "1.png", "._1.png"]
    names += [
        "a/2.cls",
        "__MACOSX/a/._2.cls",
        "a/Makefile",
        "a/2.PNG",
        "meta.json",
        "a/.hidden.png",
        "3.json",
        "3.png",
    ]
    files = {name: picture(i) for i, name in enumerate(names)}
    files |= {name: b"1" for name in names if name.endswith(".cls")} | {"3.json": b'{"label": 1}'}
    write_files(root / "train-000.tar", files)
    tarfile.open(root / "train-001.tar", "w").close()
    train = shards(root=str(root)).splits["train"]
    theirs = webdataset.WebDataset(
        [str(root / "train-000.tar"), str(root / "train-001.tar")], shardshuffle=False, empty_check=False
    )
    expected = [(each["__key__"], each["png"]) for each in theirs if "png" in each]
    assert [(train.key(i), train.read(i)) for i in range(len(train))] == expected
    assert [key for key, _ in expected] == ["0", "1", "a/2", "3"]
    assert sorted(each for each in said() if "left out" in each or "no sample" in each) == [
        f"shards: 1 shards hold no sample, such as {root / 'train-001.tar'}",
        "shards: 2 files beside which there is no image are left out, such as LICENSE.txt",
        "shards: 2 files without a suffix are left out, such as README",
        "shards: 5 hidden files are left out, such as ._1.cls",
    ]


def test_links_are_samples_and_none_vanishes(root, said):
    """As GNU tar stores a folder in which files have two names: webdataset would give 1 of these 5."""
    path = root / "train-000.tar"
    with tarfile.open(path, "w") as tar:

        def add(name: str, content: bytes | str, kind: bytes = tarfile.SYMTYPE) -> None:
            info = tarfile.TarInfo(name)
            if isinstance(content, str):
                info.type, info.linkname = kind, content
                tar.addfile(info)
            else:
                info.size = len(content)
                tar.addfile(info, io.BytesIO(content))

        add("0.cls", b"0")
        add("0.png", picture(0))
        for number, (target, kind) in enumerate(
            [("0.png", tarfile.LNKTYPE), ("0.png", tarfile.SYMTYPE), ("pool/p.jpeg", tarfile.SYMTYPE)],
            start=1,
        ):
            add(f"{number}.cls", b"%d" % (number % 3))
            add(f"{number}.png", target, kind)
        add("4.cls", "1.cls", tarfile.LNKTYPE)
        add("4.png", picture(4))
        add("5.png", "/elsewhere/5.png")
        add("pool/p.cls", b"2")
        add("pool/p.jpeg", picture(7))
    images = shards(root=str(root), train="train-000.tar").splits["train"]
    assert [images.key(i) for i in range(6)] == ["0", "1", "2", "3", "4", "pool/p"]
    pictures = [0, 0, 0, 7, 4, 7]
    assert [images.read(i) for i in range(6)] == [picture(number) for number in pictures]
    assert every(images).tolist() == [0, 1, 2, 0, 1, 2]
    assert "3.png (at byte" in images.name(3)
    assert "shards: 1 links to nothing in the archive are left out, such as 5.png" in said()


@pytest.mark.parametrize("suffix", ["png", "cls"])
def test_a_file_too_long_for_what_it_is(root, suffix):
    """Its length is in the header; on the disk it is a hole."""
    size = {"png": 2**28 + 1, "cls": 2**24 + 1}
    with (root / "val-000.tar").open("wb") as file:
        for name, length in (("a.cls", 1), ("a.png", 600)):
            info = tarfile.TarInfo(name)
            info.size = size[suffix] if name.endswith(suffix) else length
            file.write(info.tobuf())
            file.seek(-(-info.size // 512) * 512, 1)
        file.truncate(file.tell() + 1024)
    with pytest.raises(ValueError, match=rf"sample 'a': a\.{suffix} has .* bytes, too many for what it is"):
        shards(root=str(root))


# -------------------------------------------------------------------------------------------- the index and the shards


def rewrite(path: Path, change) -> None:
    """A file of an index with other values and the same size."""
    before = path.stat().st_size
    array = np.load(path)
    np.save(path, change(array))
    assert path.stat().st_size == before


def with_labels(change):
    def changed(rows):
        rows = rows.copy()
        rows["label"] = change(rows["label"])
        return rows

    return changed


@pytest.mark.parametrize(
    "change",
    [
        with_labels(lambda labels: np.where(np.arange(9) == 5, (labels + 1) % 3, labels)),
        with_labels(lambda labels: np.roll(labels, 1)),
        lambda rows: rows[np.array([0, 1, 2, 3, 4, 5, 8, 7, 6])],
    ],
    ids=["one flipped", "all rotated", "two images swapped"],
)
def test_an_index_that_was_rewritten_is_not_that_of_the_shards(made, change):
    shards(root=str(made), verify="full")
    rewrite(made / "train-index.npy", change)
    shards(root=str(made))  # of the same size: nothing to see
    with pytest.raises(
        ValueError, match=r"train-index\.npy is not that of train-00\d\.tar: image \d there has label"
    ):
        shards(root=str(made), verify="full")


def test_several_labels_are_compared_one_by_one(root):
    for path, numbers in (
        ("train-000.tar", range(4)),
        ("train-001.tar", range(4, 9)),
        ("val-000.tar", range(9, 11)),
    ):
        files = {}
        for i in numbers:
            labels = [i % 3, *([(i + 1) % 3] if i % 2 else [])]
            files[f"photo/{i:05d}.json"] = json.dumps({"labels": labels}).encode()
            files[f"photo/{i:05d}.png"] = picture(i)
        write_files(root / path, files)
    made = prepared_set(root, several=True)
    shards(root=str(made), verify="full")
    labels = np.load(made / "train-labels.npy")
    labels[3, 1] = -1
    np.save(made / "train-labels.npy", labels)
    with pytest.raises(ValueError, match=r"image 4 there has label\(s\) 0, 1 .* in the index 0 at"):
        shards(root=str(made), verify="full")


def test_labels_and_places_that_cannot_be_are_refused_at_any_opening(made, root):
    whole = (made / "train-index.npy").read_bytes()
    rewrite(made / "train-index.npy", with_labels(lambda labels: np.where(np.arange(9) == 5, -1, labels)))
    with pytest.raises(ValueError, match=r"train-index\.npy is damaged: it has the label -1"):
        shards(root=str(made))
    (made / "train-index.npy").write_bytes(whole)

    def beyond(rows):
        rows = rows.copy()
        rows["block"][2] += 1000
        return rows

    rewrite(made / "train-index.npy", beyond)
    with pytest.raises(ValueError, match=r"it has an image beyond the end of .*train-000\.tar"):
        shards(root=str(made))


def test_the_checksum_of_an_index_is_that_of_dataset_json(made):
    """As for remote shards, whose headers are not read."""
    about = json.loads((made / "dataset.json").read_text())
    for split in ("train", "val"):
        path = made / f"{split}-index.npy"
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        about["splits"][split]["arrays"] = [{"name": path.name, "sha256": digest}]
    (made / "dataset.json").write_text(json.dumps(about))
    shards(root=str(made), verify="full")
    rewrite(made / "val-index.npy", lambda rows: rows[::-1].copy())
    with pytest.raises(ValueError, match=r"val-index\.npy has another sha256 than dataset\.json says"):
        shards(root=str(made), verify="full")
