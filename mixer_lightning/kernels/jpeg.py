"""Crops of JPEG files, of which only what the crop needs is decoded.

Four fifths of the time that a JPEG takes are its Huffman codes. csrc/jpeg.cpp passes over those outside the box
without looking at coefficients, and stops behind the box's last row; with restart markers in the file it jumps to the
box. It resizes components as they are stored, chroma at its own resolution, and converts the result alone to RGB.

Baseline files of 8 bits are taken, grey or YCbCr, sampled 4:4:4, 4:2:2, 4:2:0 or 4:4:0, resized bilinearly or
bicubically; of two columns of chroma or one, which libjpeg does not interpolate, none. Whatever else comes, and every
file with which something is wrong, is left to data/decode.py's way through libjpeg-turbo, which has the last word.
Samples are libjpeg's to the bit (its "islow" transform) and weights are Pillow's; a crop differs from Pillow's by
rounding alone, since resizing before colours are converted rounds elsewhere: 53 dB on photographs.

Arithmetic is in whole numbers, so that bits are the same for any processor and number of threads. It is compiled when
it is first needed; without a C++ compiler, data/decode.py's other way does it all.
"""

from __future__ import annotations

import ctypes
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import Tensor

from mixer_lightning.kernels import extension


def crop_files(
    files: Sequence[bytes], boxes: npt.NDArray[np.int64], out: Sequence[Tensor]
) -> npt.NDArray[np.bool_]:
    """Write the crop of each of n files to `out`, n times uint8 [3, S, S] on the CPU; which were written: bool [n].

    `boxes` [n, 9] are the fields of data/crops.Crops in their order. What is not written stays as it is.
    """
    function, n = native(), len(files)
    if function is None or n == 0:
        return np.zeros(n, dtype=np.bool_)
    size = out[0].shape[-1]
    assert all(each.shape == (3, size, size) and each.is_contiguous() for each in out)
    boxes = np.ascontiguousarray(boxes, dtype=np.int64)
    lengths = np.array([len(file) for file in files], dtype=np.int64)
    codes = np.empty(n, dtype=np.int32)
    function(
        n,
        (ctypes.c_char_p * n)(*files),
        lengths.ctypes.data,
        boxes.ctypes.data,
        size,
        (ctypes.c_void_p * n)(*[each.data_ptr() for each in out]),
        codes.ctypes.data,
    )
    is_written: npt.NDArray[np.bool_] = codes == 0
    return is_written


def with_restart_markers(file: bytes, every: int) -> bytes | None:
    """A JPEG with a restart marker behind each `every` MCUs, 1 to 65,535, so that a crop's decoding jumps to its box.

    Coefficients are the same, and with them every decoder's pixels; Huffman tables are the file's shortest, which takes
    the bytes of the markers back. None where the file is not one that `crop_files` decodes, or where there is no
    compiler.
    """
    function = native_restart()
    if function is None:
        return None
    out = np.empty(2 * len(file) + 4096, dtype=np.uint8)
    length = function(file, len(file), every, out.ctypes.data, out.size)
    return out[:length].tobytes() if length > 0 else None


@functools.cache
def native() -> Any | None:
    """The compiled function; None where no C++ compiler builds a library that loads."""
    library = extension.load("jpeg")
    if library is None:
        return None
    number, pointer = ctypes.c_long, ctypes.c_void_p
    return extension.function(
        library, "jpeg_crops", [number, pointer, pointer, pointer, number, pointer, pointer]
    )


@functools.cache
def native_restart() -> Any | None:
    """The compiled function that writes restart markers; None where no C++ compiler builds a library that loads."""
    library = extension.load("jpeg_restart")
    if library is None:
        return None
    arguments = [ctypes.c_char_p, ctypes.c_int64, ctypes.c_long, ctypes.c_void_p, ctypes.c_long]
    return extension.function(library, "jpeg_with_restart_markers", arguments, ctypes.c_long)
