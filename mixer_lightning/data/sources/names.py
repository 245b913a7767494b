"""What images are called: in folders by paths, in shards by keys, and how the one becomes the other."""

from __future__ import annotations

import re

SUFFIXES = ("jpg", "jpeg", "jpe", "png", "webp", "gif", "bmp", "ppm", "pgm", "tif", "tiff", "jp2")


_NUMBER = re.compile(r"(?<=[^/])(~~\d+)+$")


def shard_key(key: str) -> str:
    """The key of an image, as `Images.key` gives it, once it lies in shards."""
    return tar_key(stem(key))


def tar_key(key: str) -> str:
    """A sample's key as it may stand in a shard: no dot in its last part, which would end it, no way up, no number."""
    parts = [part for part in re.sub(r"[\x00-\x1f\x7f]", "_", key).split("/") if part not in ("", ".", "..")]
    name = parts.pop().replace(".", "_") if parts else "_"
    if name.startswith("__"):  # webdataset's mark for notes on the shard
        name = f"x{name}"
    return unnumbered("/".join([*parts, name]))


def numbered(key: str, number: int) -> str:
    """What the first, second, ... sample of one key in a shard is called: 'x', 'x~~2', ...; x.jpg and x.png are two."""
    return key if number == 1 else f"{key}~~{number}"


def unnumbered(key: str) -> str:
    """The key of which `numbered` made this one; hashes are of it, and so the same in folders and shards."""
    return _NUMBER.sub("", key)


def suffix_of(name: str) -> str:
    """'photos/x.JPEG' -> 'jpg'; '' where a name does not claim to be an image."""
    suffix = name.rpartition("/")[2].rpartition(".")[2].lower()
    if suffix not in SUFFIXES or "." not in name:
        return ""
    return "jpg" if suffix in ("jpeg", "jpe") else suffix


def stem(name: str) -> str:
    """A file's path without the suffix of an image."""
    return name.rpartition(".")[0] if suffix_of(name) else name


def too_sparse(largest_label: int, num_images: int) -> bool:
    """Whether numbers that stand for classes are ids instead: 100 classes an image and 100,000 more are none any more.

    ImageNet-21k's head on a handful of images passes; a head for ids takes all memory before anything is said.
    """
    return largest_label >= 100 * num_images + 100_000
