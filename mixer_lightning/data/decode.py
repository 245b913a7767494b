"""Decoding of image files to RGB, for every program: nothing else decodes.

`decode_crops` is given the encoded files of a part of a batch, asks for their crops once their sizes are known (from
the header where it states them), and writes finished pixels. Crops of plain JPEGs are made by kernels/jpeg.py, which
decodes no more than they need; all other images, and what that leaves, are decoded whole.
"""

from __future__ import annotations

import contextlib
import functools
import io
import struct
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from mixer_lightning.data.crops import Crops, Integers, crop_one
from mixer_lightning.data.sources.names import RASTER_FORMATS
from mixer_lightning.kernels import jpeg

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Pixels

MAX_PIXELS = 178_956_970  # a larger image counts as an attack; twice Pillow's MAX_IMAGE_PIXELS, as there

ORIENTATION = 0x0112  # the EXIF tag that says how a camera was held

warnings.filterwarnings("ignore", module=r"PIL\.")  # about odd metadata of single images
# torch only reads it.
warnings.filterwarnings("ignore", message="The given (buffer|NumPy array) is not writable")


def decode_crops(
    encoded: Sequence[bytes | Pixels],
    crops_of: Callable[[Integers, Integers, Integers], Crops],
    out: Sequence[Tensor],
    *,
    exif_orientation: bool = False,
    device: torch.device | None = None,
) -> list[tuple[int, str]]:
    """Write the crops of n images to `out`, n times uint8 [3, S, S].

    `crops_of(positions, widths, heights)` gives the crops of images; it is called for those whose size is known at
    first, and again where a header was wrong. Returns the positions of images that cannot be decoded, with the
    reasons; their places in `out` stay as they are. With `exif_orientation` images are turned as their metadata say,
    before they are cropped. With a `device`, JPEGs are decoded and all images are cropped and resized there; a GPU's
    decoder (nvJPEG) gives slightly other pixels than libjpeg-turbo.
    """
    decoded = {} if device is None else _jpegs_on(device, encoded)  # [3, H, W] each
    bad: list[tuple[int, str]] = []
    sizes: dict[int, tuple[int, int]] = {}
    turns = [orientation(each) if exif_orientation else UPRIGHT for each in encoded]
    for position, each in enumerate(encoded):
        size = None if position in decoded else _header_size(each)
        try:
            if size is None and position not in decoded:
                decoded[position] = pixels(each)
        except ValueError as error:
            bad.append((position, str(error)))
        else:
            width, height = size or _size(decoded[position])
            sizes[position] = (height, width) if turns[position] in LYING else (width, height)

    def crops_at(positions: Sequence[int]) -> Crops:
        widths, heights = np.array([sizes[each] for each in positions], dtype=np.int64).reshape(-1, 2).T
        return crops_of(np.array(positions, dtype=np.int64), widths, heights)

    crops = crops_at(list(sizes))
    is_done = _crop_jpegs(encoded, list(sizes), crops, out, turns) if device is None else {}
    for i, position in enumerate(sizes):
        if is_done.get(position):
            continue
        # One at a time: a decoded image is still in the cache when it is resized, and large ones do not add up.
        try:
            image = decoded.pop(position) if position in decoded else pixels(encoded[position])
        except ValueError as error:
            bad.append((position, str(error)))
            continue
        image = turned(image, turns[position])
        crops_i, row = crops, i
        if _size(image) != sizes[position]:  # the header was wrong
            sizes[position] = _size(image)
            crops_i, row = crops_at([position]), 0
        if device is not None:
            image = image.to(device, non_blocking=True)
        out[position].copy_(crop_one(image, crops_i, row, out[position].shape[-1]))
    return sorted(bad)


def _crop_jpegs(
    encoded: Sequence[bytes | Pixels],
    positions: Sequence[int],
    crops: Crops,
    out: Sequence[Tensor],
    turns: Sequence[int],
) -> dict[int, bool]:
    """Write the crops of plain JPEGs that are not to be turned, in one call; whether that was done, by position.

    The crops are those of `positions`. Where it was not done, the file is to be decoded as a whole.
    """
    files, rows = [], []
    for row, position in enumerate(positions):
        each = encoded[position]
        if isinstance(each, bytes) and turns[position] == UPRIGHT and _header_size(each) is not None:
            files.append(each)
            rows.append(row)
    boxes = np.stack(list(vars(crops).values()), axis=1)[rows]
    chosen = [positions[row] for row in rows]
    is_done = jpeg.crop_files(files, boxes, [out[position] for position in chosen])
    return dict(zip(chosen, is_done.tolist(), strict=True))


