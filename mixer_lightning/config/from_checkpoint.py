"""What a checkpoint says about the recipe that continues it: its model, image size, normalisation and view.

What a file states goes before what lies beside it, and that before its name (checkpoints/metadata.py). What the user
states on the command line has the last word.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mixer_lightning import results
from mixer_lightning.checkpoints import hub
from mixer_lightning.checkpoints.families import (
    PREPROCESSING,
    TIMM_SCHEME,
    Family,
    family_of_model,
    family_of_target,
    model_named,
    preprocessing_of,
)
from mixer_lightning.checkpoints.run_format import recipe_beside
from mixer_lightning.files import sha256
from mixer_lightning.models.presets import list_models, model_node

if TYPE_CHECKING:
    from mixer_lightning.checkpoints.read import Checkpoint

#: Of what a checkpoint may say of its images: what holds for every crop, and how they are cropped for evaluation.
CROP_KEYS = tuple(key for key in PREPROCESSING if key.startswith("eval_"))
IMAGE_KEYS = tuple(key for key in PREPROCESSING if key not in CROP_KEYS)

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


class _Facts(NamedTuple):
    """What is known of a checkpoint: what the file states, else what lies beside it, else what its name says.

    `sizes` are parameters of a model of no file of conf/model, `augment` those of Augment; `recipe` is of the run that
    wrote it.
    """

    model: str | None
    sizes: dict[str, Any]
    image_size: int | None
    augment: dict[str, Any]
    recipe: dict[str, Any] | None


def _facts(checkpoint: str, given_model: str | None, models: Collection[str]) -> _Facts:
    """Of a file that is there, as `checkpoints.read` finds it.

    Raises:
        ValueError: what is stated in the file or beside it makes no sense.
    """
    content = _content(checkpoint, given_model)
    if content is None:
        return _facts_without_tensors(checkpoint, given_model, models)
    if content.recipe is not None:
        from mixer_lightning.checkpoints.metadata import of_run  # torch: seconds

        facts = _of_recipe(content.recipe, given_model, models)
        return facts._replace(augment=of_run(facts.augment))
    there = content.model
    if there is None:  # of no family that tensors tell
        model = given_model or content.model_name
        size = content.image_size if given_model in (None, content.model_name) else None
        return _Facts(model, {}, size, content.preprocessing, None)
    size = there.image_size or content.image_size
    if given_model is not None:
        of_user = given_model in models and given_model not in list_models()
        fits = given_model in there.names or of_user
        augment = content.preprocessing if fits else preprocessing_of(given_model, checkpoint)
        return _Facts(given_model, {}, size if fits else None, augment, None)
    if content.model_name in models:
        return _Facts(content.model_name, {}, size, content.preprocessing, None)
    sizes: dict[str, Any] = {**there.sizes}
    if there.family.has_activation and there.activation is not None:
        sizes["activation"] = there.activation
    return _Facts(closest_model(there.family, there.sizes, models), sizes, size, content.preprocessing, None)


def _content(checkpoint: str, given_model: str | None) -> Checkpoint | None:
    """What a file holds, without its tensors; None where there is none, and for a name of timm's, fetched later."""
    path = Path(checkpoint).expanduser()
    folder = path if path.is_dir() else path.parent
    names = (results.RECIPE, results.BEST, results.LAST, "config.json")
    around = (path, results.sidecar_path(path), *(folder / name for name in names))
    return _read(
        checkpoint, given_model, tuple(each.stat().st_mtime_ns if each.exists() else 0 for each in around)
    )


@lru_cache(maxsize=16)  # the jobs of a sweep and the tasks of a suite ask for the same
def _read(checkpoint: str, given_model: str | None, modified: tuple[int, ...]) -> Checkpoint | None:
    if not modified[0]:
        return None
    from mixer_lightning.checkpoints.read import read  # torch: seconds
    from mixer_lightning.checkpoints.recognise import recognised

    try:
        return replace(recognised(read(checkpoint), model=given_model), tensors={})
    except FileNotFoundError:  # a run directory without weights
        return None


def _facts_without_tensors(checkpoint: str, given_model: str | None, models: Collection[str]) -> _Facts:
    """Of a name of timm's, or where only the recipe of the run is left: without torch."""
    recipe = recipe_of(checkpoint)
    if recipe is not None:
        return _of_recipe(recipe, given_model, models)
    named = model_named(checkpoint, models)
    model = given_model or named
    if checkpoint.startswith(TIMM_SCHEME) and model == named and family_of_model(model or "") is None:
        weights = checkpoint.removeprefix(TIMM_SCHEME)
        return _Facts(model, {}, hub.image_size(weights), hub.preprocessing(weights), None)
    return _Facts(model, {}, None, preprocessing_of(model or "", checkpoint), None)


def _of_recipe(recipe: dict[str, Any], given_model: str | None, models: Collection[str]) -> _Facts:
    node, augment, choices = (
        part if isinstance(part := recipe.get(key), dict) else {} for key in ("model", "augment", "choices")
    )
    model = choices.get("model")
    if given_model not in (None, model):
        return _Facts(given_model, {}, None, augment, recipe)
    sizes = {key: value for key, value in node.items() if key != "_target_"}
    if model not in models:
        family = family_of_target(str(node.get("_target_")))
        model = closest_model(family, sizes, models) if family is not None else None
    elif model in list_models() and model_node(model)["_target_"] != node.get("_target_"):
        sizes = {}
    return _Facts(model, sizes if model else {}, recipe.get("image_size"), augment, recipe)


def closest_model(family: Family, sizes: Mapping[str, Any], models: Collection[str]) -> str | None:
    """The one of `models` of a family that has most of these parameters: a start for one of other sizes."""
    nodes = {name: model_node(name) for name in sorted(models) if family_of_model(name) is family}
    return max(nodes, key=lambda name: sum(nodes[name][k] == v for k, v in sizes.items()), default=None)


