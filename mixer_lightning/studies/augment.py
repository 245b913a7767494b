"""CPU time of RandAugment and colour jitter on photographs: by Pillow, by PyTorch and by our native code.

    mixer study augment root=~/imagenet/train rounds=5

Photographs of 224 px from class folders `root` of JPEG files go through single operations and through the policies of
recipes: by Pillow's transforms as timm and torchvision use them, by our reference in PyTorch, and by native code. All
with one thread, in alternating rounds in one process; what counts is the CPU time of that thread. Writes
<out>/augment_cpu.csv and .md.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser, output_folder
from mixer_lightning.reports import markdown
from mixer_lightning.screen import Screen, refuse
from mixer_lightning.studies.loader import jpeg_files, without
from mixer_lightning.studies.pipelines import IMAGE_SIZE


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "study augment",
        usage="root=<class folders> [key=value ...]",
        description="CPU time of RandAugment and colour jitter per photograph, by Pillow, PyTorch and native code.",
    )
    add = parser.add_argument
    add("--root", type=Path, required=True, metavar="FOLDER", help="class folders of JPEG files")
    add("--images", type=int, default=64, metavar="N", help="photographs; default: %(default)s")
    add("--rounds", type=int, default=5, metavar="N", help="measurements of each side; default: %(default)s")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    chosen = parser.read(argv)
    chosen.root = chosen.root.expanduser()
    if not chosen.root.is_dir():
        parser.error(f"there is no folder {chosen.root}")
    parser.check_at_least(1, chosen, "images")
    parser.check_at_least(2, chosen, "rounds")
    return chosen


COLUMNS = (
    *("", "Pillow, ms", "PyTorch, ms", "native, ms", "Pillow / native", "PyTorch / native"),
    "values that differ from PyTorch's",
)


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    chosen, screen = settings(argv), Screen()
    files = jpeg_files(chosen.root, chosen.images)
    import torch

    from mixer_lightning.kernels import augment
    from mixer_lightning.studies.augment_cases import cases, compare, photographs

    if augment.native() is None:
        refuse(["there is no C++ compiler, hence no native code to measure: install g++"])
    chosen.out = output_folder("out", chosen.out)
    torch.set_num_threads(1)
    images, broken = photographs(files)
    without(files, broken, screen)
    rows = [compare(case, images, rounds=chosen.rounds) for case in cases(len(images))]
    screen.table("", COLUMNS, map(shown, rows))
    path = chosen.out / "augment_cpu.csv"
    results.write_rows(path, rows, digits=6)
    markdown.write_page(path.with_suffix(".md"), page(rows, argv, images=len(images), rounds=chosen.rounds))
    screen.say(f"written to {path} and {path.with_suffix('.md')}")


def page(rows: Sequence[dict[str, Any]], argv: Sequence[str], *, images: int, rounds: int) -> str:
    """The table, with machine, versions and command."""
    lines = [
        "# RandAugment and colour jitter on photographs",
        "",
        f"CPU milliseconds per image and core: {images} photographs of {IMAGE_SIZE} px, one thread, medians of",
        f"{rounds} alternating rounds; ratios within a round, in brackets their middle half. Operations one by one are",
        "timm's at magnitude 9 (bicubic) and big_vision's at magnitude 15, which Pillow does not have.",
        "",
        *markdown.provenance(
            machine=results.cpu_name(),
            versions=results.versions() | {"pillow": version("pillow")},
            command=["mixer", "study", "augment", *argv],
            commit=results.git_sha(),
        ),
        "",
        *markdown.table(COLUMNS, map(shown, rows)),
    ]
    return "\n".join(lines) + "\n"


def shown(row: dict[str, Any]) -> list[str]:
    """The cells of a row of `compare`."""

    def ratio(name: str) -> str:
        low, middle, high = (row.get(f"{name}_ratio{end}") for end in ("_low", "", "_high"))
        return "" if middle is None else f"{middle:.1f} ({low:.1f} to {high:.1f})"

    times = [row[name] for name in ("pillow", "pytorch", "native")]
    differing = f"{100 * row['differing']:.4f} %, by {row['most']}" if row["differing"] else "none"
    return [
        row["what"],
        *("" if time is None else f"{time:.3f}" for time in times),
        ratio("pillow"),
        ratio("pytorch"),
        differing,
    ]