def seen_size(encoded: bytes | Pixels, orientation: int) -> tuple[int, int]:
    """Width and height of an image as it is seen when turned so, undecoded; ValueError as `decode` raises."""
    size = _header_size(encoded)
    if size is None:
        assert isinstance(encoded, bytes)
        size = header(encoded)[2]
    return (size[1], size[0]) if orientation in LYING else size


def _header_size(encoded: bytes | Pixels) -> tuple[int, int] | None:
    """Width and height where they are known without decoding: of plain JPEGs, and of pixels."""
    if not isinstance(encoded, bytes):
        return encoded.shape[1], encoded.shape[0]
    size = jpeg_size(encoded)
    return size if size is not None and size[0] * size[1] <= MAX_PIXELS else None


def _size(image: Tensor) -> tuple[int, int]:
    return image.shape[2], image.shape[1]


def _jpegs_on(device: torch.device, encoded: Sequence[bytes | Pixels]) -> dict[int, Tensor]:
    """Those JPEGs that the device decodes, by position; none if it refuses one of them."""
    from torchvision.io import ImageReadMode, decode_jpeg

    files = {
        position: torch.frombuffer(each, dtype=torch.uint8)
        for position, each in enumerate(encoded)
        if isinstance(each, bytes) and _header_size(each) is not None
    }
    try:
        images = decode_jpeg(list(files.values()), mode=ImageReadMode.RGB, device=device) if files else []
    except RuntimeError:
        return {}
    return dict(zip(files, images, strict=True))


def pixels(encoded: bytes | Pixels) -> Tensor:
    """RGB uint8 [3, H, W] of an encoded file or of pixels [H, W, 3]; raises ValueError as `decode` does.

    Plain JPEGs go through torchvision's decoder, the same libjpeg-turbo as Pillow's without the copies; everything
    else, and every file that it refuses, goes through `decode`. The pixels are the same either way.
    """
    if not isinstance(encoded, bytes):
        return torch.from_numpy(encoded).permute(2, 0, 1)
    if _header_size(encoded) is not None:
        from torchvision.io import ImageReadMode, decode_jpeg

        try:
            image: Tensor = decode_jpeg(
                torch.frombuffer(encoded, dtype=torch.uint8), mode=ImageReadMode.UNCHANGED
            )
        except (RuntimeError, MemoryError):
            pass  # decode says what is wrong with it
        else:
            if image.shape[0] == 3:
                return image
            if image.shape[0] == 1:
                return image.expand(3, -1, -1)
    decoded = decode(encoded)
    try:
        return torch.from_numpy(np.array(decoded)).permute(2, 0, 1)
    except MemoryError as error:
        raise ValueError(reason(error)) from error


def pixels_of(image: Image.Image) -> Tensor:
    """RGB uint8 [3, H, W] of an opened image of any mode, as `decode` converts it: as stored, not turned.

    Raises:
        ValueError: its pixels are floating point.
    """
    return torch.from_numpy(np.array(_rgb(image))).permute(2, 0, 1)


def jpeg_size(encoded: bytes) -> tuple[int, int] | None:
    """Width and height from a JPEG's header, as stored (EXIF orientation is not applied); None for other bytes."""
    if encoded[:2] != b"\xff\xd8":
        return None
    at = 2
    while at + 9 <= len(encoded) and encoded[at] == 0xFF:
        marker = encoded[at + 1]
        if marker == 0xFF:  # padding
            at += 1
        elif 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):  # start of frame
            height, width = struct.unpack_from(">HH", encoded, at + 5)
            return (width, height) if width and height else None
        else:
            at += 2 + int.from_bytes(encoded[at + 2 : at + 4], "big")
    return None


