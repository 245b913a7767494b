"""What a checkpoint's name and surroundings say about the recipe that continues it; mostly read without torch.

A run directory holds its recipe; a JSON file lies beside an export; timm's names and those of the published files name
the model; of other files the shapes of the tensors do. What the user states on the command line has the last word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from mixer_lightning import results
from mixer_lightning.checkpoints.families import PREPROCESSING, TIMM_SCHEME, model_named, preprocessing_of

#: How an image is resized and cropped for evaluation, of what a checkpoint may say of its images.
CROP_KEYS = tuple(key for key in PREPROCESSING if key.startswith("eval_"))

Stated = Mapping[
    str, Sequence[str]
]  # what a command line gives to each key, as texts: one, or those of a sweep
Known = Mapping[str, Collection[str]]  # the choices of each group of conf/


class Overrides(NamedTuple):
    """What a checkpoint says of the recipe that continues it: the choice of a group, the value at a dotted key.

    It goes before what any file says, and the command line goes before it.
    """

    choices: dict[str, str]
    values: dict[str, Any]


def overrides_from_checkpoint(stated: Stated, known: Known) -> Overrides:
    """Model, image size and normalisation of the checkpoint, as far as it says; nothing without a checkpoint.

    Raises:
        ValueError: a sweep names several checkpoints that imply different things.
    """
    return _agreed(stated, known, _for_finetuning)


def evaluation_overrides_from_checkpoint(stated: Stated, known: Known) -> Overrides:
    """The same, and what the recipe of a run directory says besides: model, data, splits and crops; and a name.

    With other data on the command line the recipe's data and splits count for nothing, and so on.

    Raises:
        ValueError: a sweep names several checkpoints that imply different things.
    """
    overrides = _agreed(stated, known, _for_evaluation)
    checkpoint, *others = _checkpoints(stated)
    if checkpoint in ("", "null"):
        return overrides
    evals = re.sub(r"[^\w]+", "-", _given(stated, "evals") or "accuracy").strip("-")
    more = f"-and-{len(others)}-more" if others else ""
    return Overrides(
        overrides.choices, {**overrides.values, "name": f"evaluate/{label_of(checkpoint)}{more}-{evals}"}
    )


def _agreed(stated: Stated, known: Known, find: Callable[[str, Stated, Known], Overrides]) -> Overrides:
    """What every checkpoint of a sweep implies; of one, what that does."""
    names = _checkpoints(stated)
    first, *rest = (
        Overrides({}, {}) if name in ("", "null") else find(name, stated, known) for name in names
    )
    for name, other in zip(names[1:], rest, strict=True):
        left, right = first.choices | first.values, other.choices | other.values
        differing = sorted(
            key
            for key in left.keys() | right.keys()
            if key not in stated and (key not in left or key not in right or left[key] != right[key])
        )
        if differing:
            raise ValueError(
                f"checkpoint: {names[0]} and {name} ask for another {', '.join(differing[:5])}"
                f"{' and more' if len(differing) > 5 else ''}: start one program for each"
            )
    return first


def _checkpoints(stated: Stated) -> Sequence[str]:
    return stated.get("checkpoint", [""])


def _given(stated: Stated, key: str) -> str | None:
    """What the command line gives to a key; values of a sweep with commas between, which are no choice's name."""
    return ",".join(stated[key]) if key in stated else None


def _for_finetuning(checkpoint: str, stated: Stated, known: Known) -> Overrides:
    return _said_by_surroundings(checkpoint, stated, known)


def _said_by_surroundings(checkpoint: str, stated: Stated, known: Known) -> Overrides:
    """Model, image size and normalisation: of the file beside an export, else the recipe of a run, else the names."""
    given_model, models = _given(stated, "model"), known["model"]
    recipe, exported = recipe_of(checkpoint), results.read_sidecar(Path(checkpoint).expanduser())
    values: dict[str, Any] = {}
    if exported:
        model = exported.get("model")
        if "image_size" in exported and given_model in (None, model):
            values["image_size"] = exported["image_size"]
        values |= {f"augment.{key}": exported[key] for key in ("mean", "std") if key in exported}
    elif recipe is not None:
        model = recipe.get("choices", {}).get("model")
        if given_model in (None, model):
            values["image_size"] = recipe["image_size"]
        values |= {f"augment.{key}": recipe["augment"][key] for key in ("mean", "std")}
    else:
        model = given_model or model_named(checkpoint, models)
        if model is None:
            return _said_by_tensors(checkpoint, models)
        seen = preprocessing_of(model, checkpoint)
        values |= {f"augment.{key}": seen[key] for key in ("mean", "std") if key in seen}
    return Overrides({"model": str(model)} if model in models else {}, values)


