"""A checkpoint's weights into a model: all of them or none, with a new head where the classes are others."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mixer_lightning.checkpoints.describe import Description, describe, widening
from mixer_lightning.checkpoints.read import Checkpoint, read, some_of
from mixer_lightning.checkpoints.recognise import models_of
from mixer_lightning.data.sources.imagenet_archives import googles_order_missed
from mixer_lightning.models.baselines import fitted
from mixer_lightning.models.mixer import Mixer
from mixer_lightning.models.presets import default_image_size
from mixer_lightning.models.resolution import enlarge, is_token_mixing, widen

Head = Literal["auto", "keep", "new"]


@dataclass(frozen=True)
class Report:
    """What `load` did: the checkpoint, the tensors copied, those that are new, and what became of the rest.

    `head` is the reason why the head is new, or what could not be checked about one that was kept. `parts` is into how
    many parts a side token mixing was divided for larger images, `trained_at` their size; `resized` are the tensors of
    a timm model that were interpolated to its image size.
    """

    checkpoint: Checkpoint
    loaded: list[str]
    fresh: list[str]
    head: str | None = None
    parts: int = 1
    trained_at: int | None = None
    resized: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors from {self.checkpoint}"
        if self.parts > 1:
            text += (
                f"; token mixing starts block-diagonal, in {self.parts}x{self.parts} parts of {self.trained_at} px "
                "(arXiv 2105.01601, appendix C)"
            )
        if self.resized:
            text += f"; {some_of(sorted(self.resized))} interpolated"
        return f"{text}; the head {self.head}" if self.head else text


def load(
    model: nn.Module,
    checkpoint: str | Path | Checkpoint,
    *,
    head: Head = "auto",
    classes: Sequence[str] | None = None,
) -> Report:
    """Copies a checkpoint into a model, all of it or, on an error, nothing.

    A Mixer built for images of K times the side (K whole) gets block-diagonal token mixing, K^2 times as wide: its
    `mlp_tokens` are replaced, so make the optimiser afterwards. A ConvMixer takes its weights to any size.

    Args:
        model: a models.protocol.Backbone.
        checkpoint: what `read` takes, or gave.
        head: "auto" keeps the checkpoint's head if it is for as many classes and, where both sides name theirs, for
            the same in the same order; "keep" raises if it is not; "new" never takes it. One for 21,843 classes that
            are not named is for ImageNet-21k's in Google's order. A new head has zero weights and the model's
            `head_bias`, as in the transfer of arXiv 2105.01601 (vit_jax/checkpoint.py).
        classes: names of the model's classes, if they are known.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is unreadable (see `read`), its tensors are not this model's or not finite, or its
            head may not be kept.
    """
    if head not in ("auto", "keep", "new"):
        raise ValueError(f"head must be auto, keep or new, found {head!r}")
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read(checkpoint)
    expected = model.state_dict()
    growth = _growth(describe(expected), checkpoint)
    found = fitted(model, checkpoint.tensors)
    resized = [
        key
        for key in found.keys() & checkpoint.tensors.keys()
        if found[key].shape != checkpoint.tensors[key].shape
    ]
    if growth.parts > 1:
        found = enlarge(found, grid=growth.grid, parts=growth.parts)
    shapes = {key: tensor.shape for key, tensor in expected.items()}
    if growth.widening > 1:
        shapes |= {key: found[key].shape for key in shapes if is_token_mixing(key) and key in found}

    head_keys = [key for key in expected if key.startswith(f"{model.head_name}.")]
    if not head_keys:  # num_classes=0: features alone are wanted
        found = {key: tensor for key, tensor in found.items() if not key.startswith(f"{model.head_name}.")}
    why_new = _why_new_head(checkpoint, found, shapes, head_keys, classes)
    if head == "keep" and why_new:
        raise ValueError(f"head=keep, but {checkpoint.path} has another head: {why_new}. Use head=new")
    if head == "new":
        why_new = why_new or "as asked for"
    fresh = head_keys if why_new else []
    for key in fresh:
        found.pop(key, None)
    if misfits := _misfits(model, checkpoint, found, shapes, fresh):
        raise ValueError(_does_not_fit(model, checkpoint, misfits))
    if bad := [key for key, tensor in found.items() if not tensor.isfinite().all()]:
        raise ValueError(
            f"{checkpoint.path} holds weights that are not finite ({some_of(bad)}): its training had diverged"
        )

    if growth.widening > 1:
        assert isinstance(model, Mixer)
        widen(model, parts=growth.widening)
        expected = model.state_dict()
    with torch.no_grad():
        for key in found:
            expected[key].copy_(found[key])  # shares memory with the model
        for key in fresh:
            expected[key].fill_(float(model.head_bias) if key.endswith("bias") else 0.0)  # type: ignore[arg-type]
    about_head = f"stays fresh: {why_new}" if fresh else _unchecked_head(checkpoint, head_keys, classes)
    trained_at = checkpoint.model.image_size if checkpoint.model else None
    return Report(checkpoint, list(found), fresh, about_head, growth.parts, trained_at, resized)


def widen_like(model: nn.Module, trained: Mapping[str, Tensor]) -> None:
    """Gives a model the sizes that `load` gave it at the start of the run whose weights are `trained`."""
    here, there = describe(model.state_dict()), describe(trained)
    if here is None or there is None or here.family is not there.family:
        return
    factor = widening(here.sizes, there)
    if factor is not None and factor > 1:
        assert isinstance(model, Mixer)
        widen(model, parts=factor)


class _Growth(NamedTuple):
    """How a Mixer's checkpoint, trained on a `grid` of patches a side, comes into a model for larger images.

    Its tensors are enlarged to `parts` parts a side, the model is widened by `widening` parts a side.
    """

    grid: int = 0
    parts: int = 1
    widening: int = 1


def _growth(here: Description | None, checkpoint: Checkpoint) -> _Growth:
    """Nothing to be done is the answer for models, too, that differ in more than this."""
    there = checkpoint.model
    if here is None or there is None or not here.image_size or not there.image_size:
        return _Growth()
    widened = here.family.widened_size
    if here.family is not there.family or widened is None:
        return _Growth()
    if here.sizes | {widened: 0} != there.sizes | {widened: 0}:
        return _Growth()
    parts, rest = divmod(here.image_size, there.image_size)
    if rest or not parts:
        sizes = [there.image_size * times for times in range(max(parts, 1), max(parts, 1) + 2)]
        raise ValueError(
            f"{checkpoint.path} holds weights of {there}. A {there.family.name}'s go to whole multiples of the size it "
            f"was trained at, which image_size={here.image_size} is not: {sizes[0]} and {sizes[1]} work"
        )
    sizes_there = there.sizes | {widened: parts**2 * there.sizes[widened]}
    factor = widening(here.sizes, replace(there, sizes=sizes_there, image_size=here.image_size))
    return _Growth(there.image_size // there.sizes["patch_size"], parts, factor) if factor else _Growth()


def _why_new_head(
    checkpoint: Checkpoint,
    found: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    heads: Sequence[str],
    classes: Sequence[str] | None,
) -> str | None:
    """Why a checkpoint's head is not the model's; None if it can be."""
    if any(key not in found for key in heads):
        return "the file has none"
    if any(found[key].shape[:1] != shapes[key][:1] for key in heads):
        return f"{found[heads[0]].shape[0]} classes there, {shapes[heads[0]][0]} here"
    if classes is not None and checkpoint.classes is None:
        return googles_order_missed(classes)
    if classes is None or checkpoint.classes is None or list(classes) == checkpoint.classes:
        return None
    if len(classes) != len(checkpoint.classes):  # then the names are not those of this head
        return f"{len(checkpoint.classes)} names of classes there, {len(classes)} here"
    there, here = next((a, b) for a, b in zip(checkpoint.classes, classes, strict=True) if a != b)
    return f"other classes ('{there}' there, '{here}' here)"


def _unchecked_head(
    checkpoint: Checkpoint, heads: Sequence[str], classes: Sequence[str] | None
) -> str | None:
    if not heads or classes is None or checkpoint.classes is not None:
        return None
    return f"is kept: {len(classes)} classes on both sides, of which the file says no names"


def _misfits(
    model: nn.Module,
    checkpoint: Checkpoint,
    found: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    fresh: Sequence[str],
) -> list[str]:
    """What of the tensors found is not the model's, and what of the model is not among them."""
    misfits = []
    for key, shape in shapes.items():
        if key in fresh or (key not in found and key.endswith("num_batches_tracked")):
            continue
        if key not in found:
            misfits.append(f"{key} is missing, expected {list(shape)}")
        elif found[key].shape != shape:
            misfits.append(f"{key} is {list(found[key].shape)}, expected {list(shape)}")
    misfits += [f"{key} {list(found[key].shape)} has no place" for key in found if key not in shapes]
    there = checkpoint.model.activation if checkpoint.model else None
    here = getattr(model, "activation", there)
    if there is not None and here != there:
        misfits.append(f"it was trained with {there}, the model has {here}")
    return misfits


def _does_not_fit(model: nn.Module, checkpoint: Checkpoint, misfits: list[str]) -> str:
    here = describe(model.state_dict())
    text = (
        f"{checkpoint.path} does not fit {here or type(model).__name__}: {some_of(misfits, separator='; ')}."
    )
    if checkpoint.model is None:
        name = checkpoint.model_name or next(iter(models_of(checkpoint.tensors)), None)
        if name is None:
            return f"{text} This file holds none of the models that `mixer models` lists."
        size = checkpoint.image_size
        if size is None and name in models_of(checkpoint.tensors):  # it fits the model at its own size
            size = default_image_size(name)
        at = f" image_size={size}" if size not in (None, model.image_size) else ""
        return f"{text} This file holds weights of {name}: use model={name}{at}."
    text += f" This file holds weights of {checkpoint.model}"
    name, size = checkpoint.model.name, checkpoint.model.image_size
    if name is None:
        return f"{text}."
    return f"{text}: use model={name}{f' image_size={size}' if size else ''}."