def _said_of_model(facts: _Facts, stated: Stated, models: Collection[str]) -> Overrides:
    """Model, image size and normalisation.

    Raises:
        ValueError: an activation is needed, which nothing tells.
    """
    node = model_node(facts.model) if facts.sizes and facts.model in list_models() else {}
    if "activation" in node and "activation" not in facts.sizes and "model.activation" not in stated:
        sizes = ", ".join(f"{key} {size}" for key, size in facts.sizes.items())
        raise ValueError(
            f"checkpoint: it does not tell the activation of its {node['_target_'].rpartition('.')[2]} ({sizes}): say "
            "model.activation=gelu or model.activation=relu"
        )
    values: dict[str, Any] = {f"model.{key}": value for key, value in facts.sizes.items()}
    if facts.image_size is not None:
        values["image_size"] = facts.image_size
    values |= {f"augment.{key}": facts.augment[key] for key in IMAGE_KEYS if key in facts.augment}
    is_choice = facts.model is not None and facts.model in models
    return Overrides({"model": str(facts.model)} if is_choice else {}, values)


def _for_finetuning(checkpoint: str, stated: Stated, known: Known) -> Overrides:
    return _said_of_model(_facts(checkpoint, _given(stated, "model"), known["model"]), stated, known["model"])


def _for_evaluation(checkpoint: str, stated: Stated, known: Known) -> Overrides:
    facts = _facts(checkpoint, _given(stated, "model"), known["model"])
    choices, values = _said_of_model(facts, stated, known["model"])
    if "augment" not in stated:
        keys = facts.augment if facts.recipe is not None else CROP_KEYS
        values |= {f"augment.{key}": facts.augment[key] for key in keys if key in facts.augment}
        values.pop("augment._target_", None)
    if facts.recipe is not None:
        of_run = facts.recipe.get("choices")
        data = of_run.get("data") if isinstance(of_run, dict) else None
        node = facts.recipe.get("data")
        if data in known["data"] and _given(stated, "data") in (None, data) and isinstance(node, dict):
            choices["data"] = str(data)
            values |= {f"data.{key}": value for key, value in node.items() if key != "_target_"}
            values |= {key: facts.recipe.get(key) for key in ("train_split", "val_split", "test_split")}
    return Overrides(choices, values)


def check_there(checkpoint: str) -> None:
    """See that a checkpoint is a file, a folder with one, or one of timm's, before anything takes time.

    Raises:
        FileNotFoundError: it is not; a file of nearly that name is.
        ValueError: timm has no weights of that name.
    """
    path = Path(checkpoint).expanduser()
    if checkpoint.startswith(TIMM_SCHEME):
        hub.check(checkpoint.removeprefix(TIMM_SCHEME))
    elif path.is_dir():
        hub.file_in(path)
    elif not path.exists():
        beside = [each.name for each in path.parent.iterdir()] if path.parent.is_dir() else []
        near = difflib.get_close_matches(path.name, beside, 1)
        hint = f"; did you mean '{path.with_name(near[0])}'?" if near else ""
        raise FileNotFoundError(f"there is no checkpoint file {path}{hint}")


def digest_of(checkpoint: str) -> str | None:
    """What tells a checkpoint from another one under its name; None where it is gone, and for timm's, which stay."""
    if checkpoint.startswith(TIMM_SCHEME):
        return None
    try:
        files = hub.files_of(Path(checkpoint).expanduser())
        return _digest(*((each, each.stat().st_mtime_ns, each.stat().st_size) for each in files))
    except FileNotFoundError:
        return None


@lru_cache(maxsize=16)  # the runs of a suite ask for the same
def _digest(*files: tuple[Path, int, int]) -> str:
    return sha256(path for path, *_ in files)


def refuse_replaced(checkpoint: str | None, digest: str | None, run_dir: Path) -> None:
    """See that what was made in `run_dir` from a checkpoint of this `digest_of` was made from the one there is now.

    One that is gone, or whose digest is not known, is no other one.

    Raises:
        ValueError: another one has taken its place.
    """
    if checkpoint is not None and digest is not None and digest_of(checkpoint) not in (digest, None):
        raise ValueError(
            f"{run_dir} was begun with other weights than {checkpoint} holds now. Give this one a name of its own "
            "(name=<word>), delete that directory, or put the weights back that it was begun with"
        )


def label_of(checkpoint: str) -> str:
    """A word for a checkpoint that may name a directory: default-mixer_digits-digits-seed0, Mixer-B_16."""
    path = Path(checkpoint.removeprefix(TIMM_SCHEME)).expanduser()
    parts = [path.name if checkpoint.startswith(TIMM_SCHEME) else path.stem]
    if recipe_of(checkpoint) is not None:
        folder = (path if path.is_dir() else path.parent).resolve()
        parts = [*folder.parts[-2:], *(["last"] if path.name == results.LAST else [])]
    return re.sub(r"[^\w.+=-]", "_", "-".join(parts))


def labels_of(checkpoints: Sequence[str]) -> list[str]:
    """Such a word for each of several, no two the same: w-1 and w-2 for a/w.npz and b/w.npz."""
    words = [label_of(checkpoint) for checkpoint in checkpoints]
    labels: list[str] = []
    for word in words:
        numbered = (f"{word}-{number}" for number in count(1))
        labels.append(
            word
            if words.count(word) == 1
            else next(each for each in numbered if each not in {*words, *labels})
        )
    return labels


def recipe_of(checkpoint: str) -> dict[str, Any] | None:
    """The recipe of the run directory that a checkpoint is, or lies in; None if there is none."""
    return recipe_beside(Path(checkpoint).expanduser())