def _for_evaluation(checkpoint: str, stated: Stated, known: Known) -> Overrides:
    choices, values = _said_by_surroundings(checkpoint, stated, known)
    recipe = recipe_of(checkpoint)
    if recipe is not None:
        of_run = recipe.get("choices", {})
        nodes = {"augment"} if "augment" not in stated else set()
        for group in ("model", "data"):
            choice = of_run.get(group)
            if choice in known[group] and _given(stated, group) in (None, choice):
                choices[group] = choice
                nodes.add(group)
        for group in nodes:
            values |= {f"{group}.{key}": value for key, value in recipe[group].items() if key != "_target_"}
        if "data" in nodes:
            values |= {key: recipe.get(key) for key in ("train_split", "val_split", "test_split")}
    if "augment" not in stated and recipe is None:
        model = choices.get("model") or _given(stated, "model") or ""
        seen = preprocessing_of(model, checkpoint) | results.read_sidecar(Path(checkpoint).expanduser())
        values |= {f"augment.{key}": seen[key] for key in CROP_KEYS if key in seen}
    return Overrides(choices, values)


def check_there(checkpoint: str) -> None:
    """See that a checkpoint is a file or a folder, or one of timm's, before anything takes time.

    Raises:
        FileNotFoundError: it is not; a file of nearly that name is.
    """
    path = Path(checkpoint).expanduser()
    if not checkpoint.startswith(TIMM_SCHEME) and not path.exists():
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, 1)
        hint = f"; did you mean '{path.with_name(near[0])}'?" if near else ""
        raise FileNotFoundError(f"there is no checkpoint file {path}{hint}")


def label_of(checkpoint: str) -> str:
    """A word for a checkpoint that may name a directory: default-mixer_digits-digits-seed0, Mixer-B_16."""
    path = Path(checkpoint.removeprefix(TIMM_SCHEME)).expanduser()
    parts = [path.name if checkpoint.startswith(TIMM_SCHEME) else path.stem]
    if recipe_of(checkpoint) is not None:
        folder = (path if path.is_dir() else path.parent).resolve()
        parts = [*folder.parts[-2:], *(["last"] if path.name == results.LAST else [])]
    return re.sub(r"[^\w.+=-]", "_", "-".join(parts))


def recipe_of(checkpoint: str) -> dict[str, Any] | None:
    """The recipe of the run directory that a checkpoint is, or lies in; None if there is none."""
    path = Path(checkpoint).expanduser()
    folder = path if path.is_dir() else path.parent
    try:
        recipe = yaml.safe_load((folder / results.RECIPE).read_text())
    except (OSError, yaml.YAMLError):
        return None
    return (
        recipe if isinstance(recipe, dict) and {"model", "augment", "image_size"} <= recipe.keys() else None
    )


def _said_by_tensors(checkpoint: str, models: Collection[str]) -> Overrides:
    """Of a file whose name says nothing: the one model of its sizes, image size and normalisation."""
    nothing = Overrides({}, {})
    if not Path(checkpoint).expanduser().is_file():
        return nothing
    from mixer_lightning.checkpoints.read import read  # torch: seconds

    try:
        content = read(checkpoint)
    except (ValueError, OSError):  # said when it is loaded
        return nothing
    names = [name for name in content.model.names if name in models] if content.model is not None else []
    if len(names) != 1:
        return nothing
    assert content.model is not None
    values = {"image_size": content.model.image_size}
    values |= {f"augment.{key}": content.preprocessing.get(key) for key in ("mean", "std")}
    return Overrides({"model": names[0]}, {key: value for key, value in values.items() if value is not None})
