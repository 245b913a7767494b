"""Training steps per second of our models beside timm's of the same shape.

    mixer study step_speed models=mixer_s16,convmixer_256_8 rounds=7

A step is forward, backward and AdamW on synthetic images, with the loss in float32. The other side is timm's model with
torch.optim.AdamW as they come: eager, float32, contiguous memory. All variants take turns in one process, so that a
ratio compares steps made within the same seconds; the table gives medians over the rounds. Writes
<out>/step_speed_<device>.csv and a Markdown table beside it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import nn

from mixer_lightning import results
from mixer_lightning.api import create_model
from mixer_lightning.config.arguments import Parser
from mixer_lightning.files import write_text
from mixer_lightning.kernels.depthwise import DepthwiseConv2d, native_weight_gradients
from mixer_lightning.models.presets import default_image_size, list_models, model_node
from mixer_lightning.optim.optimizers import adamw
from mixer_lightning.screen import Screen

Found = TypeVar("Found")


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
    """How a step is computed. `kernel` takes the gradients of kernels/depthwise.py."""

    timm: bool = False
    channels_last: bool = False
    bf16: bool = False
    kernel: bool = False
    compile: bool = False

    def __str__(self) -> str:
        words = ["timm" if self.timm else "ours", "bf16" if self.bf16 else "float32"]
        words += ["channels_last"] * self.channels_last + ["depthwise kernel"] * self.kernel
        return ", ".join(words + ["compile"] * self.compile)


def variants(*, convolutional: bool, device: str, compile: bool) -> list[Variant]:
    """What to compare, timm first. Layout and depthwise gradients are the convolutional model's; the latter on CPU."""
    layouts = [False, True] if convolutional else [False]
    found = [Variant(channels_last=layout, bf16=bf16) for bf16 in (False, True) for layout in layouts]
    if convolutional and device == "cpu":
        found += [Variant(channels_last=True, bf16=bf16, kernel=True) for bf16 in (False, True)]
    if compile:
        found += [Variant(**{**vars(v), "compile": True}) for v in found if v.bf16]
    return [Variant(timm=True), *found]


# --------------------------------------------------------------------------------------------- both sides


def our_model(case: Case, *, kernel: bool) -> nn.Module:
    """Our model of a case, its depthwise convolutions with or without the gradients of kernels/depthwise.py."""
    model = create_model(case.model, num_classes=case.num_classes, image_size=case.image_size)
    if case.num_blocks is not None:
        model.blocks = model.blocks[: case.num_blocks]  # type: ignore[index]
    for parent in list(model.modules()):
        for name, conv in parent.named_children():
            if isinstance(conv, nn.Conv2d) and conv.groups == conv.in_channels > 1:
                dim, size = conv.in_channels, conv.kernel_size[0]
                made = (
                    DepthwiseConv2d(dim, size)
                    if kernel
                    else nn.Conv2d(dim, dim, size, groups=dim, padding="same")
                )
                made.load_state_dict(conv.state_dict())
                setattr(parent, name, made)
    return model


def timm_model(case: Case) -> nn.Module:
    """timm's model with the numbers of conf/model."""
    from timm.models.convmixer import ConvMixer
    from timm.models.mlp_mixer import MlpMixer

    node = model_node(case.model)
    model: nn.Module
    if node["_target_"].endswith(".ConvMixer"):
        model = ConvMixer(
            dim=node["dim"],
            depth=case.num_blocks or node["depth"],
            kernel_size=node["kernel_size"],
            patch_size=node["patch_size"],
            num_classes=case.num_classes,
            act_layer={"gelu": nn.GELU, "relu": nn.ReLU}[node["activation"]],
        )
    else:
        hidden_dim = node["hidden_dim"]
        model = MlpMixer(
            img_size=case.image_size,
            patch_size=node["patch_size"],
            num_blocks=case.num_blocks or node["num_blocks"],
            embed_dim=hidden_dim,
            mlp_ratio=(node["tokens_mlp_dim"] / hidden_dim, node["channels_mlp_dim"] / hidden_dim),
            num_classes=case.num_classes,
        )
    return model


