"""The space of a search: which keys of a command line vary, and over what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import IntervalSweep, RangeSweep
from hydra.errors import HydraException

from mixer_lightning.config.overrides import quoted, split_values

#: Where only the machine, the dashboards or the number of trials differ it is the same search.
OF_THE_MACHINE = ("trainer", "logger", "hydra", "device_batch", "checkpoint_minutes")


class Dimension(NamedTuple):
    """What one key may be: one of `choices`, as typed, or a number from `low` to `high`, both included."""

    key: str
    choices: tuple[str, ...] = ()
    low: float = 0.0
    high: float = 0.0
    step: int | None = None  # of whole numbers
    log: bool = False

    def __str__(self) -> str:
        if self.choices:
            return ", ".join(self.choices)
        whole = "" if self.step is None else f" in steps of {self.step}"
        return f"{self.low:g} to {self.high:g}{whole}{', logarithmic' if self.log else ''}"

    def ends(self) -> list[str]:
        """Values that stand for all: each choice, or both ends."""
        return list(self.choices) or [self.text(self.low), self.text(self.high)]

    def text(self, value: Any) -> str:
        """A value as a command line says it."""
        if self.choices:
            return str(value)
        return str(int(value)) if self.step is not None else repr(float(value))


class Space(NamedTuple):
    """`fixed` overrides, the `dimensions` that vary, and `seeds`: each setting runs with all of them."""

    fixed: list[str]
    dimensions: list[Dimension]
    seeds: list[int]

    def record(self) -> dict[str, Any]:
        """What makes it this search and no other; plain containers."""
        fixed = [
            line for line in self.fixed if line.lstrip("+~").split("=")[0].split(".")[0] not in OF_THE_MACHINE
        ]
        return {
            "overrides": sorted(fixed),
            "space": {each.key: str(each) for each in self.dimensions},
            "seeds": self.seeds,
        }

    def words(self, values: Mapping[str, Any], seed: int) -> list[str]:
        """The command line of a run, given a value for each key that varies."""
        varied = [f"{each.key}={each.text(values[each.key])}" for each in self.dimensions]
        return [*self.fixed, *varied, f"seed={seed}"]

    def examples(self) -> list[list[str]]:
        """Command lines in which each dimension comes to its ends, the others at their first."""
        first = {each.key: each.ends()[0] for each in self.dimensions}
        found = [[*self.fixed, f"seed={self.seeds[0]}", *(f"{k}={v}" for k, v in first.items())]]
        for each in self.dimensions:
            for end in each.ends()[1:]:
                found.append(
                    [*found[0][: -len(first)], *(f"{k}={v}" for k, v in (first | {each.key: end}).items())]
                )
        return found


def space_of(overrides: Sequence[str]) -> Space:
    """The space of a command line in Hydra's grammar: lists `a,b`, `interval(0,1)`, `tag(log,interval(1e-4,1e-2))`,
    `int(interval(1,8))`, `range(2,10,2)`.

    Raises:
        ValueError: a value is not of the grammar, nothing varies, or an interval is empty.
    """
    fixed, dimensions, seeds = [], [], [0]
    for line in overrides:
        key, _, text = line.partition("=")
        try:
            parsed = OverridesParser.create().parse_override(line)
        except HydraException:
            if len(split_values(text)) > 1:  # paths with what the grammar has no place for
                dimensions.append(Dimension(key, choices=tuple(map(quoted, split_values(text)))))
            else:
                fixed.append(line)
            continue
        if key == "seed":
            seeds = _seeds(text, parsed.value(), is_sweep=parsed.is_sweep_override())
        elif parsed.is_interval_sweep() or parsed.is_range_sweep():
            dimensions.append(_numbers(key.lstrip("+"), parsed.value()))
        elif parsed.is_choice_sweep():
            if "glob(" in text:
                raise ValueError(f"{key}: write the choices out, {key}=a,b")
            dimensions.append(Dimension(key, choices=tuple(parsed.sweep_string_iterator())))
        else:
            fixed.append(line)
    if not dimensions:
        raise ValueError(
            "nothing to search: give a key several values, optimizer.weight_decay=0,0.1, or an interval, "
            "optimizer.lr='tag(log,interval(1e-4,1e-2))'"
        )
    return Space(fixed, dimensions, seeds)


def _seeds(text: str, value: Any, *, is_sweep: bool) -> list[int]:
    words = [str(each) for each in value.range()] if isinstance(value, RangeSweep) else split_values(text)
    if not is_sweep:
        words = [text]
    try:
        return sorted({int(word) for word in words})
    except ValueError:
        raise ValueError(f"seed: whole numbers, each setting runs with all of them; found {text}") from None


def _numbers(key: str, sweep: IntervalSweep | RangeSweep) -> Dimension:
    unknown = set(sweep.tags) - {"log"}
    if unknown:
        raise ValueError(f"{key}: unknown tag {', '.join(sorted(unknown))}: use tag(log,interval(1e-4,1e-2))")
    if isinstance(sweep, RangeSweep):
        values = list(sweep.range())
        if not all(isinstance(value, int) for value in values):
            return Dimension(key, choices=tuple(f"{value:g}" for value in values))
        if not values:
            raise ValueError(f"{key}: an empty range")
        if sweep.tags:
            raise ValueError(
                f"{key}: a range has no tags: use tag(log,int(interval({values[0]},{values[-1]})))"
            )
        return Dimension(key, low=values[0], high=values[-1], step=int(sweep.step))
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    if low >= high:
        raise ValueError(f"{key}: an interval from {low:g} to {high:g} is empty")
    if "log" in sweep.tags and low <= 0:
        raise ValueError(f"{key}: a logarithmic interval begins above 0, found {low:g}")
    whole = isinstance(low, int) and isinstance(high, int)
    return Dimension(key, low=low, high=high, step=1 if whole else None, log="log" in sweep.tags)
