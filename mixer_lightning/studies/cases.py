"""What the study `step_speed` compares: models, and ways to compute a step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple


class Case(NamedTuple):
    """A model of conf/model, with fewer blocks where `num_blocks` says so, and what a step is made of."""

    model: str
    num_blocks: int | None
    image_size: int
    batch_size: int
    num_classes: int


# Small enough for seconds per round on two cores. Any other Mixer or ConvMixer of conf/model works too, whole.
CASES = {
    "mixer_s16": Case("mixer_s16", None, 224, 8, 1000),
    "convmixer_256_8": Case("convmixer_256_8", None, 32, 64, 10),
    "convmixer_768_4": Case("convmixer_768_32", 4, 224, 4, 1000),
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a step is computed: `kernel` by kernels/depthwise.py, `fused` by activation_norm.py and mlp.py there."""

    timm: bool = False
    channels_last: bool = False
    bf16: bool = False
    kernel: bool = False
    fused: bool = False
    compile: bool = False

    def __str__(self) -> str:
        parts = ["timm" if self.timm else "ours", "bf16" if self.bf16 else "float32"]
        parts += ["channels_last"] * self.channels_last + ["depthwise kernel"] * self.kernel
        parts += ["fused passes"] * self.fused
        return ", ".join(parts + ["compile"] * self.compile)


def variants(*, convolutional: bool, device: str, compile: bool, bf16: bool = True) -> list[Variant]:
    """What to compare, timm first. Layout and the depthwise kernel are the convolutional model's, kernels a CPU's."""
    layouts = [False, True] if convolutional else [False]
    precisions = [False, True] if bf16 else [False]
    found = [Variant(channels_last=layout, bf16=bf16) for bf16 in precisions for layout in layouts]
    timms = [replace(variant, timm=True) for variant in found]  # its best own setting is among them
    if device == "cpu":
        fastest = [replace(v, kernel=convolutional) for v in found if v.channels_last == convolutional]
        found += [v for v in fastest if convolutional] + [replace(v, fused=True) for v in fastest]
    if compile:
        timms += [replace(variant, compile=True) for variant in timms]
        found += [replace(variant, compile=True) for variant in found if not variant.fused]
    return timms + found
