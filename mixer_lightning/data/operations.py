"""Operations on uint8 image batches by the code that is fastest where they are: native code on a CPU, else PyTorch.

Legend: B images of a batch, S side in pixels, N operations in a row.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
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
    if images.is_cpu and images.shape[-1] <= augment.MAX_SIDE and augment.native() is not None:
        done = steps(operations, arguments, taps, centres, side=images.shape[-1])
        return augment.augmented(images.contiguous(), done, fill)
    return image_ops.apply_operations(images, operations, arguments, taps, fill=fill, centres=centres)


def steps(
    operations: Integers, arguments: Floats, taps: Integers, centres: Floats | None, *, side: int
) -> npt.NDArray[np.void]:
    """Operations [B, N] as the native code takes them: kernels/augment.STEP."""
    found = np.zeros(operations.shape, augment.STEP)
    found["operation"], found["argument"], found["taps"] = operations, arguments, taps
    if centres is not None:
        found["centre"] = centres
    moves = operations >= Operation.SHEAR_X
    found["matrix"][moves] = image_ops.matrices(operations[moves], arguments[moves], side)
    return found