def training_step(case: Case, variant: Variant, *, device: str) -> Callable[[], None]:
    """A function that makes one training step."""
    torch.manual_seed(0)
    model = timm_model(case) if variant.timm else our_model(case, kernel=variant.kernel)
    layout = torch.channels_last if variant.channels_last else torch.contiguous_format
    model = model.to(device=device, memory_format=layout).train()  # type: ignore[call-overload]
    optimizer = (
        torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.1)
        if variant.timm
        else adamw(model, lr=1e-4, weight_decay=0.1)
    )
    images = torch.randn(case.batch_size, 3, case.image_size, case.image_size, device=device)
    images = images.contiguous(memory_format=layout)
    labels = torch.randint(case.num_classes, (case.batch_size,), device=device)
    forward = torch.compile(model) if variant.compile else model

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=variant.bf16):
            logits = forward(images)
        F.cross_entropy(logits.float(), labels).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()

    return step


# ------------------------------------------------------------------------------------------------- timing


def seconds(step: Callable[[], None], *, device: str, steps: int) -> float:
    """Seconds of one step, the mean of `steps` in a row; on a GPU between two of its events."""
    if device == "cuda":
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
        torch.cuda.synchronize()
        start.record()
        for _ in range(steps):
            step()
        end.record()
        torch.cuda.synchronize()
        return float(start.elapsed_time(end)) / 1000 / steps
    begin = time.perf_counter()
    for _ in range(steps):
        step()
    return (time.perf_counter() - begin) / steps


def take_turns(runs: Sequence[Callable[[], Found]], *, rounds: int) -> list[list[Found]]:
    """Values [len(runs)][rounds]; every other round goes backwards, so that none is always first or last."""
    values: list[list[Found]] = [[] for _ in runs]
    for number in range(rounds):
        order = range(len(runs)) if number % 2 == 0 else reversed(range(len(runs)))
        for i in order:
            values[i].append(runs[i]())
    return values


def summary(case: Case, times: list[list[float]], chosen: Sequence[Variant]) -> list[dict[str, Any]]:
    """A row per variant: images per second and the ratio to the first variant, each with its quartiles."""
    rows = []
    for variant, mine in zip(chosen, times, strict=True):
        speeds = [case.batch_size / value for value in mine]
        ratios = [first / value for first, value in zip(times[0], mine, strict=True)]
        row: dict[str, Any] = {"variant": str(variant)}
        for name, values in (("images_per_second", speeds), ("ratio_to_timm", ratios)):
            low, middle, high = statistics.quantiles(values, n=4, method="inclusive")
            row |= {name: middle, f"{name}_low": low, f"{name}_high": high}
        rows.append(row)
    return rows


