"""Figures of a checkpoint as it is, on any data set.

    mixer evaluate checkpoint=runs/default/convmixer_96_4-digits-seed0 evals=[test,fewshot]
    mixer evaluate checkpoint=Mixer-B_16.npz data=cifar10 evals=fewshot

Of a run directory of ours, model, data, image size and crops are those of its recipe unless they are given. The head is
the checkpoint's, so its classes must be those of the data; few-shot alone needs no head. Prints a table and writes
evaluation.json into a directory of its own. Exit codes: 0 done, 2 a wrong setting or checkpoint, 1 it failed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixer_lightning import results
from mixer_lightning.cli.program import program
from mixer_lightning.engine.run import evaluate
from mixer_lightning.screen import Screen, format_metric


def summarise(run_dirs: Sequence[Path]) -> int:
    """Print one table of several evaluations; 1 if some has no figures, else 0."""
    found = [(run_dir, results.read_evaluation(run_dir)) for run_dir in run_dirs]
    names = sorted({name for _, record in found for name in (record or {"metrics": {}})["metrics"]})
    rows = [
        (
            str(run_dir),
            *(
                format_metric(name, record["metrics"][name]) if name in record["metrics"] else ""
                for name in names
            ),
        )
        for run_dir, record in found
        if record is not None
    ]
    Screen().table("", ("evaluation", *names), rows)
    return int(any(record is None for _, record in found))


def main(argv: Sequence[str]) -> int:
    """Compose, check, evaluate; the exit code."""
    return program("evaluate", argv, run=evaluate, after_sweep=summarise)
