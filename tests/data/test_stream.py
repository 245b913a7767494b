"""Training on a stream: batches are full and right, readers have shards of their own, and what is not exact is said."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import logging
import multiprocessing
import tarfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from mixer_lightning.data import identity
from mixer_lightning.data import loader as loader_module
from mixer_lightning.data.order import split_batch
from mixer_lightning.data.sources import BadImage, Dataset, remote
from mixer_lightning.data.sources.stream import stream
from mixer_lightning.data.splits import choose, refuse_one_class
from mixer_lightning.data.stream_shards import FAILED, read_shards
from mixer_lightning.data.streaming import ShuffledSamples
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine.datamodule import DataModule

PER_SHARD = 6
CLASSES = ["dark", "grey", "light"]
SHADES = (20, 120, 220)


def image(shade: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((8, 8, 3), shade, np.uint8)).save(file, "PNG")
    return file.getvalue()


def write_shard(path: Path, numbers: range, **changed: Any) -> None:
    """Samples s00000, s00001, ... by the library's own writer; the shade of an image tells its class."""
    with webdataset.TarWriter(str(path)) as tar:
        for number in numbers:
            label = number % 3
            sample = {"__key__": f"s{number:05d}", "png": image(SHADES[label]), "cls": str(label).encode()}
            tar.write(sample | changed.get(f"s{number:05d}", {}))


