"""Figures of a checkpoint as it is, on any data set.

    mixer evaluate checkpoint=runs/default/convmixer_96_4-digits-seed0 evals=[test,fewshot]
    mixer evaluate checkpoint=Mixer-B_16.npz data=cifar10 evals=fewshot

Of a run directory of ours, model, data, image size and crops are those of its recipe unless they are given. The head is
the checkpoint's, so its classes must be those of the data; few-shot alone needs no head. Prints a table and writes
evaluation.json into a directory of its own. Exit codes: 0 done, 2 a wrong setting or checkpoint, 1 it failed.
"""

from __future__ import annotations

from collections.abc import Sequence

from mixer_lightning.cli.program import program
from mixer_lightning.engine.run import evaluate
from mixer_lightning.reports.sweep import summarise_evaluations


def main(argv: Sequence[str]) -> int:
    """Compose, check, evaluate; the exit code."""
    return program("evaluate", argv, run=evaluate, after_sweep=summarise_evaluations)
