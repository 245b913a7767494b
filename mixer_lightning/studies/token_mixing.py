"""What the weights look like that mix tokens, and those that see the image: pictures and figures of each unit.

    mixer study token_mixing checkpoint=Mixer-B_16.npz
    mixer study token_mixing checkpoints=i1k.npz,i21k.npz,jft.npz blocks=0,1

Figures 5 to 7 of arXiv 2105.01601: hidden units of the first layer of the token-mixing MLPs on the grid of patches,
from low to high frequency, each beside its closest opposite; kernels of the stem in colour; depthwise kernels of models
that have such. Writes <out>/<name>_<checkpoint>.npz with the arrays, <name>.csv with a row for each unit, before
training too, <name>.md and the pictures <name>_units.png, _depthwise.png and _stem.png.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from pathlib import Path

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser, listed, output_folder
from mixer_lightning.config.from_checkpoint import check_there, labels_of
from mixer_lightning.models.presets import list_models
from mixer_lightning.reports import markdown
from mixer_lightning.reports import token_mixing as report
from mixer_lightning.reports.description import describe_checkpoint
from mixer_lightning.screen import Screen, did_you_mean, refuse


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "study token_mixing",
        usage="checkpoint=<file> [key=value ...]",
        description="Pictures and figures of the weights that mix tokens, of depthwise kernels and of stems.",
    )
    add = parser.add_argument
    add("--checkpoint", metavar="FILE", help="a file of weights, a run directory or timm:<name>")
    add("--checkpoints", metavar="FILES", help="several of them, with commas between: one beside the other")
    add("--model", metavar="NAME", help="of conf/model, where the checkpoint does not tell")
    add("--image_size", type=int, metavar="N", help="side in pixels; default: the checkpoint's")
    add("--blocks", default="", metavar="NUMBERS", help=f"0,3,5 or all; default: the first {report.FIRST}")
    add("--name", default="token_mixing", metavar="NAME", help="of the files; default: %(default)s")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    chosen = parser.read(argv)
    if (chosen.checkpoint is None) == (chosen.checkpoints is None):
        parser.error("say checkpoint=<file>, or checkpoints=<file>,<file> for several")
    chosen.checkpoints = [chosen.checkpoint] if chosen.checkpoint else listed(chosen.checkpoints)
    if not chosen.checkpoints:
        parser.error("checkpoints names no file: checkpoints=<file>,<file>")
    if chosen.blocks == "":
        chosen.blocks = slice(report.FIRST)
    elif chosen.blocks == "all":
        chosen.blocks = slice(None)
    else:
        numbers = listed(chosen.blocks)
        if not numbers or not all(number.isdecimal() for number in numbers):
            parser.error(f"blocks must be all or numbers from 0 with commas between, found '{chosen.blocks}'")
        chosen.blocks = sorted({int(number) for number in numbers})
    if not re.fullmatch(r"[\w.+=-]+", chosen.name):
        parser.error(f"name is of files, of letters, digits and any of _.+=-, found '{chosen.name}'")
    parser.check_at_least(1, chosen, "image_size")
    if chosen.model is not None and chosen.model not in list_models():
        parser.error(f"there is no model '{chosen.model}'{did_you_mean(chosen.model, list_models())}")
    return chosen


def main(argv: Sequence[str]) -> None:
    """Measure, draw, print, write."""
    chosen, screen = settings(argv), Screen()
    from mixer_lightning.reports import weights
    from mixer_lightning.studies.weight_facts import examine

    labels = labels_of(chosen.checkpoints)
    try:
        for checkpoint in chosen.checkpoints:
            check_there(checkpoint)
    except (OSError, ValueError) as error:
        refuse([f"checkpoint: {error}"])
    chosen.out = output_folder("out", chosen.out)
    found = []
    for checkpoint, name in zip(chosen.checkpoints, labels, strict=True):
        try:
            found.append(
                examine(
                    checkpoint, name, model=chosen.model, image_size=chosen.image_size, blocks=chosen.blocks
                )
            )
        except (OSError, ValueError) as error:
            refuse([str(error)])
        for remark in found[-1].remarks:
            screen.say(f"{name}: {remark}")
    rows = [row for each in found for row in each.rows]
    screen.table("", report.COLUMNS, report.summary(rows))
    stem = chosen.out / chosen.name
    for each in found:
        weights.save(Path(f"{stem}_{each.weights.name}.npz"), each.weights)
    pictures = weights.draw(stem, [each.weights for each in found])
    if rows:
        results.write_rows(Path(f"{stem}.csv"), rows, digits=5)
    text = report.page(
        rows,
        remarks=[f"{each.weights.name}: {remark}." for each in found for remark in each.remarks],
        runs={
            name: describe_checkpoint(Path(each))
            for name, each in zip(labels, chosen.checkpoints, strict=True)
        },
        pictures=[path.name for path in pictures],
        machine=results.cpu_name(),
        versions=results.versions(),
        command=["mixer", "study", "token_mixing", *argv],
        commit=results.git_sha(),
    )
    markdown.write_page(Path(f"{stem}.md"), text)
    screen.say(f"written to {stem}.md, {', '.join(path.name for path in pictures)}")
