"""One image checked, and kept as it is, converted, resized or left out. Thread-safe.

An image's bytes are kept unless it must change: CMYK JPEGs become RGB JPEGs, formats other than JPEG, PNG and WebP
become PNG, as do pixels, and with `short_side` a larger image becomes a smaller JPEG. What is encoded anew holds the
pixels as stored and the tag that says how they are turned (training applies it where asked to), without other metadata
or a colour profile.

With `restart`, JPEGs get restart markers, with which a crop of them is decoded sooner. That is done without loss: each
one's pixels are compared.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from mixer_lightning.data.decode import ORIENTATION, UPRIGHT, decode, header, orientation, pixels, reason
from mixer_lightning.data.sources.prepare_defaults import DEFAULTS
from mixer_lightning.kernels import jpeg
from mixer_lightning.prepare.options import CMYK_QUALITY, Options

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Pixels

#: Pillow's formats that are kept as they are, and their suffixes in a shard.
KEPT_FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
LEFT_OUT = "left out"
#: Kinds of notes that count as bad images; `max_bad` limits them.
BAD_KINDS = ("unreadable", "empty", "truncated", "not an image", "too large", "damaged")
OTHER_FILE = "other file"  # no image by its ending: neither a bad image nor one that was read
#: Errors of reading that are one file's and not the disk's.
OF_ONE_FILE = (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError)


class OtherFile(ValueError):
    """A file is not an image by its ending."""


class Note(NamedTuple):
    """Something to report about an image."""

    kind: str  # counted in the report
    reason: str
    done: str


class Outcome(NamedTuple):
    """A cleaned image; `encoded` is empty where it is left out."""

    encoded: bytes
    suffix: str
    notes: tuple[Note, ...] = ()
    difference_hash: int | None = None
    bytes_read: int = 0

    @property
    def kept(self) -> bool:
        """Whether it belongs into a shard."""
        return bool(self.encoded)


@dataclass(frozen=True, kw_only=True)
class CleaningOptions:
    """What is asked of every image."""

    verify: bool = Options.verify
    short_side: int | None = None
    quality: int = DEFAULTS.resized_quality
    restart: int | None = None
    near: npt.NDArray[np.uint64] | None = None  # difference hashes [H] of images to leave out
    max_distance: int = Options.max_distance
    write_hashes: bool = False

    @property
    def needs_hash(self) -> bool:
        """Whether every image's difference hash is asked for."""
        return self.near is not None or self.write_hashes

    @classmethod
    def of(cls, options: Options) -> CleaningOptions:
        """Those of a command line.

        Raises:
            ValueError: its file of hashes is not one, or restart markers are asked for without a compiler.
        """
        if options.restart is not None and jpeg.native_restart() is None:
            raise ValueError(
                "restart needs a C++ compiler: install g++, name one by CXX, or leave restart out"
            )
        return cls(
            verify=options.verify,
            short_side=options.short_side,
            quality=options.quality or DEFAULTS.resized_quality,
            restart=options.restart,
            near=None if options.hashes is None else read_hashes(options.hashes),
            max_distance=options.max_distance,
            write_hashes=options.write_hashes is not None,
        )


def clean_image(read: Callable[[], bytes | Pixels], suffix: str, options: CleaningOptions) -> Outcome:
    """Check one image and convert or resize it where needed. `suffix` is the format that its file name claims.

    Raises:
        OSError: the source cannot be read just now; a missing or broken file is left out instead.
    """
    try:
        encoded = read()
    except OtherFile as error:
        return Outcome(b"", "", (Note(OTHER_FILE, str(error), LEFT_OUT),))
    except (*OF_ONE_FILE, ValueError, MemoryError) as error:
        return Outcome(b"", "", (Note("unreadable", reason(error), LEFT_OUT),))
    if not isinstance(encoded, bytes):
        return _finish(Image.fromarray(encoded), None, "png", (), encoded.nbytes, options, UPRIGHT)
    try:
        outcome = _clean_file(encoded, suffix, options)._replace(bytes_read=len(encoded))
        return outcome if options.restart is None else _with_restart_markers(outcome, options.restart)
    except Exception as error:  # what a decoder or an encoder says of it
        why = reason(error)
        return Outcome(b"", "", (Note(_kind(encoded, why), why, LEFT_OUT),), None, len(encoded))


def _clean_file(encoded: bytes, suffix: str, options: CleaningOptions) -> Outcome:
    """`clean_image` for an encoded file; ValueError when it cannot be decoded."""
    form, mode, size = header(encoded)
    shrinks = options.short_side is not None and min(size) > options.short_side
    cmyk = form in ("JPEG", "MPO") and mode == "CMYK"
    foreign = form not in KEPT_FORMATS
    if not (options.verify or shrinks or options.needs_hash or cmyk or foreign):
        return _kept(encoded, form, suffix)
    image = decode(encoded)
    turn = orientation(encoded)
    if mode in ("1", "L"):
        image = image.convert("L")  # grey stays grey: its three channels are equal
    if cmyk:
        notes = (Note("CMYK", "a CMYK JPEG", f"written anew as RGB JPEG, quality {CMYK_QUALITY}"),)
        return _finish(image, _jpeg(image, CMYK_QUALITY, turn), "jpg", notes, len(encoded), options, turn)
    if foreign:
        notes = (Note("other format", f"{form} images are not kept in shards", "written anew as PNG"),)
        return _finish(image, None, "png", notes, len(encoded), options, turn)
    kept = _kept(encoded, form, suffix)
    return _finish(image, encoded, kept.suffix, () if shrinks else kept.notes, len(encoded), options, turn)


