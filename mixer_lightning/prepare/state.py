"""What has become of a source so far: samples in shards, notes on bad images, and the journal that says how far.

A killed process goes on from its last commit; see `journal`.
"""

from __future__ import annotations

import json
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

from mixer_lightning.data import stateless_random
from mixer_lightning.data.sources.names import not_read, tar_key
from mixer_lightning.files import atomic_write
from mixer_lightning.prepare.cleaning import BAD_KINDS, LEFT_OUT, OTHER_FILE, Note, Outcome
from mixer_lightning.prepare.journal import (
    AppendOnly,
    Journal,
    read_journal,
    refuse_differences,
    refuse_other_versions,
    versions,
)
from mixer_lightning.prepare.options import Options, Part
from mixer_lightning.prepare.readers import Sample, Source
from mixer_lightning.prepare.writing import Entry, Shard, Written, write_index

PARTIAL = ".partial"  # folder under the output of what is not finished
MERGING = "merge"  # folder in it of the shards that are made of parts
JOURNAL = "journal.json"
BAD = "bad.jsonl"
HASHES = "hashes.txt"

TOLERATED_BAD_IMAGES = 100  # whatever share of the images `max_bad` allows


class State:
    """What has become of the source so far, in memory and in <output>/.partial."""

    def __init__(
        self, source: Source, options: Options, num_shards: dict[str, int], val_share: float
    ) -> None:
        self.source, self.options, self.val_share = source, options, val_share
        self.folder = working_folder(options)
        self.places = source.places or range(source.total)
        journal = self._earlier_journal(num_shards)
        self.resumed = journal is not None
        if journal is None:
            _clear(self.folder)  # of a start that was killed at once
            self.folder.mkdir(parents=True, exist_ok=True)
            journal = Journal(options=options.record(), source=source.fingerprint, num_shards=num_shards)
        self.shards = {
            split: [
                Shard(
                    self.folder / f"{split}-{i:05d}.tar",
                    source.labels_per_image,
                    numbers_keys=options.part is None,
                )
                for i in range(number)
            ]
            for split, number in journal.num_shards.items()
        }
        self.cursor = (journal.place[0], journal.place[1])
        self.done = max(journal.done, self.places.start)
        self.images_read = Counter(journal.read)  # by split of the source
        self.bytes_read = journal.bytes_read
        self.read_all = journal.read_all
        self.bad = AppendOnly(self.folder / BAD, journal.bad_bytes)
        self.hashes = AppendOnly(self.folder / HASHES, journal.hash_bytes)
        self.notes = Counter(
            json.loads(line)["kind"] for line in self.bad.path.read_text(encoding="utf-8").splitlines()
        )
        self.waiting_bytes = 0
        self._written = journal.written
        source.unknown_classes.update(journal.unknown_classes)
        self._seconds_before = journal.seconds
        self._begin = time.perf_counter()

    def restore(self, pool: ThreadPoolExecutor) -> None:
        """Cut all shards back to what was committed, and compute the checksums of that anew.

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
        return sum(self.images_read.values())

    @property
    def num_bad(self) -> int:
        """Bad images so far."""
        return sum(self.notes[kind] for kind in BAD_KINDS)

    @property
    def tolerated_bad(self) -> float:
        """How many of the images read so far may be bad."""
        return max(TOLERATED_BAD_IMAGES, self.options.max_bad * self.consumed)

    @property
    def seconds(self) -> float:
        """Spent so far, in all sessions."""
        return self._seconds_before + time.perf_counter() - self._begin

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
        key, split = tar_key(sample.key), self._split_of(sample)
        is_image = not any(note.kind == OTHER_FILE for note in outcome.notes)
        if is_image and not sample.labels:
            outcome = Outcome(b"", "", (Note("damaged", "it has no label", LEFT_OUT),))
        for note in outcome.notes:
            self._note(split, key if is_image else sample.key, note)
        if outcome.kept:
            shards = self.shards[split]
            shard = shards[stateless_random.derive_seed(self.options.seed, "shard", key) % len(shards)]
            shard.add(Entry(key, outcome.encoded, outcome.suffix, sample.labels))
            self.waiting_bytes += len(outcome.encoded)
            if self.options.write_hashes is not None:
                self.hashes.add(f"{outcome.difference_hash:016x}")
        self.cursor, self.done = sample.cursor, sample.done
        if not is_image:
            return
        self.images_read[sample.split] += 1
        self.bytes_read += outcome.bytes_read
        if not outcome.kept:
            self._refuse_too_many_bad(sample, outcome)

    def take_over(self, folder: Path, journal: Journal) -> None:
        """Add the notes, hashes and counts of a part of the source that was read by another job.

        Raises:
            ValueError: a file of it holds less than was committed.
        """
        for line in committed_lines(folder / BAD, journal.bad_bytes):
            self.notes[json.loads(line)["kind"]] += 1
            self.bad.add(line)
        for line in committed_lines(folder / HASHES, journal.hash_bytes):
            self.hashes.add(line)
        self.bad.commit()
        self.hashes.commit()
        self.source.unknown_classes.update(journal.unknown_classes)
        self.images_read.update(journal.read)
        self.bytes_read += journal.bytes_read
        self._seconds_before += journal.seconds
        self.read_all = True

    def note_left_out(self) -> None:
        """Note the files of the source that are not images by their ending, once, when all is read."""
        for split, path in self.source.left_out:
            self._note(split, path, Note(OTHER_FILE, not_read(path), LEFT_OUT))

    def _note(self, split: str, key: str, note: Note) -> None:
        self.notes[note.kind] += 1
        record = {"split": split, "key": key, "kind": note.kind, "reason": note.reason, "done": note.done}
        self.bad.add(json.dumps(record))

    def _split_of(self, sample: Sample) -> str:
        """The split that a sample is written to: of train, `val_share` become val, chosen by their key."""
        if sample.split != "train" or not self.val_share:
            return sample.split
        number = stateless_random.derive_seed(self.options.seed, "val", tar_key(sample.key))  # 63 bits
        return "val" if number < self.val_share * 2.0**63 else "train"

    def _refuse_too_many_bad(self, sample: Sample, outcome: Outcome) -> None:
        bad = self.num_bad
        if bad > self.tolerated_bad:
            of = f" of {self.options.part}" if self.options.part else ""
            raise ValueError(
                f"{bad:,} of the first {self.consumed:,} images{of} are bad, the last one {sample.key}"
                f"{': ' + outcome.notes[-1].reason if outcome.notes else ''}. Repair the source, or allow more with "
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
        journal = Journal(
            options=self.options.record(),
            source=self.source.fingerprint,
            num_shards={split: len(shards) for split, shards in self.shards.items()},
            place=self.cursor,
            done=self.done,
            read=dict(self.images_read),
            bytes_read=self.bytes_read,
            read_all=self.read_all,
            seconds=self.seconds,
            bad_bytes=self.bad.num_bytes,
            hash_bytes=self.hashes.num_bytes,
            written={
                split: [(shard.num_bytes, shard.samples) for shard in shards]
                for split, shards in self.shards.items()
            },
            unknown_classes=sorted(self.source.unknown_classes),
            versions=versions(),
        )
        journal.write(self.folder / JOURNAL)

    def finish(self, pool: ThreadPoolExecutor) -> dict[str, list[Written]]:
        """The finished shards of every split that has any, with their index; may be done again after a kill."""
        output, finished = self.options.output, {}
        for split, shards in self.shards.items():
            final = self.final_paths(split, [shard.samples for shard in shards])
            filled = [(shard, path) for shard, path in zip(shards, final, strict=True) if path is not None]
            if filled:
                finished[split] = list(pool.map(lambda pair: pair[0].finish(pair[1]), filled))
                several = self.source.labels_per_image > 1
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

    def _earlier_journal(self, num_shards: dict[str, int]) -> Journal | None:
        """The journal of an earlier session, if there was one.

        Raises:
            ValueError: it was about something else, or the output holds shards that were not written here.
        """
        output, path = self.options.output, self.folder / JOURNAL
        if not path.exists():
            foreign = sorted(found.name for split in num_shards for found in output.glob(f"{split}-*.tar"))
            if foreign:
                raise ValueError(
                    f"output: {output} holds {foreign[0]}, which was not written here. Choose another output."
                )
            return None
        journal = read_journal(path)
        subject = f"{self.folder if self.options.part else output} holds a beginning of another set"
        refuse_differences(journal.options, journal.source, self.options, self.source, subject)
        if journal.versions:  # earlier versions wrote none
            advice = f"Go on with the former, choose another output, or delete {self.folder} and start anew."
            refuse_other_versions(journal, f"What was committed in {self.folder}", advice)
        return journal


def working_folder(options: Options) -> Path:
    """Where what is not finished lies: of a job that reads all, of one part, or of the merge of parts."""
    folder = options.output / PARTIAL
    if options.merge:
        return folder / MERGING
    return folder if options.part is None else part_folder(options.output, options.part)


def part_folder(output: Path, part: Part) -> Path:
    """Where a job keeps its part of a set until all are merged."""
    return output / PARTIAL / f"part-{part.number}-of-{part.total}"


def committed_lines(path: Path, num_bytes: int) -> list[str]:
    """The first lines of a file, that have so many bytes.

    Raises:
        ValueError: it has fewer.
    """
    data = path.read_bytes()[:num_bytes] if path.exists() else b""
    if len(data) < num_bytes:
        raise ValueError(
            f"{path} has {len(data):,} bytes, but {num_bytes:,} were written: delete {path.parent} and prepare this "
            "part again"
        )
    return data.decode().splitlines()


def _clear(folder: Path) -> None:
    """Delete the files in a folder, except the lock that may be held."""
    for path in folder.glob("*"):
        if path.is_file() and path.name != ".lock":
            path.unlink()


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as file:
        atomic_write(target, partial(shutil.copyfileobj, file))
