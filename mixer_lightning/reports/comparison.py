"""Measured values beside published ones: the tables of a report."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mixer_lightning import results
from mixer_lightning.reports import published
from mixer_lightning.reports.published import PublishedTable
from mixer_lightning.reports.sources import Found, Measured
from mixer_lightning.reports.study_files import StudyTable
from mixer_lightning.reports.tables import MEASURED, PUBLISHED, Cell, Row, Source, Table

#: Which metrics fill a column of the papers' tables, the first that a file has; top-1 is filled by the official one.
METRICS = {"ReaL": ("ReaL", "real/top1"), "Avg 5": ("Avg 5",), "VTAB-1k": ("VTAB-1k",)}
#: Columns of the files that serve the matching and are not shown.
_HIDDEN = ("conf_model", "data")
#: Pre-training whose published figure is that on ImageNet-1k.
_TESTED_ON_IMAGENET = ("imagenet1k", "imagenet21k", "jft300m", "jft300m_unlabelled", "alt_text_1.8b")


def tables(found: Found, results_of_models: Path) -> list[Table]:
    """Every table of a report: the papers', then the runs beside published results, then those of studies.

    Args:
        found: what was read.
        results_of_models: a CSV file of published results with the columns model, data, epochs, input, top1_percent,
            source: what a run is compared with.
    """
    papers = [paper_table(each, found.measured) for each in published.TABLES]
    runs = [runs_table(found.measured, results_of_models)] if found.measured else []
    return [*papers, *runs, *study_tables(found.studies)]


def paper_table(table: PublishedTable, measured: Sequence[Measured]) -> Table:
    """A printed table; below each row what was measured of the same model, training data, image size and star."""
    file, printed = published.cited(table), published.rows(table)
    columns = [name for name in printed[0] if name not in _HIDDEN]
    last = {_key(row): number for number, row in enumerate(printed)}  # below the last of those with one key
    lines: list[Row] = []
    made = {}
    for number, row in enumerate(printed):
        cells = [Cell(row[name], _place(file, number + 1, name, row)) for name in columns]
        lines.append(Row(PUBLISHED, file, tuple(cells)))
        for each in measured if last[_key(row)] == number else ():
            line = _beside(each, row, columns)
            if line is not None:
                lines.append(line)
                made[each.file] = each.made
    return Table(table.name, table.title, tuple(columns), tuple(lines), table.notes, made)


def _key(row: Mapping[str, str]) -> tuple[str, str, str, str]:
    return row["conf_model"], row["data"], row["image_size"], row.get("star", "")


def _beside(each: Measured, row: Mapping[str, str], columns: Sequence[str]) -> Row | None:
    """The line of a measurement below a published row; None where it is of something else, or fills no column."""
    size = each.image_size.value if each.image_size else ""
    if (each.model, each.trained_on, size, each.star) != _key(row) or not tested_alike(each, row["data"]):
        return None
    cells, filled = [], 0
    for name in columns:
        metrics = METRICS.get(name, ())
        if name == "ImNet" or (name == "top-1" and each.kind != "transfer"):
            metrics = (each.official,)
        source = next((each.values[metric] for metric in metrics if metric in each.values), None)
        if source is not None:
            filled += 1
            cells.append(Cell(percent(source, each.percent), source))
        elif name in ("model", "network"):
            cells.append(Cell(f"{each.model}: {each.label}"))
        elif name == "image_size":
            cells.append(Cell(size, each.image_size))
        elif name == "epochs" and each.epochs is not None:
            cells.append(Cell(each.epochs.value, each.epochs))
        else:
            cells.append(Cell(row["pretraining"] if name == "pretraining" else ""))
    return Row(MEASURED, each.file, tuple(cells)) if filled else None


def tested_alike(each: Measured, data: str) -> bool:
    """Whether a measurement was made on the data that the published figure of some training data is of."""
    return each.tested_on == ("imagenet1k" if data in _TESTED_ON_IMAGENET else data)


def percent(source: Source, is_percent: bool) -> str:
    """A fraction, or a percentage, as percent to two places."""
    return f"{float(source.value) * (1 if is_percent else 100):.2f}"


# ------------------------------------------------------------------------------------------------- runs

RUN_COLUMNS = (
    "run",
    "what",
    "model",
    "trained on",
    "tested on",
    "image_size",
    "epochs",
    "metric",
    "measured",
    "published",
    "published by",
    "parameters",
    "img/s",
)


_NOTE = (
    "Published beside a measurement: top-1 on the same test images, of the same model, training data and image size, "
    "of the same procedure where ConvMixer's table marks one with a star, and of the same number of epochs of "
    "pre-training where several are published; of public weights the first. Empty: nothing is published for it, or "
    "the file does not tell what was trained on."
)


def runs_table(measured: Iterable[Measured], results_of_models: Path) -> Table:
    """A row for every run: its metric beside what is published for that model, training data and image size."""
    file = f"mixer_lightning/models/{results_of_models.name}"
    with results_of_models.open(newline="", encoding="utf-8") as stream:
        known = list(csv.DictReader(stream))
    made, lines = {}, []
    for each in measured:
        metric = each.official or results.main_metric(each.values) or next(iter(sorted(each.values)), None)
        if metric is None:
            continue
        value = each.values[metric]
        is_accuracy = each.percent or "top1" in metric or metric.startswith("fewshot/")
        shown = f"{percent(value, each.percent)} %" if is_accuracy else f"{float(value.value):.4g}"
        number, row = _published_for(each, known) if metric == each.official else (0, {})
        cell = (
            Cell(f"{row['top1_percent']} %", _place(file, number, "top1_percent", row)) if row else Cell("")
        )
        lines.append(
            Row(
                MEASURED,
                each.file,
                (
                    *map(Cell, (each.label, each.kind, each.model, each.trained_on, each.tested_on)),
                    _number(each.image_size),
                    _number(each.epochs),
                    Cell(metric),
                    Cell(shown, value),
                    cell,
                    Cell(_cited(row)),
                    _number(each.others.get("num_parameters"), "{:,.0f}"),
                    _number(each.others.get("images_per_second"), "{:,.4g}"),
                ),
            )
        )
        made[each.file] = each.made
    return Table("runs", "Runs beside published results", RUN_COLUMNS, tuple(lines), (_NOTE,), made)


def _published_for(each: Measured, known: Sequence[Mapping[str, str]]) -> tuple[int, Mapping[str, str]]:
    """The number, from 1, of the published row and the row; where several epochs are published, that of as many."""
    size = each.image_size.value if each.image_size else ""
    alike = [
        (number, row)
        for number, row in enumerate(known, start=1)
        if (row["model"], row["data"], row["input"], row["star"])
        == (each.model, each.trained_on, size, each.star)
        and row["top1_percent"]
        and tested_alike(each, row["data"])
    ]
    if each.pretrained_epochs is not None and len({row["epochs"] for _, row in alike}) > 1:
        alike = [(number, row) for number, row in alike if row["epochs"] == each.pretrained_epochs]
    return next(iter(alike), (0, {}))


def _cited(row: Mapping[str, str]) -> str:
    if not row:
        return ""
    return row["source"] + (f"; {row['epochs']} epochs" if row["epochs"] else "")


def _number(source: Source | None, form: str = "") -> Cell:
    if source is None:
        return Cell("")
    return Cell(form.format(float(source.value)) if form else source.value, source)


# ---------------------------------------------------------------------------------------------- studies


def study_tables(studies: Sequence[StudyTable]) -> list[Table]:
    """A table for each of the studies, each with a name of its own."""
    tables: list[Table] = []
    for study in studies:
        count = sum(study.path.as_posix() in each.made for each in tables)
        tables.append(study_table(study, f"{study.name}_{count + 1}" if count else study.name))
    return tables


def study_table(study: StudyTable, name: str) -> Table:
    """A study's table as it stands in its file, without the columns that list the repeats of a measurement.

    Words that are the same in every row stand in a note.
    """
    file = study.path.as_posix()
    same = {
        name: study.rows[0][name] for name in study.columns if _is_same([row[name] for row in study.rows])
    }
    notes = study.notes
    if same:
        notes += (f"In every row: {', '.join(f'{name} {value}' for name, value in same.items())}.",)
    kept = [
        (i, name) for i, name in enumerate(study.columns, 1) if not _is_list(row[name] for row in study.rows)
    ]
    kept = [(i, name) for i, name in kept if name not in same]
    lines = []
    for number, row in enumerate(study.rows, start=1):
        places = (
            _place(file, number, name, row)
            if not study.lines
            else Source(file, study.lines[number - 1], str(i), row[name])
            for i, name in kept
        )
        cells = (
            Cell(row[name] or "", place if row[name] else None)
            for (_, name), place in zip(kept, places, strict=True)
        )
        lines.append(Row(MEASURED, file, tuple(cells)))
    columns = tuple(name for _, name in kept)
    return Table(name, study.title, columns, tuple(lines), notes, {file: study.made})


def _is_same(cells: Sequence[str | None]) -> bool:
    """Whether several rows have the same words, not numbers, in a column."""
    return len(cells) > 1 and len(set(cells)) == 1 and re.search(r"[A-Za-z]{2}", cells[0] or "") is not None


def _is_list(cells: Iterable[str | None]) -> bool:
    return any(re.fullmatch(r"[-+.\de]+( [-+.\de]+)+", cell or "") for cell in cells)


def _place(file: str, number: int, name: str, row: Mapping[str, str]) -> Source | None:
    """The place of a value in a CSV file; None for an empty one."""
    return Source(file, number, name, row[name]) if row[name] else None
