"""What a checkpoint's name and surroundings say about the recipe that continues it; mostly read without torch.

A run directory holds its recipe; a JSON file lies beside an export; timm's names and those of the published files name
the model; of other files the shapes of the tensors do. What the user states on the command line has the last word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any

import yaml

from mixer_lightning import results
from mixer_lightning.config.overrides import quoted, unquoted, values_of

IMAGENET = (
    [0.485, 0.456, 0.406],
    [0.229, 0.224, 0.225],
)  # ConvMixer's pixels; Mixer's are Google's, .5 and .5
DEVICE_BATCH = 64  # of conf/transfer; a smaller batch is not cut up
AS_THEY_ARE = ([0.0, 0.0, 0.0], [1.0, 1.0, 1.0])  # those of Alibaba-MIIL's Mixer


def implied(overrides: Sequence[str], models: Collection[str]) -> list[str]:
    """Overrides that `checkpoint=...` among `overrides` implies, for keys that are not among them.

    `models` are the choices of conf/model. A checkpoint that says nothing implies nothing.

    Raises:
        ValueError: a sweep names several checkpoints that imply different things.
    """
    return _agreed(overrides, models, _implied)


def implied_for_evaluation(overrides: Sequence[str], models: Collection[str]) -> list[str]:
    """`implied`, and what the recipe of a run directory says besides: model, data, splits and views; and a name.

    With other data on the command line the recipe's data and splits count for nothing, and so on.
    """
    lines = _agreed(overrides, models, _implied_for_evaluation)
    given = _by_key(overrides)
    names = _checkpoints(given.get("checkpoint", ""))
    if names[0] in ("", "null") or "name" in given:
        return lines
    evals = re.sub(r"[^\w]+", "-", given.get("evals", "accuracy")).strip("-")
    more = f"-and-{len(names) - 1}-more" if len(names) > 1 else ""
    return [*lines, override("name", f"evaluate/{label_of(names[0])}{more}-{evals}")]


def _agreed(
    overrides: Sequence[str],
    models: Collection[str],
    imply: Callable[[Sequence[str], Collection[str]], list[str]],
) -> list[str]:
    """What every checkpoint of a sweep implies; of one, what that does."""
    others = [line for line in overrides if line.partition("=")[0].lstrip("+") != "checkpoint"]
    names = _checkpoints(_by_key(overrides).get("checkpoint", ""))
    first, *rest = ([*imply([*others, override("checkpoint", name)], models)] for name in names)
    for name, lines in zip(names[1:], rest, strict=True):
        if differing := sorted({line.partition("=")[0] for line in {*first} ^ {*lines}}):
            raise ValueError(
                f"checkpoint: {names[0]} and {name} ask for another {', '.join(differing[:5])}"
                f"{' and more' if len(differing) > 5 else ''}: start one program for each"
            )
    return first


def _checkpoints(value: str) -> list[str]:
    """The names that `checkpoint=<value>` gives: one, or those of a sweep."""
    return values_of(f"checkpoint={value}") or [unquoted(value)]


def _implied(overrides: Sequence[str], models: Collection[str]) -> list[str]:
    given = _by_key(overrides)
    name = unquoted(given.get("checkpoint", ""))
    if name in ("", "null"):
        return []
    recipe, exported = recipe_of(name), results.read_sidecar(Path(name).expanduser())
    found: dict[str, Any] = {}
    if exported:
        model = exported.get("model")
        if model in models:
            found["model"] = model
        if "image_size" in exported and given.get("model", model) == model:
            found["image_size"] = exported["image_size"]
        found |= {f"augment.{key}": exported[key] for key in ("mean", "std") if key in exported}
    elif recipe is not None:
        model = recipe.get("choices", {}).get("model")
        if model in models:
            found["model"] = model
        if given.get("model", model) == model:
            found["image_size"] = recipe["image_size"]
        found["augment.mean"], found["augment.std"] = recipe["augment"]["mean"], recipe["augment"]["std"]
    else:
        model = given.get("model") or model_named(name, models)
        if model is None:
            found = _said_by_tensors(name, models)
        else:
            found["model"] = model
            if model.startswith("convmixer"):
                found["augment.mean"], found["augment.std"] = IMAGENET
            elif "miil" in name:
                found["augment.mean"], found["augment.std"] = AS_THEY_ARE
    batch_size = given.get("batch_size", "")
    if batch_size.isdecimal() and int(batch_size) < DEVICE_BATCH:
        found["device_batch"] = batch_size
    return [f"{key}={value}".replace(" ", "") for key, value in found.items() if key not in given]


def _implied_for_evaluation(overrides: Sequence[str], models: Collection[str]) -> list[str]:
    given = _by_key(overrides)
    checkpoint = unquoted(given.get("checkpoint", ""))
    if checkpoint in ("", "null"):
        return []
    lines = _implied(overrides, models)
    found: dict[str, Any] = {}
    recipe = recipe_of(checkpoint)
    if recipe is not None:
        choices = recipe.get("choices", {})
        nodes = {"augment": recipe["augment"]} if "augment" not in given else {}
        if given.get("model", choices.get("model")) == choices.get("model") in models:
            nodes["model"] = recipe["model"]
        if "data" in choices and given.get("data", choices["data"]) == choices["data"]:
            nodes["data"] = recipe["data"]
            found |= {key: recipe.get(key) for key in ("train_split", "val_split", "test_split")}
            lines += [f"data={choices['data']}"] if "data" not in given else []
        for group, node in nodes.items():
            found |= {f"{group}.{key}": value for key, value in node.items() if key != "_target_"}
    exported = results.read_sidecar(Path(checkpoint).expanduser())
    if "augment" not in given:
        views = ("eval_crop", "eval_resize", "eval_interpolation")
        found |= {f"augment.{key}": exported[key] for key in views if key in exported}
    taken = given.keys() | {line.partition("=")[0] for line in lines}
    return lines + [override(key, value) for key, value in found.items() if key not in taken]


def check_there(checkpoint: str) -> None:
    """See that a checkpoint is a file or a folder, or one of timm's, before anything takes time.

    Raises:
        FileNotFoundError: it is not; a file of nearly that name is.
    """
    path = Path(checkpoint).expanduser()
    if not checkpoint.startswith("timm:") and not path.exists():
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, 1)
        hint = f"; did you mean '{path.with_name(near[0])}'?" if near else ""
        raise FileNotFoundError(f"there is no checkpoint file {path}{hint}")


def label_of(checkpoint: str) -> str:
    """A word for a checkpoint that may name a directory: default-mixer_digits-digits-seed0, Mixer-B_16."""
    path = Path(checkpoint.removeprefix("timm:")).expanduser()
    words = [path.name if checkpoint.startswith("timm:") else path.stem]
    if recipe_of(checkpoint) is not None:
        folder = (path if path.is_dir() else path.parent).resolve()
        words = [*folder.parts[-2:], *(["last"] if path.name == results.LAST else [])]
    return re.sub(r"[^\w.+=-]", "_", "-".join(words))


def override(key: str, value: Any) -> str:
    """A word of Hydra's command line: key=null, key=true, key=[0.5,0.5], key='a text'."""
    return f"{key}={_written(value)}"


