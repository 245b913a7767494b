"""Images per second of every model, in inference and in whole training steps, best over batch sizes.

    mixer study throughput models=[resnet50,mixer_s16,'convmixer*'] rounds=5

Inference is what `mixer evaluate` does with a batch, a training step what the trainer does with one: forward, loss in
float32, backward, clipping, AdamW. Images are random and stand on the device. The first round goes through all batch
sizes until one does not fit; further rounds measure the best size of each model and mode. In each round every model
comes once, smallest and largest first in turn. Every measurement is written at once to <out>/throughput_<device>.csv:
a run that was stopped goes on there, and what has been measured on this machine, with these versions and options, is
not measured again. A Markdown page stands beside it.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from mixer_lightning import results
from mixer_lightning.config.arguments import Parser, listed, output_folder
from mixer_lightning.engine.run import wait_briefly
from mixer_lightning.models import catalogue
from mixer_lightning.models.presets import list_models
from mixer_lightning.reports import markdown
from mixer_lightning.reports.throughput import page
from mixer_lightning.screen import Screen, refuse

MODES = ("inference", "training")


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value or --key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "study throughput",
        usage="[key=value ...]",
        description="Images per second in inference and in training steps, best over batch sizes. Settings are written "
        "key=value,\nfor example: models=[resnet50,mixer_s16,'convmixer*'] precision=bf16-mixed rounds=5",
    )
    add = parser.add_argument
    add(
        "--models",
        default="*",
        metavar="NAMES",
        help="names, families, patterns such as 'deit*'; default: all that fit",
    )
    add("--modes", default=",".join(MODES), metavar="NAMES", help="default: %(default)s")
    add("--device", choices=["cpu", "cuda"], help="default: a GPU if there is one")
    add(
        "--precision",
        choices=["auto", "32-true", "bf16-mixed", "16-mixed"],
        default="auto",
        help="as trainer.precision; default: %(default)s",
    )
    add("--compile", choices=["true", "false"], default="false", help="torch.compile; default: %(default)s")
    add(
        "--layout",
        choices=["auto", "channels_last", "contiguous"],
        default="auto",
        help="of memory; default: %(default)s, what suits the model",
    )
    add("--image_size", type=int, metavar="N", help="side in pixels; default: what each model is for")
    add("--batch_sizes", metavar="LIST", help="default: 1,4,16 on a CPU, 16,32, ... 1024 on a GPU")
    add("--rounds", type=int, default=5, metavar="N", help="default: %(default)s")
    add("--seconds", type=float, default=1.0, metavar="N", help="of a measurement; default: %(default)s")
    add("--step_seconds", type=float, metavar="N", help="leave out steps that would take longer")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    chosen = parser.read(argv)
    parser.check_at_least(1, chosen, "rounds", "image_size")
    for name in ("seconds", "step_seconds"):
        value = getattr(chosen, name)
        if value is not None and not 0 < value < float("inf"):
            parser.error(f"{name} must be above 0, found {value:g}")
    try:
        chosen.models = catalogue.matching(list_models(), listed(chosen.models))
    except ValueError as error:
        parser.error(str(error))
    modes = listed(chosen.modes)
    if not modes or set(modes) - set(MODES):
        parser.error(f"modes must be {' or '.join(MODES)}, or both, separated by commas")
    chosen.modes = [mode for mode in MODES if mode in modes]
    if chosen.batch_sizes is not None:
        chosen.batch_sizes = batch_sizes_of(parser, listed(chosen.batch_sizes))
    return chosen


def batch_sizes_of(parser: Parser, words: Sequence[str]) -> list[int]:
    """Numbers from the smallest on."""
    if not words or not all(word.isdecimal() and int(word) for word in words):
        parser.error("batch_sizes must be whole numbers from 1 on, separated by commas")
    return sorted({int(word) for word in words})


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    chosen, screen = settings(argv), Screen()
    wait_briefly()
    import torch

    from mixer_lightning.engine.machine import Machine
    from mixer_lightning.studies.throughput_runs import BATCH_SIZES, Study, cases_of, plans
    from mixer_lightning.studies.throughput_table import Table

    device = chosen.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cuda" and not torch.cuda.is_available():
        refuse(["device is cuda, but torch sees no GPU here: use device=cpu"])
    machine = Machine(
        accelerator="gpu" if device == "cuda" else "cpu",
        precision=chosen.precision,
        channels_last={"auto": None, "channels_last": True, "contiguous": False}[chosen.layout],
        compile=chosen.compile == "true",
    )
    chosen.out = output_folder("out", chosen.out)
    try:
        machine.configure_torch()
        chosen.batch_sizes = chosen.batch_sizes or list(BATCH_SIZES[device])
        table = Table(chosen.out / f"throughput_{device}.csv")
        study = Study(chosen, machine, table, screen)
    except (ValueError, OSError) as error:
        refuse([str(error)])
    cases = sorted(cases_of(chosen, screen), key=lambda case: case.macs)
    try:
        for number in range(chosen.rounds):
            for case in cases if number % 2 == 0 else reversed(cases):
                study.visit(case, number)
    finally:  # a run that is stopped leaves a page of what it has
        if table.rows:
            table.write(study.published)
            about = {key: str(value) for key, value in study.conditions.items()}
            text = page(
                table.path,
                about=about,
                command=["mixer", "study", "throughput", *argv],
                plans=plans(),
                models=chosen.models,
                modes=chosen.modes,
                commit=results.git_sha(),
            )
            markdown.write_page(table.path.with_suffix(".md"), text)
            screen.say(f"written to {table.path} and {table.path.with_suffix('.md')}")
