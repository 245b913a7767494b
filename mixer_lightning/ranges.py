"""Numbers by the values that make sense: annotations of parameters.

A recipe's are checked with their type (config/check.py), before anything is imported; those that a program gives, by
the function itself.

>>> @check_ranges
... def head(*, num_classes: PositiveInt, drop_rate: BelowOne = 0.0): ...
"""

from __future__ import annotations

import functools
import math
import numbers
import re
from collections.abc import Callable
from typing import Annotated, Any, NamedTuple, ParamSpec, TypeVar


class Range(NamedTuple):
    """The numbers between two bounds; an open bound is itself left out."""

    low: float
    high: float = float("inf")
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, numbers.Real) or not math.isfinite(value):
            return False
        number = float(value)
        above = number > self.low if self.low_open else number >= self.low
        return above and (number < self.high if self.high_open else number <= self.high)

    def __str__(self) -> str:
        low = f"above {self.low:g}" if self.low_open else f"at least {self.low:g}"
        if self.high == float("inf"):
            return low
        return f"{low} and {'below' if self.high_open else 'at most'} {self.high:g}"


PositiveInt = Annotated[int, Range(1)]
NonNegativeInt = Annotated[int, Range(0)]
PositiveFloat = Annotated[float, Range(0, low_open=True)]
NonNegativeFloat = Annotated[float, Range(0)]
Fraction = Annotated[float, Range(0, 1)]
PositiveFraction = Annotated[float, Range(0, 1, low_open=True)]
BelowOne = Annotated[float, Range(0, 1, high_open=True)]

#: By the names above, which is how the source of a signature says them: the type, and the numbers of it.
RANGES: dict[str, tuple[type[Any], Range]] = {
    name: (alias.__origin__, alias.__metadata__[0])
    for name, alias in list(globals().items())
    if hasattr(alias, "__metadata__")
}

P = ParamSpec("P")
R = TypeVar("R")


def check_ranges(function: Callable[P, R]) -> Callable[P, R]:
    """The function, which at each call checks the keyword arguments that its annotations give a range.

    Raises:
        ValueError: by the function: a number is of another type or not in its range, or one of a list of them.
    """
    found = {
        name: RANGES[match[0]]
        for name, annotation in function.__annotations__.items()
        if (match := re.search("|".join(rf"\b{each}\b" for each in RANGES), str(annotation)))
    }
    assert found, f"no parameter of {function.__qualname__} has a range"

    @functools.wraps(function)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for name in found.keys() & kwargs.keys():
            _check(name, kwargs[name], *found[name])
        return function(*args, **kwargs)

    return checked


def _check(name: str, value: object, kind: type[Any], bounds: Range) -> None:
    """ValueError unless it is a number of the range, a list of such, or None."""
    if value is None:
        return
    if isinstance(value, list | tuple):
        for each in value:
            _check(name, each, kind, bounds)
        return
    wanted = numbers.Integral if kind is int else numbers.Real
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise ValueError(
            f"{name} must be a {'whole ' if kind is int else ''}number, {bounds}, found {value!r}"
        )
    if value not in bounds:
        raise ValueError(f"{name} must be {bounds}, found {value}")
