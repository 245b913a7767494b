"""What images are called: in folders by paths, in shards by keys, and how the one becomes the other."""

from __future__ import annotations

import re

#: What the image of a sample in a shard may be: formats that every reader of shards decodes.
SHARD_SUFFIXES = ("jpg", "jpeg", "png", "webp")
#: What is taken for an image in a class folder, where other files lie too; as torchvision, without its rare ones.
FOLDER_SUFFIXES = (*SHARD_SUFFIXES, "bmp", "ppm", "tif", "tiff")
#: What is taken for an image in archives and lists, which hold images alone: all that Pillow decodes is wanted.
ARCHIVE_SUFFIXES = (*FOLDER_SUFFIXES, "jpe", "gif", "pgm", "jp2")
#: FOLDER_SUFFIXES as a file's name ends.
FOLDER_ENDINGS = tuple(f".{suffix}" for suffix in FOLDER_SUFFIXES)

#: JPEGs alone, which some decoders take alone.
JPEG_ENDINGS = (".jpg", ".jpeg")

_NUMBER = re.compile(r"(?<=[^/])(~~\d+)+$")


def shard_key(key: str) -> str:
    """The key of an image, as `Images.key` gives it, once it lies in shards."""
    return tar_key(stem(key))


def tar_key(key: str) -> str:
    """A sample's key as it may stand in a shard: no dot in its last part, no "..", no number of `numbered`."""
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
    if suffix not in ARCHIVE_SUFFIXES or "." not in name:
        return ""
    return "jpg" if suffix in ("jpeg", "jpe") else suffix


def stem(name: str) -> str:
    """A file's path without the suffix of an image."""
    return name.rpartition(".")[0] if suffix_of(name) else name


def too_sparse(largest_label: int, num_images: int) -> bool:
    """Whether numbers that stand for classes are ids instead: more than 100 classes for each image, and 100,000.

    ImageNet-21k's head on a handful of images passes; a head for ids takes all memory before anything is said.
    """
    return largest_label >= 100 * num_images + 100_000
