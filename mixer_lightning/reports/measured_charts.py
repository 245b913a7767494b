"""Figures of what was measured: the grid of a sweep, the curves of the study of shuffled inputs."""

from __future__ import annotations

import itertools
import re
from collections.abc import Mapping, Sequence

from mixer_lightning.reports import shuffling, sweep
from mixer_lightning.reports.charts import Chart, HeatMap, Panel, Series
from mixer_lightning.reports.study_files import StudyTable
from mixer_lightning.reports.tables import MEASURED

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
        (row[y], row[x]): float(row["mean"]) * (100 if is_accuracy else 1) for row in here if row["mean"]
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


# ---------------------------------------------------------------------------------------------- shuffling


def shuffled(study: StudyTable) -> Chart | None:
    """Accuracy over training under each input, a panel for each model; None for another study."""
    if not {"model", "input", "step", shuffling.ACCURACY} <= set(study.columns):
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