@pytest.fixture(autouse=True)
def no_waits(monkeypatch):
    monkeypatch.setattr(remote, "RETRY_WAITS_SECONDS", (0.0,))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Five training shards and one of val."""
    for i in range(5):
        write_shard(tmp_path / f"x-{i}.tar", range(PER_SHARD * i, PER_SHARD * (i + 1)))
    write_shard(tmp_path / "val-0.tar", range(7))
    (tmp_path / "dataset.json").write_text(json.dumps({"classes": CLASSES}))
    return tmp_path


@pytest.fixture
def loader() -> Iterator[Callable[..., Any]]:
    made = []

    def loader(data: Dataset, *, steps: int = 20, fraction: float = 0.0, **options: Any) -> Any:
        settings = {"seed": 0, "repeats": 1, "rank": 0, "world_size": 1} | options
        micro = split_batch(batch_size=8, device_batch=None, world_size=settings.pop("world_size"))
        module = DataModule(
            data,
            Augment(crop="none"),
            image_size=8,
            micro_batches=micro,
            total_steps=steps,
            shuffle_window=1,
            max_bad_fraction=fraction,
            threads=2,
            ahead=1,
            pin_memory=False,
            **settings,
        )
        made.append(module)
        return module.train_dataloader()

    yield loader
    for module in made:
        module.close()


def labels_by_shade(images: torch.Tensor) -> list[int]:
    shades = images.float().mean(dim=(1, 2, 3))
    return [int((shade - torch.tensor(SHADES)).abs().argmin()) for shade in shades]


def keys(shards: list[str], rank: int, world_size: int, count: int, monkeypatch: Any) -> list[str]:
    """The first samples of a process, as torchrun says which it is."""
    with monkeypatch.context() as patch:
        patch.setenv("RANK", str(rank))
        patch.setenv("WORLD_SIZE", str(world_size))
        samples = iter(ShuffledSamples(shards, shuffle_buffer=1, seed=3))
        return [each["__key__"] for each in itertools.islice(samples, count)]


def test_processes_share_every_pass_over_the_shards(root, monkeypatch):
    shards = [str(root / f"x-{i}.tar") for i in range(5)]
    first = [keys(shards, rank, 2, 5 * PER_SHARD, monkeypatch) for rank in (0, 1)]
    own = [set(each[: 2 * PER_SHARD]) for each in first]
    assert not own[0] & own[1]
    # five shards for two: in two passes each has five, and every sample came twice
    assert Counter(first[0] + first[1]) == {f"s{i:05d}": 2 for i in range(5 * PER_SHARD)}
    orders = [[first[0][i] for i in range(0, len(first[0]), PER_SHARD)]]
    assert orders[0] != sorted(orders[0])


def is_running(pid: int) -> bool:
    """Whether a process is there, and has not ended without anybody asking how."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes() != b""
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize(("workers", "passes", "steps"), [(0, 6, 20), (2, 1, 3)])
def test_batches_are_full_and_labels_are_those_of_the_images(root, loader, workers, passes, steps):
    """And at the end no process is left, though commands give no more after so many passes."""
    (root / "give.sh").write_text(
        "cat $1; echo >> $1.given; [ $(wc -l < $1.given) -gt $2 ] || exit 0; echo $$ > $1.pid; exec sleep 600"
    )
    data = stream(
        root=str(root),
        train=f"pipe:sh {root}/give.sh {root}/x-{{0..4}}.tar {passes} | cat",
        samples_per_epoch=30,
        shuffle_buffer=3,
        workers=workers,
    )
    assert (data.classes, len(data.splits["train"]), len(data.splits["val"])) == (CLASSES, 30, 7)
    found = loader(data, steps=steps)
    assert len(found) == steps
    seen = 0
    for batch in found:
        assert batch.images.shape == (8, 3, 8, 8)
        assert labels_by_shade(batch.images) == batch.labels.tolist()
        assert batch.params is not None
        seen += 1
    assert seen == steps
    wait_for(lambda: len([*root.glob("*.pid")]) >= max(1, workers))
    processes = [int(path.read_text()) for path in root.glob("*.pid")]
    processes += [process.pid for process in multiprocessing.active_children()]
    found.close()
    if not workers:
        found.reader._thread.join(20)  # opens no other shard
    processes += [int(path.read_text()) for path in root.glob("*.pid")]
    wait_for(lambda: not any(map(is_running, processes)))


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_shard_that_is_cut_or_does_not_come_is_named(root):
    whole = (root / "x-0.tar").read_bytes()
    for cut in (1536 * 2, 1536 * 2 + 200, 1536 * 2 + 512 + 100):  # between two files, in a header, in a file
        (root / "cut.tar").write_bytes(whole[:cut])
        items = list(read_shards([{"url": str(root / "cut.tar")}]))
        assert FAILED in items[-1], cut
        assert items[-1]["__url__"] == str(root / "cut.tar")
    for form, at, reason in (
        ("w", 100, "no tar header"),  # a flipped bit is not taken for the end
        ("w", None, "more follows"),  # nor is a block of zeros
        ("w:gz", 100, "no tar header"),
    ):
        (root / "raw.tar").write_bytes(whole)
        with tarfile.open(root / "raw.tar") as tar:
            header = tar.getmembers()[4].offset
        damaged = bytearray(whole)
        if at is None:
            damaged[header : header + 512] = bytes(512)
        else:
            damaged[header + at] ^= 1
        (root / "cut.tar").write_bytes(gzip.compress(damaged) if form == "w:gz" else damaged)
        for address in (f"{root}/cut.tar", f"pipe:cat {root}/cut.tar"):
            *good, item = read_shards([{"url": address}])
            assert reason in item[FAILED]
            assert [each["__key__"] for each in good] == ["s00000"]
    for address, reason in (
        (str(root / "none.tar"), "No such file"),
        (f"pipe:cat {root}/x-1.tar; exit 3", "exit code 3"),
        (f"pipe:head -c 2048 {root}/x-1.tar", "cut"),
    ):
        items = list(read_shards([{"url": str(root / "x-2.tar")}, {"url": address}]))
        assert reason in items[-1][FAILED]
        assert not any(FAILED in each for each in items[:PER_SHARD])
    with tarfile.open(root / "empty.tar", "w"):
        pass
    (item,) = read_shards([{"url": str(root / "empty.tar")}])
    assert item[FAILED] == "it holds no sample"
    for form in ("gz", "xz"):
        with tarfile.open(root / f"z.tar.{form}", f"w:{form}") as tar:
            for member in ("a.png", "a.cls"):
                info = tarfile.TarInfo(member)
                info.size = 1
                tar.addfile(info, io.BytesIO(b"1"))
        (sample,) = read_shards([{"url": str(root / f"z.tar.{form}")}])
        assert sample["cls"] == b"1"
    with pytest.raises(BadImage, match=r"cannot read .*none.tar: No such file"):
        list(read_shards([{"url": str(root / "none.tar")}] * 2))


