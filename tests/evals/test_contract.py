"""What an evaluation is: `check` and `run`, the rest by default."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from mixer_lightning.evals import checked_eval, is_at_end, metrics_of, uses_head


class Plain:
    """An evaluation as the README describes it."""

    def __init__(self, *pairs: Any) -> None:
        self.pairs = pairs

    def check(self, data: object) -> None:
        pass

    def run(self, predict: object) -> Iterator[Any]:
        yield from self.pairs


def test_two_methods_are_enough():
    evaluation = checked_eval("mine", Plain())
    assert not is_at_end(evaluation)
    assert uses_head(evaluation)


def test_any_number_is_a_figure():
    found = metrics_of(
        "mine", Plain(("val/a", np.float32(0.5)), ("val/b", torch.tensor(2)), ("val/c", 1)), None
    )  # type: ignore[arg-type]
    assert found == {"val/a": 0.5, "val/b": 2.0, "val/c": 1.0}
    assert all(type(value) is float for value in found.values())


@pytest.mark.parametrize("evaluation", [object(), Plain, lambda predict: None, {"run": 1}])
def test_what_is_no_evaluation_is_named(evaluation: object):
    with pytest.raises(ValueError, match=r"^evals\.mine: .*a class with check\(data\) and run\(predict\)"):
        checked_eval("mine", evaluation)


@pytest.mark.parametrize(
    "pair", ["val/top1", ("val/top1",), ("val/top1", "much"), ("step", 1), ("train/loss", 1), (3, 1)]
)
def test_what_is_no_figure_is_named(pair: Any):
    with pytest.raises(ValueError, match=r"^evals\.mine "):
        metrics_of("mine", Plain(pair), None)  # type: ignore[arg-type]
