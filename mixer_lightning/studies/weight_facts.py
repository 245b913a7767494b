"""What a checkpoint's units and kernels are like: the arrays that are drawn, and a row for each unit."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

from mixer_lightning.checkpoints.describe import describe
from mixer_lightning.checkpoints.restore import Restored
from mixer_lightning.engine import weight_images
from mixer_lightning.engine.weight_images import Layers
from mixer_lightning.models.presets import build_model, model_node
from mixer_lightning.reports import unit_images
from mixer_lightning.reports.token_mixing import TOKEN_MIXING
from mixer_lightning.reports.weights import Layer, Weights


@dataclass
class Found:
    """What a checkpoint holds: the arrays to draw, a row for each unit, and what there is to say."""

    weights: Weights
    rows: list[dict[str, Any]] = field(default_factory=list)
    remarks: list[str] = field(default_factory=list)


def examine(
    checkpoint: str, name: str, *, model: str | None, image_size: int | None, blocks: slice | list[int]
) -> Found:
    """Read a checkpoint and measure its units, and those of a model of its kind before training.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: it is unreadable, does not tell its model, has no such blocks, or nothing to draw.
    """
    restored = weight_images.restored(checkpoint, model=model, image_size=image_size)
    trained, stem = weight_images.layers_of(restored.model), weight_images.stem_of(restored.model)
    title = restored.name or type(restored.model).__name__
    if not trained and stem is None:
        raise ValueError(
            f"{checkpoint}: {title} has no layer that mixes tokens, no depthwise convolution, and none that "
            "sees the image: there is nothing to draw"
        )
    initial = weight_images.layers_of(at_initialisation(restored)) if trained else {}
    found = Found(Weights(name=name, model=weight_images.title_of(restored), layers={}, stem=stem))
    for kind, layers in trained.items():
        kept = _chosen_blocks(layers, blocks, checkpoint)
        ordered = [_measured(found, kind, layer, images, "trained") for layer, images in kept.items()]
        before = [_measured(found, kind, layer, initial[kind][layer], "initial") for layer in kept]
        found.weights.layers[kind], found.weights.initial[kind] = ordered, before[0]
    if TOKEN_MIXING not in trained:
        what = "its depthwise kernels and its stem are" if trained else "its stem alone is"
        found.remarks.append(f"{title} has no layer that mixes tokens on a grid of fixed size: {what} drawn")
    if stem is None:
        found.remarks.append(f"{title} has no convolution that sees the image: no stem is drawn")
    return found


def at_initialisation(found: Restored, *, seed: int = 0) -> nn.Module:
    """A model of the same sizes before its training: new weights, drawn from `seed`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        there = describe(found.model.state_dict())
        if there is None:
            assert found.name is not None
            return build_model(
                found.name, num_classes=1, image_size=found.image_size, overrides=found.parameters
            )
        parameters = dict(there.sizes)
        if there.family.has_activation:
            activation = getattr(found.model, "activation", None) or model_node(str(found.name))["activation"]
            return there.family.build({**parameters, "activation": activation}, 1, found.image_size)
        return there.family.build(parameters, 1, found.image_size)


def _chosen_blocks(layers: Layers, blocks: slice | list[int], checkpoint: str) -> Layers:
    """Of all layers of a kind, in the order of the model, a range or those of the numbers asked for."""
    names = list(layers)
    if isinstance(blocks, slice):
        return {name: layers[name] for name in names[blocks]}
    if beyond := [number for number in blocks if number >= len(names)]:
        raise ValueError(
            f"blocks: {checkpoint} has {len(names)}, 0 to {len(names) - 1}, and no {', '.join(map(str, beyond))}"
        )
    return {names[number]: layers[names[number]] for number in blocks}


def _measured(found: Found, kind: str, name: str, images: Any, weights: str) -> Layer:
    """A layer in its order, whose units' rows are added to what was found."""
    order, cosines = unit_images.opposites_in_order(images)
    centroids, alike = unit_images.spectral_centroids(images), unit_images.neighbour_cosines(images)
    norms = unit_images.norms(images)
    for place, unit in enumerate(order.tolist()):
        if unit == unit_images.NO_UNIT:
            continue
        partner, cosine = int(order[place ^ 1]), cosines[place // 2]
        is_paired = partner != unit_images.NO_UNIT
        found.rows.append(
            {
                "checkpoint": found.weights.name,
                "kind": kind,
                "layer": name,
                "weights": weights,
                "place": place,
                "unit": unit,
                "spectral_centroid": float(centroids[unit]),
                "partner": partner if is_paired else "",
                "cosine": float(cosine) if is_paired else "",
                "norm": float(norms[unit]),
                "neighbour_cosine": float(alike[unit]),
            }
        )
    return Layer(name, images, order)
