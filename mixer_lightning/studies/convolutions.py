"""What depthwise and pointwise convolutions cost beside a full one: parameters, multiply-accumulates, time.

    mixer study convolutions kernels=1,3,5,7,9 widths=64,256 sizes=16,32

Parameters and multiply-accumulates are closed forms (convolution_costs.py); time is measured, forward alone and with
the gradients of input and weights, for every kernel, width, size of map, memory layout and precision. All operators of
one kernel, width and size are interleaved in rounds; medians with the middle half. `clock=cpu threads=1` counts the
time that the process had a core, which other work on the machine does not lengthen much. What has been measured on
this machine with these versions is in <out>/convolutions_<device>.csv and is not measured again. Beside it a page and
a picture.
"""

from __future__ import annotations

import argparse
import csv
import itertools
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser, listed, output_folder
from mixer_lightning.reports import convolutions as report
from mixer_lightning.reports import markdown
from mixer_lightning.screen import Screen, refuse
from mixer_lightning.studies.rounds import interleave, middle_half

LAYOUTS = ("contiguous", "channels_last")
PRECISIONS = ("float32", "bf16")


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "study convolutions",
        usage="[key=value ...]",
        description="Parameters, multiply-accumulates and measured time of full, depthwise, pointwise and separable "
        "convolutions. For example: kernels=3,7 widths=256 sizes=32 rounds=7",
    )
    add = parser.add_argument
    add(
        "--kernels", default="1,3,5,7,9,11", metavar="N,...", help="sides of the kernel; default: %(default)s"
    )
    add("--widths", default="64,256", metavar="N,...", help="channels in and out; default: %(default)s")
    add("--sizes", default="16,32", metavar="N,...", help="sides of the map in pixels; default: %(default)s")
    add("--layouts", default=",".join(LAYOUTS), metavar="NAMES", help="default: %(default)s")
    add("--precisions", default=",".join(PRECISIONS), metavar="NAMES", help="default: %(default)s")
    add("--batch_size", type=int, default=4, metavar="N", help="images at a time; default: %(default)s")
    add("--rounds", type=int, default=5, metavar="N", help="measurements of each; default: %(default)s")
    add(
        "--seconds",
        type=float,
        default=0.02,
        metavar="X",
        help="that a measurement takes at least; default: %(default)s",
    )
    add("--threads", type=int, metavar="N", help="of a CPU; default: torch's")
    add(
        "--clock",
        choices=["wall", "cpu"],
        default="wall",
        help="cpu: the time that the process had a core, for a machine with other work on it; default: %(default)s",
    )
    add("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    chosen = parser.read(argv)
    for name in ("kernels", "widths", "sizes"):
        setattr(chosen, name, _numbers(parser, name, getattr(chosen, name)))
    for name, known in (("layouts", LAYOUTS), ("precisions", PRECISIONS)):
        words = listed(getattr(chosen, name))
        if not words:
            parser.error(f"{name} names none of {', '.join(known)}")
        for word in words:
            if word not in known:
                parser.error(f"{name}: there is no '{word}', only {' and '.join(known)}")
        setattr(chosen, name, words)
    parser.check_at_least(1, chosen, "batch_size", "threads")
    parser.check_at_least(2, chosen, "rounds")
    if not chosen.seconds >= 0:
        parser.error(f"seconds must be at least 0, found {chosen.seconds}")
    return chosen


def _numbers(parser: Parser, name: str, text: str) -> list[int]:
    words = listed(text)
    for word in words or [""]:
        if not (word.isdecimal() and int(word) >= 1):
            parser.error(f"{name} must be whole numbers of at least 1, such as {name}=3,7; found '{word}'")
    return sorted({int(word) for word in words})


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    chosen, screen = settings(argv), Screen()
    import torch

    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        refuse(["device is cuda, but torch sees no GPU here: use device=cpu"])
    if device == "cuda" and chosen.clock == "cpu":
        refuse(["clock=cpu measures work of a CPU: leave it out, or say device=cpu"])
    if chosen.threads is not None:
        torch.set_num_threads(chosen.threads)
    path = output_folder("out", chosen.out) / f"convolutions_{device}.csv"
    conditions = _conditions(device, chosen)
    rows = _read(path)
    groups = list(itertools.product(chosen.widths, chosen.sizes, chosen.kernels))
    for number, (width, size, kernel) in enumerate(groups, start=1):
        about = {"kernel": kernel, "width": width, "size": size, "batch_size": chosen.batch_size}
        found = _measure(chosen, about, conditions, rows, device=device)
        if found:
            rows = [row for row in rows if not any(_same(row, new) for new in found)] + found
            results.write_rows(path, rows, digits=4)
        word = "measured" if found else "there already"
        screen.say(f"{number:>3}/{len(groups)}  width {width}, map {size}x{size}, kernel {kernel}: {word}")
    shown = conditions | {"batch_size": chosen.batch_size}
    lines = report.read(path, {key: str(value) for key, value in shown.items()})
    text = report.page(
        lines,
        picture=path.with_suffix(".png").name,
        command=["mixer", "study", "convolutions", *argv],
        commit=results.git_sha(),
    )
    markdown.write_page(path.with_suffix(".md"), text)
    report.draw(path.with_suffix(".png"), lines)
    screen.table("", report.COLUMNS, report.times(lines))
    screen.say(f"written to {path}, {path.with_suffix('.md')} and {path.with_suffix('.png')}")


def _conditions(device: str, chosen: argparse.Namespace) -> dict[str, Any]:
    """What else decides a measurement, the same in all rows of a command."""
    import torch

    from mixer_lightning.kernels.depthwise import native_weight_gradients

    machine = f"{results.cpu_name()}, {torch.get_num_threads()} threads"
    if device == "cuda":
        machine = f"{torch.cuda.get_device_name()} ({results.cpu_name()})"
    elif native_weight_gradients() is None:
        machine += "; depthwise kernel in PyTorch, for want of a C++ compiler"
    versions = results.versions()
    return {
        "seconds": f"{chosen.seconds:g}",
        "clock": chosen.clock,
        "device": device,
        "machine": machine,
        "versions": f"python {versions['python']}, torch {versions['torch']}",
    }


#: What a row is identified by; the rest is measured or follows.
IDENTITY = (
    "operator", "kernel", "width", "size", "batch_size", "layout", "precision", "mode", "seconds", "clock",
    "device", "machine", "versions",
)  # fmt: skip


def _same(row: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    return all(str(row.get(key)) == str(other.get(key)) for key in IDENTITY)


def _read(path: Path) -> list[dict[str, Any]]:
    """The rows that are there; ends the program where the file is something else."""
    if not path.exists():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        rows: list[dict[str, Any]] = list(csv.DictReader(file))
    needed = {*IDENTITY, "rounds", "ms", "ms_low", "ms_high", "parameters", "macs"}
    if any(None in row or not needed <= row.keys() or not str(row["rounds"]).isdecimal() for row in rows):
        refuse([f"{path} holds no measurements of this study: move it away, or say out=<another folder>"])
    return rows


def _measure(
    chosen: argparse.Namespace,
    about: dict[str, Any],
    conditions: dict[str, Any],
    rows: Sequence[Mapping[str, Any]],
    *,
    device: str,
) -> list[dict[str, Any]]:
    """Rows of a kernel, width and size that are not there with as many rounds, all measured in the same rounds."""
    from mixer_lightning.engine.device import seconds
    from mixer_lightning.studies.convolution_costs import PASSES, Case, cost, operators, step

    def measure(once: Callable[[], None], steps: int) -> float:
        if chosen.clock == "wall":
            return seconds(once, device=device, steps=steps)
        begin = time.process_time()
        seconds(once, device=device, steps=steps)
        return (time.process_time() - begin) / steps

    wanted, runs = [], []
    for operator, layout, precision, mode in itertools.product(
        operators(kernel=about["kernel"], device=device), chosen.layouts, chosen.precisions, PASSES
    ):
        row = {"operator": operator, **about, "layout": layout, "precision": precision, "mode": mode}
        row |= conditions
        if any(_same(row, there) and int(there["rounds"]) >= chosen.rounds for there in rows):
            continue
        once = step(Case(operator, layout=layout, precision=precision, **about), mode, device=device)
        measure(once, 1)  # fills caches
        steps = max(1, round(chosen.seconds / max(measure(once, 1), 1e-6)))
        runs.append(partial(measure, once, steps))
        counted = cost(operator, kernel=about["kernel"], width=about["width"], size=about["size"])
        wanted.append(row | counted._asdict())
    for row, values in zip(wanted, interleave(runs, rounds=chosen.rounds), strict=True):
        low, middle, high = middle_half([1000 * value for value in values])
        row |= {"rounds": chosen.rounds, "ms": middle, "ms_low": low, "ms_high": high}
    return wanted
