"""The table of a sweep: one row per setting, mean and deviation over seeds, best first."""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mixer_lightning import results
from mixer_lightning.screen import Screen, format_metric

TABLE = "sweep.csv"
RUNS = "sweep_runs.csv"


class SweptRun(NamedTuple):
    """A finished run of a sweep: what was varied, by key, and its final metrics."""

    varied: Mapping[str, Any]
    metrics: Mapping[str, float]


def summarise(
    runs: Mapping[Path, Mapping[str, Any]], errors: Mapping[Path, str] = MappingProxyType({})
) -> int:
    """Print the table of these runs and write it beside them; 1 if some run has no result, else 0.

    `runs` are run directories, each with what the sweep varied there: the value of every key, the seed among them.
    `errors` are what runs that failed have said. Every run, its seed and its error stand in a second file. A damaged
    result is none; 1 too where a file cannot be written.
    """
    screen = Screen()
    found, errors = _records(results.read_result, runs, errors)
    codes = []
    done = [SweptRun(runs[run_dir], result["metrics"]) for run_dir, result in found.items() if result]
    common = [name for name in done[0].metrics if all(name in run.metrics for run in done)] if done else []
    metric = results.main_metric(common)
    if metric is None and not any(results.main_metric(run.metrics) for run in done):
        metric = next((name for name in (results.TRAIN_TOP1, results.TRAIN_LOSS) if name in common), None)
    if metric is not None:
        rows = table(done, metric)
        screen.say(_title(metric))
        screen.table("", list(rows[0]), [_cells(row, metric) for row in rows])
        codes.append(_write(screen, runs, TABLE, [row | {"metric": metric} for row in rows]))
    codes.append(_write(screen, runs, RUNS, _run_rows(runs, found, errors, metric)))
    if metric is None and done:
        screen.say("in the order of the runs, whose evaluations have no metric in common")
        codes.append(_write(screen, runs, TABLE, _show_each(screen, done)))
    return max(*codes, _name_missing(screen, found, errors))


def _records(
    read: Callable[[Path], dict[str, Any] | None], run_dirs: Iterable[Path], errors: Mapping[Path, str]
) -> tuple[dict[Path, dict[str, Any] | None], dict[Path, str]]:
    """What each run wrote at its end, None where that is missing or damaged; and `errors` with what is damaged."""
    found: dict[Path, dict[str, Any] | None] = {}
    said = dict(errors)
    for run_dir in run_dirs:
        try:
            found[run_dir] = read(run_dir)
        except (ValueError, OSError) as error:
            found[run_dir] = None
            said.setdefault(run_dir, str(error))
    return found, said


def _run_rows(
    runs: Mapping[Path, Mapping[str, Any]],
    found: Mapping[Path, Mapping[str, Any] | None],
    errors: Mapping[Path, str],
    metric: str | None,
) -> list[dict[str, Any]]:
    """One row for each run: what was varied, its seed, its metric, or the error."""
    rows: list[dict[str, Any]] = []
    for run_dir, varied in runs.items():
        result = found[run_dir]
        keys = {key: str(value) for key, value in varied.items() if key != "seed"}
        value = {} if metric is None else {metric: "" if result is None else result["metrics"][metric]}
        seed = varied.get("seed", "" if result is None else result.get("seed", ""))
        state = "failed" if result is None else "done"
        rows.append(
            {**keys, "seed": seed, "state": state, **value, "error": errors.get(run_dir, ""), "run": run_dir}
        )
    return rows


def summarise_evaluations(
    runs: Mapping[Path, Mapping[str, Any]], errors: Mapping[Path, str] = MappingProxyType({})
) -> int:
    """The same for directories of evaluations: a row for each, with all of its metrics."""
    screen = Screen()
    found, errors = _records(results.read_evaluation, runs, errors)
    done = [SweptRun(runs[run_dir], record["metrics"]) for run_dir, record in found.items() if record]
    code = _write(screen, runs, TABLE, _show_each(screen, done)) if done else 0
    return max(code, _name_missing(screen, found, errors))


