"""Throughput of models: the page beside the CSV file of `mixer study throughput`."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mixer_lightning.reports import markdown

Line = Mapping[str, str]

#: What is compared with the order of speed measured here: images per second that others measured in this column.
ORDER = "published_rtx_3090"
#: The middle rate of matrix products over that which nine in ten exceed, below which a machine is called steady.
STEADY = 1.25


def column_of_device(device: str) -> str:
    """The column of what was published for a device: TPUv3 core -> published_tpuv3_core."""
    return f"published_{re.sub(r'[^a-z0-9]+', '_', device.lower())}"


def read(path: Path, about: Mapping[str, str]) -> list[Line]:
    """The lines of the file that were measured under the conditions `about`."""
    with path.open(newline="", encoding="utf-8") as file:
        lines = list(csv.DictReader(file))
    return [line for line in lines if all(line[key] == value for key, value in about.items())]


def page(
    path: Path,
    *,
    about: Mapping[str, str],
    command: Sequence[str],
    plans: Iterable[Mapping[str, object]],
    models: Sequence[str] = (),
    modes: Sequence[str] = (),
    commit: str | None = None,
) -> str:
    """The page of what the CSV file at `path` has for the conditions `about`.

    `plans` are trainings of papers: model, input, data, epochs, images, and the core_days of their device. `models`
    and `modes` are those that the command asked for.
    """
    lines = read(path, about)
    published = [column for column in (lines[0] if lines else {}) if column.startswith("published_")]
    matrices = next((line for line in lines if line["mode"] == "matmul"), None)
    rate = f"{float(matrices['macs_per_second']) / 1e9:,.0f} GMAC/s" if matrices else "not measured"
    memory = "by tensors on the device" if about["device"] == "cuda" else "by how much the process grew"
    text = [
        "# Throughput",
        "",
        "Images per second, the best over batch sizes: the median over rounds, in brackets the middle half. Random",
        "images that stand on the device; inference as in `mixer evaluate`, training as the trainer does it (forward,",
        f"backward, clipping, AdamW). Peak memory {memory}. MFU is the rate of multiply-accumulates",
        "(three forward passes for a training step) over that of products of square matrices in the same precision,",
        f"measured beside each model, of which the fastest counts: {rate}. One device: images/s are",
        "images/s/device. What was published for other devices stands in columns of its own and is not comparable, nor",
        "are those columns with each other; the",
        "conditions of the RTX 8000 are UNVERIFIED.",
        "",
        *markdown.provenance(
            machine=about["machine"],
            versions=dict([v.split(" ", 1) for v in about["versions"].split(", ")]),
            command=command,
            commit=commit,
        ),
        (
            f"* Options: precision {about['precision']}, layout {about['layout']}, compile {about['compile']}, "
            f"{about['seconds']} s a measurement"
        ),
    ]
    there = {(line["model"], line["mode"]) for line in lines}
    missing = {name: [mode for mode in modes if (name, mode) not in there] for name in dict.fromkeys(models)}
    without = [
        name if len(absent) == len(modes) else f"{name} ({', '.join(absent)})"
        for name, absent in missing.items()
        if absent
    ]
    text += [f"* Asked for and without a figure: {', '.join(without)}"] if without else []
    found = finding(lines)
    text += ["", markdown.FINDING, "", found] if found else []
    for mode in ("inference", "training"):
        best = best_lines(lines, mode)
        if best:
            text += [
                "",
                f"## {mode.capitalize()}",
                "",
                *_speeds(best, published if mode == "inference" else []),
            ]
    text += _order(best_lines(lines, "inference"))
    text += _days(best_lines(lines, "training"), plans)
    text += _left_out(lines)
    return "\n".join(text) + "\n"


def finding(lines: Sequence[Line]) -> str:
    """How far the figures may be relied on, and how alike the order of speed is to that on another device."""
    sentences = []
    rounds = sorted(
        {int(line["rounds"]) for mode in ("inference", "training") for line in best_lines(lines, mode)}
    )
    if rounds:
        many = (
            f"{rounds[0]} to {rounds[-1]} rounds"
            if len(rounds) > 1
            else f"{rounds[0]} round{'s'[: rounds[0] - 1]}"
        )
        sentences.append(f"Each figure is of {many}.")
    rates = sorted(
        float(value) / 1e9 for line in lines if line["mode"] == "matmul" for value in line["values"].split()
    )
    if len(rates) > 1 and rates[0] > 0:
        middle = rates[len(rates) // 2]
        slow = rates[len(rates) // 10]  # all but the slowest tenth are faster
        sentences.append(
            f"{len(rates)} rates of matrix products between the measurements lie from {rates[0]:,.0f} to "
            f"{rates[-1]:,.0f} GMAC/s, the middle one at {middle:,.0f}, nine in ten above {slow:,.0f}."
        )
        sentences.append(
            f"The machine was steady: within a factor of {middle / slow:.2f}, nine times in ten."
            if middle < STEADY * slow
            else "The machine was not steady: other work ran, single figures may be off by a factor of "
            f"{rates[-1] / slow:.1g}, and the order below is not one to rely on."
        )
    order = _ranks(best_lines(lines, "inference"))
    if order:
        both, ranks = order
        sentences.append(
            f"The order of speed of {len(both)} models in inference and the one on an RTX 3090 have a rank correlation "
            f"(Spearman) of {_spearman(ranks):.2f}."
        )
    return " ".join(sentences)


def _ranks(best: Sequence[Line]) -> tuple[list[Line], list[int]] | None:
    """Models measured here and on an RTX 3090, fastest here first, and their ranks there; None of fewer than three."""
    both = [line for line in best if line.get(ORDER)]
    if len(both) < 3:
        return None
    there = sorted(both, key=lambda line: -float(line[ORDER]))
    return both, [there.index(line) + 1 for line in both]


def _spearman(ranks: Sequence[int]) -> float:
    """The rank correlation of 1, 2, ... n with `ranks`."""
    n = len(ranks)
    return 1 - 6 * sum((here - rank) ** 2 for here, rank in enumerate(ranks, start=1)) / (n * (n * n - 1))


def best_lines(lines: Sequence[Line], mode: str) -> list[Line]:
    """A line per model and size, that of the best batch size, fastest first."""
    best = [line for line in lines if line["mode"] == mode and line.get("is_best") == "True"]
    return sorted(best, key=lambda line: -float(line["images_per_second"]))


def _speeds(best: Sequence[Line], published: Sequence[str]) -> list[str]:
    columns = ["model", "px", "images/s", "batch", "rounds", "peak MB", "GMACs", "MFU"]
    used = [column for column in published if any(line[column] for line in best)]
    names = [
        column.removeprefix("published_").replace("_", " ").replace("tpuv", "TPUv").replace("rtx", "RTX")
        for column in used
    ]
    rows = []
    for line in best:
        low, high = float(line["images_per_second_low"]), float(line["images_per_second_high"])
        rows.append(
            [
                line["model"],
                line["image_size"],
                f"{_number(float(line['images_per_second']))} ({_number(low)} to {_number(high)})",
                line["batch_size"],
                line["rounds"],
                f"{int(line['peak_memory_bytes']) / 1e6:,.0f}" if line["peak_memory_bytes"] else "-",
                f"{int(line['macs']) / 1e9:.3g}",
                f"{100 * float(line['mfu']):.1f} %" if line["mfu"] else "-",
                *(_number(float(line[column])) if line[column] else "-" for column in used),
            ]
        )
    return markdown.table([*columns, *(f"published: {name}" for name in names)], rows)


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _order(best: Sequence[Line]) -> list[str]:
    """The models measured here and on an RTX 3090 in the order of their speed, and how alike the two orders are."""
    order = _ranks(best)
    if order is None:
        return []
    both, ranks = order
    rows = [
        [
            str(here),
            str(rank),
            line["model"],
            _number(float(line["images_per_second"])),
            _number(float(line[ORDER])),
        ]
        for here, (rank, line) in enumerate(zip(ranks, both, strict=True), start=1)
    ]
    return [
        "",
        "## Order of speed",
        "",
        f"Beside timm's inference on an RTX 3090 (AMP); rank correlation {_spearman(ranks):.2f} (Spearman).",
        "",
        *markdown.table(("order here", "order there", "model", "images/s here", "images/s there"), rows),
    ]


def _days(best: Sequence[Line], plans: Iterable[Mapping[str, object]]) -> list[str]:
    """Device-days of the papers' trainings at the rates measured here, beside the published core-days."""
    rates = {(line["model"], line["image_size"]): float(line["images_per_second"]) for line in best}
    rows = [
        [
            str(plan["model"]),
            str(plan["data"]),
            str(plan["epochs"]),
            _number(float(str(plan["images"])) / rates[which] / 86400),
            f"{float(str(plan['core_days'])):,.0f} ({plan['device']})",
        ]
        for plan in plans
        if (which := (str(plan["model"]), str(plan["input"]))) in rates
    ]
    if not rows:
        return []
    return [
        "",
        "## Device-days of the papers' trainings",
        "",
        "Images of the whole training over the training rate above; beside it what the paper states for its device.",
        "",
        *markdown.table(("model", "data", "epochs", "device-days here", "published core-days"), rows),
    ]


def _left_out(lines: Sequence[Line]) -> list[str]:
    rows = [
        [line["model"], line["mode"], line["batch_size"], line["left_out"]]
        for line in lines
        if line["left_out"]
    ]
    if not rows:
        return []
    return ["", "## Left out", "", *markdown.table(("model", "mode", "batch", "why"), rows)]