def _by_key(overrides: Sequence[str]) -> dict[str, str]:
    return {line.partition("=")[0].lstrip("+"): line.partition("=")[2] for line in overrides}


def _written(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list | tuple):
        return f"[{','.join(map(_written, value))}]"
    if isinstance(value, dict):
        return f"{{{','.join(f'{key}:{_written(each)}' for key, each in value.items())}}}"
    return repr(value)


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


def _said_by_tensors(checkpoint: str, models: Collection[str]) -> dict[str, Any]:
    """Overrides for a file whose name says nothing: the one model of its sizes, image size and normalisation."""
    if not Path(checkpoint).expanduser().is_file():
        return {}
    from mixer_lightning.checkpoints.read import read  # torch: seconds

    try:
        content = read(checkpoint)
    except (ValueError, OSError):  # said when it is loaded
        return {}
    names = [name for name in content.model.names if name in models] if content.model is not None else []
    if len(names) != 1:
        return {}
    assert content.model is not None
    stated = {"image_size": content.model.image_size}
    stated |= {f"augment.{key}": content.preprocessing.get(key) for key in ("mean", "std")}
    return {"model": names[0]} | {key: value for key, value in stated.items() if value is not None}


def model_named(checkpoint: str, models: Collection[str]) -> str | None:
    """The model that a timm name (timm:mixer_b16_224.goog_in21k) or a published file (Mixer-B_16.npz) is called by."""
    name = checkpoint.removeprefix("timm:").rpartition("/")[2].lower()
    name = re.sub(r"^mixer-([sblh])_(\d+)", r"mixer_\1\2", name)
    found = [model for model in models if name == model or re.match(rf"{model}[._-]", name)]
    return max(found, key=len, default=None)
