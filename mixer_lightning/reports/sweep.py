"""The table of a sweep: one row per setting, mean and deviation over seeds, best first."""

from __future__ import annotations

import csv
import io
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.files import write_text
from mixer_lightning.screen import Screen

TABLE = "sweep.csv"


def summarise(run_dirs: Sequence[Path]) -> int:
    """Print the table of these runs and write it beside them; 1 if some run has no result, else 0."""
    found = [(run_dir, results.read_result(run_dir)) for run_dir in run_dirs]
    done = [(run_dir, result) for run_dir, result in found if result is not None]
    missing = [run_dir for run_dir, result in found if result is None]
    screen = Screen()
    if done:
        metric = main_metric([result["metrics"] for _, result in done])
        rows = table([result for _, result in done], metric)
        folder = Path(*_common([run_dir.parts for run_dir in run_dirs]))
        text = io.StringIO()
        writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        write_text(folder / TABLE, text.getvalue())
        shown = [
            {
                **row,
                "mean": f"{100 * row['mean']:.2f} %",
                "std": "" if row["std"] is None else f"{100 * row['std']:.2f}",
            }
            for row in rows
        ]
        screen.table(
            f"{metric}, best first", list(rows[0]), [[str(v) for v in row.values()] for row in shown]
        )
        screen.say(f"written to {folder / TABLE}")
    for run_dir in missing:
        screen.say(f"no result: {run_dir}")
    return 1 if missing else 0


def main_metric(metrics: Sequence[dict[str, float]]) -> str:
    """The metric that a sweep is sorted by: validation top-1, else test top-1, else training top-1."""
    names = set.intersection(*(set(m) for m in metrics))
    return next(name for name in ("val/top1", "test/top1", "train/top1") if name in names)


def table(found: Sequence[dict[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Rows {varied keys..., seeds, mean, std}, sorted by mean, highest first; std over seeds, None for one."""
    recipes = _settings([result["recipe"] for result in found])
    varied = [
        key
        for key in dict.fromkeys(key for recipe in recipes for key in recipe)
        if len({repr(recipe.get(key)) for recipe in recipes}) > 1
    ]
    groups: dict[tuple[str, ...], list[float]] = {}
    for recipe, result in zip(recipes, found, strict=True):
        setting = tuple(str(recipe.get(key)) for key in varied)
        groups.setdefault(setting, []).append(result["metrics"][metric])
    rows: list[dict[str, Any]] = [
        {
            **dict(zip(varied, setting, strict=True)),
            "seeds": len(values),
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if len(values) > 1 else None,
        }
        for setting, values in groups.items()
    ]
    return sorted(rows, key=lambda row: -row["mean"])


def _settings(recipes: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """What a user may have varied, flat, without the seed; a part taken from different files goes by their names."""
    names = {group for recipe in recipes for group in recipe["choices"]}
    named = {group for group in names if len({recipe["choices"].get(group) for recipe in recipes}) > 1}
    dropped = (*(f"{group}." for group in named), "trainer.", "logger.")
    settings = []
    for recipe in recipes:
        flat = results.flatten({k: v for k, v in recipe.items() if k not in ("seed", "choices")})
        kept = {key: value for key, value in flat.items() if not key.startswith(dropped)}
        chosen = {group: recipe["choices"].get(group) for group in sorted(named - {*results.GLOBAL_GROUPS})}
        settings.append(chosen | kept)
    return settings


def _common(paths: Sequence[tuple[str, ...]]) -> list[str]:
    """Leading parts that all paths share, without the last part of any."""
    shared = []
    for parts in zip(*(path[:-1] for path in paths), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return shared