def test_shards_that_fail_are_not_all_tried_at_once(root, monkeypatch):
    monkeypatch.setattr(remote, "RETRY_WAITS_SECONDS", (1.0, 2.0, 4.0))
    seconds: list[float] = []
    good, *gone = [{"url": str(root / f"{name}.tar")} for name in ("x-0", *"abcd")]
    with monkeypatch.context() as patch:
        patch.setattr(time, "sleep", seconds.append)
        for _ in read_shards([good, *gone, good, good, gone[0], good]):
            pass
    assert seconds == [1.0, 2.0, 4.0, 4.0, 1.0]


def test_bad_samples_are_replaced_and_counted(root, loader, caplog):
    wrong = {
        "s00000": {"png": b"no image"},
        "s00001": {"cls": b"7"},
        "s00002": {"cls": b"mauve"},
        "s00003": {"png": image(SHADES[0])[:-30]},
    }
    write_shard(root / "x-0.tar", range(PER_SHARD), **wrong)
    options = {"root": str(root), "train": "x-{0..4}.tar", "samples_per_epoch": 300, "shuffle_buffer": 12}
    with caplog.at_level(logging.WARNING):
        for batch in loader(stream(**options), fraction=0.5):
            assert labels_by_shade(batch.images) == batch.labels.tolist()
    for key, reason in (
        ("s00000", ""),
        ("s00001", "label 7, but there are 3 classes"),
        ("s00002", "'mauve'"),
        ("s00003", ""),
    ):
        lines = [each for each in caplog.messages if f"x-0.tar: {key}: " in each]
        assert len(lines) == 1, key
        assert reason in lines[0]
    with pytest.raises(BadImage, match=r"x-0.tar: s0000\d: .*max_bad_fraction=0"):
        list(loader(stream(**options), fraction=0.0))
    for i in range(5):
        changed = {f"s{n:05d}": {"cls": b"9"} for n in range(30)}
        write_shard(root / f"x-{i}.tar", range(PER_SHARD * i, PER_SHARD * i + 2), **changed)
    with pytest.raises(BadImage, match=r"samples of the stream in a row are bad"):
        list(loader(stream(**options), fraction=0.9))


def test_the_fraction_of_bad_samples_is_that_of_all_that_was_read(root, loader, monkeypatch):
    monkeypatch.setattr(loader_module, "TOLERATED_BAD_IMAGES", 1)
    monkeypatch.setattr(loader_module, "MIN_IMAGES_OF_BAD_FRACTION", 30)
    for i in range(2):
        numbers = range(60 * i, 60 * (i + 1))
        write_shard(root / f"y-{i}.tar", numbers, **{f"s{numbers[n]:05d}": {"cls": b"9"} for n in (5, 55)})
    data = stream(root=str(root), train="y-{0..1}.tar", samples_per_epoch=8, shuffle_buffer=1)
    found = loader(data, steps=16, fraction=0.07)  # an epoch is 8 of 120 samples, of which 4 are bad
    assert sum(len(batch.labels) for batch in found) == 128
    assert len(found.bad.reasons) == 4