def _with_restart_markers(outcome: Outcome, every: int) -> Outcome:
    """A JPEG with a restart marker behind each `every` MCUs; as it is where it is of a kind that cannot have them.

    Raises:
        ValueError: it would not be the same image.
    """
    marked = jpeg.with_restart_markers(outcome.encoded, every) if outcome.suffix == "jpg" else None
    if marked is None:
        return outcome
    if not torch.equal(pixels(marked), pixels(outcome.encoded)):
        raise ValueError("damaged: with restart markers it would have other pixels")
    return outcome._replace(encoded=marked)


def _kept(encoded: bytes, form: str, suffix: str) -> Outcome:
    """A file as it is, under the suffix of what it is."""
    true = KEPT_FORMATS[form]
    notes: tuple[Note, ...] = ()
    if suffix and suffix != true:
        notes = (Note("misnamed", f"{form} named .{suffix}", f"kept, named .{true}"),)
    return Outcome(encoded, true, notes)


def _finish(
    image: Image.Image,
    encoded: bytes | None,
    suffix: str,
    notes: tuple[Note, ...],
    bytes_read: int,
    options: CleaningOptions,
    turn: int,
) -> Outcome:
    """What needs the decoded image: its hash, near-duplicates, its size. Without `encoded` it becomes a PNG.

    `turn` is its EXIF orientation.
    """
    value = difference_hash(image) if options.needs_hash else None
    if (
        options.near is not None
        and value is not None
        and (found := _nearest(value, options.near)) is not None
    ):
        distance, neighbour = found
        if distance <= options.max_distance:
            reason = f"{distance} bits from {neighbour:016x}"
            return Outcome(b"", "", (*notes, Note("near-duplicate", reason, LEFT_OUT)), value, bytes_read)
    if options.short_side is not None and min(image.size) > options.short_side:
        scale = options.short_side / min(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.resize(size, Image.Resampling.LANCZOS)
        return Outcome(_jpeg(small, options.quality, turn), "jpg", notes, value, bytes_read)
    return Outcome(_png(image, turn) if encoded is None else encoded, suffix, notes, value, bytes_read)


def _jpeg(image: Image.Image, quality: int, turn: int) -> bytes:
    file = io.BytesIO()
    # 4:4:4 where it shall look like the original, else 4:2:0
    subsampling = 0 if quality >= CMYK_QUALITY else 2
    image.save(file, "JPEG", quality=quality, subsampling=subsampling, optimize=True, exif=_exif(turn))
    return file.getvalue()


def _png(image: Image.Image, turn: int) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", exif=_exif(turn))
    return file.getvalue()


def _exif(turn: int) -> bytes:
    """Metadata of an orientation alone, none of an upright image."""
    if turn == UPRIGHT:
        return b""
    exif = Image.Exif()
    exif[ORIENTATION] = turn
    return exif.tobytes()


def _kind(encoded: bytes, reason: str) -> str:
    """The category of BAD_KINDS for an image that cannot be decoded, from what the decoder said."""
    if not any(encoded[:4096]):
        return "empty"
    for phrase, kind in (
        ("truncated", "truncated"),
        ("known format", "not an image"),
        ("decompression bomb", "too large"),
    ):
        if phrase in reason.lower():
            return kind
    return "damaged"


# ------------------------------------------------------------------------------------------- near-duplicates


def difference_hash(image: Image.Image) -> int:
    """64 bits: in 8 rows, whether each of 8 grey levels is below its right neighbour's. Copies differ in a few bits."""
    grey = image.convert("L").resize((9, 8), Image.Resampling.LANCZOS, reducing_gap=3.0)
    levels = np.asarray(grey)
    return int.from_bytes(np.packbits(levels[:, 1:] > levels[:, :-1]).tobytes(), "big")


_BITS = np.array([number.bit_count() for number in range(2**16)], dtype=np.uint8)  # ones in a 16-bit number


def _nearest(value: int, hashes: npt.NDArray[np.uint64]) -> tuple[int, int] | None:
    """Distance in bits and value of the hash nearest to one."""
    if not len(hashes):
        return None
    parts = (hashes ^ np.uint64(value)).view(np.uint16).reshape(-1, 4)
    distances = _BITS[parts].sum(axis=1)
    nearest = int(distances.argmin())
    return int(distances[nearest]), int(hashes[nearest])


def read_hashes(path: Path) -> npt.NDArray[np.uint64]:
    """Difference hashes of a file, [H]: 16 hexadecimal digits a line.

    Raises:
        ValueError: a line is not a hash.
    """
    values = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        digits = line.strip()
        if digits:
            try:
                if len(digits) != 16:
                    raise ValueError
                values.append(int(digits, 16))
            except ValueError:
                raise ValueError(
                    f"hashes: line {number:,} of {path} is {digits[:40]!r}, not 16 hexadecimal digits"
                ) from None
    return np.array(values, dtype=np.uint64)
