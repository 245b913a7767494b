"""How large the output becomes, in how many shards, and whether it fits on the disk."""

from __future__ import annotations

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from mixer_lightning.prepare.options import MAX_SHARDS, Options
from mixer_lightning.prepare.readers import Extent, Source
from mixer_lightning.prepare.state import working_folder

MEAN_IMAGE_BYTES = 110_000  # of an ImageNet photograph, where the number of images is not known
OVERHEAD_BYTES = 2_048  # of a sample: two headers, padding, label and index row
BITS_PER_PIXEL = 2.5  # of a resized JPEG at quality 90


@dataclass(frozen=True)
class Plan:
    """How a source becomes shards."""

    num_shards: dict[str, int]
    val_share: float
    num_bytes: int  # of the output, estimated


def plan_shards(source: Source, options: Options) -> Plan:
    """Splits and numbers of shards, from the size of the source.

    Raises:
        ValueError: val is to be held out of train, but there is no train, or a val already.
    """
    share = source.val_share if options.val_share is None else options.val_share
    extents = dict(source.splits)
    if share:
        if "val" in extents or "train" not in extents:
            has = "a val split of its own" if "val" in extents else "no train split"
            raise ValueError(f"val_share: {source.name} has {has}")
        train = extents["train"]
        for split, part in (("train", 1 - share), ("val", share)):
            known = train.num_samples
            extents[split] = Extent(known and round(known * part), round(train.num_bytes * part))
    sizes = {split: estimate_shard_bytes(extent, options) for split, extent in extents.items()}
    largest = max(sizes.values(), default=0) or 1
    num_shards = {
        split: max(1, -(-size * options.shards // largest))
        if options.shards is not None
        else max(1, -(-size // options.shard_bytes))
        for split, size in sizes.items()
    }
    if any(number > MAX_SHARDS for number in num_shards.values()):
        raise ValueError(
            f"shard_bytes: {options.shard_bytes:,} makes more than {MAX_SHARDS:,} shards; use more bytes"
        )
    return Plan(num_shards, share, sum(sizes.values()))


def estimate_shard_bytes(extent: Extent, options: Options) -> int:
    """Bytes of a split's shards: known for images as they are, for resized ones an estimate on the safe side."""
    num_samples, num_bytes = extent
    num_samples = num_bytes // MEAN_IMAGE_BYTES if num_samples is None else num_samples
    if options.short_side is not None:
        pixels = options.short_side**2 * 4 / 3
        num_bytes = min(num_bytes, round(num_samples * pixels * BITS_PER_PIXEL / 8))
    return num_bytes + num_samples * OVERHEAD_BYTES


def check_disk(plan: Plan, options: Options) -> str:
    """The space that the output takes, for a message.

    Raises:
        ValueError: it cannot fit, or may not be written.
    """
    folder = _writable("output", options.output)
    if options.write_hashes is not None:
        _writable("write_hashes", options.write_hashes.parent)
    num_bytes, of = plan.num_bytes, ""
    if options.part is not None:
        num_bytes, of = num_bytes // options.part.total, " a part"
    written = sum(path.stat().st_size for path in working_folder(options).glob("*.tar"))
    if options.merge:  # its pieces are there, and go when a shard is finished
        num_shards = sum(plan.num_shards.values())
        num_bytes, of = num_bytes * min(options.threads, num_shards) // num_shards, " while parts are merged"
    elif options.part is None:
        written += sum(path.stat().st_size for path in options.output.glob("*.tar"))
    free, need = shutil.disk_usage(folder).free, max(0, num_bytes - written)
    about = f"about {format_bytes(num_bytes)}{of}" + (" (resized: an estimate)" if options.short_side else "")
    if need > free:
        raise ValueError(
            f"output: the shards take {about}, but only {format_bytes(free)} are free at {folder}"
            f"{f' beside {format_bytes(written)} already written' if written else ''}. "
            f"Free {format_bytes(need - free)}, choose another output, or make the images smaller (short_side=500)."
        )
    return about


def _writable(key: str, folder: Path) -> Path:
    """The folder or, where it is still to be made, its first existing parent; ValueError if it cannot be made."""
    while not folder.exists():
        folder = folder.parent
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise ValueError(f"{key}: {folder} is not a folder that may be written. Choose another {key}.")
    return folder


def format_bytes(num_bytes: int) -> str:
    """1234567 -> '1.2 MB'."""
    for unit, length in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if num_bytes >= length:
            return f"{num_bytes / length:,.1f} {unit}"
    return f"{num_bytes / 1000:,.0f} kB"
