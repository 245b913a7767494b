"""What `prepare` is asked to do: which source, what to do with its images, how many shards."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from mixer_lightning.data.sources.prepare_defaults import DEFAULTS, without_root

ARCHIVES_AND_LISTS = ("imagenet1k", "imagenet21k", "jft300m", "list")  # the rest by functions of conf/data
LISTS = ("jft300m", "list")
SPLITS = ("train", "val", "test")
CMYK_QUALITY = 95  # of the JPEGs that CMYK images become
MAX_PARTS = 9_999  # each with a file a shard
MAX_SHARDS = 99_999  # of a split: their names have five digits


class Part(NamedTuple):
    """One of several jobs that prepare a set, `number` from 1 to `total`."""

    number: int
    total: int

    def __str__(self) -> str:
        return f"part {self.number} of {self.total}"


@dataclass(frozen=True, kw_only=True)
class Options:
    """What to make of which source, and where."""

    data: str
    output: Path
    source: Path | None = None
    variant: str | None = None
    split: str = DEFAULTS.split
    splits: tuple[str, ...] | None = None  # None: all that there are
    classes: str | None = None
    val_share: float | None = None  # None: as the data set is used
    short_side: int | None = None
    quality: int | None = None
    restart: int | None = None  # MCUs between restart markers in JPEGs; None: files as they are
    verify: bool = DEFAULTS.verify
    hashes: Path | None = None
    max_distance: int = DEFAULTS.max_distance
    write_hashes: Path | None = None
    shard_bytes: int = DEFAULTS.shard_bytes
    shards: int | None = None
    max_bad: float = DEFAULTS.max_bad
    seed: int = DEFAULTS.seed
    threads: int = 1
    overrides: tuple[str, ...] = ()  # data.<key>=<value>, for functions of conf/data
    part: Part | None = None  # which this job prepares; None: all
    merge: bool = False  # join the parts of other jobs

    @property
    def reads_lists(self) -> bool:
        """Whether the source is a list of image files."""
        return self.data in LISTS

    def record(self) -> dict[str, Any]:
        """What decides the bytes of the shards, in plain values; two equal records make equal shards of a source."""
        return {
            "data": self.data,
            "variant": self.variant,
            "split": self.split if self.reads_lists else None,
            "splits": sorted(self.splits) if self.splits else None,
            "classes": _identity(self.classes),
            "val_share": self.val_share,
            "short_side": self.short_side,
            "resampling": "lanczos" if self.short_side else None,
            "quality": self.quality,
            "cmyk_quality": CMYK_QUALITY,
            "verify": self.verify,
            "hashes": _identity(self.hashes),
            "max_distance": self.max_distance,
            "write_hashes": self.write_hashes is not None,
            "shard_bytes": self.shard_bytes,
            "shards": self.shards,
            "seed": self.seed,
            "overrides": sorted(without_root(self.overrides)),
            **({} if self.restart is None else {"restart": self.restart}),
        }


def _identity(path: str | Path | None) -> str | None:
    """A file as its checksum, another text as itself."""
    if path is None or not Path(path).is_file():
        return None if path is None else str(path)
    return f"sha256 {hashlib.sha256(Path(path).read_bytes()).hexdigest()}"
