"""Prediction: image files in, the likeliest classes of each out."""

from __future__ import annotations

import argparse
import contextlib
import json
import logging
import math
import os
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

from mixer_lightning.checkpoints.read import read
from mixer_lightning.checkpoints.restore import Restored, restore
from mixer_lightning.data.crops import Integers
from mixer_lightning.data.order import split_batch
from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.sources import names as file_names
from mixer_lightning.data.sources.disk import image_files, read_regular, refuse_special
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine import setup
from mixer_lightning.engine.inference import Network, evaluating
from mixer_lightning.engine.machine import Machine
from mixer_lightning.files import read_lines, readable, write_text
from mixer_lightning.progress import Bar
from mixer_lightning.screen import Screen


class Found(NamedTuple):
    """What paths name."""

    files: list[Path]
    left_out: str  # a sentence about files in folders that do not end as images do; "" without any


def find_images(paths: Sequence[str]) -> Found:
    """The files that paths name: each file as given, and the visible images anywhere in a folder, sorted.

    Raises:
        FileNotFoundError, ValueError: a path does not exist or is a pipe or device, or a folder holds no image.
    """
    found: list[Path] = []
    others: list[str] = []
    for name in paths:
        path = Path(name).expanduser()
        if path.is_dir():
            beside: list[str] = []
            inside = sorted(path / each for each in image_files(str(path), others=beside))
            others += beside
            if not inside:
                why = f": {_left_out(beside)}" if beside else ""
                raise FileNotFoundError(f"images: no image under {path}{why}")
            found += inside
        elif path.exists():
            try:
                refuse_special(path.stat())
            except ValueError as error:
                raise ValueError(f"images: {path} is not read: {error}") from None
            found.append(path)
        else:
            raise FileNotFoundError(f"images: there is no {path}")
    return Found(found, _left_out(others) if others else "")


def _left_out(others: Sequence[str]) -> str:
    return file_names.left_out(Counter(map(file_names.ending_of, others)))


