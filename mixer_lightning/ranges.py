"""Numbers by the values that make sense: annotations of parameters, checked with their type (config/check.py).

>>> def head(*, num_classes: PositiveInt, drop_rate: BelowOne = 0.0): ...
"""

from __future__ import annotations

from typing import Annotated, Any, NamedTuple


class Range(NamedTuple):
    """The numbers between two bounds; an open bound is itself left out."""

    low: float
    high: float = float("inf")
    low_open: bool = False
    high_open: bool = False

    def __contains__(self, value: object) -> bool:
        if not isinstance(value, int | float):
            return False
        above = value > self.low if self.low_open else value >= self.low
        return above and (value < self.high if self.high_open else value <= self.high)

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
