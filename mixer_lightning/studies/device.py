"""What a device can do: its rate of matrix products."""

from __future__ import annotations

import torch

from mixer_lightning.engine.machine import Machine
from mixer_lightning.studies.training_step import seconds_for

#: Side of the square matrices that are multiplied: large enough for a device's full rate.
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": torch.float32}


def matrix_rate(machine: Machine, *, at_least: float) -> float:
    """Multiply-accumulates per second of a product of two square matrices in the precision of a machine.

    In float32 as `Machine.configure_torch` allows it, that is with TF32 on GPUs. It is measured for `at_least` so many
    seconds, after a warm-up.
    """
    side, dtype = MATRIX_SIDE[machine.device_type], DTYPES[machine.chosen_precision]
    left, right = (torch.randn(side, side, device=machine.device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)

    def product() -> None:
        torch.mm(left, right, out=out)

    for _ in range(3):
        product()
    return side**3 / seconds_for(product, device=machine.device_type, at_least=at_least)
