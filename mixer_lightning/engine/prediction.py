"""The work of predict.py: images in, the likeliest classes of each out."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mixer_lightning.checkpoints.load import Restored, restore
from mixer_lightning.data.crops import Crops, Integers
from mixer_lightning.data.decode import crops
from mixer_lightning.data.sources.names import FOLDER_ENDINGS
from mixer_lightning.data.transforms import Augment
from mixer_lightning.files import write_text
from mixer_lightning.screen import Screen


def image_files(words: Sequence[str]) -> list[Path]:
    """The files that paths name: each file as given, and the images anywhere in a folder, sorted.

    Raises:
        FileNotFoundError: a path does not exist, or a folder holds no image.
    """
    found: list[Path] = []
    for word in words:
        path = Path(word).expanduser()
        if path.is_dir():
            inside = sorted(
                each for each in path.rglob("*") if each.suffix.lower() in FOLDER_ENDINGS and each.is_file()
            )
            if not inside:
                raise FileNotFoundError(
                    f"images: no image under {path}, by the endings {' '.join(FOLDER_ENDINGS)}"
                )
            found += inside
        elif path.exists():
            found.append(path)
        else:
            raise FileNotFoundError(f"images: there is no {path}")
    return found


def predictions(
    restored: Restored, files: Sequence[Path], *, batch_size: int, top: int, device: torch.device
) -> Iterator[dict[str, Any]]:
    """For every file, in order: {"file", "classes": [{"class", "probability"}, ...]}, or {"file", "error"}.

    Probabilities are the softmax of the logits. The view is the evaluation's of the run that made the checkpoint.
    """
    model = restored.model.to(device).eval()
    augment = Augment(**restored.preprocessing)
    size = restored.image_size

    def views_of(positions: Integers, widths: Integers, heights: Integers) -> Crops:
        return augment.eval_crops(widths, heights, size)

    for first in range(0, len(files), batch_size):
        these = files[first : first + batch_size]
        rows: list[dict[str, Any]] = [{"file": str(file)} for file in these]
        encoded, places = [], []
        for place, file in enumerate(these):
            try:
                encoded.append(file.read_bytes())
                places.append(place)
            except OSError as error:
                rows[place]["error"] = error.strerror or str(error)
        pixels = torch.zeros(len(encoded), 3, size, size, dtype=torch.uint8)
        for position, reason in crops(encoded, views_of, list(pixels)):
            rows[places[position]]["error"] = reason
        with torch.inference_mode():
            share = model(augment.eval_batch(pixels.to(device))).float().softmax(dim=1)
        values, labels = share.topk(min(top, share.shape[1]), dim=1)
        for place, value, label in zip(places, values.tolist(), labels.tolist(), strict=True):
            if "error" not in rows[place]:
                rows[place]["classes"] = [
                    {"class": restored.classes[k] if restored.classes else str(k), "probability": p}
                    for k, p in zip(label, value, strict=True)
                ]
        yield from rows


def prepare(chosen: argparse.Namespace) -> tuple[Restored, list[Path], torch.device]:
    """The model, the files, and where to compute.

    Raises:
        ValueError, OSError: the checkpoint or a path is wrong.
    """
    if chosen.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("device is cuda, but torch sees no GPU here: take device=cpu")
    device = torch.device(chosen.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    files = image_files(chosen.images)
    if not os.access(chosen.output.absolute().parent, os.W_OK):
        raise FileNotFoundError(f"output: cannot write in {chosen.output.absolute().parent}")
    restored = restore(chosen.checkpoint, model=chosen.model, image_size=chosen.image_size)
    if restored.report.fresh:
        raise ValueError(f"{chosen.checkpoint} has no head for its classes: fine-tune it first")
    if chosen.classes is not None:
        names = chosen.classes.expanduser().read_text(encoding="utf-8").splitlines()
        count = (
            restored.report.checkpoint.model.num_classes if restored.report.checkpoint.model else len(names)
        )
        if len(names) != count:
            raise ValueError(
                f"classes: {chosen.classes} has {len(names):,} lines, the model {count:,} classes"
            )
        restored = replace(restored, classes=names)
    return restored, files, device


def percent(share: float) -> str:
    """97.3 %, 0.1 %, and below that with two digits: 0.0043 %."""
    return f"{100 * share:.1f} %" if share >= 0.001 else f"{100 * share:#.2g} %"


def assumptions(restored: Restored) -> list[str]:
    """A line for what the checkpoint does not tell of its images, and one where it names no classes."""
    lines, augment = [], Augment(**restored.preprocessing)
    if assumed := restored.report.checkpoint.assumed:
        values = ", ".join(f"{key} {getattr(augment, key)}" for key in assumed)
        lines.append(f"the checkpoint does not tell how it sees images; assumed: {values}")
    if restored.classes is None:
        lines.append("the checkpoint names no classes, so numbers are shown: classes=<file> names them")
    return lines


def carry_out(
    chosen: argparse.Namespace,
    restored: Restored,
    files: Sequence[Path],
    device: torch.device,
    screen: Screen,
) -> int:
    """Predict, print, write; the exit code."""
    for note in assumptions(restored):
        screen.say(note)
    rows = list(predictions(restored, files, batch_size=chosen.batch_size, top=chosen.top, device=device))
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
