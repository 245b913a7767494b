"""Encoded bytes become an RGB image here and nowhere else."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError


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
        with Image.open(io.BytesIO(data)) as image:
            image.load()
            return _rgb(image)
    except UnidentifiedImageError:
        raise ValueError(f"its {len(data):,} bytes are not an image of a known format") from None
    except (OSError, SyntaxError, EOFError, IndexError, struct.error, Image.DecompressionBombError) as error:
        raise ValueError(str(error) or type(error).__name__) from error


def _rgb(image: Image.Image) -> Image.Image:
    if image.mode == "RGB":
        return image.copy()
    if image.mode.startswith("I"):  # "I;16", and "I", in which older Pillow releases hand over 16-bit PNGs
        samples = np.asarray(image).astype(np.int64) >> 8
        return Image.fromarray(samples.clip(0, 255).astype(np.uint8)).convert("RGB")
    if image.mode == "F":
        raise ValueError("its pixels are floating point, for which no range is agreed")
    if image.mode == "P" and "transparency" in image.info:  # straight to RGB, Pillow would warn
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")
