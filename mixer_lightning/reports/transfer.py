"""The transfer table of the Mixer paper: a measured row beside the published ones.

Figures are percent; a measured one is the mean over seeds, with its standard deviation.
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixer_lightning import results
from mixer_lightning.reports import markdown
from mixer_lightning.reports import published as paper

MeanStd = tuple[float, float]  # mean and standard deviation over seeds, in percent
Metrics = Mapping[str, Mapping[str, Sequence[float]]]  # data set -> metric -> a fraction for every seed


class Column(NamedTuple):
    """A column of the table: the plain mean of a metric over some data sets. Published ones: published.py."""

    name: str
    metric: str
    data: tuple[str, ...]


def row(runs: Metrics, columns: Iterable[Column]) -> dict[str, MeanStd]:
    """The columns that can be filled from `runs`.

    Means are taken seed by seed; one that lacks a data set, or a seed of one, is left out.
    """
    found: dict[str, MeanStd] = {}
    for column in columns:
        values = [runs.get(data, {}).get(column.metric, []) for data in column.data]
        if all(values) and len({len(each) for each in values}) == 1:  # else a suite was stopped on the way
            found[column.name] = mean_std([statistics.fmean(seed) for seed in zip(*values, strict=True)])
    return found


def mean_std(fractions: Sequence[float]) -> MeanStd:
    """Mean and standard deviation (of the sample; 0 for one seed), in percent."""
    percent = [100 * value for value in fractions]
    return statistics.fmean(percent), statistics.stdev(percent) if len(percent) > 1 else 0.0


def published(model: str) -> list[dict[str, str]]:
    """The published rows of a model of conf/model: mixer_l16."""
    tables = (paper.MIXER_TABLE_3, paper.MIXER_TABLE_2)
    return [each for table in tables for each in paper.rows(table) if each["conf_model"] == model]


def rows(
    row: Mapping[str, MeanStd], published: Iterable[Mapping[str, str]], columns: Sequence[Column]
) -> list[list[str]]:
    """Cells of the table: this checkpoint, then the published ones."""
    names = [column.name for column in columns]
    lines = [["this checkpoint", *(format_mean_std(row[name]) if name in row else "" for name in names)]]
    for each in published:
        lines.append([label(each), *(each.get(name, "") for name in names)])
    return lines


def label(row: Mapping[str, str]) -> str:
    """A published row in words, with the table that prints it: two print the same model with other crops."""
    epochs = [f"{row['epochs']} epochs"] if row["epochs"] else []  # the paper does not state all
    what = ", ".join([f"{row['model']} {row['pretraining']}", *epochs, f"{row['image_size']} px"])
    return f"{what} (published, {row['source'].rpartition(', ')[2]})"


def by_data_set(runs: Metrics) -> list[dict[str, Any]]:
    """Mean and deviation of every metric of every data set, in percent."""
    table: list[dict[str, Any]] = []
    for data, metrics in runs.items():
        for metric, values in metrics.items():
            mean, std = mean_std(values)
            table.append({"data": data, "metric": metric, "mean": mean, "std": std, "seeds": len(values)})
    return table


def write(
    folder: Path,
    row: Mapping[str, MeanStd],
    published: Iterable[Mapping[str, str]],
    runs: Metrics,
    columns: Sequence[Column],
) -> None:
    """transfer.md and transfer.csv in `folder`: the row, the published ones, and every data set by itself."""
    table, published = by_data_set(runs), list(published)
    notes = [f"* {label(each)}: {each['note']}" for each in published if each["note"]]
    lines = [
        "# Transfer",
        "",
        "Top-1 in percent on the test sets, mean and standard deviation over seeds.",
        "",
        *markdown.table(["", *(column.name for column in columns)], rows(row, published, columns)),
        "",
        *([*notes, ""] if notes else []),
        *markdown.table(
            ["data set", "metric", "mean", "std", "seeds"],
            (
                [one["data"], one["metric"], f"{one['mean']:.2f}", f"{one['std']:.2f}", str(one["seeds"])]
                for one in table
            ),
        ),
    ]
    markdown.write_page(folder / "transfer.md", "\n".join(lines) + "\n")
    if table:
        results.write_rows(folder / "transfer.csv", table, digits=6)


def format_mean_std(percent: MeanStd) -> str:
    """'80.00 ± 0.10'."""
    mean, std = percent
    return f"{mean:.2f} ± {std:.2f}"
