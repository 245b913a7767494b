"""Figures of a checkpoint as it is, on any data set.

    mixer evaluate checkpoint=runs/default/convmixer_96_4-digits-seed0 evals=[test,fewshot]
    mixer evaluate checkpoint=Mixer-B_16.npz data=cifar10 evals=fewshot

Of a run directory of ours, model, data, image size and views are those of its recipe unless they are given. The head is
the checkpoint's, so its classes must be those of the data; few-shot alone needs no head. Prints a table and writes
evaluation.json into a directory of its own. Exit codes: 0 done, 2 a wrong setting or checkpoint, 1 it failed.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.cli.program import program
from mixer_lightning.config import from_checkpoint as pretrained
from mixer_lightning.config.recipe import FREE_KEYS, EvaluationRecipe
from mixer_lightning.engine.run import is_silent, leave_no_empty
from mixer_lightning.files import check_writable, lock_run_dir
from mixer_lightning.screen import Screen, format_metric


def evaluate(recipe: EvaluationRecipe, run_dir: Path) -> int:
    """Judge the checkpoint of `recipe` by its evaluations; the exit code."""
    screen = Screen(silent=is_silent())
    try:
        if recipe.checkpoint is None:
            raise ValueError(
                "'checkpoint' is missing: a .npz, .pth, .safetensors or .ckpt file, a run directory, or timm:<name>"
            )
        if not recipe.evals:
            raise ValueError("'evals' is empty: take evals=accuracy, or several as evals=[val,fewshot]")
        pretrained.check_there(recipe.checkpoint)
        check_writable(run_dir)
        refuse_another(recipe, run_dir)
        with lock_run_dir(run_dir) if not screen.silent else contextlib.nullcontext():
            from mixer_lightning.engine import evaluation  # torch and Lightning: seconds

            code = evaluation.evaluate(recipe, run_dir, screen)
    except (ValueError, OSError) as error:
        screen.say(str(error))
        code = 2
    except KeyboardInterrupt:
        code = 130
    if code:
        leave_no_empty(run_dir)
    return code


def refuse_another(recipe: EvaluationRecipe, run_dir: Path) -> None:
    """Let an evaluation be made again, but not one take the place of another.

    Raises:
        ValueError: the directory holds figures of another checkpoint, data set or setting.
    """
    found, here = read(run_dir), recipe.to_dict()
    if found is None:
        return
    there = {
        key: value for key, value in found["recipe"].items() if key in here
    }  # older ones hold training's keys
    if changes := results.differing_keys(there, here, ignore=FREE_KEYS):
        lines = [f"  {name}: {was!r} there, {now!r} here" for name, was, now in changes]
        raise ValueError(
            "\n".join([f"{run_dir} holds another evaluation:", *lines])
            + "\nGive this one a name of its own (name=<word>), or delete that directory."
        )


def read(run_dir: Path) -> dict[str, Any] | None:
    """What an evaluation wrote; None where there is none.

    Raises:
        ValueError: evaluation.json is damaged.
    """
    path = run_dir / results.EVALUATION
    try:
        return dict(json.loads(path.read_text()))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it, and evaluate again.") from error


def summarise(run_dirs: Sequence[Path]) -> int:
    """Print one table of several evaluations; 1 if some has no figures, else 0."""
    found = [(run_dir, read(run_dir)) for run_dir in run_dirs]
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
