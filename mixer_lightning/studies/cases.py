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


# Small enough for seconds per round on two cores. Any other name of conf/model works too, whole.
CASES = {
    "mixer_s16": Case("mixer_s16", None, 224, 8, 1000),
    "convmixer_256_8": Case("convmixer_256_8", None, 32, 64, 10),
    "convmixer_768_4": Case("convmixer_768_32", 4, 224, 4, 1000),
}


@dataclass(frozen=True, kw_only=True)
class Variant:
    """How a step is computed: `kernel` by kernels/depthwise.py, `fused` by kernels/activation_norm.py."""

    timm: bool = False
    channels_last: bool = False
    bf16: bool = False
    kernel: bool = False
    fused: bool = False
    compile: bool = False

    def __str__(self) -> str:
        parts = ["timm" if self.timm else "ours", "bf16" if self.bf16 else "float32"]
        parts += ["channels_last"] * self.channels_last + ["depthwise kernel"] * self.kernel
        parts += ["fused BatchNorm"] * self.fused
        return ", ".join(parts + ["compile"] * self.compile)


def variants(*, convolutional: bool, device: str, compile: bool) -> list[Variant]:
    """What to compare, timm first. Layout and kernels are the convolutional model's, kernels on a CPU."""
    layouts = [False, True] if convolutional else [False]
    found = [Variant(channels_last=layout, bf16=bf16) for bf16 in (False, True) for layout in layouts]
    if convolutional and device == "cpu":
        kernels = [Variant(channels_last=True, bf16=bf16, kernel=True) for bf16 in (False, True)]
        found += [*kernels, *(replace(variant, fused=True) for variant in kernels)]
    if compile:
        found += [replace(variant, compile=True) for variant in found if variant.bf16 and not variant.fused]
    return [Variant(timm=True), *found]
