"""The parts of a set joined: every shard from its pieces, in the order of the source, as one job would have written it.

A shard that is finished has its last name, and its pieces are deleted then, so a merge needs room for the few shards
that are in the making. One that was stopped goes on with the shards that are not finished.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed, wait
from pathlib import Path
from typing import NamedTuple

from mixer_lightning.data.sources.archives import ArchiveStream, archive_members
from mixer_lightning.data.stateless_random import hash32
from mixer_lightning.files import fsync_folder
from mixer_lightning.prepare.parts import Prepared, how_to_prepare_again
from mixer_lightning.prepare.state import State
from mixer_lightning.prepare.writing import Entry, Shard
from mixer_lightning.progress import Bar
from mixer_lightning.screen import Screen
from mixer_lightning.stopping import Stopped, StopRequests

WRITE_BYTES = 2**25  # of samples, which wait in memory


class Piece(NamedTuple):
    """What a part has of a shard."""

    of: Prepared
    shard: Shard


def merge_parts(state: State, parts: Sequence[Prepared], pool: ThreadPoolExecutor, screen: Screen) -> None:
    """Write all shards of `state` from finished parts, under their last names.

    Raises:
        Stopped: a signal came; the shards that are finished stay.
        ValueError, OSError: a piece is damaged, too many images are bad, or a disk is full.
    """
    work = list(_pieces(state, parts))
    state.commit(pool)  # from here on, finished shards in the output are known as those of this merge
    for each in parts:
        state.take_over(each.folder, each.journal)
    if state.num_bad > state.tolerated_bad:
        raise ValueError(
            f"{state.num_bad:,} of {state.consumed:,} images are bad. Repair the source and prepare the parts again, "
            "or allow more with max_bad=<share>."
        )
    first = "ending after the shards that are finished; the same command goes on"
    done = 0
    with (
        StopRequests(screen.say, first=first, quitting=lambda: first) as requests,
        Bar(screen, total=max(len(work), 1), label="shards") as bar,
    ):
        requests.catch()

        def stop_if_asked() -> None:
            if number := requests.received:
                raise Stopped(number, where=f" after {done:,} of {len(work):,} shards", saved=True)

        def merge(of_shard: tuple[Shard, Path, list[Piece]]) -> None:
            stop_if_asked()
            shard, final, pieces = of_shard
            if not final.exists():
                _join(shard, pieces, stop_if_asked)
                shard.finish(final)
                fsync_folder(final.parent)
            else:
                samples = sum(piece.shard.samples for piece in pieces)
                shard.restore(final.stat().st_size, samples, finished=True)
                shard.finish(final)
            for piece in pieces:
                piece.shard.path.unlink(missing_ok=True)

        futures = [pool.submit(merge, each) for each in work]
        try:
            for future in as_completed(futures):
                future.result()
                done += 1
                bar.move(done, label=f"{done:,} of {len(work):,} shards")
                stop_if_asked()
        finally:  # nobody else may merge here before they have ended
            for future in futures:
                future.cancel()
            wait(futures)


def refuse_cut(state: State, parts: Sequence[Prepared]) -> None:
    """Compare the lengths of all pieces with those that were written.

    Raises:
        ValueError: one is cut; its part is named.
    """
    for _, final, pieces in _pieces(state, parts):
        for piece in pieces:
            expected = {piece.shard.rows_path: piece.shard.num_row_bytes}
            if not final.exists():
                expected[piece.shard.path] = piece.shard.num_bytes
            for path, num_bytes in expected.items():
                found = path.stat().st_size if path.exists() else 0
                if found != num_bytes:
                    raise ValueError(
                        f"{piece.of.part}: {path} has {found:,} bytes, but {num_bytes:,} were written. "
                        f"{how_to_prepare_again(piece.of)}"
                    )


def _pieces(state: State, parts: Sequence[Prepared]) -> Iterator[tuple[Shard, Path, list[Piece]]]:
    """Every shard that gets a sample, where it goes, and its pieces in order."""
    for split, shards in state.shards.items():
        pieces: list[list[Piece]] = [[] for _ in shards]
        for each in parts:
            for i, (num_bytes, samples) in enumerate(each.journal.written.get(split, [])):
                if samples:
                    piece = Shard(each.folder / shards[i].path.name, state.source.labels_per_image)
                    piece.num_bytes, piece.samples = num_bytes, samples
                    pieces[i].append(Piece(each, piece))
        totals = [sum(piece.shard.samples for piece in of_shard) for of_shard in pieces]
        for shard, final, of_shard in zip(shards, state.final_paths(split, totals), pieces, strict=True):
            if final is not None:
                yield shard, final, of_shard


def _join(shard: Shard, pieces: Sequence[Piece], stop_if_asked: Callable[[], None]) -> None:
    """Write a shard anew from its pieces, to the disk."""
    shard.restore(0, 0, finished=False)
    waiting = 0
    for piece in pieces:
        for entry in _entries(piece):
            shard.add(entry)
            waiting += len(entry.encoded)
            if waiting >= WRITE_BYTES:
                stop_if_asked()
                shard.write()
                waiting = 0
    shard.write()
    shard.sync()


def _entries(piece: Piece) -> Iterator[Entry]:
    """The samples of a piece, checked against its index.

    Raises:
        ValueError: they are not those; the part is named.
    """
    path = piece.shard.path
    archive = ArchiveStream(path)
    try:
        members = archive_members(archive, str(path), nested=True)  # its end is still to be written
        for row in piece.shard.rows():
            found = {}
            for _ in range(2):  # the image and its labels
                member = next(members)
                key, _, suffix = member.name.rpartition(".")
                found[suffix] = member.read()
            note = "cls" if "cls" in found else "json"
            del found[note]
            ((suffix, encoded),) = found.items()
            if hash32(key) != row["hash"] or len(encoded) != row["size"]:
                raise ValueError(f"{key} is not where the index has it")
            yield Entry(key, encoded, suffix, tuple(int(label) for label in row["labels"] if label >= 0))
    except (ValueError, KeyError, StopIteration) as error:
        raise ValueError(
            f"{piece.of.part}: {path} is damaged ({error or 'it ends early'}). {how_to_prepare_again(piece.of)}"
        ) from error
    finally:
        archive.close()
