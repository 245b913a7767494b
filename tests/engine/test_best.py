"""Which step's weights best.ckpt holds."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mixer_lightning import results
from mixer_lightning.engine import checkpoint
from mixer_lightning.engine.checkpoint import Checkpoints


def kept(monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, float]]) -> tuple[list[int], Any]:
    """The steps (from 1) at which best.ckpt is written when these metrics come, and what is said of the best."""
    steps: list[int] = []
    monkeypatch.setattr(checkpoint, "best_state", lambda module: {"step": module.step})
    monkeypatch.setattr(Checkpoints, "_write", lambda self, trainer, name, state: steps.append(state["step"]))
    monkeypatch.setattr(checkpoint, "_check_weights", lambda module: None)
    checkpoints = Checkpoints(
        Path("run"),
        every_steps=9,
        every_minutes=None,
        total_steps=9,
        record={},
        metrics=None,  # type: ignore[arg-type]
        driven=None,  # type: ignore[arg-type]
        earlier=None,
    )
    for number, row in enumerate(rows, start=1):
        checkpoints.on_metrics(None, SimpleNamespace(step=number), row)  # type: ignore[arg-type]
    return steps, checkpoints.best


def test_validation_top1_chooses(monkeypatch):
    rows = [
        {"val/loss": 3 - n, "val/top1": top1, "test/top1": n} for n, top1 in enumerate([0.1, 0.4, 0.3, 0.4])
    ]
    assert kept(monkeypatch, rows) == ([1, 2], {"metric": "val/top1", "value": 0.4, "step": 2})


def test_without_top1_the_metric_of_the_evaluation_chooses(monkeypatch):
    rows = [{"val/f1": value} for value in (0.2, 0.1, 0.3)]
    assert kept(monkeypatch, rows) == ([1, 3], {"metric": "val/f1", "value": 0.3, "step": 3})


def test_of_a_loss_the_lowest_chooses(monkeypatch):
    rows = [{"val/loss": value} for value in (2.0, 1.0, 1.5)]
    assert kept(monkeypatch, rows)[0] == [1, 2]


def test_the_metric_stays_the_same(monkeypatch):
    """One that comes at the end only does not take the place of the one that has chosen until then."""
    assert kept(monkeypatch, [{"val/f1": 0.5}, {"val/f1": 0.4, "val/top1": 0.9}])[0] == [1]


def test_a_test_split_chooses_nothing(monkeypatch):
    assert kept(monkeypatch, [{"test/top1": 0.5, "fewshot/digits_5shot": 0.5, "train/top1": 0.5}]) == (
        [],
        None,
    )


def test_one_that_is_newer_than_what_is_said_of_it_is_not_the_best(tmp_path, caplog):
    """Killed between an evaluation and the next last.ckpt, a session leaves such a file."""
    torch.save({"step": 4}, tmp_path / results.BEST)
    best = {"metric": "val/top1", "value": 0.3, "step": 4}
    assert checkpoint._kept_best(tmp_path, best) is best
    assert checkpoint._kept_best(tmp_path, best | {"step": 2}) is None
    assert "best.ckpt is of another step, of a session that was killed before it saved. The" in caplog.text
