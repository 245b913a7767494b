"""A recipe in its run directory: what is there already, who else is at it, then the work.

Nothing heavy is imported before there is work to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

import yaml

from mixer_lightning import launcher, results
from mixer_lightning.config.from_checkpoint import check_there, refuse_replaced
from mixer_lightning.config.recipe import EvaluationRecipe, Recipe, refuse_differences
from mixer_lightning.files import check_writable, lock_run_dir
from mixer_lightning.screen import Screen, closing_table, say_what_broke, show_logging
from mixer_lightning.stopping import Stopped, exit_code

NO_CHECKPOINT = (
    "'checkpoint' is missing: a .npz, .pth, .safetensors or .ckpt file, a run directory, or timm:<name>"
)
#: What one process finds wrong, mostly all find. The first says it and ends, whereupon a launcher ends the others: they
#: wait for that long before they say it too.
SECONDS_FOR_THE_FIRST = 3.0


def train(recipe: Recipe, run_dir: Path) -> int:
    """Train `recipe` in `run_dir`, go on where an earlier session stopped, or say that it has finished.

    A checkpoint to start from gives its head too where the classes are the same.

    Returns the exit code: 0 done, 1 failed on the way, 2 nothing was started, 130 or 143 asked to stop and saved.
    """
    return _train(recipe, run_dir, head="auto")


def finetune(recipe: Recipe, run_dir: Path) -> int:
    """Train from a checkpoint, which must be given, with a new head; the exit code as of `train`."""
    return _train(recipe, run_dir, head="new")


def _train(recipe: Recipe, run_dir: Path, *, head: Literal["auto", "new"]) -> int:
    return (_try_out if recipe.fast_dev_run else _train_in)(recipe, run_dir, head=head)


def _try_out(recipe: Recipe, run_dir: Path, *, head: Literal["auto", "new"]) -> int:
    """A few batches through all that a run does, in a folder that goes away again unless it holds a traceback."""
    folder = Path(tempfile.mkdtemp(prefix="fast_dev_run_"))
    code = _train_in(dataclasses.replace(recipe, logger={}), folder, head=head)
    if code != 1:
        shutil.rmtree(folder, ignore_errors=True)
    leave_no_empty(run_dir)
    return code


def _train_in(recipe: Recipe, run_dir: Path, *, head: Literal["auto", "new"]) -> int:
    screen = Screen(silent=not launcher.is_first())

    def begin() -> int:
        if recipe.checkpoint is None and head == "new":
            raise ValueError(f"{NO_CHECKPOINT}. To train from scratch: mixer train")
        check_writable(run_dir)
        try:
            result = finished(recipe, run_dir)
        except ValueError:
            if recipe.checkpoint is not None:
                check_there(recipe.checkpoint)  # one that is gone says nothing of its model: another recipe
            raise
        if result is None and recipe.checkpoint is not None and not _has_saved(run_dir):
            check_there(recipe.checkpoint)
        if result is not None:
            screen.say(f"{run_dir} has finished this recipe; name=<another> trains it anew")
            closing_table(screen, result, run_dir)
            return 0
        wait_briefly()
        with _locked(run_dir):
            from mixer_lightning.engine import training  # torch and Lightning: seconds

            return _work(
                run_dir,
                screen,
                ready=lambda: training.ready(recipe, run_dir, screen, head=head),
                work=lambda run: training.fit(recipe, run_dir, run, screen),
            )

    return _exit_code(begin, recipe, run_dir, screen, unharmed="before the first step; nothing was changed")


def wait_briefly() -> None:
    """Let threads that wait for each other spin for a short time only; to be said before torch is imported.

    Where something else needs a core, spinning for long made training 15 times slower (2 cores). A short spin costs
    some percent when nothing else runs.
    """
    os.environ.setdefault("GOMP_SPINCOUNT", "1000")


def evaluate(recipe: EvaluationRecipe, run_dir: Path) -> int:
    """Judge the checkpoint of `recipe` by its evaluations; the exit code: 0 done, 1 it failed, 2 a wrong setting."""
    screen = Screen(silent=not launcher.is_first())

    def begin() -> int:
        if recipe.checkpoint is None:
            raise ValueError(NO_CHECKPOINT)
        if not recipe.evals:
            raise ValueError("'evals' is empty: use evals=accuracy, or several as evals=[val,fewshot]")
        check_there(recipe.checkpoint)
        check_writable(run_dir)
        refuse_another_evaluation(recipe, run_dir)
        with _locked(run_dir):
            from mixer_lightning.engine import evaluation  # torch and Lightning: seconds

            return _work(
                run_dir,
                screen,
                ready=lambda: evaluation.ready(recipe, screen),
                work=lambda parts: evaluation.evaluate(recipe, run_dir, parts, screen),
            )

    return _exit_code(begin, recipe, run_dir, screen, unharmed="before its end; no figure was written")


class _Closable(Protocol):
    def close(self) -> None: ...


Parts = TypeVar("Parts", bound=_Closable)


def _work(run_dir: Path, screen: Screen, *, ready: Callable[[], Parts], work: Callable[[Parts], int]) -> int:
    """Make everything ready, then work, and close what was opened however that ends; the exit code.

    Raises:
        ValueError, OSError: something that the user gave is wrong; nothing was started.
    """
    from mixer_lightning.engine.distributed import leave_process_group

    show_logging(screen)
    log = run_dir / results.LOG
    with contextlib.ExitStack() as stack:
        stack.callback(leave_process_group)
        stack.callback(screen.close)
        try:
            parts = ready()
        except (ValueError, OSError):
            raise
        except Exception as error:  # not a user's mistake: the traceback is worth having
            screen.open_log(log)
            say_what_broke(screen, error, log)
            return 1
        stack.callback(parts.close)
        screen.open_log(log)
        try:
            return work(parts)
        except (ValueError, OSError) as error:  # 2 would promise that nothing was started
            say_what_broke(screen, error, log)
            return 1


def _exit_code(
    begin: Callable[[], int],
    recipe: Recipe | EvaluationRecipe,
    run_dir: Path,
    screen: Screen,
    *,
    unharmed: str,
) -> int:
    """The exit code of a program that says by ValueError or OSError what the user got wrong.

    `unharmed` says of one that was stopped, with nothing to save, what it has left alone.
    """
    try:
        with _among_others(recipe, run_dir, screen) as tell:
            try:
                code = begin()
            except (ValueError, OSError) as error:
                code = 2
                if not screen.silent:
                    screen.alarm(str(error))
                tell(code, f"failed: {error}")
                if screen.silent:
                    time.sleep(SECONDS_FOR_THE_FIRST)
                    screen.alarm(str(error))
            if code:
                tell(code, f"failed with exit code {code}")
    except Stopped as stop:  # before there was anything to save
        screen.say(f"stopped by {stop} {unharmed}")
        code = exit_code(stop.number)
    except KeyboardInterrupt:
        code = 130
    if code:
        leave_no_empty(run_dir)
    return code


@contextlib.contextmanager
def _among_others(
    recipe: Recipe | EvaluationRecipe, run_dir: Path, screen: Screen
) -> Iterator[Callable[[int, str], None]]:
    """While entered the processes of a launch watch each other; gives what tells them that this one fails."""
    if not launcher.is_one_of_several():
        yield lambda code, why: None
        return
    wait_briefly()
    launcher.hush()
    from mixer_lightning.engine import presence  # torch: seconds

    def end(text: str, code: int) -> None:
        screen.stop_bars()
        screen.alarm(text)
        if code == 2 and launcher.is_first():
            leave_no_empty(run_dir)
        sys.stdout.flush()
        os._exit(code)

    seconds = float(recipe.trainer.get("silence_seconds", presence.SILENCE_SECONDS))
    with presence.among(launcher.launched(), seconds=seconds, end=end):
        yield presence.tell


def _locked(run_dir: Path) -> contextlib.AbstractContextManager[None]:
    """The run directory for this run alone; its other processes rely on the first."""
    return lock_run_dir(run_dir) if launcher.is_first() else contextlib.nullcontext()


def leave_no_empty(run_dir: Path) -> None:
    """Nothing was started: a directory that is empty goes away again, with those above it in runs/."""
    with contextlib.suppress(OSError):
        run_dir.rmdir()
        for above in run_dir.parents:
            if "runs" not in above.parts:
                break
            above.rmdir()


# ------------------------------------------------------------------------------------------- what is there already


def finished(recipe: Recipe, run_dir: Path) -> dict[str, Any] | None:
    """The result of a finished run of this recipe, None if there is work to do.

    Raises:
        ValueError: the directory holds a run of another recipe, whose differing keys are listed, on other data, or from
            another checkpoint under the same name.
    """
    what = f"{run_dir} holds a run of another recipe"
    result = results.read_result(run_dir, whole=True)
    before = _stored_recipe(run_dir) if result is None else result["recipe"]
    now = recipe.to_dict()
    if before is not None:
        refuse_differences(what, before, now, free=("duration",) if _has_saved(run_dir) else ())
        if before.get("duration") != now["duration"]:
            return None  # of another length: training sees whether this one may become so
    if result is not None:
        refuse_replaced(recipe.checkpoint, result.get("checkpoint_sha256"), run_dir)
        _refuse_other_data(result, recipe, run_dir)
    return result


def _has_saved(run_dir: Path) -> bool:
    """Whether there is a checkpoint to go on from."""
    return any((run_dir / name).exists() for name in (results.LAST, results.PREVIOUS))


def _stored_recipe(run_dir: Path) -> dict[str, Any] | None:
    """recipe.yaml of a run that has begun; None where it has not, or where that file is lost or damaged.

    Nothing hangs on it: a checkpoint says its recipe itself, and is compared before a run goes on from it.
    """
    if not _has_saved(run_dir):
        return None
    try:
        return dict(yaml.safe_load((run_dir / results.RECIPE).read_text(encoding="utf-8")))
    except (OSError, yaml.YAMLError, TypeError, ValueError):
        return None


def refuse_another_evaluation(recipe: EvaluationRecipe, run_dir: Path) -> None:
    """Let an evaluation be made again, but not one take the place of another.

    Raises:
        ValueError: the directory holds figures of another checkpoint, data set or setting.
    """
    found = results.read_evaluation(run_dir, whole=True)
    if found is not None:
        now = recipe.to_dict()
        before = {
            key: value for key, value in found["recipe"].items() if key in now
        }  # once, training's keys too
        refuse_differences(f"{run_dir} holds another evaluation", before, now)


def _refuse_other_data(result: dict[str, Any], recipe: Recipe, run_dir: Path) -> None:
    """A result is of the data that it was made with, which may move or, once it is finished, go away.

    Raises:
        ValueError, OSError: other data are there now; or none, at a place that was not the run's.
    """
    from mixer_lightning.data import identity  # NumPy and the data: only where there is a result
    from mixer_lightning.engine.bad_images import record
    from mixer_lightning.engine.source import open_data

    try:
        data = open_data(recipe)
    except OSError:
        if results.flatten(result["recipe"]).get("data.root") != recipe.data.get("root"):
            raise
        return
    identity.refuse_another(record(data, run_dir, result), result, run_dir)
