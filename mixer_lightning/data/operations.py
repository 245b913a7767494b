"""Operations on uint8 image batches by the code that is fastest where they are: native code on a CPU, else PyTorch.

Legend: B images of a batch, S side in pixels, N operations in a row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from mixer_lightning.data import image_ops
from mixer_lightning.data.image_ops import Floats, Integers, Operation
from mixer_lightning.kernels import augment


def apply_operations(
    images: Tensor,
    operations: Integers,
    arguments: Floats,
    taps: Integers,
    *,
    fill: npt.NDArray[np.uint8],
    centres: Floats | None = None,
) -> Tensor:
    """What image_ops.apply_operations gives; where a CPU interpolates, single values may differ by one level."""
    if _is_for_native_code(images):
        done = steps(operations, arguments, taps, centres, side=images.shape[-1])
        return augment.augmented(images.contiguous(), done, fill)
    return image_ops.apply_operations(images, operations, arguments, taps, fill=fill, centres=centres)


def flipped(images: Tensor, which: npt.NDArray[np.bool_]) -> Tensor:
    """Images uint8 [B, 3, S, S], those of `which` [B] mirrored left to right, in the memory format that they have."""
    if images.is_contiguous() and _is_for_native_code(images):
        done = np.where(which, Operation.FLIP, Operation.IDENTITY)[:, None]
        nothing = np.zeros(done.shape)
        return augment.augmented(
            images, steps(done, nothing, np.ones_like(done), None, side=0), np.zeros(3, np.uint8)
        )
    flip = torch.from_numpy(which).to(images.device, non_blocking=True)
    return torch.where(flip[:, None, None, None], images.flip(-1), images)


def _is_for_native_code(images: Tensor) -> bool:
    return images.is_cpu and images.shape[-1] <= augment.MAX_SIDE and augment.native() is not None


def steps(
    operations: Integers, arguments: Floats, taps: Integers, centres: Floats | None, *, side: int
) -> npt.NDArray[np.void]:
    """Operations [B, N] as the native code takes them: kernels/augment.STEP."""
    found = np.zeros(operations.shape, augment.STEP)
    found["operation"], found["argument"], found["taps"] = operations, arguments, taps
    if centres is not None:
        found["centre"] = centres
    moves = (operations >= Operation.SHEAR_X) & (operations <= Operation.TF_ROTATE)
    found["matrix"][moves] = image_ops.matrices(operations[moves], arguments[moves], side)
    return found
