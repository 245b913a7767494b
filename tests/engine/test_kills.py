"""kill -9, SIGTERM and SIGUSR1 at random moments, then the same command again: the bits of an undisturbed run.

Five kills in every run of the tests. `pytest -m soak -s tests/engine/test_kills.py`: fifty more, and half an hour in
which shards are cut and the disk runs full besides; it prints what the runs met.
"""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import webdataset
from faults import (
    Fault,
    Session,
    asked_to_stop,
    assert_same_bits,
    killed,
    run_to_the_end,
    run_with_faults,
)
from PIL import Image

from conftest import TINY
from mixer_lightning import results

RICH = (
    *TINY,
    "model=convmixer_96_4",
    "ema_decay=0.9",
    "stochastic_depth=0.2",
    "augment.mixup=0.5",
    "augment.erase=0.25",
    "augment.rand_augment=rand-m9-n2",
    "log_every_steps=1",
)
ALONE = ("device_batch=30",)
#: One that ends before its first word is given up after 30 s, which leaves a loaded machine half of the minute.
PAIR = (
    *("device_batch=15", "trainer=ddp", "trainer.accelerator=cpu"),
    *("trainer.precision=32-true", "trainer.silence_seconds=30"),
)
PARTS = (*PAIR, "trainer.fully_shard=true", "ema_decay=null", "model=mixer_digits")
SOAK_STEPS, SOAK_MINUTES = 12_000, 30
BAD = "max_bad_fraction=0.1"


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`folder/` with class folders and `shards/` with the same photographs, of which every 40th is cut off."""
    root, noise = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    (root / "shards").mkdir()
    for split, count in (("train", 240), ("val", 40)):
        written = [webdataset.TarWriter(str(root / "shards" / f"{split}-{n}.tar")) for n in range(3)]
        for number in range(count):
            label = number % 4
            pixels = noise.integers(0, 256, (6, 8, 3), dtype=np.uint8)
            file = io.BytesIO()
            picture = Image.fromarray(pixels).resize(
                (64 + number % 7, 48 + number % 5), Image.Resampling.BICUBIC
            )
            picture.save(file, "JPEG", quality=90)
            content = file.getvalue()
            if split == "train" and number % 40 == 7:
                content = content[: len(content) // 2]
            folder = root / "folder" / split / str(label)
            folder.mkdir(parents=True, exist_ok=True)
            (folder / f"{number:04d}.jpg").write_bytes(content)
            written[number % 3].write({"__key__": f"{split}{number:04d}", "jpg": content, "cls": label})
        for each in written:
            each.close()
    return root


def words(kind: str, photos: Path) -> tuple[list[str], int]:
    """A command and its number of ranks."""
    data = {
        "memory": [],
        "folder": ["data=folder", f"data.root={photos / 'folder'}", "image_size=8", BAD],
        "shards": ["data=shards", f"data.root={photos / 'shards'}", "image_size=8", BAD],
    }
    ranks, _, source = kind.partition(" ")
    by_ranks = {"one": ALONE, "two": PAIR, "parts": PARTS}[ranks]
    return [*RICH, *data[source], *by_ranks], 1 if ranks == "one" else 2


def tried(
    kind: str,
    photos: Path,
    folder: Path,
    *more: str,
    fault: Fault = killed,
    times: int,
    steps: int,
    seed: int,
) -> Counter[str]:
    command, num_ranks = words(kind, photos)
    command += [f"duration.steps={steps}", *more]
    seconds = run_to_the_end(command, folder / "undisturbed", num_ranks=num_ranks)
    met = run_with_faults(
        command,
        folder / "disturbed",
        num_ranks=num_ranks,
        faults=[fault],
        rng=random.Random(seed),
        seconds=seconds / 3,
        most=times,
    )
    assert_same_bits(folder / "disturbed", folder / "undisturbed")
    return met


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "fault", "times"),
    [("one memory", killed, 2), ("two shards", killed, 3), ("two memory", asked_to_stop, 3)],
)
def test_ended_at_random_moments(tmp_path, photos, kind, fault, times):
    met = tried(kind, photos, tmp_path, fault=fault, times=times, steps=24, seed=times)
    assert 1 <= met.total() <= times  # a run may end before the last


KINDS = (
    *("one memory", "one folder", "one shards"),
    *("two memory", "two folder", "two shards"),
    "parts memory",
)


@pytest.mark.soak
@pytest.mark.parametrize("kind", KINDS)
def test_fifty_kills(tmp_path, photos, kind):
    seed = KINDS.index(kind)
    times = 7 + (seed == 0)
    met = tried(kind, photos, tmp_path, "checkpoint_every.steps=5", times=times, steps=240, seed=seed)
    assert 1 <= met.total() <= times
    print(f"\n{kind}: {dict(met)}, the same bits")


# ------------------------------------------------------------------------------------------------------ the soak


class Disk:
    """A small file system of its own; filling it needs the rights to mount one."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        folder.mkdir()
        self.is_mounted = (
            subprocess.run(
                ["mount", "-t", "tmpfs", "-o", "size=48m", "tmpfs", str(folder)],
                capture_output=True,
                check=False,
            ).returncode
            == 0
        )

    def fill(self) -> None:
        """To the last byte."""
        with contextlib.suppress(OSError), (self.folder / "ballast").open("wb", buffering=0) as file:
            while True:
                file.write(bytes(1 << 20))
        with contextlib.suppress(OSError), (self.folder / "ballast").open("ab", buffering=0) as file:
            while True:
                file.write(b"\0")

    def free(self) -> None:
        """As before."""
        (self.folder / "ballast").unlink(missing_ok=True)

    def close(self) -> None:
        """Take it away."""
        if self.is_mounted:
            subprocess.run(["umount", "-l", str(self.folder)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.close()


@pytest.mark.soak
def test_half_an_hour_of_faults(tmp_path, photos, disk):
    """Two ranks, of which some are killed or asked to stop; shards are cut, and the disk is full now and then."""
    command, num_ranks = words("two shards", photos)
    command += [f"duration.steps={SOAK_STEPS}", "checkpoint_every.steps=50", "eval_every.steps=500"]
    run_dir = disk.folder / "run"
    log = run_dir.with_suffix(".log")
    log.symlink_to(tmp_path / "disturbed.log")  # not on the disk that runs full

    def said_since(length: int) -> str:
        return log.read_text()[length:]

    def disk_full(session: Session, rng: random.Random) -> str:
        length = len(log.read_text())
        disk.fill()
        has_ended = session.wait(120.0)
        disk.free()
        assert has_ended or session.wait(60.0)
        if set(session.codes()) != {0}:
            assert "No space left on device" in said_since(length), said_since(length)[-2000:]
            assert 0 not in session.codes()
        return "full disk"

    def shard_cut(session: Session, rng: random.Random) -> str:
        """While it is read; then the command is refused until the shard is whole."""
        length = len(log.read_text())
        path = rng.choice(sorted((photos / "shards").glob("train-*.tar")))
        whole = path.read_bytes()
        before = path.stat()
        os.truncate(path, len(whole) // 2)
        has_ended = session.wait(60.0)
        again = Session(command, run_dir, num_ranks=num_ranks)
        refused = again.wait(60.0) and 0 not in again.codes()
        path.write_bytes(whole)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        assert has_ended or session.wait(60.0), said_since(length)[-2000:]
        assert refused, (again.codes(), said_since(length)[-2000:])
        assert path.name in said_since(length), said_since(length)[-2000:]
        return "shard cut while it was read"

    faults = [killed] * 4 + [asked_to_stop] * 3 + [shard_cut] + [disk_full] * disk.is_mounted
    shutil.copytree(photos / "shards", photos / "untouched" / "shards")
    others, _ = words("two shards", photos / "untouched")
    undisturbed = Session([*others, *command[-3:]], tmp_path / "undisturbed", num_ranks=num_ranks)
    began = time.monotonic()
    met = run_with_faults(
        command,
        run_dir,
        num_ranks=num_ranks,
        faults=faults,
        rng=random.Random(0),
        seconds=16.0,
        minutes=SOAK_MINUTES,
    )
    minutes = (time.monotonic() - began) / 60
    assert undisturbed.wait(3600)
    assert undisturbed.codes() == [0, 0]
    assert_same_bits(run_dir, tmp_path / "undisturbed")
    bad = results.read_bad_images(run_dir)
    print(f"\n{minutes:.1f} minutes: {dict(met)}; {len(bad)} bad images; the bits of an undisturbed run")
    shutil.copy(log, tmp_path / "soak.log")
