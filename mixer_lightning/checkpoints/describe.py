"""What a state dict says of its model: the family, its sizes, the image size and the number of classes."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from mixer_lightning.checkpoints.families import FAMILIES, Family
from mixer_lightning.models.presets import list_models, model_node


@dataclass(frozen=True)
class Description:
    """What the names and shapes of its tensors say of a model. `sizes` are parameters of the family's class."""

    family: Family
    sizes: dict[str, int]
    image_size: int | None  # None: the weights fit any size
    num_classes: int  # 0: no head
    activation: str | None = None  # where there is one to choose; None: unknown, since tensors do not tell

    @property
    def name(self) -> str | None:
        """The file of conf/model with these sizes; a Mixer's token mixing may have been widened since."""
        return next(iter(self._known), None)

    @property
    def names(self) -> list[str]:
        """All files of conf/model with these sizes."""
        return list(self._known)

    @property
    def parts(self) -> int:
        """Into how many parts a side the token mixing of a Mixer was widened from conf/model (models/resolution.py)."""
        return next(iter(self._known.values()), 1)

    @property
    def _known(self) -> dict[str, int]:
        """Names of models, and the parts into which the token mixing of each was widened."""
        found: dict[str, int] = {}
        for name in list_models():
            node = model_node(name)
            if self.sizes.keys() <= node.keys():
                parts = widening({key: node[key] for key in self.sizes}, self)
                if parts is not None:
                    found[name] = parts
        return found

    def __str__(self) -> str:
        sizes = ", ".join(f"{key} {size}" for key, size in self.sizes.items())
        name, parts = self.name, self.parts
        at = f" at {self.image_size}" if self.image_size else ""
        mixing = f" (token mixing of {parts}x{parts} parts)" if parts > 1 else ""
        classes = f"{self.num_classes} classes" if self.num_classes else "no head"
        return f"{name or f'{self.family.name} ({sizes})'}{at}{mixing}, {classes}"


def describe(tensors: Mapping[str, Tensor]) -> Description | None:
    """Recognises a model of FAMILIES by the names and shapes of its tensors; None for anything else."""
    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    for family in FAMILIES:
        try:
            found = family.recognise(shapes)
        except (KeyError, ValueError, IndexError):  # some tensors of that name, not those of such a model
            continue
        if found is not None:
            return Description(family, found.sizes, found.image_size, found.num_classes)
    return None


def widening(narrow: Mapping[str, Any], wide: Description) -> int | None:
    """How many parts a side took a model of sizes `narrow` to `wide`; 1 for equal sizes, None for other models."""
    key = wide.family.widened_size
    others = wide.sizes.keys() - {key}
    if any(narrow.get(each) != wide.sizes[each] for each in others):
        return None
    if key is None:
        return 1
    ratio, rest = divmod(wide.sizes[key], narrow[key])
    parts = math.isqrt(ratio)
    if rest or parts**2 != ratio or parts == 0:
        return None
    if parts > 1 and (wide.image_size is None or wide.image_size // wide.sizes["patch_size"] % parts):
        return None
    return parts
