"""The one pass over a source: read, mend, append, commit; and go on where a killed process had committed.

The journal is the truth: options, the place in the source and how much of every file counts. It is replaced
in one move after all that it names has reached the disk. So whatever a process had done beyond it is cut off
and done again, and the shards come out as if nothing had happened.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any

from mixer_lightning import results
from mixer_lightning.data.sources.names import tar_key
from mixer_lightning.data.stateless_random import derive_seed
from mixer_lightning.files import atomic_write, write_text
from mixer_lightning.prepare.feeds import Extent, Feed, Sample
from mixer_lightning.prepare.mending import LEFT_OUT, Note, Outcome, Rules, mend
from mixer_lightning.prepare.options import Options
from mixer_lightning.prepare.writing import Entry, Shard, Written, write_index

PARTIAL = ".partial"
JOURNAL = "journal.json"
DATASET = "dataset.json"
BAD = "bad.jsonl"
HASHES = "hashes.txt"

AHEAD = 4  # images in work for each thread
MEAN_BYTES = 110_000  # of an ImageNet photograph, where the number of images is not known
BYTES_BESIDE = 2_048  # two headers, padding, label and index row of a sample
BITS_PER_PIXEL = 2.5  # of a resized JPEG at quality 90
NEVER_TOO_MANY = 100  # bad images
BAD_KINDS = ("unreadable", "empty", "truncated", "not an image", "too large", "damaged")


class Stopped(Exception):
    """Somebody asked to stop; everything is committed."""

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.exit_code = 130 if number == signal.SIGINT else 143


class StopFlag:
    """Set by a signal, looked at between two images."""

    number: int | None = None

    def set(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        self.number = number


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """SIGTERM, SIGUSR1 and Ctrl-C set a flag instead of ending the process."""
    flag = StopFlag()
    wanted = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)
    before = {number: signal.signal(number, flag.set) for number in wanted}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


# ------------------------------------------------------------------------------------------------- plan


@dataclass(frozen=True)
class Plan:
    """How a feed becomes shards."""

    num_shards: dict[str, int]
    val_share: float
    bytes: int  # of the output, estimated


def plan(feed: Feed, options: Options) -> Plan:
    """Splits and numbers of shards, from the size of the source.

    Raises:
        ValueError: val is to be held out of train, but there is no train, or a val already.
    """
    share = feed.val_share if options.val_share is None else options.val_share
    extents = dict(feed.splits)
    if share:
        if "val" in extents or "train" not in extents:
            has = "a val split of its own" if "val" in extents else "no train split"
            raise ValueError(f"val_share: {feed.name} has {has}")
        train = extents["train"]
        for split, part in (("train", 1 - share), ("val", share)):
            known = train.num_samples
            extents[split] = Extent(known and round(known * part), round(train.num_bytes * part))
    sizes = {split: _bytes_written(extent, options) for split, extent in extents.items()}
    largest = max(sizes.values(), default=0) or 1
    num_shards = {
        split: max(1, -(-size * options.shards // largest))
        if options.shards is not None
        else max(1, -(-size // options.shard_bytes))
        for split, size in sizes.items()
    }
    if any(number > 99_999 for number in num_shards.values()):
        raise ValueError(f"shard_bytes: {options.shard_bytes:,} makes more than 99,999 shards; take more")
    return Plan(num_shards, share, sum(sizes.values()))


def _bytes_written(extent: Extent, options: Options) -> int:
    """Bytes of a split's shards: known for images as they are, for resized ones an estimate on the safe side."""
    num_samples, num_bytes = extent
    num_samples = num_bytes // MEAN_BYTES if num_samples is None else num_samples
    if options.short_side is not None:
        pixels = options.short_side**2 * 4 / 3
        num_bytes = min(num_bytes, round(num_samples * pixels * BITS_PER_PIXEL / 8))
    return num_bytes + num_samples * BYTES_BESIDE


