"""What a device can do, and how long it takes."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from mixer_lightning.engine.machine import Machine

Step = Callable[[], None]

#: Side of the square matrices that are multiplied: large enough for a device's full rate.
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": torch.float32}


def matrix_rate(machine: Machine, *, at_least: float) -> float:
    """Multiply-accumulates per second of a product of two square matrices in the precision of a machine.

    In float32 as `Machine.configure_torch` allows it, that is with TF32 on GPUs. It is measured for `at_least` so many
    seconds, after a warm-up; of smaller matrices where one product would take longer, as of bfloat16 on a CPU without
    the instructions. Global random state stays as it is.
    """
    side = MATRIX_SIDE[machine.device_type]
    product = _warm(machine, side // 4)
    if 4**3 * seconds(product, device=machine.device_type, steps=1) > at_least:
        side //= 4
    else:
        product = _warm(machine, side)
    return side**3 / seconds_for(product, device=machine.device_type, at_least=at_least)


def _warm(machine: Machine, side: int) -> Step:
    """A product of two square matrices, made three times already."""
    generator = torch.Generator(machine.device).manual_seed(0)
    like: dict[str, Any] = {"device": machine.device, "dtype": DTYPES[machine.chosen_precision]}
    left, right = (torch.randn(side, side, generator=generator, **like) for _ in range(2))
    out = torch.empty_like(left)

    def product() -> None:
        torch.mm(left, right, out=out)

    for _ in range(3):
        product()
    return product


def seconds(step: Step, *, device: str, steps: int) -> float:
    """Seconds of one step, the mean of `steps` in a row; on a GPU between two of its events."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        for _ in range(steps):
            step()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000 / steps
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def seconds_for(step: Step, *, device: str, at_least: float) -> float:
    """Seconds of one step, the mean of as many as take `at_least` so many seconds, of one at any rate.

    How many they are a first one tells, which counts where it alone takes as long.
    """
    first = seconds(step, device=device, steps=1)
    if first >= at_least:
        return first
    return seconds(step, device=device, steps=max(1, round(at_least / max(first, 1e-6))))
