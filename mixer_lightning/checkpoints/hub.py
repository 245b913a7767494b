"""Weights by timm's names, such as timm:mixer_b16_224.goog_in21k: from the Hugging Face hub or its cache here."""

from __future__ import annotations

import difflib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.checkpoints.families import (
    FAMILIES,
    TIMM_SCHEME,
    Family,
    family_of_timm,
    timm_models,
)
from mixer_lightning.files import from_json

FILE = "model.safetensors"
BIN_FILE = "pytorch_model.bin"  # what timm's save_for_hf writes unless told otherwise
TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar")
INDEX_SUFFIX = ".index.json"  # names the shard of each tensor


def names() -> list[str]:
    """timm's published weights of models of conf/model, as <timm's model>.<weights>."""
    import timm

    patterns = [f"{family.timm_prefix}*" for family in FAMILIES] + [f"{name}.*" for name in timm_models()]
    return [str(name) for name in timm.list_pretrained(patterns)]


def file_in(folder: Path) -> Path:
    """The file of weights that a folder stands for: of a run its best, else its last; one as on the hub.

    Raises:
        FileNotFoundError: it holds none of them.
    """
    for name in (results.BEST, results.LAST, f"{FILE}{INDEX_SUFFIX}", FILE, BIN_FILE):
        if (folder / name).is_file():
            return folder / name
    raise FileNotFoundError(
        f"{folder} holds neither {results.BEST} nor {results.LAST} nor {FILE}: give a run directory, or a file of "
        "weights"
    )


def files_of(checkpoint: Path) -> list[Path]:
    """The file that a folder or a file of weights stands for, and the shards that it names.

    Raises:
        FileNotFoundError: one is not there.
    """
    path = file_in(checkpoint) if checkpoint.is_dir() else checkpoint
    shards = {*weight_map(path).values()} if path.name.endswith(INDEX_SUFFIX) else ()
    return [path, *(path.with_name(name) for name in sorted(shards))]


def weight_map(index: Path) -> dict[str, str]:
    """Of an index of Hugging Face's, {"weight_map": {tensor: file}}: the name of each tensor's file beside it.

    Raises:
        ValueError: it is no such index, or names what does not lie beside it.
    """
    content = from_json(index.read_text(encoding="utf-8", errors="replace"), str(index))
    places = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(places, dict) or not places:
        raise ValueError(f"{index} has no weight_map, which says in which file each tensor is")
    for name in map(str, places.values()):
        if Path(name).name != name or Path(name).suffix not in (".safetensors", *TORCH_SUFFIXES):
            raise ValueError(f"{index} names '{name}', which is no file of weights beside it")
    return {key: str(name) for key, name in places.items()}


def check(name: str) -> None:
    """ValueError for what is none of `names`."""
    _config(name)


def fetch(name: str) -> Path:
    """The file with the weights of one of `names`: from the cache of huggingface_hub, else downloaded into it.

    Raises:
        ValueError: timm has no such weights.
        FileNotFoundError: they are not here and cannot be fetched; the message says where to get them.
    """
    from huggingface_hub import hf_hub_download

    repository = _config(name)["hf_hub_id"]
    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would log each retry, and the error below tells of them all
    try:
        for here_only in (True, False):
            try:
                return Path(hf_hub_download(repository, FILE, local_files_only=here_only))
            except Exception as error:  # no network, no entry, no room: of many classes
                reason = _root(error)
    finally:
        logger.setLevel(level)
    raise FileNotFoundError(
        f"{TIMM_SCHEME}{name} is not on this machine and cannot be fetched ({reason}). Where there is a "
        f"network, download {FILE} and config.json from https://huggingface.co/{repository}, "
        f"put them into one folder here, and give the file: checkpoint=<folder>/{FILE}"
    )


def preprocessing(name: str) -> dict[str, Any]:
    """What images the weights of one of `names` were trained for, as parameters of Augment."""
    return to_augment_args(_config(name))


def usual_preprocessing(model: str) -> dict[str, Any]:
    """What images timm's first weights of a file of conf/model take; empty for a model that is not timm's."""
    import timm

    timm_name = {ours: theirs for theirs, ours in timm_models().items()}.get(model)
    return to_augment_args(timm.get_pretrained_cfg(timm_name).to_dict()) if timm_name is not None else {}


def image_size(name: str) -> int:
    """Side in pixels of the images that the weights of one of `names` were trained on last."""
    return int(_config(name)["input_size"][-1])


def validation_view(name: str) -> dict[str, float]:
    """Where timm validates the weights of one of `names` on other images than they were trained on: how.

    `image_size` in pixels and `eval_crop`; empty where timm does not.
    """
    config = _config(name)
    size, crop = config.get("test_input_size"), config.get("test_crop_pct")
    if size is None and crop is None:
        return {}
    return {
        "image_size": int((size or config["input_size"])[-1]),
        "eval_crop": float(crop if crop is not None else config["crop_pct"]),
    }


def read_config(path: Path, family: Family | None) -> dict[str, Any]:
    """The preprocessing from the config.json in the folder of a file of weights, as on the hub; empty without one.

    Of a model that tensors do not tell, `family` None, also its file of conf/model as `model`, and `image_size`.

    Raises:
        ValueError: it is timm's, and a value in it makes no sense.
    """
    try:
        config = json.loads((path.parent / "config.json").read_text(encoding="utf-8"))
        model = timm_models().get(config["architecture"])
        if family_of_timm(config["architecture"]) is not family or (family is None and model is None):
            return {}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):  # none, or another's
        return {}
    try:
        stated = config.get("pretrained_cfg", config)
        told = to_augment_args(stated)
        if family is None:
            told["model"] = model
            if "input_size" in stated:
                told["image_size"] = int(stated["input_size"][-1])
        return told
    except (ValueError, TypeError, KeyError, IndexError) as error:
        raise ValueError(
            f"{path.parent / 'config.json'}: {error}: take it away, or fetch it again"
        ) from error


def to_augment_args(config: Mapping[str, Any]) -> dict[str, Any]:
    """timm's pretrained_cfg as parameters of data/transforms.py's Augment."""
    found: dict[str, Any] = {key: [float(x) for x in config[key]] for key in ("mean", "std") if key in config}
    if "crop_pct" in config:
        found["eval_crop"] = float(config["crop_pct"])
    if config.get("crop_mode") == "squash":
        found["eval_resize"] = "square"
    if config.get("interpolation") in ("bilinear", "bicubic"):
        found |= {"eval_interpolation": config["interpolation"], "eval_rounding": "torchvision"}
    return found


def _root(error: BaseException) -> str:
    """The first line of what an error was caused by in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")


def _config(name: str) -> dict[str, Any]:
    import timm

    known = names()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3, cutoff=0.6)
        hint = f"did you mean {' or '.join(close)}?" if close else "`mixer models` names those that it has"
        raise ValueError(f"timm has no weights '{name}' of a model of conf/model: {hint}")
    config = timm.get_pretrained_cfg(name)
    return {**config.to_dict(), "hf_hub_id": config.hf_hub_id}
