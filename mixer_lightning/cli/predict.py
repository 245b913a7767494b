"""Classifies image files with a trained checkpoint.

    mixer predict checkpoint=runs/finetune/mixer_b16-folder-seed0 images=~/new_birds

Images are files, or folders with all that is in them. Prints the most probable classes of each and writes them to a
JSON file. An image that cannot be read is named and left out. Exit codes: 0 done, 2 a wrong setting, 1 some image was
unreadable.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mixer_lightning import launcher
from mixer_lightning.config.arguments import Parser
from mixer_lightning.config.from_checkpoint import check_there
from mixer_lightning.screen import Screen


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value or --key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "predict",
        usage="checkpoint=<file or run directory> images=<file or folder> [key=value ...]",
        description="Classifies image files with a trained checkpoint.",
    )
    parser.add_model_options()
    add = parser.add_argument
    add("--images", required=True, action="append", metavar="PATH", help="a file or folder; may be repeated")
    add("--top", type=int, default=5, metavar="N", help="classes shown for each image; default: %(default)s")
    add("--output", type=Path, default=Path("predictions.json"), metavar="FILE", help="default: %(default)s")
    add(
        "--classes",
        type=Path,
        metavar="FILE",
        help="names, one a line, where the checkpoint does not tell them",
    )
    add("--num_classes", type=int, metavar="N", help="where the head has no weights that tell it")
    add("--batch_size", type=int, default=32, metavar="N", help="images at a time; default: %(default)s")
    add("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    chosen = parser.read(argv)
    parser.check_at_least(1, chosen, "top", "batch_size", "image_size", "num_classes")
    chosen.output = chosen.output.expanduser()
    if chosen.output.is_dir():
        parser.error(f"output={chosen.output} is a folder: name a file in it")
    return chosen


def main(argv: Sequence[str]) -> int:
    """Predict, print, write; the exit code."""
    chosen = settings(argv)
    with launcher.ignored():
        screen = Screen()
        try:
            check_there(chosen.checkpoint)
            from mixer_lightning.engine import prediction  # torch: seconds

            parts = prediction.ready(chosen)
        except (ValueError, OSError) as error:
            screen.say(str(error))
            return 2
        return prediction.predict(chosen, parts, screen)
