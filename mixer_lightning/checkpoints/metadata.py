"""What is stated of some weights besides their tensors, and who goes first: what a file states wins over its name.

The order is the file itself, the file beside it (the JSON sidecar of an export, the config.json of the hub, the
recipe.yaml of a run), its name, and last what is usual for the family. A stranger may have written any of it, so that
every value is checked before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args, get_type_hints

from mixer_lightning import results
from mixer_lightning.checkpoints import hub
from mixer_lightning.checkpoints.describe import Description
from mixer_lightning.checkpoints.families import PREPROCESSING, family_of_target
from mixer_lightning.checkpoints.run_format import recipe_beside
from mixer_lightning.data.transforms import Augment

KEY = "mixer_lightning"  # in a .safetensors file: what save.save_own writes besides tensors
LARGEST_SIDE = 1 << 14  # of images, in pixels
ACTIVATIONS = ("gelu", "relu")


@dataclass(frozen=True)
class Metadata:
    """What is stated, checked. `preprocessing` holds parameters of Augment; `recipe` is that of the run."""

    model: str | None = None  # a file of conf/model
    image_size: int | None = None
    activation: str | None = None
    classes: list[str] | None = None
    num_classes: int | None = None  # where the head has no weights
    parameters: dict[str, Any] = field(default_factory=dict)  # of the model, where tensors do not tell them
    preprocessing: dict[str, Any] = field(default_factory=dict)
    recipe: dict[str, Any] | None = field(default=None, repr=False)

    def __or__(self, first: Metadata) -> Metadata:
        """Both, where `first` goes first."""
        return Metadata(
            model=first.model or self.model,
            image_size=first.image_size or self.image_size,
            activation=first.activation or self.activation,
            classes=first.classes or self.classes,
            num_classes=first.num_classes or self.num_classes,
            parameters=first.parameters or self.parameters,
            preprocessing=first.preprocessing
            if first.recipe is not None
            else self.preprocessing | first.preprocessing,
            recipe=first.recipe or self.recipe,
        )


def of_export(stated: Any, where: str) -> Metadata:
    """What save.metadata wrote, into a file or beside it; `where` it stands is said in errors.

    Raises:
        ValueError: a value is of the wrong type or makes no sense; the message names it.
    """
    if not isinstance(stated, Mapping):
        raise ValueError(f"{where} holds {type(stated).__name__}, not a mapping: {_REMEDY}")
    checks = {
        "model": (_is_text, "the name of a model"),
        "image_size": (_is_side, f"a whole number of pixels up to {LARGEST_SIDE:,}"),
        "activation": (lambda value: value in ACTIVATIONS, f"one of {', '.join(ACTIVATIONS)}"),
        "classes": (_are_names, "a list of names"),
        "num_classes": (lambda value: _is_whole(value) and value > 0, "a whole number from 1 on"),
        "parameters": (_are_parameters, "a mapping of names to numbers, texts or lists of numbers"),
    }
    for key, (is_right, expected) in checks.items():
        if stated.get(key) is not None and not is_right(stated[key]):
            raise ValueError(f"{where}: '{key}' must be {expected}, found {_short(stated[key])}: {_REMEDY}")
    return Metadata(
        model=stated.get("model"),
        image_size=stated.get("image_size"),
        activation=stated.get("activation"),
        classes=[str(name) for name in stated["classes"]] if stated.get("classes") else None,
        num_classes=stated.get("num_classes"),
        parameters=dict(stated.get("parameters") or {}),
        preprocessing=_preprocessing(stated, where),
    )


def of_recipe(recipe: Mapping[str, Any], classes: Any, where: str) -> Metadata:
    """What the recipe of one of our own runs states.

    Raises:
        ValueError: a value is of the wrong type or makes no sense; the message names it.
    """
    node, augment, choices = (recipe.get(key) or {} for key in ("model", "augment", "choices"))
    for key, part in (("model", node), ("augment", augment), ("choices", choices)):
        if not isinstance(part, Mapping):
            raise ValueError(f"{where}: '{key}' must be a mapping, found {_short(part)}: {_REMEDY}")
    activation = node.get("activation", "gelu")
    if activation not in ACTIVATIONS and family_of_target(str(node.get("_target_"))) is None:
        activation = None  # a model of the user's, whose parameters are its own
    parameters = {key: value for key, value in node.items() if key != "_target_"}
    stated = {
        **augment,
        "parameters": parameters if _are_parameters(parameters) else None,
        "model": choices.get("model"),
        "image_size": recipe.get("image_size"),
        "activation": activation,
        "classes": classes,
    }
    found = of_export(stated, where)
    return replace(found, recipe={str(key): value for key, value in recipe.items()})


def beside(path: Path, model: Description | None) -> Metadata:
    """What the files beside some weights state: their sidecar, else the hub's config.json, else a run's recipe.yaml.

    The recipe counts for weights of the sizes that it names.

    Raises:
        ValueError: a file is damaged, or a value in it makes no sense.
    """
    if sidecar := results.read_sidecar(path):
        return of_export(sidecar, str(results.sidecar_path(path)))
    if config := hub.read_config(path, model.family if model is not None else None):
        return of_export(config, str(path.with_name("config.json")))
    recipe = recipe_beside(path)
    node = (recipe or {}).get("model")
    if recipe is None or not isinstance(node, Mapping):
        return Metadata()
    if model is None or any(node.get(key) != size for key, size in model.sizes.items()):
        return Metadata()
    return of_recipe(recipe, None, str(path.with_name(results.RECIPE)))


_REMEDY = "export again, or take it away"


def _preprocessing(stated: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The parameters of Augment among what is stated, each of its type and in its range."""
    hints, found = get_type_hints(Augment), {}
    for key in PREPROCESSING:
        if stated.get(key) is None:
            continue
        value = stated[key]
        if hints[key] == list[float]:
            is_right, expected = _are_channels(value), "three numbers"
        elif hints[key] is bool:
            is_right, expected = isinstance(value, bool), "true or false"
        elif hints[key] is int:
            is_right, expected = _is_whole(value), "a whole number"
        elif hints[key] is float:
            is_right, expected = _is_number(value), "a number"
        else:
            choices = get_args(hints[key])
            is_right, expected = value in choices, f"one of {', '.join(map(str, choices))}"
        if not is_right:
            raise ValueError(f"{where}: '{key}' must be {expected}, found {_short(value)}: {_REMEDY}")
        try:
            Augment(**{key: value})
        except ValueError as error:
            raise ValueError(f"{where}: {str(error).rstrip('.')}: {_REMEDY}") from None
        found[key] = value
    if "eval_interpolation" in found:  # written before there were two roundings, of which this was the one
        found.setdefault("eval_rounding", "torchvision")
    return found


def of_run(augment: Mapping[str, Any]) -> dict[str, Any]:
    """How the run with this augmentation looked at images in evaluation: what it leaves out was Augment's default."""
    default = Augment()
    return {key: getattr(default, key) for key in PREPROCESSING} | dict(augment)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 1e6  # not NaN


def _is_whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _are_channels(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) == 3 and all(map(_is_number, value))


def _is_side(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= LARGEST_SIDE


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _are_parameters(value: Any) -> bool:
    def is_plain(each: Any) -> bool:
        return (
            each is None or isinstance(each, str | int) or (isinstance(each, float) and math.isfinite(each))
        )

    return isinstance(value, Mapping) and all(
        isinstance(key, str)
        and (all(map(is_plain, each)) if isinstance(each, list | tuple) else is_plain(each))
        for key, each in value.items()
    )


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(name, str | int) for name in value)
