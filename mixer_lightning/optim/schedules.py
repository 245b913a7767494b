"""The learning rate as a pure function of the step: what the peak rate is multiplied by.

Every schedule has the signature (step, total_steps, steps_per_epoch, *, options) -> float. `step` counts
optimiser steps from 0 to total_steps - 1 and the value holds for that step. `steps_per_epoch` may be
fractional.

Where a schedule warms up, its length stands in `warmup_steps` or in `warmup_epochs`; with neither it is a
twentieth of the run, which suits a run of any length. 0 means no warm-up.
"""

from __future__ import annotations

import math

from mixer_lightning.ranges import Fraction, NonNegativeFloat, NonNegativeInt

WARMUP_WHEN_UNSTATED = 0.05  # of the run


def constant(step: int, total_steps: int, steps_per_epoch: float) -> float:
    """1 at every step."""
    return 1.0


def linear(
    step: int,
    total_steps: int,
    steps_per_epoch: float,
    *,
    warmup_steps: NonNegativeInt | None = None,
    warmup_epochs: NonNegativeFloat | None = None,
    warmup_start: Fraction = 0.0,
    end: Fraction = 0.0,
) -> float:
    """A line up from `warmup_start` to 1, then a line down to `end`, both fractions of the peak rate.

    With warm-up 10,000 steps and end 1e-5 it is Mixer's pre-training schedule: step 0 has rate 0, and the
    decay would reach `end` one step after the last (arXiv 2105.01601, Appendix B; big_vision utils.py,
    `create_learning_rate_schedule`).
    """
    warmup = _warmup(total_steps, steps_per_epoch, warmup_steps=warmup_steps, warmup_epochs=warmup_epochs)
    _check_fractions(warmup_start=warmup_start, end=end)
    if step < warmup:
        return warmup_start + (1 - warmup_start) * step / warmup
    return end + (1 - end) * (1 - _progress(step, total_steps, warmup))


def cosine(
    step: int,
    total_steps: int,
    steps_per_epoch: float,
    *,
    warmup_steps: NonNegativeInt | None = None,
    warmup_epochs: NonNegativeFloat | None = None,
    warmup_start: Fraction = 0.0,
    end: Fraction = 0.0,
) -> float:
    """A line up from `warmup_start` to 1, then half a cosine down to `end`, both fractions of the peak rate.

    The cosine spans the steps after the warm-up. Mixer's and ViT's fine-tuning uses it (arXiv 2105.01601,
    Appendix C), and A1 with warm-up 5 epochs from 1e-4, end 1e-6 / 5e-3 (arXiv 2110.00476, as in mmpretrain).
    """
    warmup = _warmup(total_steps, steps_per_epoch, warmup_steps=warmup_steps, warmup_epochs=warmup_epochs)
    _check_fractions(warmup_start=warmup_start, end=end)
    if step < warmup:
        return warmup_start + (1 - warmup_start) * step / warmup
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * _progress(step, total_steps, warmup)))


def cosine_by_epoch(
    step: int,
    total_steps: int,
    steps_per_epoch: float,
    *,
    warmup_epochs: NonNegativeFloat,
    warmup_start: Fraction = 0.0,
    end: Fraction = 0.0,
) -> float:
    """timm's cosine: half a cosine over the whole run, its first epochs replaced by a line; one rate for each epoch.

    With T epochs, epoch e = floor(step / steps_per_epoch) has 1/2 (1 + cos(pi e / T)) of the way from `end` to 1, both
    fractions of the peak rate, and the first `warmup_epochs` a line from `warmup_start`; where that line ends, the
    cosine is already below 1. DeiT's and ResMLP's schedule.
    Source: timm scheduler/cosine_lr.py, as facebookresearch/deit's main.py uses it: by epochs, without `warmup_prefix`.
    Raises ValueError when the warm-up is as long as the run.
    """
    epochs = total_steps / steps_per_epoch
    if 0 < epochs <= warmup_epochs:
        raise ValueError(
            f"schedule.warmup_epochs={warmup_epochs} is not shorter than the run's {epochs:.4g} epochs: lengthen "
            f"`duration` or set schedule.warmup_epochs={int(epochs * WARMUP_WHEN_UNSTATED)} (a twentieth of the run)."
        )
    _check_fractions(warmup_start=warmup_start, end=end)
    epoch = math.floor(
        (step + 1e-6) / steps_per_epoch
    )  # to within rounding: steps_per_epoch may be a quotient
    if epoch < warmup_epochs:
        return warmup_start + (1 - warmup_start) * epoch / warmup_epochs
    return end + (1 - end) * 0.5 * (1 + math.cos(math.pi * epoch / epochs))


