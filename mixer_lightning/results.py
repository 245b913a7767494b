"""The run directory's format, and the JSON file beside an export. Standard library only.

The names below are its files. They are written atomically (a temporary file in the same directory, flushed to disk,
then renamed), so a reader sees the old content or the new, never half of it; metrics.jsonl, bad_images.jsonl and
log.txt grow line by line.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any, TypeVar, get_args, get_type_hints

from mixer_lightning.files import fsync, write_text

#: Groups of conf/ whose files set keys of the root: their names say less than those keys.
GLOBAL_GROUPS = ("scratch", "transfer", "experiment")

RECIPE = "recipe.yaml"
METRICS = "metrics.jsonl"
METRICS_CSV = "metrics.csv"
RESULT = "result.json"
LAST = "last.ckpt"
PREVIOUS = "previous.ckpt"  # the one before it
BEST = "best.ckpt"
CURVES = "curves.png"
CONFUSION = "confusion.npz"
EVALUATION = "evaluation.json"
FIRST_BATCH = "first_batch.png"
LOG = "log.txt"
BAD_IMAGES = "bad_images.jsonl"

Row = TypeVar("Row")


# ---------------------------------------------------------------------------------------------- metrics

#: Last words of the names of metrics of which less is better.
_LOWER_IS_BETTER = {"loss", "error", "err", "mse", "rmse", "mae", "nll", "ece", "brier", "perplexity"}


#: What training logs; every name stands here alone. Evaluations say theirs by `metric_names`.
TRAIN_LOSS, TRAIN_TOP1 = "train/loss", "train/top1"
LEARNING_RATE, GRAD_NORM = "train/lr", "train/grad_norm"
IMAGES_PER_SECOND = "train/images_per_second"  # global
DATA_WAIT = "train/data_wait"  # share of the time that images were waited for
MEMORY_GB = "train/memory_gb"  # 1e9 bytes
MFU = "train/mfu"  # multiply-accumulates of the model, of those that its devices could do
DEVICE_DAYS = "train/device_days"  # of training steps, all sessions, times devices
#: Metrics of the machine, which no two sessions share.
PACE = (IMAGES_PER_SECOND, DATA_WAIT, MEMORY_GB, MFU, DEVICE_DAYS)


def main_metric(names: Iterable[str]) -> str | None:
    """The metric by which runs are compared and the best weights are kept; None where only training has metrics.

    Top-1 on val, else on test, else the first in order, an accuracy before a loss.
    """
    evaluated = [name for name in names if not name.startswith("train/")]
    first = [name for name in ("val/top1", "test/top1") if name in evaluated]
    return next(iter([*first, *sorted(evaluated, key=is_better_lower)]), None)


def is_better_lower(metric: str) -> bool:
    """Whether less is better: of a loss or an error, by the last word of its name."""
    return re.split(r"[/_]", metric.lower())[-1] in _LOWER_IS_BETTER


def append_metrics(run_dir: Path, row: Mapping[str, float]) -> None:
    """Add one line to metrics.jsonl; values that JSON has no word for (an infinite gradient norm) are left out."""
    row = {key: value for key, value in row.items() if math.isfinite(value)}
    with (run_dir / METRICS).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def flush_metrics(run_dir: Path) -> None:
    """Bring metrics.jsonl and log.txt to the disk: what a checkpoint has seen must outlive a power cut as it does."""
    for name in (METRICS, LOG):
        # A file that cannot be flushed (a pipe, some FUSE) is no reason to stop: a failing disk fails the checkpoint.
        with contextlib.suppress(OSError), (run_dir / name).open("rb") as file:
            fsync(file.fileno())


def read_metrics(run_dir: Path, *, damaged: list[int] | None = None) -> list[dict[str, float]]:
    """Rows of metrics.jsonl. Damaged lines are left out; their numbers go into `damaged`.

    A last line without its end was cut by a crash; that is no damage, as a resumed run writes it again.
    """
    rows = []
    path = run_dir / METRICS
    if path.exists():
        lines = path.read_text(encoding="utf-8", errors="replace").split("\n")
        for number, line in enumerate(lines, start=1):
            row = _metrics_row(line)
            if row is not None:
                rows.append(row)
            elif damaged is not None and number < len(lines):
                damaged.append(number)
    return rows


def _metrics_row(line: str) -> dict[str, float] | None:
    """A line of metrics.jsonl; None where it is none."""
    try:
        row = json.loads(line)
    except ValueError:
        return None
    is_row = isinstance(row, dict) and all(isinstance(value, int | float) for value in row.values())
    return row if is_row and "step" in row else None


def keep_metrics_until(run_dir: Path, step: int) -> list[int]:
    """Drop the rows after `step`, which a resumed run writes again, and damaged lines; the numbers of these."""
    damaged: list[int] = []
    rows = [row for row in read_metrics(run_dir, damaged=damaged) if row["step"] <= step]
    write_text(run_dir / METRICS, "".join(json.dumps(row) + "\n" for row in rows))
    return damaged


def append_bad_image(run_dir: Path, row: Mapping[str, Any]) -> None:
    """Add one line to bad_images.jsonl: an image that could not be read or decoded."""
    with (run_dir / BAD_IMAGES).open("a", encoding="utf-8") as file:
        file.write(json.dumps(row) + "\n")


def read_bad_images(run_dir: Path) -> list[dict[str, Any]]:
    """Rows of bad_images.jsonl; lines that are none are left out."""
    rows = []
    with contextlib.suppress(OSError):
        for line in (run_dir / BAD_IMAGES).read_text(encoding="utf-8", errors="replace").splitlines():
            with contextlib.suppress(ValueError):
                row = json.loads(line)
                if isinstance(row, dict) and {"split", "key", "labels"} <= row.keys():
                    rows.append(row)
    return rows


def write_metrics_csv(run_dir: Path) -> None:
    """metrics.jsonl as one table, a column per metric, empty where a row lacks it."""
    write_rows(run_dir / METRICS_CSV, read_metrics(run_dir))


def write_rows(path: Path, rows: Iterable[Mapping[str, Any]], *, digits: int | None = None) -> None:
    """A CSV file with a column for every key, empty where a row lacks it; floats with so many significant digits."""
    rows = list(rows)
    text = io.StringIO()
    columns = list(dict.fromkeys(key for row in rows for key in row))
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        short = {k: f"{v:.{digits}g}" if digits and isinstance(v, float) else v for k, v in row.items()}
        writer.writerow({k: _as_text(v) if isinstance(v, str) else v for k, v in short.items()})
    write_text(path, text.getvalue())


def read_rows(path: Path, row: Callable[..., Row]) -> list[Row]:
    """The rows of a CSV file as NamedTuples of a class, whose fields, of numbers and texts, are columns of the file.

    An empty cell is None where the field's type allows that.
    """
    types = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(row).items()}
    with path.open(newline="", encoding="utf-8") as file:
        return [
            row(
                **{
                    name: None if type(None) in allowed and not line[name] else allowed[0](line[name])
                    for name, allowed in types.items()
                }
            )
            for line in csv.DictReader(file)
        ]


def _as_text(text: str) -> str:
    """A name that a spreadsheet would take for a formula, with the apostrophe that says it is text."""
    is_number = re.fullmatch(r"[+-]?(\d[\d,.]*(e[+-]?\d+)?|inf|nan)", text, re.IGNORECASE)
    return f"'{text}" if text.startswith(("=", "+", "-", "@", "\t", "\r")) and not is_number else text


# ----------------------------------------------------------------------------------------------- result


#: What a result says, and the types of what is read of a record without a further look.
RESULT_KEYS = ("recipe", "metrics", "best", "images_per_second", "wall_seconds")
_RECORD_TYPES: dict[str, Any] = {
    "recipe": dict,
    "metrics": dict,
    "best": dict | None,
    "images_per_second": int | float,
    "wall_seconds": int | float,
    "device_days": int | float,
    "classes": list,
    "images": dict,
    "command": str,
}


def write_result(run_dir: Path, result: Mapping[str, Any]) -> None:
    """result.json: the closing record of a run, written once."""
    write_text(run_dir / RESULT, json.dumps(dict(result), indent=2) + "\n")


def read_result(run_dir: Path, *, whole: bool = False) -> dict[str, Any] | None:
    """The closing record, or None while the run has not finished. `whole`: with everything that a closing table shows.

    Raises:
        ValueError: result.json is there but damaged.
    """
    return _read_record(run_dir / RESULT, RESULT_KEYS if whole else ("metrics",), "the run finishes again")


def read_evaluation(run_dir: Path, *, whole: bool = False) -> dict[str, Any] | None:
    """What an evaluation wrote; None where there is none. `whole`: with the recipe that it was made by.

    Raises:
        ValueError: evaluation.json is damaged.
    """
    return _read_record(
        run_dir / EVALUATION, ("metrics", "recipe") if whole else ("metrics",), "evaluate again"
    )


def _read_record(path: Path, needed: Iterable[str], remedy: str) -> dict[str, Any] | None:
    """A closing record with what is `needed`; None where there is none."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(record, dict):
            raise ValueError(f"{type(record).__name__} where a record is expected")
        bad = [key for key in needed if key not in record]
        bad += [
            key for key in record.keys() & _RECORD_TYPES if not isinstance(record[key], _RECORD_TYPES[key])
        ]
        numbers = dict(record["metrics"]) if isinstance(record.get("metrics"), dict) else {}
        if isinstance(best := record.get("best"), dict):
            numbers |= {f"best.{key}": best.get(key) for key in ("value", "step")}
        bad += [key for key, value in numbers.items() if not isinstance(value, int | float)]
        if bad:
            raise ValueError(f"nothing, or nothing that makes sense, in: {', '.join(sorted(set(bad)))}")
    except FileNotFoundError:
        return None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is damaged ({error}). Delete it, and {remedy}.") from error
    return record


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that decide a result."""
    names = ("torch", "torchvision", "lightning", "timm", "numpy", "hydra-core", "mixer-lightning")
    found = {"python": platform.python_version()}
    for name in names:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def git_sha() -> str | None:
    """Commit of the checkout, with `-dirty` when files differ from it; else MIXER_LIGHTNING_GIT_SHA, else None."""
    here = Path(__file__).parent

    def git(*args: str) -> str:
        done = subprocess.run(
            ["git", *args], cwd=here, capture_output=True, text=True, timeout=10, check=True
        )
        return done.stdout.strip()

    try:
        return git("rev-parse", "HEAD") + ("-dirty" if git("status", "--porcelain", "-uno") else "")
    except (OSError, subprocess.SubprocessError):
        return os.environ.get("MIXER_LIGHTNING_GIT_SHA")


#: What a command line is not to tell: keys whose last word says so, passwords in URLs, signatures, authorisations.
_SECRETS = (
    (r"(?i)^([-+~\w.]*?(?:api_?key|access_?key|token|secret|password|passwd)=).+", r"\1***"),
    (r"(://)[^/@\s]+@", r"\1***@"),
    (r"(?i)([?&][\w-]*(?:signature|sig|token|credential|key)=)[^&\s]+", r"\1***"),
    (r"(?i)\b((?:bearer|basic) )\S+?(?=['\"\s]|$)", r"\1***"),
)


def command_line() -> str:
    """The command that this process was started with, as it was typed, with `***` for keys and passwords in it.

    Interpreter and program are named without the folders that they are in: `python train.py`, `mixer train`.
    """
    program, *words = sys.orig_argv
    at = next((i for i, word in enumerate(words) if not word.startswith("-")), len(words))
    named = [Path(program).name, *words[:at], *(Path(word).name for word in words[at : at + 1])]
    if at < len(words) and not words[:at] and not Path(words[at]).suffix:  # a console script: `mixer`
        named = named[1:]
    return typed([*named, *words[at + 1 :]])


def typed(words: Iterable[str]) -> str:
    """The words of a command as they are typed, with `***` for keys and passwords in them."""
    return shlex.join(map(without_secrets, words))


def without_secrets(word: str) -> str:
    """A word of a command line, with `***` for a key or password in it."""
    for pattern, instead in _SECRETS:
        word = re.sub(pattern, instead, word)
    return word


def provenance() -> dict[str, Any]:
    """What a record says of how it was made: command, commit, versions."""
    return {"command": command_line(), "git_sha": git_sha(), "versions": versions()}


def cpu_name() -> str:
    """Processor and number of cores."""
    name = platform.processor() or platform.machine()
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                name = line.split(":", 1)[1].strip()
                break
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, {cores} cores"


# ------------------------------------------------------------------------------------------ comparisons


def flatten(node: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted keys: {"a": {"b": 1}} -> {"a.b": 1}."""
    if not isinstance(node, Mapping):
        return {prefix: node}
    flat: dict[str, Any] = {}
    for key, value in node.items():
        flat |= flatten(value, f"{prefix}.{key}" if prefix else str(key))
    return flat


