"""The transfer table of the Mixer paper: a measured row beside the published ones.

Figures are percent; a measured one is the mean over seeds, with its standard deviation.
"""

from __future__ import annotations

import csv
import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.files import write_text

FIVE = ("imagenet1k", "cifar10", "cifar100", "pets", "flowers")
VTAB_GROUPS = {
    "natural": ("caltech101", "cifar100", "dtd", "flowers", "pets", "sun397", "svhn"),
    "specialized": ("patch_camelyon", "eurosat", "resisc45", "diabetic_retinopathy"),
    "structured": (
        "clevr_count",
        "clevr_dist",
        "dmlab",
        "kitti_dist",
        "dsprites_loc",
        "dsprites_ori",
        "smallnorb_azimuth",
        "smallnorb_elevation",
    ),
}
COLUMNS = ("ImNet", "ReaL", "Avg 5", "VTAB-1k", "natural", "specialized", "structured")
_PUBLISHED = {"ImNet": "imagenet", "ReaL": "real", "Avg 5": "avg5", "VTAB-1k": "vtab1k"}

Figure = tuple[float, float]  # mean and standard deviation over seeds, in percent


def row(runs: Mapping[str, Mapping[str, Sequence[float]]]) -> dict[str, Figure]:
    """The columns that can be filled from `runs`: data set -> metric -> a fraction for every seed.

    Avg 5 is the plain mean over five data sets, VTAB-1k that over 19 tasks (not over its three groups), each taken seed
    by seed; a mean that lacks a part, or a seed of one, is left out.
    """
    found: dict[str, Figure] = {}
    parts = {
        "ImNet": ["imagenet1k"],
        "Avg 5": list(FIVE),
        "VTAB-1k": [f"vtab_{name}" for names in VTAB_GROUPS.values() for name in names],
        **{group: [f"vtab_{name}" for name in names] for group, names in VTAB_GROUPS.items()},
    }
    for column in COLUMNS:
        metric = "real/top1" if column == "ReaL" else "test/top1"
        values = [runs.get(data, {}).get(metric, []) for data in parts.get(column, ["imagenet1k"])]
        if all(values) and len({len(each) for each in values}) == 1:  # else a suite was stopped on the way
            seeds = [statistics.fmean(seed) for seed in zip(*values, strict=True)]
            found[column] = figure(seeds)
    return found


def figure(fractions: Sequence[float]) -> Figure:
    """Mean and standard deviation (of the sample; 0 for one seed), in percent."""
    percent = [100 * value for value in fractions]
    return statistics.fmean(percent), statistics.stdev(percent) if len(percent) > 1 else 0.0


def published(model: str) -> list[dict[str, str]]:
    """The published rows of a model of conf/model: mixer_l16."""
    with Path(__file__).with_name("transfer.csv").open() as file:
        rows = list(csv.DictReader(file))
    return [each for each in rows if re.sub(r"\W", "", each["model"]).lower() == model.replace("_", "")]


def shown(row: Mapping[str, Figure], rows: Iterable[Mapping[str, str]]) -> list[list[str]]:
    """Lines of the table: this checkpoint, then the published ones."""
    measured = [_words(row[column]) if column in row else "" for column in COLUMNS]
    lines = [["this checkpoint", *measured]]
    for each in rows:
        label = f"{each['model']} {each['pretraining']}, {each['epochs']} epochs, {each['image_size']} px (published)"
        lines.append([label, *(each.get(_PUBLISHED.get(column, ""), "") for column in COLUMNS)])
    return lines


def by_data_set(runs: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Mean and deviation of every metric of every data set, in percent."""
    table: list[dict[str, Any]] = []
    for data, metrics in runs.items():
        for metric, values in metrics.items():
            mean, std = figure(values)
            table.append({"data": data, "metric": metric, "mean": mean, "std": std, "seeds": len(values)})
    return table


def write(
    folder: Path,
    row: Mapping[str, Figure],
    rows: Sequence[Mapping[str, str]],
    runs: Mapping[str, Mapping[str, Sequence[float]]],
) -> None:
    """transfer.md and transfer.csv in `folder`: the row, the published ones, and every data set by itself."""
    lines = [
        "# Transfer",
        "",
        "Top-1 in percent on the test sets, mean and standard deviation over seeds.",
        "",
        f"| | {' | '.join(COLUMNS)} |",
        f"| --- |{' --- |' * len(COLUMNS)}",
        *(f"| {' | '.join(line)} |" for line in shown(row, rows)),
        "",
        "| data set | metric | mean | std | seeds |",
        "| --- | --- | --- | --- | --- |",
    ]
    table = by_data_set(runs)
    lines += [
        f"| {one['data']} | {one['metric']} | {one['mean']:.2f} | {one['std']:.2f} | {one['seeds']} |"
        for one in table
    ]
    write_text(folder / "transfer.md", "\n".join(lines) + "\n")
    if table:
        results.write_rows(folder / "transfer.csv", table, digits=6)


def _words(figure: Figure) -> str:
    mean, std = figure
    return f"{mean:.2f} ± {std:.2f}"
