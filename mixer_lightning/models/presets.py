"""Models by name: one YAML file of conf/model each. Importing this module does not import torch."""

from __future__ import annotations

import fnmatch
import os
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixer_lightning.files import CONF
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges
from mixer_lightning.results import read_rows
from mixer_lightning.screen import did_you_mean
from mixer_lightning.targets import build

if TYPE_CHECKING:
    from torch import nn

MODEL_FOLDER = CONF / "model"
#: Published results of these models, a row each.
PUBLISHED = Path(__file__).with_name("published.csv")
#: Parameters whose shapes depend on the size of the images, and so tell nothing of the model.
POSITIONS = ("pos_embed",)
NUM_LARGEST = 6  # sizes, which two models of different families hardly share


class Published(NamedTuple):
    """One published result of a model: top-1 on ImageNet (or on `data` itself where it is small), in percent.

    `data` is the data set of (pre-)training, `input` the side of the test images in pixels. A row without
    `top1_percent` only states the size of image that a model is made for.
    """

    model: str
    data: str
    epochs: int | None
    input: int
    top1_percent: float | None
    source: str


def published() -> list[Published]:
    """Rows of published.csv, in its order: for a model and its data, the paper's main row comes first."""
    return read_rows(PUBLISHED, Published)


def list_models(pattern: str = "*") -> list[str]:
    """Names of the models, sorted: the files of conf/model; those that match a pattern such as "mixer*"."""
    return sorted(fnmatch.filter((path.stem for path in MODEL_FOLDER.glob("*.yaml")), pattern))


def model_node(name: str) -> dict[str, Any]:
    """What conf/model/<name>.yaml says: `_target_` and its parameters. An unknown name raises ValueError."""
    path = MODEL_FOLDER / f"{name}.yaml"
    if path.parent != MODEL_FOLDER or not path.is_file():
        hint = did_you_mean(name, list_models()) or ": `mixer models` lists them"
        raise ValueError(f"there is no model '{name}'{hint}")
    return dict(_node(path, path.stat().st_mtime_ns))


@cache  # all are asked for what timm calls them, many times
def _node(path: Path, modified: int) -> dict[str, Any]:
    import yaml

    node: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    return node


def default_image_size(name: str) -> int:
    """Side in pixels of the smallest input that published.csv has for a model; 224 without one."""
    return min((row.input for row in published() if row.model == name), default=224)


@check_ranges
def build_model(
    name: str,
    *,
    num_classes: NonNegativeInt = 1000,
    image_size: PositiveInt | None = None,
    stochastic_depth: BelowOne = 0.0,
    head_bias: float = 0.0,
    overrides: Mapping[str, Any] | None = None,
) -> nn.Module:
    """A model of conf/model with new weights, a protocol.Backbone; its arguments are those of api.create_model.

    Raises:
        ValueError: there is no such model, or a number makes no sense.
    """
    node = _overridden(name, model_node(name), overrides or {})
    size = default_image_size(name) if image_size is None else image_size

    def make() -> nn.Module:
        model: nn.Module = build(
            node,
            num_classes=num_classes,
            image_size=size,
            stochastic_depth=stochastic_depth,
            head_bias=head_bias,
        )
        return model

    refuse_too_large(make, num_classes=num_classes, image_size=size)
    return make()


def _overridden(name: str, node: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters of a model, some of which are others; ValueError for unknown ones and impossible values."""
    known = [key for key in node if key != "_target_"]
    for key, value in overrides.items():
        if key not in known:
            hint = did_you_mean(key, known) or f": it has {', '.join(known)}"
            raise ValueError(f"{name} has no parameter '{key}'{hint}")
        if isinstance(node[key], str) and not isinstance(value, str):
            raise ValueError(f"{key} must be a text, found {value!r}")
    return {**node, **overrides}


def refuse_too_large(make: Callable[[], nn.Module], *, num_classes: int, image_size: int) -> None:
    """See that a model fits into this machine's memory, where so many classes or pixels let one doubt it.

    `make` is called on torch's meta device, which has no memory to fill.

    Raises:
        ValueError: its weights alone are larger than the memory.
    """
    if num_classes <= 100_000 and image_size <= 1024:
        return
    import torch

    with torch.device("meta"):
        needed = sum(each.numel() * each.element_size() for each in make().parameters())
    there = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if needed > there:
        raise ValueError(
            f"{num_classes:,} classes and images of {image_size:,} px need {needed / 1e9:,.0f} GB for the weights, and "
            f"this machine has {there / 1e9:,.0f} GB of memory: is num_classes or image_size a misspelling?"
        )


#: Multiply-accumulates of a step, in those of a forward pass: backward takes two more.
PASSES = {"inference": 1, "training": 3}


class Cost(NamedTuple):
    """Size of a model: trainable numbers, multiply-accumulates for one image, and what tells its files from others'.

    `largest` are sizes of its largest parameters and how many there are of each, 2359296x24 1769472x12: without the
    head, which grows with the classes, and position tables, which grow with the image.
    """

    parameters: int
    macs: int
    largest: str = ""


def cost(name: str, *, num_classes: int = 1000, image_size: int | None = None) -> Cost:
    """Counts a model of conf/model without memory for its weights, on torch's meta device, in about a second."""
    size = default_image_size(name) if image_size is None else image_size
    return count(model_node(name), num_classes=num_classes, image_size=size)


def count(node: Mapping[str, Any], *, num_classes: int, image_size: int) -> Cost:
    """The same of what a file of conf/model says. All matrix products and convolutions count, nothing else.

    Raises:
        ValueError: there is no such model at this size.
    """
    import torch

    with torch.device("meta"):
        model: nn.Module = build(
            node, num_classes=num_classes, image_size=image_size, stochastic_depth=0.0, head_bias=0.0
        )
    sizes = {key: parameter.numel() for key, parameter in model.named_parameters()}
    fixed = [sizes[key] for key in sizes if not key.startswith((f"{model.head_name}.", *POSITIONS))]
    largest = " ".join(
        f"{size}x{fixed.count(size)}" for size in sorted(set(fixed), reverse=True)[:NUM_LARGEST]
    )
    return Cost(sum(sizes.values()), count_macs(model, image_size=image_size), largest)


def count_macs(model: nn.Module, *, image_size: int) -> int:
    """The multiply-accumulates of a model as it stands for one image, also one that a checkpoint has widened."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    was_training = model.training
    with torch.device("meta"), torch.no_grad(), FlopCounterMode(display=False) as counter:
        tensors = {name: torch.empty_like(each, device="meta") for name, each in model.named_parameters()}
        tensors |= {name: torch.empty_like(each, device="meta") for name, each in model.named_buffers()}
        torch.func.functional_call(model.eval(), tensors, torch.empty(1, 3, image_size, image_size))
    model.train(was_training)
    return int(counter.get_total_flops()) // 2
