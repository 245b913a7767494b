"""A report: everything that is drawn and written from result files, in one folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple, TypeVar

from mixer_lightning.reports import ablation, chart_files, measured_charts, scale, tables
from mixer_lightning.reports.charts import Chart, charts
from mixer_lightning.reports.comparison import tables as comparison_tables
from mixer_lightning.reports.confusion import CONFUSION_PNG
from mixer_lightning.reports.page import write_page
from mixer_lightning.reports.sources import collect
from mixer_lightning.reports.tables import Table

PAGE = "index.html"
LONGEST_NAME = 200  # bytes of a file's name without its ending; file systems take 255 in all
Named = TypeVar("Named", Table, Chart)


class Written(NamedTuple):
    """What a report holds, in a line, and where."""

    summary: str
    path: Path


def write_report(paths: Sequence[Path], folder: Path, *, results_of_models: Path) -> Written:
    """Read result files and write the report into `folder`.

    Args:
        paths: files, and folders that are searched.
        folder: made where there is none; what lies in it is not read.
        results_of_models: the CSV file of published results that runs are compared with.

    Raises:
        ValueError: a file is damaged; the message names it.
    """
    found = collect(paths, without=folder)
    all_tables = named_apart([*comparison_tables(found, results_of_models), *ablation.tables(found.studies)])
    confusions = measured_charts.confusions(found.confusions)
    drawn = [*charts(found), *measured_charts.charts(found.studies), *confusions.values()]
    all_charts = named_apart([*drawn, *scale.charts(found.studies), *ablation.charts(found.studies)])
    for name in ("tables", "figures"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    for table in all_tables:
        tables.write(folder / "tables", table)
    for chart in all_charts:
        chart_files.draw(folder / "figures", chart)
    shown = {run_dir / CONFUSION_PNG for run_dir in confusions}
    pictures = [each for each in found.pictures if each.path not in shown]
    write_page(folder / PAGE, tables=all_tables, charts=all_charts, pictures=pictures)
    summary = (
        f"{len(found.measured)} runs, {len(found.studies)} tables of studies, {len(found.pictures)} pictures"
    )
    return Written(summary, folder / PAGE)


def named_apart(found: Sequence[Named]) -> list[Named]:
    """The same under names that files can have: none too long, no two the same, whatever case the file system sees."""
    taken: set[str] = set()
    apart = []
    for each in found:
        base = each.name.encode()[-LONGEST_NAME:].decode(errors="ignore")
        name, number = base, 1
        while name.casefold() in taken:
            number += 1
            name = f"{base}_{number}"
        taken.add(name.casefold())
        apart.append(dataclasses.replace(each, name=name))
    return apart
