"""Writes a checkpoint for other programs, and proves it: what was written is loaded again, and both compute the same.

    mixer export checkpoint=runs/default/convmixer_96_4-digits-seed0 to=onnx output=digits.onnx

`to` is
  timm          a state dict for timm's model (.safetensors, .pth, .pt); the line that loads it is printed
  safetensors   the same tensors with class names, image size and normalisation: enough for predict
  onnx          for ONNX Runtime: normalised images [batch, 3, S, S] -> logits [batch, K]
  npz           the official Flax layout of a Mixer, for vision_transformer and big_vision

What safetensors holds besides the tensors, the others have in a JSON sidecar: birds.onnx.json for birds.onnx.
The file takes its place only after the check. Exit codes: 0 written, 2 a wrong setting or checkpoint, 1 it failed.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixer_lightning import results
from mixer_lightning.config import from_checkpoint
from mixer_lightning.config.arguments import Parser
from mixer_lightning.screen import Screen

if TYPE_CHECKING:
    from mixer_lightning.checkpoints.export import Written
    from mixer_lightning.checkpoints.restore import Restored

SUFFIXES = {
    "timm": (".safetensors", ".pth", ".pt"),
    "safetensors": (".safetensors",),
    "onnx": (".onnx",),
    "npz": (".npz",),
}


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value or --key=value. A wrong one ends the program with a sentence."""
    parser = Parser(
        "export",
        usage="checkpoint=<file or run directory> to=<format> output=<file> [key=value ...]",
        description="Writes a checkpoint for other programs and checks what was written. Settings are written "
        "key=value, for example: checkpoint=runs/default/convmixer_96_4-digits-seed0 to=onnx output=digits.onnx",
    )
    parser.add_model_options()
    add = parser.add_argument
    add("--to", required=True, choices=list(SUFFIXES), help="the format")
    add("--output", required=True, type=Path, metavar="FILE", help="where to write")
    add("--num_classes", type=int, metavar="N", help="another number than the checkpoint's makes a new head")
    add("--overwrite", choices=["true", "false"], default="false", help="replace an output that is there")
    chosen = parser.read(argv)
    chosen.output = chosen.output.expanduser()
    suffixes = SUFFIXES[chosen.to]
    if chosen.output.suffix not in suffixes:
        parser.error(f"to={chosen.to} writes a file ending in {' or '.join(suffixes)}, not {chosen.output}")
    parser.check_at_least(1, chosen, "image_size", "num_classes")
    if chosen.output.is_dir():
        parser.error(f"output={chosen.output} is a folder: name a file in it")
    for path in (chosen.output, data_path(chosen.output), results.sidecar_path(chosen.output)):
        if path.exists() and chosen.overwrite == "false":
            parser.error(f"{path} is there already: use another output, or overwrite=true")
    if chosen.to == "onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        parser.error("to=onnx needs onnx and onnxscript: pip install onnx onnxscript onnxruntime")
    return chosen


def main(argv: Sequence[str]) -> int:
    """Restore, write, check; the exit code."""
    chosen, screen = settings(argv), Screen()
    try:
        from_checkpoint.check_there(chosen.checkpoint)
        from mixer_lightning.checkpoints import export  # torch: seconds

        restored = export.restore_for_export(
            chosen.checkpoint,
            to=chosen.to,
            model=chosen.model,
            image_size=chosen.image_size,
            num_classes=chosen.num_classes,
        )
    except (ValueError, OSError) as error:
        screen.say(str(error))
        return 2
    screen.say(str(restored.report))
    try:
        written = export.write_checked(restored, chosen.to, chosen.output)
    except (OSError, RuntimeError) as error:
        screen.say(f"{chosen.output} was not written: {error}")
        return 1
    say_how_to_use(chosen, restored, written, screen)
    return 0


def say_how_to_use(chosen: argparse.Namespace, restored: Restored, written: Written, screen: Screen) -> None:
    """What was written, how it was checked, and what it takes."""
    screen.say(f"{restored} written to {chosen.output}, {written.num_bytes / 1e6:,.1f} MB")
    checked = written.difference is not None
    screen.say(
        f"{written.difference}, by {written.runtime}" if checked else f"not checked: {written.runtime}"
    )
    if restored.report.fresh:
        screen.say("the head is new: its weights are zero, so that the logits compared are all its bias")
    screen.say(f"use: {written.usage}")
    screen.say(f"images: {format_preprocessing(restored.preprocessing, restored.image_size)}")
    if chosen.to != "safetensors":
        screen.say(f"this, and the names of the classes: {results.sidecar_path(chosen.output)}")


def format_preprocessing(preprocessing: Mapping[str, Any], image_size: int) -> str:
    """What becomes of an image before the model gets it, as text."""
    sides = {"short_side": "short side", "square": "both sides"}[preprocessing["eval_resize"]]
    filter = {
        "bilinear": "antialiased bilinear",
        "bicubic": "antialiased bicubic",
        "area": "weighted by covered area",
        "tf_bilinear": "bilinear without antialiasing",
    }[preprocessing["eval_interpolation"]]
    upright = "turned as EXIF says, " if preprocessing["exif_orientation"] else ""
    shuffle = ""
    if (kind := preprocessing["shuffle"]) != "none":
        patch = f" of {preprocessing['shuffle_patch']} px" if kind == "patches" else ""
        shuffle = f", then {kind}{patch} shuffled by seed {preprocessing['shuffle_seed']} (augment.shuffle)"
    return (
        f"{upright}{sides} to {int(image_size / preprocessing['eval_crop'])} px, {filter}, "
        f"of which the centre: float32 [batch, 3, {image_size}, {image_size}], "
        f"pixels in [0, 1] minus {preprocessing['mean']}, divided by {preprocessing['std']}{shuffle}"
    )


def data_path(output: Path) -> Path:
    """Where the weights of a large ONNX file go."""
    return output.with_name(f"{output.name}.data")
