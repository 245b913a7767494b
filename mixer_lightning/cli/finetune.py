"""Transfer of a pretrained backbone to a data set: `mixer finetune`, `python finetune.py`."""

from __future__ import annotations

from collections.abc import Sequence

from mixer_lightning.cli import plan
from mixer_lightning.cli.program import program
from mixer_lightning.engine.run import finetune
from mixer_lightning.reports.sweep import summarise


def main(argv: Sequence[str]) -> int:
    """Compose, check, run; the exit code."""
    words, run = plan.choose("finetune", argv, finetune)
    return program("finetune", words, run=run, after_sweep=summarise)
