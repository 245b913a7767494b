"""The journal of an unfinished set: how much of the source is read, and how much of every file counts.

It is replaced atomically after all that it names has reached the disk. So whatever a process had done beyond it is
cut off and done again, and the shards come out as if nothing had happened.
"""

from __future__ import annotations

import functools
import json
import os
from dataclasses import asdict, dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.data.sources.prepare_defaults import without_root
from mixer_lightning.files import fsync, write_text
from mixer_lightning.prepare.options import Options
from mixer_lightning.prepare.readers import LABELS, Cursor, Source


@dataclass(kw_only=True)
class Journal:
    """The content of journal.json; field names and their order are its format."""

    options: dict[str, Any]  # Options.record
    source: list[str]  # Source.fingerprint
    num_shards: dict[str, int]  # by split
    place: Cursor = (0, 0)  # where reading goes on
    done: int = 0  # of Source.total
    read: dict[str, int] = field(default_factory=dict)  # images, by split of the source
    bytes_read: int = 0
    read_all: bool = False
    seconds: float = 0.0  # spent, in all sessions
    bad_bytes: int = 0  # of bad.jsonl
    hash_bytes: int = 0  # of hashes.txt
    written: dict[str, list[tuple[int, int]]] = field(
        default_factory=dict
    )  # bytes and samples of every shard
    unknown_classes: list[str] = field(default_factory=list)  # met so far
    versions: dict[str, str] = field(default_factory=dict)  # of the programs that made the images

    def write(self, path: Path) -> None:
        """Replace the file."""
        write_text(path, json.dumps(asdict(self)))


@functools.cache
def versions() -> dict[str, str]:
    """Of the programs that decide what the shards hold."""
    return {name: metadata.version(name) for name in ("mixer-lightning", "pillow")}


def read_journal(path: Path) -> Journal:
    """The journal of an earlier session.

    Raises:
        ValueError: it is damaged, or of a version that writes other fields.
    """
    try:
        return Journal(**json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged or of another version ({error}). Go on with the version that wrote it, or delete "
            f"{path.parent} and start anew."
        ) from error


def refuse_differences(
    options: dict[str, Any], fingerprint: list[str], now: Options, source: Source | None, subject: str
) -> None:
    """Compare the options and the source of an earlier session with those of now; without a source, options alone.

    Raises:
        ValueError: some differ; they are listed. `subject` says what holds the earlier ones.
    """
    overrides = without_root(options.get("overrides", []))  # with it, in those of earlier versions
    options = options | {"overrides": overrides}
    changes = results.differing_keys(options, now.record())
    lines = [f"  {key}: {before!r} there, {after!r} here" for key, before, after in changes]
    before, after = set(fingerprint), set(source.fingerprint if source is not None else fingerprint)
    if not any(f": {LABELS} " in each for each in before):
        after = {each for each in after if f": {LABELS} " not in each}
    if not changes and before != after:
        there, here = ("; ".join(sorted(each)) or "nothing more" for each in (before - after, after - before))
        lines = [f"  source: {there} there, {here} here"]
    if lines:
        raise ValueError(
            "\n".join([f"{subject}:", *lines]) + "\nChoose another output, or delete that folder."
        )


def refuse_other_versions(journal: Journal, subject: str, advice: str) -> None:
    """See that the programs of an earlier session are those of now.

    Raises:
        ValueError: one is not. `subject` says what was prepared with it.
    """
    for name, version in versions().items():
        if (found := journal.versions.get(name)) != version:
            raise ValueError(
                f"{subject} was prepared with {name} {found}, and this is {version}: images written anew may differ. "
                f"{advice}"
            )


class AppendOnly:
    """A text file that grows line by line and counts up to its committed length."""

    def __init__(self, path: Path, num_bytes: int) -> None:
        self.path, self.num_bytes = path, num_bytes
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
                fsync(file.fileno())
            self.num_bytes += len(data)
            self._waiting.clear()
