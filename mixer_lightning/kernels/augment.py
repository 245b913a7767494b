"""Flips, RandAugment's and colour jitter's operations on images of bytes, on a CPU.

csrc/augment.cpp takes an image through all of its operations while it is in the cache, by vectors of bytes where it
can, and gives the numbers of data/image_ops.py, which says what the operations are and does without it elsewhere: the
same bits, but for operations that interpolate, where float32 sums of another order may differ by one level. Its bits
are the same for any processor, number of threads and batch. It is compiled when it is first needed.
"""

from __future__ import annotations

import ctypes
import functools
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixer_lightning.kernels import extension

MAX_SIDE = 2**14  # places in a plane are 32 bits
#: One operation on one image, as in csrc/augment.cpp: its number in image_ops.Operation, pixels that an interpolation
#: looks at along an axis, its argument, the centre of CUTOUT, where a moved pixel comes from (a, b, c, d, e, f).
STEP = np.dtype(
    [
        ("operation", np.int64),
        ("taps", np.int64),
        ("argument", np.float64),
        ("centre", np.float64, 2),
        ("matrix", np.float64, 6),
    ]
)


def augmented(images: Tensor, steps: npt.NDArray[np.void], fill: npt.NDArray[np.uint8]) -> Tensor:
    """Images uint8 [B, 3, S, S] on the CPU after their steps [B, N] of STEP; `fill` [3] comes in from outside.

    Raises:
        MemoryError: there is not enough.
    """
    function = native()
    assert function is not None
    assert images.is_contiguous()
    assert images.shape[1:] == (3, images.shape[-1], images.shape[-1])
    assert images.dtype == torch.uint8
    assert steps.dtype == STEP
    assert all(np.isfinite(steps[name]).all() for name in ("argument", "centre", "matrix"))
    steps, fill, out = np.ascontiguousarray(steps), np.ascontiguousarray(fill), torch.empty_like(images)
    count, side = len(images), images.shape[-1]
    if not function(
        images.data_ptr(), out.data_ptr(), count, side, steps.ctypes.data, steps.shape[1], fill.ctypes.data,
        torch.get_num_threads(),
    ):  # fmt: skip
        raise MemoryError(f"there is no memory to augment images of {side} px")
    return out


@functools.cache
def native() -> Any | None:
    """The compiled function; None where no C++ compiler builds a library that loads."""
    library = extension.load("augment")
    if library is None:
        return None
    pointer, number = ctypes.c_void_p, ctypes.c_long
    arguments = [pointer, pointer, number, number, pointer, number, pointer, ctypes.c_int]
    return extension.function(library, "augment_images", arguments, ctypes.c_bool)
