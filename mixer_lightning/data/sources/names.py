"""What images are called: in folders by paths, in shards by keys, and how the one becomes the other."""

from __future__ import annotations

import re
from collections.abc import Iterable
from importlib.util import find_spec

#: The raster formats that are decoded, by Pillow's names, and how their files end; the likeliest first, those without
#: an unmistakable beginning last. Nothing else is tried, whatever a file is called: PostScript would start
#: Ghostscript, and IPTC whatever lies inside it.
RASTER_FORMATS: dict[str, tuple[str, ...]] = {
    "JPEG": ("jpg", "jpeg", "jpe", "jfif"),
    "PNG": ("png", "apng"),
    "WEBP": ("webp",),
    "GIF": ("gif",),
    "BMP": ("bmp",),
    "TIFF": ("tif", "tiff"),
    "PPM": ("ppm", "pgm", "pbm", "pnm"),
    "MPO": ("mpo",),
    "AVIF": ("avif", "avifs"),
    "HEIF": ("heic", "heics", "heif", "heifs", "hif"),
    "JPEG2000": ("jp2", "j2k", "jpc", "jpf", "jpx", "j2c"),
    "DIB": ("dib",),
    "QOI": ("qoi",),
    "PSD": ("psd",),
    "ICO": ("ico",),
    "SGI": ("sgi", "rgb", "rgba", "bw"),
    "SUN": ("ras",),
    "PCX": ("pcx",),
    "TGA": ("tga", "icb", "vda", "vst"),
}
#: The package that reads a format which Pillow does not, and the extra that installs it.
PLUGINS = {"HEIF": ("pillow_heif", "heic")}
#: What ends the name of an image, here and now: without a plugin, without its format's.
IMAGE_SUFFIXES = tuple(
    suffix
    for form, suffixes in RASTER_FORMATS.items()
    if form not in PLUGINS or find_spec(PLUGINS[form][0]) is not None
    for suffix in suffixes
)
#: Formats that every reader of shards decodes: of several images in a sample, the one that is of these is meant.
SHARD_SUFFIXES = ("jpg", "jpeg", "png", "webp")

#: JPEGs alone, which some decoders take alone.
JPEG_ENDINGS = tuple(f".{suffix}" for suffix in RASTER_FORMATS["JPEG"])
SHOWN_ENDINGS = 6  # of files that are left out
NO_ENDING = "without an ending"
NO_FILE = "pipe, device or socket"  # though its name ends as an image's does

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
    """'photos/x.JPEG' -> 'jpg'; '' where a name does not claim to be an image that can be read here."""
    _, dot, suffix = name.lower().rpartition("/")[2].rpartition(".")
    if not dot or suffix not in IMAGE_SUFFIXES:
        return ""
    return "jpg" if suffix in RASTER_FORMATS["JPEG"] else suffix


def is_hidden(name: str) -> bool:
    """Whether a file or folder is one that programs leave beside images: .DS_Store, .cache, macOS's ._x.jpg."""
    return name.rpartition("/")[2].startswith(".")


def ending_of(name: str) -> str:
    """How a file's name ends, for a count of those left out: '.txt', or 'without an ending'."""
    stem, dot, suffix = name.rpartition("/")[2].rpartition(".")
    if dot and suffix.lower() in IMAGE_SUFFIXES:
        return NO_FILE
    return f".{suffix.lower()}" if stem and dot else NO_ENDING


def left_out(counts: dict[str, int]) -> str:
    """'12 files are not read, by ending: 10 .txt, 2 .heic (pip install ...)' of counts by `ending_of`."""
    ordered = sorted(counts.items(), key=lambda each: (-each[1], each[0]))
    shown = [f"{count:,} {ending}" for ending, count in ordered[:SHOWN_ENDINGS]]
    if more := sum(count for _, count in ordered[SHOWN_ENDINGS:]):
        shown.append(f"{more:,} others")
    total = sum(counts.values())
    line = f"{total:,} {'file is' if total == 1 else 'files are'} not read, by ending: {', '.join(shown)}"
    return line + _plugin_advice(counts)


def not_read(name: str) -> str:
    """Why a file beside images is left out."""
    ending = ending_of(name)
    if ending == NO_FILE:
        return "it is a pipe, a device or a socket, not a file"
    why = (
        "its name has no ending"
        if ending == NO_ENDING
        else f"{ending} is not the ending of an image that is read"
    )
    return why + _plugin_advice([ending])


def _plugin_advice(endings: Iterable[str]) -> str:
    """What to install for files with these endings, '' where nothing helps."""
    for form, (_, extra) in PLUGINS.items():
        if any(ending[1:] in RASTER_FORMATS[form] and ending[1:] not in IMAGE_SUFFIXES for ending in endings):
            return f" (pip install 'mixer-lightning[{extra}]' reads {form})"
    return ""


def is_unreadable_here(suffix: str) -> bool:
    """Whether only a plugin that is not installed reads images with this ending."""
    return suffix not in IMAGE_SUFFIXES and any(suffix in each for each in RASTER_FORMATS.values())


def not_read_here(suffix: str) -> str:
    """What to call such images, and what reads them: 'images in .heic (pip install ...)'."""
    return f"images in .{suffix}{_plugin_advice([f'.{suffix}'])}"


def stem(name: str) -> str:
    """A file's path without the suffix of an image."""
    return name.rpartition(".")[0] if suffix_of(name) else name


def too_sparse(largest_label: int, num_images: int) -> bool:
    """Whether numbers that stand for classes are ids instead: more than 100 classes for each image, and 100,000.

    ImageNet-21k's head on a handful of images passes; a head for ids takes all memory before anything is said.
    """
    return largest_label >= 100 * num_images + 100_000
