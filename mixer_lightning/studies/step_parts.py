"""Where a training step on a CPU goes: the seconds of its operators, by torch.profiler, summed up by what they do."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch.profiler import ProfilerActivity, profile

from mixer_lightning.engine.device import Step

#: What operators do, by how their names begin; the first that fits counts.
PARTS = {
    "matrix products": ("aten::mm", "aten::addmm", "aten::bmm", "aten::baddbmm", "aten::linear"),
    "depthwise weight gradients": ("mixer_lightning::depthwise",),
    "convolutions": (
        "aten::mkldnn_convolution",
        "aten::convolution_backward",
        "aten::_convolution",
        "aten::thnn_conv",
    ),
    "activation and BatchNorm": ("_ActivationNorm",),
    "BatchNorm": ("aten::native_batch_norm", "aten::batch_norm"),
    "bias and GELU": ("_Mlp",),
    "GELU": ("aten::gelu",),
    "LayerNorm": ("aten::native_layer_norm", "aten::layer_norm"),
    "copies and changes of layout": ("aten::copy_", "aten::_to_copy", "aten::clone", "aten::contiguous"),
    "sums and additions": ("aten::add", "aten::sum", "aten::mean"),
}
OPTIMISER, REST = "optimiser", "all else"


def milliseconds(step: Step, *, steps: int = 3) -> dict[str, float]:
    """Milliseconds that each part of a step takes on the CPU, the longest first; `step` has been called before."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        for _ in range(steps):
            step()
    found: Counter[str] = Counter()
    for event in profiler.events():
        found[part_of(event)] += event.self_cpu_time_total
    return {part: microseconds / 1e3 / steps for part, microseconds in found.most_common() if microseconds}


def part_of(event: Any) -> str:
    """What an operator of torch.profiler does: all within the optimiser's step is its own, the rest by PARTS."""
    above = event
    while above is not None:
        if above.name.startswith("Optimizer.step"):
            return OPTIMISER
        above = above.cpu_parent
    return next((part for part, names in PARTS.items() if event.name.startswith(names)), REST)