class Files:
    """Image files as a split of a data set; what they show is not known."""

    def __init__(self, paths: Sequence[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def labels(self, indices: Integers) -> Integers:
        """Zeros [B]."""
        return np.zeros(len(indices), np.int64)

    def read(self, index: int) -> bytes:
        """The encoded image."""
        return read_regular(str(self.paths[index]))

    def key(self, index: int) -> str:
        """The path as it was given."""
        return readable(str(self.paths[index]))

    def name(self, index: int) -> str:
        """The path as it was given."""
        return readable(str(self.paths[index]))


def predictions(
    restored: Restored, files: Sequence[Path], machine: Machine, *, batch_size: int, top: int
) -> Iterator[dict[str, Any]]:
    """For every file, in order: {"file", "classes": [{"class", "probability"}, ...]}, or {"file", "error"}.

    Probabilities are the softmax of the logits. The crop is the evaluation's of the run that made the checkpoint.
    """
    network = Network(machine.place(restored.model), machine)
    names = restored.classes or [str(label) for label in range(restored.num_classes)]
    data = setup.data_module(
        Dataset("images", names, {"images": Files(files)}),
        Augment(**restored.preprocessing),
        machine,
        image_size=restored.image_size,
        micro_batches=split_batch(batch_size=batch_size, device_batch=batch_size, world_size=1),
    )
    remaining = iter(range(len(files)))
    with (
        data.some_loader("images", np.arange(len(files)), shared=False, mark_bad=True, keep=False) as loader,
        evaluating(restored.model),
    ):
        for batch in loader:
            batch = batch.to(machine.device)
            probabilities = network.logits(data.normalised_crops(batch)).softmax(dim=1)
            values, labels = probabilities.topk(min(top, len(names)), dim=1)
            for value, label in zip(values.tolist(), labels.tolist(), strict=True):
                index = next(remaining)
                row: dict[str, Any] = {"file": readable(str(files[index]))}
                if index in loader.bad.reasons:
                    yield row | {"error": loader.bad.reasons[index]}
                elif not math.isfinite(value[0]):
                    yield row | {"error": "the network's output is not finite"}
                else:
                    pairs = zip(label, value, strict=True)
                    yield row | {"classes": [{"class": names[k], "probability": p} for k, p in pairs]}


class Ready(NamedTuple):
    """The model, the files, and where to compute."""

    restored: Restored
    images: Found
    machine: Machine


def ready(chosen: argparse.Namespace) -> Ready:
    """What a command line asks for, checked.

    Raises:
        ValueError, OSError: the checkpoint or a path is wrong.
    """
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here: use device=cpu")
    accelerators: dict[str | None, Literal["auto", "cpu", "gpu"]] = {
        None: "auto",
        "cpu": "cpu",
        "cuda": "gpu",
    }
    # float32, so that probabilities are those of the exported file
    machine = Machine(accelerator=accelerators[chosen.device], precision="32-true")
    images = find_images(chosen.images)
    if not os.access(chosen.output.absolute().parent, os.W_OK):
        raise FileNotFoundError(f"output: cannot write in {chosen.output.absolute().parent}")
    content = read(chosen.checkpoint)
    if content.model is not None and content.model.num_classes == 0:
        raise ValueError(
            f"{content.path} has no head, so it knows no classes: fine-tune it first (mixer finetune checkpoint=...)"
        )
    restored = restore(
        content, model=chosen.model, image_size=chosen.image_size, num_classes=chosen.num_classes
    )
    Augment(**restored.preprocessing).check_image_size(restored.image_size)
    if restored.report.fresh:
        raise ValueError(f"{chosen.checkpoint} has no head for its classes: fine-tune it first")
    if chosen.classes is not None:
        names = read_lines(chosen.classes.expanduser())
        if len(names) != restored.num_classes:
            raise ValueError(
                f"classes: {chosen.classes} has {len(names):,} lines, the model {restored.num_classes:,} classes"
            )
        restored = replace(restored, classes=names)
    return Ready(restored, images, machine)


def percent(probability: float) -> str:
    """97.3 %, 0.1 %, and below that with two digits: 0.0043 %."""
    return f"{100 * probability:.1f} %" if probability >= 0.001 else f"{100 * probability:#.2g} %"


def assumptions(restored: Restored) -> list[str]:
    """A line for what the checkpoint does not tell of its images, and one where it names no classes."""
    lines, augment = [], Augment(**restored.preprocessing)
    if assumed := restored.report.checkpoint.assumed:
        values = ", ".join(f"{key} {getattr(augment, key)}" for key in assumed)
        lines.append(f"the checkpoint does not tell how it sees images; assumed: {values}")
    if restored.classes is None:
        lines.append("the checkpoint names no classes, so numbers are shown: classes=<file> names them")
    return lines


@contextlib.contextmanager
def _bad_images_unsaid() -> Iterator[None]:
    log = logging.getLogger("mixer_lightning.data.loader")
    level = log.level
    log.setLevel(logging.ERROR)
    try:
        yield
    finally:
        log.setLevel(level)


def predict(chosen: argparse.Namespace, parts: Ready, screen: Screen) -> int:
    """Predict, print, write; the exit code."""
    restored, (files, left_out), machine = parts
    for note in [*assumptions(restored), *([f"images: {left_out}"] if left_out else [])]:
        screen.say(note)
    rows = []
    with (
        _bad_images_unsaid(),  # they are in the rows
        Bar(screen, total=len(files), label=f"0/{len(files):,} images") as bar,
    ):
        for row in predictions(restored, files, machine, batch_size=chosen.batch_size, top=chosen.top):
            rows.append(row)
            bar.move(len(rows), label=f"{len(rows):,}/{len(files):,} images")
    width = min(chosen.top, len(next((row["classes"] for row in rows if "classes" in row), [])))
    screen.table(
        "",
        ("file", *(f"{rank}." for rank in range(1, width + 1))),
        (
            [row["file"], *(f"{each['class']} {percent(each['probability'])}" for each in row["classes"])]
            for row in rows
            if "classes" in row
        ),
    )
    for row in rows:
        if "error" in row:
            screen.say(f"cannot read {row['file']}: {row['error']}")
    write_text(chosen.output, json.dumps(rows, indent=2) + "\n")
    good = sum("classes" in row for row in rows)
    screen.say(f"{good:,} of {len(rows):,} images, written to {chosen.output}")
    return 0 if good == len(rows) else 1
