"""Weights & Biases: a run that goes on under its id, offline where there is no key."""

from __future__ import annotations

import logging
import os
import secrets
import shlex
import signal
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch.loggers import WandbLogger

from mixer_lightning import launcher, results
from mixer_lightning.loggers import Labels
from mixer_lightning.loggers.wandb_keys import Mode, mode_here, settings_of_wandb
from mixer_lightning.ranges import PositiveFloat

log = logging.getLogger(__name__)

#: Splits whose best figures are kept in the summary.
SPLITS = ("val/", "test/")
TAG_LENGTH = 64  # characters, W&B's limit
MOST_CELLS = 10_000  # rows of a table that W&B plots


class StepLogger(WandbLogger):
    """Logs at the run's own steps, so that a resumed run goes on where it was, and keeps the best in the summary.

    Lightning's own would log at the number of the row, and the step as one more metric. Rows of earlier sessions that
    W&B lacks come first: a process that was killed takes with it what W&B had not written yet, and offline W&B knows
    of none, so that the last session alone is to be uploaded. A step that W&B has already is left out.
    """

    def __init__(self, experiment: Any, *, before: Sequence[Mapping[str, float]] = ()) -> None:
        super().__init__(experiment=experiment)
        self.best: dict[str, float] = {}
        for row in before:
            step = int(row["step"])
            if step >= experiment.step:
                self.log_metrics({name: value for name, value in row.items() if name != "step"}, step)
            else:
                self._note_best(row)

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """One row at a step; several at the same are one.

        W&B takes nothing for a step that it has closed. What a session still has to say of the last step of the one
        before it, an evaluation that was broken off, stands at the next.
        """
        self.experiment.log(dict(metrics), step=step if step is None else max(step, self.experiment.step))
        better = self._note_best(metrics)
        if better:
            self.experiment.summary.update(better)

    def _note_best(self, row: Mapping[str, float]) -> dict[str, float]:
        """What a row has that is the best so far, by the names of the summary."""
        better = {}
        for name, value in row.items():
            if name.startswith(SPLITS):
                key = best_name(name)
                sign = -1 if results.is_better_lower(name) else 1
                if key not in self.best or sign * value > sign * self.best[key]:
                    better[key] = value
        self.best |= better
        return better


def best_name(metric: str) -> str:
    """What the summary calls the best value of a metric."""
    return f"best/{metric}"


def wandb_logger(
    run_dir: Path,
    run_name: str,
    *,
    labels: Labels | None = None,
    project: str = "mixer-lightning",
    entity: str | None = None,
    mode: Mode = "auto",
    group: str | None = None,
    tags: list[str] | None = None,
    init_timeout_seconds: PositiveFloat = 60.0,
) -> WandbLogger:
    """A Weights & Biases run that a later session of the same run directory continues.

    `auto` is what WANDB_MODE or `wandb offline` says, else online. Without a key where wandb looks for one
    (WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE, the netrc file, its settings) online becomes offline: it never asks for
    one. If the server does not answer in time, the run goes on offline. The log says why it is.

    A trial of `wandb agent` is the agent's run. `group` is else that of `labels`, to whose tags `tags` are added.
    """
    import wandb as client

    settings = settings_of_wandb()
    mode, why = mode_here(mode, settings)
    folder = run_dir / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    is_trial = launcher.is_trial()
    wandb_id = None if is_trial else _run_id(folder)  # of a trial the agent says project, entity and id
    labels = labels or Labels(run_name.partition("/")[0], "", ())
    shown = dict.fromkeys(tag[:TAG_LENGTH] for tag in [*labels.tags, *(tags or ())] if tag)

    def open_run(mode: str) -> WandbLogger:
        settings = client.Settings(
            init_timeout=init_timeout_seconds, console="off", silent=True, stop_fn=_ask_to_stop
        )
        run = client.init(
            project=None if is_trial else project,
            entity=None if is_trial else entity,
            id=wandb_id,
            name=run_name,
            group=group or labels.group,
            job_type=labels.job_type or None,
            tags=list(shown),
            resume="allow",
            dir=str(run_dir),
            mode=mode,  # type: ignore[arg-type]
            settings=settings,
        )
        if is_trial:  # a later session of the run directory goes on with it
            (folder / "id.txt").write_text(run.id, encoding="utf-8")
        return StepLogger(run, before=results.read_metrics(run_dir))

    try:
        logger = open_run(mode)
    except (client.errors.Error, TimeoutError) as error:
        client.teardown()
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger, why = open_run("offline"), f"the server was not reached: {first_line}"
        mode = "offline"
    if mode != "online":
        log.info(f"W&B is {mode} here: {why}")
    return logger


