"""Weights as other programs save them, written here by those programs' own classes where they are at hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning
import pytest
import timm.utils
import torch
from safetensors.torch import save_file
from small_models import assert_same_logits, digits_model
from torch import nn
from torch.optim.swa_utils import AveragedModel

from mixer_lightning.checkpoints.load import load
from mixer_lightning.checkpoints.read import read

NAMES = ("mixer_digits", "convmixer_96_4")


class Classifier(lightning.LightningModule):
    """A user's own, with a metric and a weighted loss beside the network."""

    def __init__(self, network: nn.Module, attribute: str) -> None:
        super().__init__()
        setattr(self, attribute, network)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(10))
        self.register_buffer("confusion", torch.zeros(10, 10))


def averaged(model: nn.Module) -> dict[str, Any]:
    return AveragedModel(model, use_buffers=True).state_dict()


def optimizer(model: nn.Module) -> dict[str, Any]:
    found = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    found.step()
    return found.state_dict()


#: What is saved of a model that was trained and of its average; the second must be found.
TRAINING_CHECKPOINTS: dict[str, Callable[[nn.Module, nn.Module], dict[str, Any]]] = {
    # torchvision/references/classification/train.py
    "torchvision": lambda model, average: {
        "model": model.state_dict(),
        "optimizer": optimizer(model),
        "model_ema": averaged(average),
        "epoch": 3,
    },
    # facebookresearch/deit, main.py
    "deit": lambda model, average: {
        "model": model.state_dict(),
        "model_ema": average.state_dict(),
        "scaler": {"scale": 1.0},
    },
    # timm/utils/checkpoint_saver.py, with timm.utils.get_state_dict of a ModelEmaV2
    "timm": lambda model, average: {
        "arch": "mixer",
        "state_dict": model.state_dict(),
        "state_dict_ema": timm.utils.get_state_dict(timm.utils.ModelEmaV2(average)),
    },
    "tutorial": lambda model, average: {
        "epoch": 3,
        "model_state_dict": average.state_dict(),
        "optimizer_state_dict": optimizer(model),
        "loss": torch.tensor(0.5),
    },
    "tutorial with an average": lambda model, average: {
        "model_state_dict": model.state_dict(),
        "ema_state_dict": averaged(average),
    },
    "nested": lambda model, average: {
        "checkpoint": {"net": {f"module.{k}": v for k, v in average.state_dict().items()}}
    },
    "averaged alone": lambda model, average: averaged(average),
    "lightning, model": lambda model, average: {"state_dict": Classifier(average, "model").state_dict(), "epoch": 3},
    "lightning, net": lambda model, average: {"state_dict": Classifier(average, "net").state_dict()},
    "lightning, compiled": lambda model, average: {
        "state_dict": {f"backbone._orig_mod.{k}": v for k, v in average.state_dict().items()}
        | {"criterion.weight": torch.ones(10)}
    },
    "lightning, both": lambda model, average: {
        "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()}
        | {f"ema_model.module.{k}": v for k, v in average.state_dict().items()}
        | {"ema_model.n_averaged": torch.tensor(7)}
    },
}  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("program", TRAINING_CHECKPOINTS)
def test_training_checkpoints_of_other_programs_load(tmp_path: Path, program: str, name: str) -> None:
    model, average, other = (digits_model(name, seed=seed) for seed in range(3))
    torch.save(TRAINING_CHECKPOINTS[program](model, average), tmp_path / "checkpoint.pth")
    report = load(other, tmp_path / "checkpoint.pth")
    assert_same_logits(average, other)
    assert report.fresh == []
    assert report.checkpoint.model is not None
    assert report.checkpoint.model.name == name


def test_a_prefix_that_was_taken_off_is_said(tmp_path: Path) -> None:
    state = Classifier(digits_model(), "network").state_dict()
    torch.save({"state_dict": state}, tmp_path / "last.ckpt")
    assert str(read(tmp_path / "last.ckpt")) == (
        "last.ckpt (timm's names under 'network': mixer_digits at 8, 10 classes)"
    )


def test_a_tensor_without_a_place_is_still_refused(tmp_path: Path) -> None:
    state = {**digits_model().state_dict(), "pos_embed": torch.zeros(1, 64, 64)}
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match=r"pos_embed \[1, 64, 64\] has no place"):
        load(digits_model(seed=1), tmp_path / "weights.pth")


# --------------------------------------------------------------------------------------------------- shards


def write_shards(folder: Path, model: nn.Module, *, suffix: str = ".safetensors") -> Path:
    """Two files and their index, as huggingface_hub.save_torch_state_dict writes them."""
    items = sorted(model.state_dict().items())
    stem = "model" if suffix == ".safetensors" else "pytorch_model"
    places: dict[str, str] = {}
    for number, part in enumerate((items[:7], items[7:]), start=1):
        name = f"{stem}-{number:05}-of-00002{suffix}"
        tensors = {key: tensor.contiguous() for key, tensor in part}
        save_file(tensors, folder / name) if suffix == ".safetensors" else torch.save(tensors, folder / name)
        places |= dict.fromkeys(tensors, name)
    index = folder / f"{stem}{suffix}.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": places}))
    return index


@pytest.mark.parametrize("suffix", [".safetensors", ".bin"])
def test_sharded_weights_load_by_their_index(tmp_path: Path, suffix: str) -> None:
    model, other = digits_model(), digits_model(seed=1)
    index = write_shards(tmp_path, model, suffix=suffix)
    report = load(other, index)
    assert_same_logits(model, other)
    assert len(report.checkpoint.shards) == 2


def test_a_folder_as_on_the_hub_stands_for_its_weights(tmp_path: Path) -> None:
    model, other = digits_model(), digits_model(seed=1)
    write_shards(tmp_path, model)
    load(other, tmp_path)
    assert_same_logits(model, other)
    whole = tmp_path / "whole"
    whole.mkdir()
    save_file(model.state_dict(), whole / "model.safetensors")
    load(digits_model(seed=1), whole)


def test_a_wrong_index_is_named(tmp_path: Path) -> None:
    index = write_shards(tmp_path, digits_model())
    content = json.loads(index.read_text())
    places = content["weight_map"]
    wrong = {
        "has no weight_map": {"metadata": {}},
        "names '../model.safetensors', which is no file of weights beside it": {
            "weight_map": places | {"norm.bias": "../model.safetensors"}
        },
        "names 'model.py'": {"weight_map": places | {"norm.bias": "model.py"}},
        "is missing, which model.safetensors.index.json names": {
            "weight_map": places | {"norm.bias": "model-00003-of-00002.safetensors"}
        },
        "names tensors that its files do not hold: extra": {
            "weight_map": places | {"extra": next(iter(places.values()))}
        },
    }
    for message, written in wrong.items():
        index.write_text(json.dumps(written))
        with pytest.raises((ValueError, FileNotFoundError), match=message):
            read(index)
    index.write_text("[" * 100_000)
    with pytest.raises(ValueError, match="is not readable JSON"):
        read(index)
