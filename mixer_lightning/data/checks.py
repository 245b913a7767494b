"""A look at all images of a split before they are needed, without decoding those that look whole."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

from mixer_lightning.data import decode
from mixer_lightning.data.sources import BadImage, Dataset, Images, StorageError
from mixer_lightning.data.sources.arrays import Arrays
from mixer_lightning.data.sources.shards import ShardImages
from mixer_lightning.data.splits import Joined, Subset

IMAGES_PER_TASK = 64
NAMED_IMAGES = 5  # in an error
MANY_IMAGES = 5_000  # to read these takes a while: that is said


def refuse_damaged(data: Dataset, *, threads: int, say: Callable[[str], object]) -> None:
    """See that the images to evaluate on can be read and have the header and the end of a whole file.

    Shards that are fetched when they are needed are not looked at. `say` is told of a look that takes a while.

    Files are read whole, which costs little more than their ends alone: 1,000 ImageNet photographs (108 kB each) take
    0.4 to 0.8 s, their ends 0.2 to 0.7 s (2 cores, ext4 on a virtual disk, nothing cached); to decode them takes 8 s.
    So ImageNet's 50,000 take half a minute, and lie in memory for the first evaluation if they fit there.

    Raises:
        BadImage: some are damaged; the first are named.
    """
    for split, images in data.splits.items():
        if split == "train" or _is_pixels_or_remote(images):
            continue
        if len(images) >= MANY_IMAGES:
            say(f"looking whether the {len(images):,} images to evaluate on ({split}) are whole")
        found = list(damaged(images, threads=threads))
        if found:
            lines = [f"cannot read {images.name(index)}: {reason}" for index, reason in found[:NAMED_IMAGES]]
            if len(found) > NAMED_IMAGES:
                lines.append(f"and {len(found) - NAMED_IMAGES:,} more")
            advice = "each image counts: put good files in the place of these, or remove them"
            raise BadImage("\n".join([*lines, f"In evaluation ({split}) {advice}"]))


def refuse_random_reads(images: Images) -> None:
    """See that images that are read in no order of shards lie here, or will once they have been fetched.

    Raises:
        ValueError: they lie elsewhere and are more than the cache holds: nearly each image would fetch a shard anew.
    """
    if isinstance(images, Subset):
        refuse_random_reads(images.images)
    elif isinstance(images, Joined):
        for part in images.parts:
            refuse_random_reads(part)
    elif isinstance(images, ShardImages):
        size, kept = images.remote_bytes()
        if size > kept:
            raise ValueError(
                f"sampling=balanced reads images of all shards at once; these are {size:,} bytes elsewhere, and "
                f"data.cache_bytes={kept:,} keeps fewer. Set data.cache_bytes={size} if the disk has room, copy the "
                "shards here, or use loss.class_weights=balanced with sampling=null"
            )


def damaged(images: Images, *, threads: int) -> Iterator[tuple[int, str]]:
    """Indices of damaged images, and the reasons."""

    def look(first: int) -> list[tuple[int, str]]:
        bad = []
        for index in range(first, min(first + IMAGES_PER_TASK, len(images))):
            try:
                decode.refuse_cut(images.read(index))
            except StorageError:
                raise
            except (OSError, ValueError, MemoryError) as error:
                bad.append((index, decode.reason(error)))
        return bad

    with ThreadPoolExecutor(threads) as pool:
        for bad in pool.map(look, range(0, len(images), IMAGES_PER_TASK)):
            yield from bad


def _is_pixels_or_remote(images: Images) -> bool:
    if isinstance(images, Subset):
        return _is_pixels_or_remote(images.images)
    if isinstance(images, Joined):
        return any(map(_is_pixels_or_remote, images.parts))
    return isinstance(images, Arrays) or (isinstance(images, ShardImages) and images.is_remote)