def differing_keys(
    before: Mapping[str, Any], now: Mapping[str, Any], *, ignore: Iterable[str] = ()
) -> list[tuple[str, Any, Any]]:
    """(key, before, now) of two recipes, dotted; keys in `ignore`, and what stands below them, may differ."""
    free = set(ignore)

    def kept(recipe: Mapping[str, Any]) -> dict[str, Any]:
        flat = flatten({k: v for k, v in recipe.items() if k not in free})
        return {k: v for k, v in flat.items() if k not in free}

    left, right = kept(before), kept(now)
    missing = object()
    return [
        (key, left.get(key), right.get(key))
        for key in sorted(left.keys() | right.keys())
        if left.get(key, missing) != right.get(key, missing)
    ]


def sidecar_path(weights: Path) -> Path:
    """Where an export says of its weights what they do not tell themselves: birds.onnx.json for birds.onnx."""
    return weights.with_name(f"{weights.name}.json")


def read_sidecar(weights: Path) -> dict[str, Any]:
    """What the sidecar of some weights says (checkpoints/save.py, `metadata`); empty without one.

    Raises:
        ValueError: it is damaged.
    """
    path = sidecar_path(weights)
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:  # RecursionError: brackets in brackets, thousands deep
        raise ValueError(f"{path} is not readable JSON: {error}. Export again, or take it away") from error
    if not isinstance(found, dict):
        raise ValueError(f"{path} holds {type(found).__name__}, not a mapping. Export again, or take it away")
    return found
