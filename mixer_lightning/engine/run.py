"""The program: what a command does, top to bottom. Nothing heavy is imported before there is work to do."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path
from typing import Any, Literal

import yaml

from mixer_lightning import results
from mixer_lightning.config import from_checkpoint as pretrained
from mixer_lightning.config.recipe import FREE_KEYS, Recipe
from mixer_lightning.config.signatures import build
from mixer_lightning.files import check_writable, lock_run_dir
from mixer_lightning.screen import Screen, closing_table


def train(recipe: Recipe, run_dir: Path) -> int:
    """Train `recipe` in `run_dir`, go on where an earlier sitting stopped, or say that it has finished.

    A checkpoint to start from gives its head too where the classes are the same.

    Returns the exit code: 0 done, 1 failed on the way, 2 nothing was started, 130 or 143 asked to stop and saved.
    """
    return _train(recipe, run_dir, head="auto")


def _train(recipe: Recipe, run_dir: Path, *, head: Literal["auto", "new"]) -> int:
    code = _trained(recipe, run_dir, Screen(silent=is_silent()), head=head)
    if code == 2:
        leave_no_empty(run_dir)
    return code


def _trained(recipe: Recipe, run_dir: Path, screen: Screen, *, head: Literal["auto", "new"]) -> int:
    try:
        if recipe.checkpoint is not None:
            pretrained.check_there(recipe.checkpoint)
        check_writable(run_dir)
        result = finished(recipe, run_dir)
    except (ValueError, OSError) as error:
        screen.say(str(error))
        return 2
    if result is not None:
        screen.say(f"{run_dir} has finished this recipe; name=<another> trains it anew")
        closing_table(screen, result, run_dir)
        return 0

    # Threads of a parallel loop that wait for each other spin; where something else needs a core, spinning for long
    # made training 15 times slower (2 cores). A short spin costs some percent when nothing else runs.
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")
    try:
        with lock_run_dir(run_dir) if not screen.silent else contextlib.nullcontext():
            from mixer_lightning.engine import training  # torch and Lightning: seconds

            return training.train(recipe, run_dir, screen, head=head)
    except ValueError as error:
        screen.say(str(error))
        return 2


def finetune(recipe: Recipe, run_dir: Path) -> int:
    """Train from a checkpoint, which must be given, with a new head; the exit code as of `train`."""
    if recipe.checkpoint is not None:
        return _train(recipe, run_dir, head="new")
    Screen(silent=is_silent()).say(
        "'checkpoint' is missing: a .npz, .pth, .safetensors or .ckpt file, a run directory, or timm:<name>. "
        "Training from scratch is train.py"
    )
    leave_no_empty(run_dir)
    return 2


def is_silent() -> bool:
    """Whether another process of this run speaks for all."""
    return os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0")) != "0"


def leave_no_empty(run_dir: Path) -> None:
    """Nothing was started: a directory that is empty goes away again, with those above it in runs/."""
    with contextlib.suppress(OSError):
        run_dir.rmdir()
        for above in run_dir.parents:
            if "runs" not in above.parent.parts:
                break
            above.rmdir()


def finished(recipe: Recipe, run_dir: Path) -> dict[str, Any] | None:
    """The result of a finished run of this recipe, None if there is work to do.

    Raises:
        ValueError: the directory holds a run of another recipe, whose differing keys are listed, or on other data.
    """
    started = any((run_dir / name).exists() for name in (results.LAST, results.RESULT))
    stored = run_dir / results.RECIPE
    if started and stored.exists():
        try:
            before = dict(yaml.safe_load(stored.read_text()))
        except (yaml.YAMLError, TypeError, ValueError):
            raise ValueError(
                f"{stored} is damaged: write the recipe there again (--cfg job --resolve), or delete {run_dir}"
            ) from None
        changes = results.differing_keys(before, recipe.to_dict(), ignore=FREE_KEYS)
        if changes:
            lines = [f"  {name}: {was!r} there, {now!r} here" for name, was, now in changes]
            raise ValueError(
                "\n".join([f"{run_dir} holds a run of another recipe:", *lines])
                + "\nGive this one a name of its own (name=<word>), or delete that directory."
            )
    result = results.read_result(run_dir)
    if result is not None:
        _refuse_other_data(result, recipe, run_dir)
    return result


def _refuse_other_data(result: dict[str, Any], recipe: Recipe, run_dir: Path) -> None:
    """Data may move, but a result is of the data it was made with: look at it where `data.root` is another.

    Raises:
        ValueError, OSError: the data at the new place is other data, or there is none.
    """
    if result["recipe"]["data"].get("root") != recipe.data.get("root"):
        from mixer_lightning.data import splits  # seconds

        data = splits.choose(
            build(recipe.data), train=recipe.train_split, val=recipe.val_split, test=recipe.test_split
        )
        data.refuse_another(result, run_dir)
