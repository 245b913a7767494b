"""Which model of conf/model a state dict is of, where no family of families.py tells.

Each model is built without memory for its weights and compared: seconds, spent where a file tells nothing else.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mixer_lightning.checkpoints import hub
from mixer_lightning.checkpoints.families import family_of_model
from mixer_lightning.checkpoints.read import Checkpoint
from mixer_lightning.models.baselines import fitted
from mixer_lightning.models.catalogue import counted, digest
from mixer_lightning.models.presets import build_model, list_models, model_node

#: What depends on the size of the images, and so tells nothing of the model.
POSITIONS = {"pos_embed"}
LEAST_SHARE, MOST = 0.4, 10.0  # of a model's numbers at 1,000 classes, whatever the head of the file
FEWEST = 30  # tensors, fewer than any model of timm in conf/model has


def recognised(checkpoint: Checkpoint, *, model: str | None = None) -> Checkpoint:
    """The same with the name of its model where only its tensors tell it, and what images timm's weights of it take.

    `model` is what the user says, which decides between models of equal tensors.

    Raises:
        ValueError: nobody says which of them it is, and they see images differently.
    """
    if checkpoint.model is not None:
        return checkpoint
    name = checkpoint.model_name
    if name is None:
        found = models_of(checkpoint.tensors)
        if model is None and checkpoint.recipe is None:
            _refuse_ambiguous(checkpoint, found)
        name = model if model in found else next(iter(found), None)
    usual = hub.usual_preprocessing(name) if name is not None and checkpoint.recipe is None else {}
    return replace(checkpoint, model_name=name, preprocessing={**usual, **checkpoint.preprocessing})


def _refuse_ambiguous(checkpoint: Checkpoint, names: Sequence[str]) -> None:
    """ValueError where models of equal tensors, DeiT-B and ViT-B, have other mean and std, and the file states none."""
    views = {name: usual for name in names if (usual := hub.usual_preprocessing(name))}
    first = next(iter(views.values()), {})
    if any(
        {**view, **checkpoint.preprocessing} != {**first, **checkpoint.preprocessing}
        for view in views.values()
    ):
        named = " or ".join(f"model={name}" for name in views)
        raise ValueError(
            f"{checkpoint.path} holds the tensors of {' and of '.join(views)}, which see images differently: say "
            f"{named}, or name the file so: {next(reversed(views))}{checkpoint.path.suffix}"
        )


def models_of(tensors: Mapping[str, Tensor]) -> list[str]:
    """Files of conf/model that have all these tensors but for the head, and no others; more than one if they are equal.

    Tensors are under timm's names or, where timm takes those, under the names of the authors' release.
    """
    named = {name: first for name in list_models() if (first := _first_convolution(name)) is not None}
    seen = {name for name, first in named.items() if first in tensors}
    if not seen and len(tensors) >= FEWEST:
        seen = set(named)  # perhaps under the names of its authors
    numbers = sum(tensor.numel() for tensor in tensors.values())
    if not numbers:
        return []
    models = set(list_models())
    rows = [row for row in counted().values() if row.model in models]
    sizes = {row.model: row.parameters for row in rows if row.digest == digest(model_node(row.model))}
    return [
        name
        for name in list_models()
        if (name in seen or name not in named)
        and LEAST_SHARE <= numbers / sizes.get(name, numbers) <= MOST
        and family_of_model(name) is None
        and _fits(skeleton(name), tensors)
    ]


def skeleton(name: str) -> nn.Module:
    """A model of conf/model, one class, without memory for its weights."""
    with torch.device("meta"):
        return build_model(name, num_classes=1)


def num_classes_of(name: str, tensors: Mapping[str, Tensor]) -> int | None:
    """Outputs of the head that tensors of a model of conf/model hold, 0 without a head; None for another's tensors."""
    model = skeleton(name)
    weight = fitted(model, tensors).get(f"{model.head_name}.weight")
    if weight is not None:
        return len(weight)
    return 0 if _fits(model, tensors) else None


def _fits(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    found = fitted(model, tensors)
    if any(found[key].shape != tensors[key].shape for key in (found.keys() & tensors.keys()) - POSITIONS):
        return False  # patches of another size, which could be interpolated, too
    return _shapes(model, found) == _shapes(model, model.state_dict())


def _shapes(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    head, counters = f"{model.head_name}.", "num_batches_tracked"
    return {
        key: tensor.shape
        for key, tensor in tensors.items()
        if not key.startswith(head) and not key.endswith(counters)
    }


def _first_convolution(name: str) -> str | None:
    """The weight of the first layer that timm states for one of its models; None where it states none or several."""
    import timm

    timm_name = model_node(name).get("timm_name")
    first = timm.get_pretrained_cfg(timm_name).first_conv if timm_name else None
    return f"{first}.weight" if isinstance(first, str) else None