# ------------------------------------------------------------------------------------------------ program


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value or --key=value. A wrong word ends the program with a sentence."""
    parser = Parser(
        "study step_speed",
        usage="[key=value ...]",
        description="Speed of whole training steps, ours and timm's in turns. Settings are written key=value, "
        "for example: models=mixer_s16,convmixer_256_8 rounds=7",
    )
    cpu = not torch.cuda.is_available()
    add = parser.add_argument
    add("--models", default=",".join(CASES), metavar="NAMES", help=f"{', '.join(CASES)} or any of conf/model")
    add("--device", choices=["cpu", "cuda"], default="cpu" if cpu else "cuda", help="default: %(default)s")
    add("--batch_size", type=int, metavar="N", help="images per step; default: 4 to 64, by model")
    add("--rounds", type=int, default=7, metavar="N", help="turns of each variant; default: %(default)s")
    add("--steps", type=int, metavar="N", help="steps in a turn; default: 1 on a CPU, 10 on a GPU")
    add("--compile", choices=["true", "false"], default="false", help="bf16 variants also compiled")
    add("--out", type=Path, default=Path("results"), metavar="FOLDER", help="default: %(default)s")
    chosen = parser.read(argv)
    chosen.models = chosen.models.split(",")
    for name in chosen.models:
        if name not in CASES and name not in list_models():
            parser.error(f"there is no model '{name}': known are {', '.join([*CASES, *list_models()])}")
    if chosen.device == "cuda" and cpu:
        parser.error("device is cuda, but torch sees no GPU here: take device=cpu")
    chosen.steps = chosen.steps if chosen.steps is not None else 1 if chosen.device == "cpu" else 10
    for name in ("rounds", "steps", "batch_size"):
        value = getattr(chosen, name)
        if value is not None and value < (2 if name == "rounds" else 1):
            parser.error(f"{name} must be at least {2 if name == 'rounds' else 1}, found {value}")
    return chosen


def main(argv: Sequence[str]) -> None:
    """Measure, print, write."""
    chosen = settings(argv)
    device, screen = chosen.device, Screen()
    rows = []
    for name in chosen.models:
        case = CASES.get(name) or Case(name, None, default_image_size(name), 8, 1000)
        case = case._replace(batch_size=chosen.batch_size or case.batch_size)
        compared = variants(
            convolutional=name.startswith("convmixer"), device=device, compile=chosen.compile == "true"
        )
        steps = [training_step(case, variant, device=device) for variant in compared]
        for step in steps:
            seconds(step, device=device, steps=2)  # compiles, and fills caches
        runs = [lambda step=step: seconds(step, device=device, steps=chosen.steps) for step in steps]
        found = summary(case, take_turns(runs, rounds=chosen.rounds), compared)
        about = {"model": name, "image_size": case.image_size, "batch_size": case.batch_size}
        rows += [about | row | {"rounds": chosen.rounds} for row in found]
        screen.table(f"{name}, {case.batch_size} images of {case.image_size} px", COLUMNS, map(shown, found))
        screen.say("")
    path = chosen.out / f"step_speed_{device}.csv"
    chosen.out.mkdir(parents=True, exist_ok=True)
    results.write_rows(path, rows, digits=4)
    write_text(path.with_suffix(".md"), markdown(rows, device=device, argv=argv))
    screen.say(f"written to {path} and {path.with_suffix('.md')}")


COLUMNS = ("variant", "images/s", "middle half", "ratio to timm", "middle half")


def shown(row: dict[str, Any]) -> list[str]:
    """A row of `summary` in words."""
    speed, ratio = "images_per_second", "ratio_to_timm"
    return [
        row["variant"],
        f"{row[speed]:,.1f}",
        f"{row[f'{speed}_low']:,.1f} to {row[f'{speed}_high']:,.1f}",
        f"{row[ratio]:.2f}",
        f"{row[f'{ratio}_low']:.2f} to {row[f'{ratio}_high']:.2f}",
    ]


def markdown(rows: Sequence[dict[str, Any]], *, device: str, argv: Sequence[str]) -> str:
    """The tables, with machine, versions and command."""
    machine = f"{results.cpu_name()}, {torch.get_num_threads()} threads"
    if device == "cuda":
        machine = f"{torch.cuda.get_device_name()} ({results.cpu_name()})"
    else:
        native = native_weight_gradients() is not None
        machine += f"; depthwise kernel {'compiled' if native else 'in PyTorch, for want of a C++ compiler'}"
    versions = ", ".join(f"{name} {version}" for name, version in results.versions().items())
    lines = [
        "# Speed of a training step",
        "",
        "Forward, backward and AdamW on synthetic images. Medians over rounds in which all variants take turns; a",
        "ratio is between steps of the same round. In brackets the middle half of the rounds.",
        "",
        f"* Machine: {machine}",
        f"* Versions: {versions}",
        f"* Command: `{' '.join(['mixer study step_speed', *argv])}`",
    ]
    for name in dict.fromkeys(row["model"] for row in rows):
        mine = [row for row in rows if row["model"] == name]
        lines += [
            "",
            f"## {name}: {mine[0]['batch_size']} images of {mine[0]['image_size']} px, {mine[0]['rounds']} rounds",
            "",
            "| variant | images/s | ratio to timm |",
            "| --- | --- | --- |",
        ]
        for variant, speed, speeds, ratio, ratios in map(shown, mine):
            lines.append(f"| {variant} | {speed} ({speeds}) | {ratio} ({ratios}) |")
    return "\n".join(lines) + "\n"