def _run_id(folder: Path) -> str:
    """The id of the W&B run of a run directory, made where there is none."""
    path = folder / "id.txt"
    if not path.exists():
        path.write_text(secrets.token_hex(4), encoding="utf-8")
    return path.read_text(encoding="utf-8").strip()


def _ask_to_stop() -> None:
    """What W&B does, in a thread of its own, where its page or a sweep stops a run: as a scheduler, so it is saved.

    W&B's own would be Ctrl-C, and an agent sends SIGTERM besides: the second of two different ones would quit at once.
    """
    os.kill(os.getpid(), signal.SIGTERM)


def where(logger: WandbLogger) -> str:
    """Where a run is to be seen, or the command that uploads it."""
    run = logger.experiment
    if getattr(run, "disabled", False):
        return "W&B is disabled here"
    if getattr(run, "offline", False):
        folder = shlex.quote(str(Path(run.dir).parent))
        return f"W&B is offline here; upload with: wandb sync {folder}"
    return f"W&B: {getattr(run, 'url', None)}"


def log_report(
    logger: WandbLogger, tables: Mapping[str, Sequence[Sequence[str]]], pictures: Mapping[str, Path]
) -> None:
    """Tables, whose first row names the columns, as `tables/<name>`, and pictures as `pictures/<name>`."""
    import wandb as client

    found: dict[str, Any] = {}
    for name, (columns, *rows) in tables.items():
        cells = [_numbers(column) for column in zip(*rows, strict=True)]
        found[f"tables/{name}"] = client.Table(
            columns=list(columns), data=[list(row) for row in zip(*cells, strict=True)]
        )
    found |= {f"pictures/{name}": client.Image(str(path)) for name, path in pictures.items()}
    if found:
        logger.experiment.log(found, step=logger.experiment.step)


def log_confusion(logger: WandbLogger, path: Path) -> None:
    """Of a confusion.npz the matrix, as a chart, and the misjudged images, a row with its picture each."""
    import wandb as client

    with np.load(path, allow_pickle=False) as content:
        found = {name: content[name] for name in content.files}
    classes, matrix = found["classes"].tolist(), found["matrix"]
    shown: dict[str, Any] = {}
    if matrix.size <= MOST_CELLS:
        cells = [
            [classes[true], classes[predicted], int(count)]
            for (true, predicted), count in np.ndenumerate(matrix)
        ]
        columns = ["Actual", "Predicted", "nPredictions"]
        shown["charts/confusion"] = client.plot_table(
            "wandb/confusion_matrix/v1",
            client.Table(columns=columns, data=cells),
            {name: name for name in columns},
            {"title": f"confusion of {found['split']}"},
        )
    kinds = ("images", "names", "true", "predicted", "probability")
    rows = zip(*(found[kind] for kind in kinds), strict=True)
    shown["examples/misclassified"] = client.Table(
        columns=["image", "name", "true", "predicted", "probability"],
        data=[
            [client.Image(pixels), str(name), classes[true], classes[predicted], float(probability)]
            for pixels, name, true, predicted, probability in rows
        ],
    )
    logger.experiment.log(shown, step=logger.experiment.step)


def _numbers(cells: Sequence[str]) -> list[float | None] | list[str]:
    """A column as numbers, None for an empty cell; as it is where a cell is none. W&B wants one type in a column."""
    try:
        numbers = [float(cell.replace(",", "")) if cell else None for cell in cells]
    except ValueError:
        return list(cells)
    return numbers if any(number is not None for number in numbers) else list(cells)


def disconnect(exit_code: int = 0) -> None:
    """Close the run for good, or the next job of a sweep would log into it; it is shown as failed unless 0."""
    import wandb as client

    client.finish(exit_code=exit_code)
