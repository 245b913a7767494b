"""Images per second of CIFAR training: our input pipeline against torchvision's, in the same loop.

    mixer study cifar root=~/cifar10/train rounds=5

Both sides see class folders of 32 px images through the augmentation of locuslab/convmixer-cifar10's 25-epoch recipe
(flip, RandAugment of 2 operations at magnitude 12): ours from memory and batch by batch, torchvision's by ImageFolder,
DataLoader and its own transforms, image by image. Once the input alone, once with a training step of ConvMixer-256/8,
on a CPU also without machine.keep_freed_memory. Rounds alternate in one process. Writes <out>/cifar_<device>.csv and
.md.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser, output_folder
from mixer_lightning.reports import markdown
from mixer_lightning.screen import Screen, last_line, refuse


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "study cifar",
        usage="root=<class folders of CIFAR's training images> [key=value ...]",
        description="Images per second of CIFAR training, our input pipeline against torchvision's.",
    )
    add = parser.add_argument
    add("--root", type=Path, required=True, metavar="FOLDER", help="class folders of 32 px images")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), metavar="N", help="threads or processes")
    add("--batch_size", type=int, default=512, metavar="N", help="default: %(default)s, the recipe's")
    add("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    add(
        "--batches",
        type=int,
        default=20,
        metavar="N",
        help="batches in a round of the input alone; default: %(default)s",
    )
    add(
        "--steps",
        type=int,
        default=4,
        metavar="N",
        help="steps in a round with training; default: %(default)s",
    )
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    chosen = parser.read(argv)
    chosen.root = chosen.root.expanduser()
    if not chosen.root.is_dir():
        parser.error(f"there is no folder {chosen.root}")
    parser.check_at_least(1, chosen, "workers", "batch_size", "batches", "steps")
    parser.check_at_least(2, chosen, "rounds")
    return chosen


COLUMNS = ("", "torchvision, images/s", "ours, images/s", "ratio (middle half)")


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    chosen, screen = settings(argv), Screen()
    import torch

    from mixer_lightning.studies.cifar_training import compare

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    chosen.out = output_folder("out", chosen.out)
    try:
        rows = compare(
            chosen.root,
            device=device,
            batch_size=chosen.batch_size,
            workers=chosen.workers,
            rounds=chosen.rounds,
            batches=chosen.batches,
            steps=chosen.steps,
        )
    except (ValueError, OSError) as error:  # of the images, as one of the sides puts it
        refuse([f"root={chosen.root}: {last_line(error)}"])
    lines = [shown(row) for row in rows]
    screen.table("", COLUMNS, lines)
    text = [
        "# CIFAR training: our input pipeline against torchvision's",
        "",
        "Class folders of 32 px images, augmentation of the 25-epoch recipe, the same ConvMixer-256/8 step for both.",
        f"Medians of {chosen.rounds} alternating rounds, {chosen.workers} threads (ours) or processes (torchvision's).",
        "",
        *markdown.provenance(
            machine=torch.cuda.get_device_name() if device.type == "cuda" else results.cpu_name(),
            versions=results.versions(),
            command=["mixer", "study", "cifar", *argv],
            commit=results.git_sha(),
        ),
        "",
        *markdown.table(COLUMNS, lines),
    ]
    path = chosen.out / f"cifar_{device.type}.csv"
    results.write_rows(path, rows, digits=6)
    markdown.write_page(path.with_suffix(".md"), "\n".join(text) + "\n")
    screen.say(f"written to {path} and {path.with_suffix('.md')}")


def shown(row: dict[str, Any]) -> list[str]:
    """The cells of a row of `compare`."""
    return [
        row["what"],
        f"{row['torchvision_images_per_second']:,.0f}",
        f"{row['ours_images_per_second']:,.0f}",
        f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})",
    ]