def decode(data: bytes | str | Path) -> Image.Image:
    """An 8-bit RGB image from an encoded file, given as its bytes or its path.

    Grey, palette and CMYK images are converted; an alpha channel is dropped, not composited; 16-bit samples keep
    their high byte. EXIF orientation is not applied: torchvision and timm do not either, so published accuracies
    rest on images as stored.

    Raises ValueError with the reason (empty, truncated, not an image, too large), FileNotFoundError for a path.
    """
    if not isinstance(data, bytes):
        data = Path(data).read_bytes()
    if not data:
        raise ValueError("it is empty (0 bytes)")
    try:
        with Image.open(io.BytesIO(data), formats=raster_formats()) as image:
            image.load()
            return _rgb(image)
    except UnidentifiedImageError:
        raise ValueError(f"its {len(data):,} bytes are not an image of a known format") from None
    except Exception as error:  # a decoder raises what it likes on damaged files: it is the image's fault
        raise ValueError(reason(error)) from error


@functools.cache
def raster_formats() -> list[str]:
    """The names of the formats that `Image.open` may try, as far as they can be read here."""
    Image.init()
    with contextlib.suppress(ImportError):  # an extra: see names.PLUGINS
        from pillow_heif import register_heif_opener

        register_heif_opener()
    return [form for form in RASTER_FORMATS if form in Image.OPEN]


@contextlib.contextmanager
def only_raster_formats() -> Iterator[None]:
    """Pillow as other programs' loaders call it, naming no formats, tries none but these; worker processes too."""
    formats = raster_formats()
    before = Image.ID[:]
    Image.ID[:] = formats
    try:
        yield
    finally:
        Image.ID[:] = before


def header(encoded: bytes) -> tuple[str, str, tuple[int, int]]:
    """Pillow's names of an image's format and mode, and (width, height), undecoded; ValueError as `decode` raises."""
    try:
        with Image.open(io.BytesIO(encoded), formats=raster_formats()) as image:
            return str(image.format), image.mode, image.size
    except Exception:
        decode(encoded)  # says what is wrong
        raise ValueError("its header cannot be read") from None


def refuse_cut(encoded: bytes | Pixels) -> None:
    """Look at the header and the end of an encoded image, and decode it where these are not a whole file's.

    Raises ValueError as `decode` does; what is damaged in the middle is not noticed.
    """
    if not isinstance(encoded, bytes):
        return
    ends = encoded.rstrip(b"\0")[-2:] == b"\xff\xd9"  # end of image
    if ends and _header_size(encoded) is not None:
        return
    if encoded[:8] == b"\x89PNG\r\n\x1a\n" and encoded[-8:-4] == b"IEND":
        header(encoded)
        return
    pixels(encoded)


def reason(error: Exception) -> str:
    """What is wrong with an image, from what was raised on reading or decoding it; never empty."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if isinstance(error, MemoryError):
        return "there is not enough memory to decode it"
    if isinstance(error, (OSError, ValueError, SyntaxError, Image.DecompressionBombError)) and str(error):
        return str(error)
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


# ------------------------------------------------------------------------------------------- orientation

UPRIGHT = 1
LYING = (5, 6, 7, 8)  # orientations whose width and height are exchanged


def orientation(encoded: bytes | Pixels) -> int:
    """How an image is to be turned, 1 (not at all) to 8, as EXIF numbers it; 1 where that is not known.

    Of a TIFF it is 1, because Pillow applies it when it decodes, and of HEIF, whose decoder does.
    """
    if not isinstance(encoded, bytes):
        return UPRIGHT
    try:
        with Image.open(io.BytesIO(encoded), formats=raster_formats()) as image:
            found = UPRIGHT if image.format in ("TIFF", "HEIF") else image.getexif().get(ORIENTATION, UPRIGHT)
    except Exception:  # whoever decodes it says so
        return UPRIGHT
    return found if found in range(1, 9) else UPRIGHT


def turned(image: Tensor, orientation: int) -> Tensor:
    """An image [3, H, W] as its EXIF orientation says it is seen; [3, W, H] for those in `LYING`."""
    if orientation in LYING:
        image = image.mT
    if orientation in (2, 3, 6, 7):
        image = image.flip(-1)
    if orientation in (3, 4, 7, 8):
        image = image.flip(-2)
    return image


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()
    if image.mode.startswith("I"):  # "I;16", and "I", in which older Pillow releases hand over 16-bit PNGs
        samples = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(samples.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating point, which has no standard range")
    if image.mode == "P" and "transparency" in image.info:  # straight to RGB, Pillow would warn
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