def check_disk(chosen: Plan, options: Options) -> str:
    """What the output will take, in words.

    Raises:
        ValueError: it cannot fit, or may not be written.
    """
    folder = _writable("output", options.output)
    if options.write_hashes is not None:
        _writable("write_hashes", options.write_hashes.parent)
    there = sum(path.stat().st_size for path in (options.output / PARTIAL).glob("*.tar"))
    there += sum(path.stat().st_size for path in options.output.glob("*.tar"))
    free, need = shutil.disk_usage(folder).free, max(0, chosen.bytes - there)
    about = f"about {format_bytes(chosen.bytes)}" + (" (resized: an estimate)" if options.short_side else "")
    if need > free:
        raise ValueError(
            f"output: the shards take {about}, but only {format_bytes(free)} are free at {folder}"
            f"{f' beside {format_bytes(there)} already written' if there else ''}. Free {format_bytes(need - free)}, "
            "choose another output, or make the images smaller (short_side=500)."
        )
    return about


def _writable(key: str, folder: Path) -> Path:
    """The folder or, where it is still to be made, the one that is there above it; ValueError if none can be made."""
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{key}: {folder} is no folder that may be written. Choose another {key}.")
    return folder


def format_bytes(num_bytes: int) -> str:
    """1234567 -> '1.2 MB'."""
    for unit, length in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if num_bytes >= length:
            return f"{num_bytes / length:,.1f} {unit}"
    return f"{num_bytes / 1000:,.0f} kB"


# ---------------------------------------------------------------------------------------------- the state


