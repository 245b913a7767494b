"""Figures of what was measured: the grid of a sweep, confusions of runs, the curves of the study of shuffled inputs."""

from __future__ import annotations

import itertools
import re
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from mixer_lightning.reports import shuffling, sweep
from mixer_lightning.reports.charts import Chart, HeatMap, Panel, Series, is_number
from mixer_lightning.reports.study_files import StudyTable
from mixer_lightning.reports.tables import MEASURED

MAX_CONFUSIONS, MAX_CLASSES = 6, 30  # further runs, and those with more classes, are shown by their picture
MAX_GRIDS = 6  # of a sweep over more than two keys, a grid for each setting of the others


def charts(studies: Sequence[StudyTable]) -> list[Chart]:
    """The figures of some studies, in their order."""
    found = (make(study) for study in studies for make in (heat_maps, shuffled))
    return [chart for chart in found if chart is not None]


# ----------------------------------------------------------------------------------------------- sweeps


def heat_maps(study: StudyTable) -> Chart | None:
    """The two keys of a sweep with the most values against each other, a grid for each setting of the others.

    None where fewer than two keys vary.
    """
    if study.path.name != sweep.TABLE or not {"seeds", "mean"} <= set(study.columns):
        return None
    keys = study.columns[: study.columns.index("seeds")]
    values = {key: _in_order({row[key] for row in study.rows}) for key in keys}
    varied = sorted((key for key in keys if len(values[key]) > 1), key=lambda key: -len(values[key]))
    if len(varied) < 2:
        return None
    x, y, *others = varied
    settings = list(itertools.product(*(values[key] for key in others)))
    grids = [
        _grid(study, x, y, values, dict(zip(others, setting, strict=True)))
        for setting in settings[:MAX_GRIDS]
    ]
    more = f" The first {MAX_GRIDS} of {len(settings)} grids." if len(settings) > MAX_GRIDS else ""
    caption = f"Mean over seeds of {grids[0].what}, from {study.path.as_posix()}.{more}"
    return Chart(f"heat_map_{study.name}", study.title, caption, heat_maps=tuple(grids))


def _grid(
    study: StudyTable, x: str, y: str, values: Mapping[str, Sequence[str]], setting: Mapping[str, str]
) -> HeatMap:
    here = [row for row in study.rows if all(row[key] == value for key, value in setting.items())]
    metric = study.rows[0].get("metric", "")
    is_accuracy = metric.endswith(("top1", "top5")) or metric.startswith("fewshot/")
    cells = {
        (row[y], row[x]): float(row["mean"]) * (100 if is_accuracy else 1)
        for row in here
        if is_number(row["mean"])
    }
    return HeatMap(
        title=", ".join(f"{key}={value}" for key, value in setting.items()),
        x=x,
        y=y,
        columns=tuple(values[x]),
        rows=tuple(values[y]),
        values=tuple(tuple(cells.get((row, column)) for column in values[x]) for row in values[y]),
        what=f"{metric or 'the metric'}{', %' if is_accuracy else ''}",
    )


def _in_order(values: set[str]) -> list[str]:
    """Numbers by size, other values by name."""
    is_numeric = all(re.fullmatch(r"[-+]?\d*\.?\d+(e[-+]?\d+)?", value, re.IGNORECASE) for value in values)
    return sorted(values, key=float) if is_numeric else sorted(values)


# ---------------------------------------------------------------------------------------------- confusions


def confusions(paths: Sequence[Path]) -> dict[Path, Chart]:
    """The figures of the first files of confusions, by run directory.

    Raises:
        ValueError: a file is damaged.
    """
    found = {path.parent: confusion(path) for path in paths[:MAX_CONFUSIONS]}
    return {run_dir: chart for run_dir, chart in found.items() if chart is not None}


def confusion(path: Path) -> Chart | None:
    """Which class is mistaken for which, in percent of the true one; None for more than MAX_CLASSES.

    Raises:
        ValueError: the file is damaged.
    """
    try:
        with np.load(path, allow_pickle=False) as content:
            matrix, classes, split = content["matrix"], content["classes"].tolist(), str(content["split"])
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it, and evaluate again") from error
    if len(classes) > MAX_CLASSES:
        return None
    shares = 100 * matrix / np.maximum(matrix.sum(axis=1, keepdims=True), 1)
    grid = HeatMap(
        title="",
        x="predicted",
        y="true",
        columns=tuple(classes),
        rows=tuple(classes),
        values=tuple(tuple(share or None for share in row) for row in shares.tolist()),
        what="of the true class, %",
    )
    run = "/".join(path.parent.parts[-2:])
    right, total = int(np.trace(matrix)), int(matrix.sum())
    caption = (
        f"{split}: {right:,} of {total:,} right. Which class is mistaken for which, from {path.as_posix()}."
    )
    name = "_".join(part for part in path.parent.parts if part not in ("/", "..", "."))
    return Chart(f"confusion_{name}", f"Confusion, {run}", caption, heat_maps=(grid,))


# ---------------------------------------------------------------------------------------------- shuffling


def shuffled(study: StudyTable) -> Chart | None:
    """Accuracy over training under each input, a panel for each model; None for another study."""
    if not study.has(("model", "input"), numbers=("step", shuffling.ACCURACY)):
        return None
    panels = []
    for model in dict.fromkeys(row["model"] for row in study.rows):
        series = []
        for kind, (name, _) in shuffling.INPUTS.items():
            rows = [row for row in study.rows if (row["model"], row["input"]) == (model, kind)]
            xs, ys = (tuple(float(row[key]) for row in rows) for key in ("step", shuffling.ACCURACY))
            if rows:
                series.append(
                    Series(name, xs, tuple(100 * y for y in ys), (name,) * len(xs), "line", MEASURED)
                )
        panels.append(Panel(f"step, {model}", "linear 5-shot top-1, %", tuple(series)))
    caption = f"Linear 5-shot accuracy over training (MLP-Mixer, figure 4), from {study.path.as_posix()}."
    return Chart(f"curves_{study.name}", study.title, caption, tuple(panels))