def table(runs: Sequence[SweptRun], metric: str) -> list[dict[str, Any]]:
    """Rows {varied keys..., seeds, mean, std}, the best mean first; std over seeds, None for one.

    A seed counts once, however often it was run; a mean that is not finite stands last.
    """
    groups: dict[tuple[str, ...], dict[Any, float]] = {}
    keys = list(dict.fromkeys(key for run in runs for key in run.varied if key != "seed"))
    for run in runs:
        setting = tuple(str(run.varied.get(key)) for key in keys)
        groups.setdefault(setting, {}).setdefault(run.varied.get("seed"), run.metrics[metric])
    rows: list[dict[str, Any]] = []
    for setting, by_seed in groups.items():
        values = list(by_seed.values())
        several = len(values) > 1 and all(map(math.isfinite, values))
        figures = {
            "seeds": len(values),
            "mean": statistics.fmean(values),
            "std": statistics.stdev(values) if several else None,
        }
        rows.append({**dict(zip(keys, setting, strict=True)), **figures})
    sign = 1 if results.is_better_lower(metric) else -1
    return sorted(rows, key=lambda row: (not math.isfinite(row["mean"]), sign * row["mean"]))


def _title(metric: str) -> str:
    if metric.startswith("train/"):
        order = "lowest first" if results.is_better_lower(metric) else "highest first"
        return f"{metric}, {order}: of training, since the recipe asks for no evaluation"
    return f"{metric}, best first"


def _cells(row: Mapping[str, Any], metric: str) -> list[str]:
    """A row as the screen shows it."""
    std = "" if row["std"] is None else format_metric(metric, row["std"]).removesuffix(" %")
    return [str(v) for v in ({**row, "mean": format_metric(metric, row["mean"]), "std": std}).values()]


def _show_each(screen: Screen, runs: Sequence[SweptRun]) -> list[dict[str, Any]]:
    """Print a row for every run: what was varied, and the metrics of its evaluations; the rows."""
    keys = list(dict.fromkeys(key for run in runs for key in run.varied))
    metrics = dict.fromkeys(name for run in runs for name in run.metrics)
    names = [name for name in metrics if not name.startswith("train/")]
    rows: list[dict[str, Any]] = [
        {key: str(run.varied.get(key)) for key in keys} | {name: run.metrics.get(name) for name in names}
        for run in runs
    ]
    shown = [
        [*(row[key] for key in keys)]
        + ["" if row[name] is None else format_metric(name, row[name]) for name in names]
        for row in rows
    ]
    screen.table("", [*keys, *names], shown)
    return rows


def _write(screen: Screen, runs: Mapping[Path, Any], name: str, rows: Sequence[Mapping[str, Any]]) -> int:
    """Write a file beside the runs; 1 if that cannot be, else 0."""
    path = _common_folder(list(runs)) / name
    try:
        results.write_rows(path, rows)
    except OSError as error:
        screen.say(f"{path} cannot be written: {error.strerror or error}")
        return 1
    if name == TABLE:
        screen.say(f"written to {path}")
    return 0


def _name_missing(screen: Screen, found: Mapping[Path, object], errors: Mapping[Path, str]) -> int:
    missing = [run_dir for run_dir, record in found.items() if record is None]
    for run_dir in missing:
        screen.say(f"no result: {run_dir}{f'  {errors[run_dir]}' if errors.get(run_dir) else ''}")
    return 1 if missing else 0


def _common_folder(run_dirs: Sequence[Path]) -> Path:
    """The deepest folder that holds all these directories."""
    shared = []
    for parts in zip(*(run_dir.parts[:-1] for run_dir in run_dirs), strict=False):
        if len(set(parts)) > 1:
            break
        shared.append(parts[0])
    return Path(*shared)