def triangular(step: int, total_steps: int, steps_per_epoch: float) -> float:
    """Three lines through 0, 1, 1/20, 0 at the epochs 0, 2T/5, 4T/5, T: ConvMixer's schedule.

    It is evaluated at the end of the step, epoch (step + 1) / steps_per_epoch, so the last step has rate 0.
    The knees are rounded down to whole epochs when T is whole (T = 90: 36 and 72), as the code of the paper
    does; a run of fractional length, or of one or two epochs, where that would put a knee at 0, keeps them
    unrounded.
    Source: locuslab/convmixer, timm/scheduler/onecycle_lr.py; locuslab/convmixer-cifar10, train.py.
    """
    epochs = total_steps / steps_per_epoch
    # steps_per_epoch need not be whole, so 150 epochs may come out as 150.0003: whole to within one step.
    is_whole = abs(total_steps - round(epochs) * steps_per_epoch) < 1
    if is_whole and round(epochs) >= 3:
        epochs = float(round(epochs))
        peak, tail = epochs * 2 // 5, epochs * 4 // 5
    else:
        peak, tail = epochs * 2 / 5, epochs * 4 / 5

    epoch = (step + 1) / steps_per_epoch
    if epoch <= peak:
        return epoch / peak
    if epoch <= tail:
        return 1 + (1 / 20 - 1) * (epoch - peak) / (tail - peak)
    return 1 / 20 * max(0.0, 1 - (epoch - tail) / (epochs - tail))


def _warmup(
    total_steps: int, steps_per_epoch: float, *, warmup_steps: int | None, warmup_epochs: float | None
) -> int:
    """The warm-up in steps, shorter than the run; raises ValueError where it cannot be."""
    if warmup_steps is not None and warmup_epochs is not None:
        raise ValueError(
            f"schedule.warmup_steps={warmup_steps} and schedule.warmup_epochs={warmup_epochs} are both set: "
            "set one of them to null."
        )
    if warmup_steps is not None:
        warmup, key = warmup_steps, f"schedule.warmup_steps={warmup_steps}"
    elif warmup_epochs is not None:
        warmup, key = round(warmup_epochs * steps_per_epoch), f"schedule.warmup_epochs={warmup_epochs}"
    else:
        return int(total_steps * WARMUP_WHEN_UNSTATED)
    if warmup < 0:
        raise ValueError(f"{key} is negative: set 0 for no warm-up.")
    if 0 < total_steps <= warmup:
        twentieth = int(total_steps * WARMUP_WHEN_UNSTATED)
        remedy = f"schedule.warmup_steps={twentieth}"
        if warmup_epochs is not None:
            remedy += " schedule.warmup_epochs=null"
        raise ValueError(
            f"{key} makes a warm-up of {warmup} steps, and the run has only {total_steps}: lengthen `duration` "
            f"or set {remedy} (a twentieth of the run)."
        )
    return warmup


def _check_fractions(*, warmup_start: float, end: float) -> None:
    for key, value in (("warmup_start", warmup_start), ("end", end)):
        if not 0 <= value <= 1:
            raise ValueError(
                f"schedule.{key}={value} is not in [0, 1]: it is a fraction of optimizer.lr, not a rate."
            )


def _progress(step: int, total_steps: int, warmup: int) -> float:
    """The part of the decay that is behind us, in [0, 1]."""
    return min(1.0, (step - warmup) / max(1, total_steps - warmup))