def test_labels_by_name_and_several(root, loader):
    several = {"cls": None, "json": json.dumps({"labels": ["dark", 2]}).encode()}
    several = {key: value for key, value in several.items() if value is not None}
    with webdataset.TarWriter(str(root / "y-0.tar")) as tar:
        for number in range(4):
            tar.write({"__key__": f"t{number}", "png": image(20), **several})
            tar.write({"__key__": f"u{number}", "png": image(20), "cls": b"light"})
    options = {"root": str(root), "train": "y-0.tar", "samples_per_epoch": 8, "shuffle_buffer": 8}
    batch = next(iter(loader(stream(**options, labels_per_image=2), steps=1)))
    assert sorted(map(tuple, batch.labels.tolist())) in [
        sorted([(0, 2)] * n + [(2, -1)] * (8 - n)) for n in range(1, 8)
    ]
    with pytest.raises(BadImage, match=r"2 labels, and data.labels_per_image=1"):
        list(loader(stream(**options)))


def test_what_it_cannot_give_is_refused_in_one_sentence(root, loader, tmp_path):
    options: dict[str, Any] = {"root": str(root), "train": "x-{0..4}.tar", "samples_per_epoch": 30}
    data = stream(**options)
    refuse_one_class(data)
    for text in ("train[:50%]", "train+val"):
        with pytest.raises(ValueError, match="a stream"):
            choose(data, train=text, val="none" if "+" in text else "val", test=None)
    with pytest.raises(ValueError, match=r"train is a stream, which has no index"):
        data.splits["train"].labels(np.arange(1))
    with pytest.raises(ValueError, match=r"5 shards do not suffice for 8 processes: .* Use 8 shards or more"):
        loader(data, world_size=8)
    with pytest.raises(ValueError, match=r"2 processes with data.workers=3 each: .* Use 6 shards"):
        loader(stream(**options, workers=3), world_size=2)
    with pytest.raises(ValueError, match=r"repeats=2"):
        loader(data, repeats=2)
    with pytest.raises(ValueError, match=r"overfit_batches=1 .* set overfit_batches=null"):
        loader(data, overfit_batches=1)
    for change, message in (
        ({"train": None}, "data.train is missing"),
        ({"samples_per_epoch": None}, "data.samples_per_epoch is missing"),
        ({"train": "x-9.tar"}, "x-9.tar, which does not exist"),
        ({"train": ["x-1.tar", "x-{0..1}.tar"]}, "x-1.tar more than once"),
        ({"classes": str(root / "none.txt")}, "there is no file"),
    ):
        with pytest.raises((ValueError, OSError), match=message):
            stream(**options | change)
    (root / "names.txt").write_text("dark\nlight\n")
    with pytest.raises(ValueError, match=r"data.classes names 2 classes, and dataset.json"):
        stream(**options, classes=str(root / "names.txt"))
    (root / "dataset.json").unlink()
    with pytest.raises(ValueError, match=r"the classes are not known"):
        stream(**options)
    (root / "names.txt").write_text("\n".join(CLASSES))
    assert stream(**options, classes=str(root / "names.txt")).classes == CLASSES
    (root / "val-0.tar").unlink()
    with pytest.raises(FileNotFoundError, match=r"neither val nor test shards"):
        stream(**options, classes=str(root / "names.txt"))


def test_a_run_knows_its_stream_again(root):
    options: dict[str, Any] = {"root": str(root), "samples_per_epoch": 30}
    first, again, other = (
        identity.record(stream(**options, train=train))
        for train in ("x-{0..4}.tar", [f"x-{i}.tar" for i in range(5)], "x-{0..3}.tar")
    )
    assert identity.difference(again, first) is None
    moved = root.rename(root.parent / "elsewhere")
    there = stream(root=str(moved), samples_per_epoch=30, train="x-{0..4}.tar")
    assert identity.difference(identity.record(there), first) is None
    moved.rename(root)
    assert "as many train images as here, but others" in str(identity.difference(other, first))
    longer = identity.record(stream(root=str(root), samples_per_epoch=31, train="x-{0..4}.tar"))
    assert "30 train" in str(identity.difference(longer, first))
