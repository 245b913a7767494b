"""Which model of conf/model a state dict is of, where no family of families.py tells.

A model is built without memory for its weights and compared, which takes a second. costs.csv says which could be it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from torch import Tensor, nn

from mixer_lightning.checkpoints import hub
from mixer_lightning.checkpoints.families import family_of_model
from mixer_lightning.checkpoints.read import Checkpoint
from mixer_lightning.models.baselines import fitted
from mixer_lightning.models.catalogue import counted, digest
from mixer_lightning.models.presets import POSITIONS, build_model, list_models, model_node


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

    Tensors are under timm's names or, where timm takes those, under the names of the authors' release. Whatever they
    are called, those of a model's largest sizes are among them, or it is not built.
    """
    there, rows = Counter(tensor.numel() for tensor in tensors.values()), counted()

    def is_possible(name: str) -> bool:
        row = rows.get(name)
        if row is None or row.digest != digest(model_node(name)):
            return True
        sizes = (map(int, each.split("x")) for each in row.largest.split())
        return all(there[size] >= number for size, number in sizes)

    return [
        name
        for name in list_models()
        if family_of_model(name) is None and is_possible(name) and _fits(skeleton(name), tensors)
    ]


def skeleton(name: str) -> nn.Module:
    """A model of conf/model, one class, without memory for its weights."""
    with torch.device("meta"):
        return build_model(name, num_classes=1)


def num_classes_of(name: str, checkpoint: Checkpoint) -> int | None:
    """Outputs of the head that a file of a model of conf/model holds, 0 without a head; None for another's tensors.

    Raises:
        ValueError: the head of that model has no weights, and nothing is said of it.
    """
    model = skeleton(name)
    weight = fitted(model, checkpoint.tensors).get(f"{model.head_name}.weight")
    if weight is not None:
        return len(weight)
    if not _fits(model, checkpoint.tensors):
        return None
    if any(True for _ in model.get_submodule(str(model.head_name)).parameters()):
        return 0
    if checkpoint.num_classes is None:
        raise ValueError(
            f"{checkpoint.path} does not tell its number of classes, since the head of {name} has no weights: say "
            "num_classes=<number>"
        )
    return checkpoint.num_classes


def _fits(model: nn.Module, tensors: Mapping[str, Tensor]) -> bool:
    found = fitted(model, tensors)
    if any(
        found[key].shape != tensors[key].shape
        for key in found.keys() & tensors.keys()
        if key not in POSITIONS
    ):
        return False  # patches of another size, which could be interpolated, too
    return _shapes(model, found) == _shapes(model, model.state_dict())


def _shapes(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    head, counters = f"{model.head_name}.", "num_batches_tracked"
    return {
        key: tensor.shape
        for key, tensor in tensors.items()
        if not key.startswith(head) and not key.endswith(counters)
    }
