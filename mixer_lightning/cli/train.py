"""Pretraining, or training from scratch: `mixer train`, `python train.py`."""

from __future__ import annotations

from collections.abc import Sequence

from mixer_lightning.cli import plan
from mixer_lightning.cli.program import program
from mixer_lightning.engine.run import train
from mixer_lightning.reports.sweep import summarise


def main(argv: Sequence[str]) -> int:
    """Compose, check, run; the exit code."""
    words, run = plan.choose("train", argv, train)
    return program("train", words, run=run, after_sweep=summarise)