class Lines:
    """A text file that grows line by line and counts up to its committed length."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path, self.bytes = path, num_bytes
        path.touch()
        os.truncate(path, num_bytes)
        self._waiting: list[str] = []

    def add(self, line: str) -> None:
        """Let a line wait to be written."""
        self._waiting.append(line + "\n")

    def commit(self) -> None:
        """Append what waits, and wait until the disk has it."""
        if self._waiting:
            data = "".join(self._waiting).encode()
            with self.path.open("ab") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            self.bytes += len(data)
            self._waiting.clear()


class Preparation:
    """What has become of the source so far, in memory and in <output>/.partial."""

    def __init__(self, feed: Feed, options: Options, chosen: Plan) -> None:
        self.feed, self.options, self.plan = feed, options, chosen
        self.folder = options.output / PARTIAL
        journal = self._journal()
        self.resumed = journal is not None
        if journal is None:
            shutil.rmtree(self.folder, ignore_errors=True)  # of a start that was killed at once
            self.folder.mkdir(parents=True)
            journal = {}
        num_shards: dict[str, int] = journal.get("num_shards", chosen.num_shards)
        self.shards = {
            split: [Shard(self.folder / f"{split}-{i:05d}.tar", feed.labels_per_image) for i in range(number)]
            for split, number in num_shards.items()
        }
        self.place = tuple(journal.get("place", (0, 0)))
        self.done: int = journal.get("done", 0)
        self.read: Counter[str] = Counter(journal.get("read", {}))  # images, by split of the source
        self.bytes_read: int = journal.get("bytes_read", 0)
        self.read_all: bool = journal.get("read_all", False)
        self.seconds_before: float = journal.get("seconds", 0.0)
        self.bad = Lines(self.folder / BAD, journal.get("bad_bytes", 0))
        self.hashes = Lines(self.folder / HASHES, journal.get("hash_bytes", 0))
        self.notes = Counter(json.loads(line)["kind"] for line in self.bad.path.read_text().splitlines())
        self.waiting_bytes = 0
        self._written: dict[str, list[tuple[int, int]]] = journal.get("written", {})
        self._begin = time.perf_counter()

    def restore(self, pool: ThreadPoolExecutor) -> None:
        """Cut all shards back to what was committed, and take their checksums up again.

        Raises:
            ValueError: a shard holds less than was committed.
        """

        def restore(shard: Shard, written: tuple[int, int], path: Path | None) -> None:
            num_bytes, samples = written
            shard.restore(num_bytes, samples, finished=self.read_all and path is not None and path.exists())

        for split, written in self._written.items():
            final = self.final_paths(split, [samples for _, samples in written])
            for _ in pool.map(restore, self.shards[split], written, final):
                pass

    @property
    def consumed(self) -> int:
        """Images read so far."""
        return sum(self.read.values())

    @property
    def seconds(self) -> float:
        """Spent so far, in all sittings."""
        return self.seconds_before + time.perf_counter() - self._begin

    def final_paths(self, split: str, samples: list[int]) -> list[Path | None]:
        """Where the shards of a split go, numbered without those that got no sample."""
        numbers = iter(range(len(samples)))
        output = self.options.output
        return [output / f"{split}-{next(numbers):05d}.tar" if count else None for count in samples]

    def take(self, sample: Sample, outcome: Outcome) -> None:
        """Put a sample where it belongs: into its shard, or into the list of bad ones.

        Raises:
            ValueError: more images are bad than may be.
        """
        key, split, seed = tar_key(sample.key), sample.split, self.options.seed
        if (
            split == "train"
            and self.plan.val_share
            and derive_seed(seed, "val", key) < self.plan.val_share * 2.0**63
        ):
            split = "val"
        if not sample.labels:
            outcome = Outcome(b"", "", (Note("damaged", "it has no label", LEFT_OUT),))
        for note in outcome.notes:
            self.notes[note.kind] += 1
            record = {"split": split, "key": key, "kind": note.kind, "reason": note.reason, "done": note.done}
            self.bad.add(json.dumps(record))
        if outcome.kept:
            shards = self.shards[split]
            shard = shards[derive_seed(seed, "shard", key) % len(shards)]
            shard.add(Entry(key, outcome.encoded, outcome.suffix, sample.labels))
            self.waiting_bytes += len(outcome.encoded)
            if self.options.write_hashes is not None:
                self.hashes.add(f"{outcome.difference_hash:016x}")
        self.place, self.done = sample.place, sample.done
        self.read[sample.split] += 1
        self.bytes_read += outcome.bytes_read
        bad = 0 if outcome.kept else sum(self.notes[kind] for kind in BAD_KINDS)
        if bad > max(NEVER_TOO_MANY, self.options.max_bad * self.consumed):
            raise ValueError(
                f"{bad:,} of the first {self.consumed:,} images are bad, the last one {sample.key}"
                f"{': ' + outcome.notes[-1].reason if outcome.notes else ''}. Mend the source, or allow more with "
                "max_bad=<share>."
            )

    def write(self, pool: ThreadPoolExecutor) -> None:
        """Append what waits to the shards."""
        for _ in pool.map(Shard.write, self._all_shards()):
            pass
        self.waiting_bytes = 0

    def commit(self, pool: ThreadPoolExecutor) -> None:
        """Bring everything to the disk, and then the journal that says so."""
        self.write(pool)
        for _ in pool.map(Shard.sync, self._all_shards()):
            pass
        self.bad.commit()
        self.hashes.commit()
        journal = {
            "options": self.options.record(),
            "source": self.feed.fingerprint,
            "num_shards": {split: len(shards) for split, shards in self.shards.items()},
            "place": self.place,
            "done": self.done,
            "read": dict(self.read),
            "bytes_read": self.bytes_read,
            "read_all": self.read_all,
            "seconds": self.seconds,
            "bad_bytes": self.bad.bytes,
            "hash_bytes": self.hashes.bytes,
            "written": {
                split: [(shard.bytes, shard.samples) for shard in shards]
                for split, shards in self.shards.items()
            },
        }
        write_text(self.folder / JOURNAL, json.dumps(journal))

    def finish(self, pool: ThreadPoolExecutor) -> dict[str, list[Written]]:
        """The finished shards of every split that has any, with their index; may be done again after a kill."""
        output, finished = self.options.output, {}
        for split, shards in self.shards.items():
            final = self.final_paths(split, [shard.samples for shard in shards])
            filled = [(shard, path) for shard, path in zip(shards, final, strict=True) if path is not None]
            if filled:
                finished[split] = list(pool.map(lambda pair: pair[0].finish(pair[1]), filled))
                several = self.feed.labels_per_image > 1
                write_index(
                    output / f"{split}-index.npy",
                    [shard for shard, _ in filled],
                    labels_path=output / f"{split}-labels.npy" if several else None,
                )
        _copy(self.bad.path, output / BAD)
        if self.options.write_hashes is not None:
            self.options.write_hashes.parent.mkdir(parents=True, exist_ok=True)
            _copy(self.hashes.path, self.options.write_hashes)
        return finished

    def _all_shards(self) -> list[Shard]:
        return [shard for shards in self.shards.values() for shard in shards]

    def _journal(self) -> dict[str, Any] | None:
        """The journal of an earlier sitting, if there was one.

        Raises:
            ValueError: it was about something else, or the folder holds shards that are not ours.
        """
        path = self.folder / JOURNAL
        if not path.exists():
            strangers = sorted(
                p.name for split in self.plan.num_shards for p in self.options.output.glob(f"{split}-*.tar")
            )
            if strangers:
                raise ValueError(
                    f"output: {self.options.output} holds {strangers[0]}, which was not written here. "
                    "Choose another output."
                )
            return None
        journal: dict[str, Any] = json.loads(path.read_text())
        refuse_differences(
            journal, self.options, self.feed, f"{self.options.output} holds a beginning of another set"
        )
        return journal


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as file:
        atomic_write(target, partial(shutil.copyfileobj, file))


def refuse_differences(before: dict[str, Any], options: Options, feed: Feed | None, what: str) -> None:
    """ValueError that lists the options that differ, unless none does; of the source too where there is a feed."""
    changes = results.differing_keys(before["options"], options.record())
    lines = [f"  {key}: {was!r} there, {now!r} here" for key, was, now in changes]
    if not changes and feed is not None and before["source"] != feed.fingerprint:
        was, now = (set(words) for words in (before["source"], feed.fingerprint))
        lines = [f"  source: {'; '.join(sorted(was - now))} there, {'; '.join(sorted(now - was))} here"]
    if lines:
        raise ValueError("\n".join([f"{what}:", *lines]) + "\nChoose another output, or delete that folder.")


# ---------------------------------------------------------------------------------------------- the pass


def read_all(
    state: Preparation,
    rules: Rules,
    pool: ThreadPoolExecutor,
    flag: StopFlag,
    tick: Callable[[Preparation], None],
    *,
    buffer_bytes: int,
    commit_seconds: float,
) -> None:
    """Read the source from where the journal stands to its end; results are taken in the order of the source.

    Up to `buffer_bytes` of samples wait for their shards; at most `commit_seconds` of work are done again.

    Raises:
        Stopped: a signal came; everything taken is committed.
        ValueError, OSError: the source is damaged or unreachable, or a disk is full; the last commit stands.
    """
    waiting: deque[tuple[Sample, Future[Outcome]]] = deque()
    state.commit(pool)
    committed = time.perf_counter()

    def take() -> None:
        nonlocal committed
        sample, future = waiting.popleft()
        state.take(sample, future.result())
        if flag.number is not None:
            state.commit(pool)
            raise Stopped(flag.number)
        if time.perf_counter() - committed >= commit_seconds:
            state.commit(pool)
            committed = time.perf_counter()
        elif state.waiting_bytes >= buffer_bytes:
            state.write(pool)
        tick(state)

    try:
        for sample in state.feed.samples(state.place):
            waiting.append((sample, pool.submit(mend, sample.read, sample.suffix, rules)))
            if len(waiting) >= AHEAD * state.options.threads:
                take()
        while waiting:
            take()
    finally:
        for _, future in waiting:
            future.cancel()
    state.read_all = True
    state.commit(pool)
