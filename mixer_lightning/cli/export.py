"""Writes a checkpoint for other programs, and proves it: what was written is loaded again, and both compute the same.

    mixer export checkpoint=runs/default/convmixer_96_4-digits-seed0 to=onnx output=digits.onnx

`to` is
  timm          a state dict for timm's model (.safetensors, .pth, .pt); the line that loads it is printed
  safetensors   the same tensors with class names, image size and normalisation: enough for predict
  onnx          for ONNX Runtime: normalised images [batch, 3, S, S] -> logits [batch, K]
  npz           the official Flax layout of a Mixer, for vision_transformer and big_vision

What safetensors holds besides the tensors, the others have in a JSON file beside them: birds.onnx.json for birds.onnx.
The file takes its place only after the check. Exit codes: 0 written, 2 a wrong setting or checkpoint, 1 it failed.
"""

from __future__ import annotations

import argparse
import importlib.util
from collections.abc import Sequence
from pathlib import Path

from mixer_lightning import results
from mixer_lightning.config import from_checkpoint as pretrained
from mixer_lightning.config.arguments import Parser
from mixer_lightning.screen import Screen

SUFFIXES = {
    "timm": (".safetensors", ".pth", ".pt"),
    "safetensors": (".safetensors",),
    "onnx": (".onnx",),
    "npz": (".npz",),
}


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value or --key=value. A wrong word ends the program with a sentence."""
    parser = Parser(
        "export",
        usage="checkpoint=<file or run directory> to=<format> output=<file> [key=value ...]",
        description="Writes a checkpoint for other programs and checks what was written. Settings are written "
        "key=value, for example: checkpoint=runs/default/convmixer_96_4-digits-seed0 to=onnx output=digits.onnx",
    )
    add = parser.add_argument
    add(
        "--checkpoint",
        required=True,
        metavar="FILE",
        help="a file of weights, a run directory or timm:<name>",
    )
    add("--to", required=True, choices=list(SUFFIXES), help="the format")
    add("--output", required=True, type=Path, metavar="FILE", help="where to write")
    add("--model", metavar="NAME", help="of conf/model, where the checkpoint does not tell")
    add("--image_size", type=int, metavar="N", help="side in pixels; default: the checkpoint's")
    add("--num_classes", type=int, metavar="N", help="another number than the checkpoint's makes a new head")
    add("--overwrite", choices=["true", "false"], default="false", help="replace an output that is there")
    chosen = parser.read(argv)
    chosen.output = chosen.output.expanduser()
    suffixes = SUFFIXES[chosen.to]
    if chosen.output.suffix not in suffixes:
        parser.error(f"to={chosen.to} writes a file ending in {' or '.join(suffixes)}, not {chosen.output}")
    for name in ("image_size", "num_classes"):
        if getattr(chosen, name) is not None and getattr(chosen, name) < 1:
            parser.error(f"{name} must be at least 1, found {getattr(chosen, name)}")
    if chosen.output.is_dir():
        parser.error(f"output={chosen.output} is a folder: name a file in it")
    for path in (chosen.output, data_beside(chosen.output), results.sidecar_path(chosen.output)):
        if path.exists() and chosen.overwrite == "false":
            parser.error(f"{path} is there already: take another output, or overwrite=true")
    if chosen.to == "onnx" and not all(map(importlib.util.find_spec, ("onnx", "onnxscript"))):
        parser.error("to=onnx needs onnx and onnxscript: pip install onnx onnxscript onnxruntime")
    return chosen


def main(argv: Sequence[str]) -> int:
    """Restore, write, check; the exit code."""
    chosen, screen = settings(argv), Screen()
    try:
        pretrained.check_there(chosen.checkpoint)
        from mixer_lightning.checkpoints import export as exporting  # torch: seconds

        restored = exporting.prepare(chosen)
    except (ValueError, OSError) as error:
        screen.say(str(error))
        return 2
    return exporting.carry_out(chosen, restored, screen)


def data_beside(output: Path) -> Path:
    """Where the weights of a large ONNX file go."""
    return output.with_name(f"{output.name}.data")
