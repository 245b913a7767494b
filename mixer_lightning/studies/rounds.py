"""Interleaved measurements: in each round everything that is compared runs once."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from typing import TypeVar

Found = TypeVar("Found")


def interleave(runs: Sequence[Callable[[], Found]], *, rounds: int) -> list[list[Found]]:
    """Values [len(runs)][rounds]; every other round goes backwards, so that none is always first or last."""
    values: list[list[Found]] = [[] for _ in runs]
    for number in range(rounds):
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for i in order:
            values[i].append(runs[i]())
    return values


def middle_half(values: Sequence[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile."""
    low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
    return low, middle, high
