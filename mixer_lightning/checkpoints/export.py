"""A checkpoint for other programs, written only after what was written computes the same."""

from __future__ import annotations

import json
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from mixer_lightning import results
from mixer_lightning.checkpoints.describe import describe
from mixer_lightning.checkpoints.families import PREPROCESSING
from mixer_lightning.checkpoints.formats import FORMATS, Logits, of_module
from mixer_lightning.checkpoints.restore import Restored, restore
from mixer_lightning.checkpoints.save import metadata
from mixer_lightning.data.transforms import Augment

TOLERANCE = 1e-3  # of the largest logit; float32 in another order stays a hundred times below


class Difference(NamedTuple):
    """Largest difference between the logits of a model and of its file, and the largest logit."""

    largest: float
    scale: float

    @property
    def is_rounding(self) -> bool:
        """Whether the file computes the same model."""
        return self.largest <= TOLERANCE * self.scale + 1e-6  # False for NaN

    def __str__(self) -> str:
        return f"max |difference| of logits {self.largest:.2g} (logits up to {self.scale:.3g})"


def difference(restored: Restored, logits: Logits) -> Difference:
    """Compares on three random images: another number than any format was traced with."""
    size = restored.image_size
    images = torch.randn(3, 3, size, size, generator=torch.Generator().manual_seed(0))
    expected = of_module(restored.model)(images)
    found = logits(images)
    if found.shape != expected.shape:
        raise RuntimeError(f"logits are {list(found.shape)}, expected {list(expected.shape)}")
    return Difference(float(np.abs(found - expected).max()), float(np.abs(expected).max()))


def restore_for_export(
    checkpoint: str,
    *,
    to: str,
    model: str | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> Restored:
    """`restore`, with the full preprocessing of its images, defaults included.

    Raises:
        ValueError, OSError: the checkpoint is wrong, or cannot be written in the format `to`.
    """
    restored = restore(checkpoint, model=model, image_size=image_size, num_classes=num_classes)
    found = describe(restored.model.state_dict())
    if to == "npz" and not (found and found.family.has_flax_layout):
        raise ValueError(f"to=npz is the official layout of Mixers; the checkpoint is of {restored}")
    if to == "timm" and found is None and not hasattr(restored.model, "timm_arguments"):
        raise ValueError(f"to=timm is for models that timm has; the checkpoint is of {restored}")
    augment = Augment(**restored.preprocessing)
    return replace(restored, preprocessing={key: getattr(augment, key) for key in PREPROCESSING})


class Written(NamedTuple):
    """What was written and how it was checked.

    `runtime` is the program that ran the file; where `difference` is None, it says why none could.
    """

    difference: Difference | None
    runtime: str
    num_bytes: int  # of all files
    usage: str  # the line that loads it


def write_checked(restored: Restored, to: str, output: Path) -> Written:
    """Writes `output` in the format `to`, unless what it holds computes something else than the model.

    Raises:
        RuntimeError: it does; nothing was kept.
    """
    output.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{output.name}.", dir=output.parent) as folder:
        path = Path(folder) / output.name
        FORMATS[to].write(path, restored)
        if to != "safetensors":
            text = json.dumps(metadata(restored), indent=2, ensure_ascii=False)
            results.sidecar_path(path).write_text(text + "\n", encoding="utf-8")
        logits, runtime = FORMATS[to].reload(path, restored)
        found = difference(restored, logits) if logits is not None else None
        if found is not None and not found.is_rounding:
            raise RuntimeError(f"{runtime} computes something else from what was written: {found}")
        num_bytes = 0
        for file in sorted(Path(folder).iterdir(), reverse=True):  # <name>.data and .json before <name>
            num_bytes += file.stat().st_size
            file.replace(output.parent / file.name)
    if to == "safetensors":
        results.sidecar_path(output).unlink(missing_ok=True)  # of the file that was here
    return Written(found, runtime, num_bytes, FORMATS[to].usage(output, restored))
