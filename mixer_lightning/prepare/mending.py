"""What is done with one image: checked, kept as it is, mended, made smaller or left out. Safe in any thread.

An image's bytes are kept unless it must change: CMYK JPEGs become RGB JPEGs, formats other than JPEG, PNG and
WebP become PNG, as do pixels, and with `short_side` a larger image becomes a smaller JPEG. What is written
anew holds the pixels as stored: EXIF orientation is not applied, as nowhere here, and neither it nor a colour
profile is carried over.
"""

from __future__ import annotations

import io
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image

from mixer_lightning.data.decode import decode
from mixer_lightning.prepare.options import CMYK_QUALITY

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Pixels

KEPT_FORMATS = {"JPEG": "jpg", "MPO": "jpg", "PNG": "png", "WEBP": "webp"}
LEFT_OUT = "left out"


class Note(NamedTuple):
    """Something to report about an image."""

    kind: str  # counted in the report
    reason: str
    done: str


class Outcome(NamedTuple):
    """An image made ready, or left out: then `encoded` is empty."""

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
class Rules:
    """What is asked of every image."""

    verify: bool = True
    short_side: int | None = None
    quality: int = 90
    near: npt.NDArray[np.uint64] | None = None  # difference hashes [H] of images to leave out
    max_distance: int = 0
    write_hashes: bool = False


def mend(read: Callable[[], bytes | Pixels], suffix: str, rules: Rules) -> Outcome:
    """One image made ready.

    Raises:
        OSError: the source cannot be read just now; a missing or broken file is left out instead.
    """
    try:
        encoded = read()
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, PermissionError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        return Outcome(b"", "", (Note("unreadable", reason, LEFT_OUT),))
    if not isinstance(encoded, bytes):
        return _finish(Image.fromarray(encoded), None, "png", (), encoded.nbytes, rules)
    try:
        return _mend_file(encoded, suffix, rules)._replace(bytes_read=len(encoded))
    except ValueError as error:
        return Outcome(b"", "", (Note(_kind(encoded, str(error)), str(error), LEFT_OUT),), None, len(encoded))


def _mend_file(encoded: bytes, suffix: str, rules: Rules) -> Outcome:
    """The same for an encoded file; ValueError when it cannot be decoded."""
    try:
        with Image.open(io.BytesIO(encoded)) as header:
            form, mode, size = str(header.format), header.mode, header.size
    except Exception:
        decode(encoded)  # says what is wrong
        raise
    shrinks = rules.short_side is not None and min(size) > rules.short_side
    hashes = rules.near is not None or rules.write_hashes
    cmyk = form in ("JPEG", "MPO") and mode == "CMYK"
    foreign = form not in KEPT_FORMATS
    if not (rules.verify or shrinks or hashes or cmyk or foreign):
        return _kept(encoded, form, suffix)
    image = decode(encoded)
    if mode in ("1", "L"):
        image = image.convert("L")  # grey stays grey: its three channels are equal
    if cmyk:
        notes = (Note("CMYK", "a CMYK JPEG", f"written anew as RGB JPEG, quality {CMYK_QUALITY}"),)
        return _finish(image, _jpeg(image, CMYK_QUALITY), "jpg", notes, len(encoded), rules)
    if foreign:
        notes = (Note("other format", f"{form} images are not kept in shards", "written anew as PNG"),)
        return _finish(image, None, "png", notes, len(encoded), rules)
    kept = _kept(encoded, form, suffix)
    return _finish(image, encoded, kept.suffix, () if shrinks else kept.notes, len(encoded), rules)


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
    rules: Rules,
) -> Outcome:
    """What needs the decoded image: its hash, its neighbours, its size. Without `encoded` it becomes a PNG."""
    value = None
    if rules.near is not None or rules.write_hashes:
        value = difference_hash(image)
    if rules.near is not None and value is not None and (found := _nearest(value, rules.near)) is not None:
        distance, neighbour = found
        if distance <= rules.max_distance:
            reason = f"{distance} bits from {neighbour:016x}"
            return Outcome(b"", "", (*notes, Note("near-duplicate", reason, LEFT_OUT)), value, bytes_read)
    if rules.short_side is not None and min(image.size) > rules.short_side:
        scale = rules.short_side / min(image.size)
        size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
        small = image.resize(size, Image.Resampling.LANCZOS)
        return Outcome(_jpeg(small, rules.quality), "jpg", notes, value, bytes_read)
    return Outcome(_png(image) if encoded is None else encoded, suffix, notes, value, bytes_read)


def _jpeg(image: Image.Image, quality: int) -> bytes:
    file = io.BytesIO()
    subsampling = (
        0 if quality >= CMYK_QUALITY else 2
    )  # 4:4:4 where it shall look like the original, else 4:2:0
    image.save(file, "JPEG", quality=quality, subsampling=subsampling, optimize=True)
    return file.getvalue()


def _png(image: Image.Image) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def _kind(encoded: bytes, reason: str) -> str:
    """The reason why an image cannot be decoded, in a word."""
    if not any(encoded[:4096]):
        return "empty"
    for words, kind in (
        ("truncated", "truncated"),
        ("known format", "not an image"),
        ("decompression bomb", "too large"),
    ):
        if words in reason.lower():
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
        ValueError: a line is no hash.
    """
    values = []
    for number, line in enumerate(path.read_text(encoding="utf-8", errors="replace").split("\n"), 1):
        word = line.strip()
        if word:
            try:
                if len(word) != 16:
                    raise ValueError
                values.append(int(word, 16))
            except ValueError:
                raise ValueError(
                    f"hashes: line {number:,} of {path} is {word[:40]!r}, not 16 hexadecimal digits"
                ) from None
    return np.array(values, dtype=np.uint64)
