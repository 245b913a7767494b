"""Families of conf/model through the engine: each trains, is evaluated, resumes to the same bits, and is exported.

The models are those of conf/model, by their names, with fewer and narrower layers: SMALL changes what timm's own
functions give to the classes of timm, and the parameters that files of conf/model state.
"""

from __future__ import annotations

import copy
import functools
import importlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.layers import GroupNormAct
from timm.models import build_model_with_cfg, byoanet, nfnet, resnetv2
from timm.models._efficientnet_builder import decode_arch_def, round_channels
from torch import Tensor, nn

from conftest import TINY
from mixer_lightning import results
from mixer_lightning.checkpoints import hub, torch_file
from mixer_lightning.checkpoints.export import restore_for_export, write_checked
from mixer_lightning.checkpoints.families import timm_models
from mixer_lightning.checkpoints.restore import Restored, restore
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine.checkpoint import Checkpoints
from mixer_lightning.engine.inference import Network
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.run import train
from mixer_lightning.models import efficientnet, mobilenetv3_isometric
from mixer_lightning.models.catalogue import family_key
from mixer_lightning.models.presets import list_models, model_node


class Small(NamedTuple):
    """Side of the images in pixels, and the numbers with which timm's class, or ours, is built in place of its own."""

    image_size: int
    numbers: Mapping[str, Any] = {}


FOUR = {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}
TRANSFORMER = {"embed_dim": 16, "depth": 2, "num_heads": 2}
MLP_MIXER = {"num_blocks": 2, "embed_dim": 16}
HALO = {
    "blocks": byoanet.model_cfgs["halonet26t"].blocks[::2],
    "width_factor": 0.25,
    "self_attn_kwargs": {"block_size": 2, "halo_size": 1},
}
BIT = {
    "channels": (16, 16, 32, 32),
    "stem_chs": 16,
    "norm_layer": functools.partial(GroupNormAct, num_groups=4),
}
EFFICIENTNET = {
    "block_args": decode_arch_def([["ds_r1_k3_s1_e1_c8_se0.25"], ["ir_r2_k5_s2_e6_c16_se0.25"]]),
    "round_chs_fn": round_channels,
    "num_features": 32,
    "stem_size": 8,
}
NFNET = {"depths": (1, 1, 1, 1), "channels": (16, 16, 32, 32), "group_size": 8, "num_features": 64}

SMALL = {
    "mixer_digits": Small(8, {"num_blocks": 2}),
    "convmixer_96_4": Small(8, {"depth": 2, "dim": 16}),
    "resnet50": Small(32, {"layers": [1, 1, 1, 1], "base_width": 8}),
    "deit_ti16": Small(32, TRANSFORMER),
    "deit_ti7": Small(28, TRANSFORMER),
    "vit_b16": Small(32, TRANSFORMER),
    "vit_b16_dropout": Small(32, TRANSFORMER),
    "resmlp_s12_8": Small(32, {"num_blocks": 2, "hidden_dim": 16}),
    "swin_t": Small(32, {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}),
    "bit_r50x1": Small(64, {"layers": (1, 1, 1, 1), **BIT}),
    "bit_r50x2": Small(64, {"depth": 50, "width": 1}),
    "efficientnet_l2": Small(32, EFFICIENTNET),
    "efficientnet_b6_wide": Small(32, {"width": 0.25, "depth": 0.3}),
    "nfnet_f4": Small(32, {"model_cfg": replace(nfnet.model_cfgs["dm_nfnet_f4"], **NFNET)}),
    "nfnet_f4_plus": Small(32, {"num_blocks": [1, 1, 1, 1], "widths": [24, 32, 32, 32], "group_width": 8}),
    "convnext_t": Small(32, FOUR),
    "convnextv2_nano": Small(32, FOUR),
    "gmlp_s16": Small(32, MLP_MIXER),
    "gmixer_24": Small(32, MLP_MIXER),
    "poolformer_s24": Small(32, FOUR),
    "poolformerv2_s24": Small(32, FOUR),
    "convformer_s18": Small(32, FOUR),
    "caformer_s18": Small(32, FOUR),
    "starnet_s1": Small(32, {"depths": (1, 1, 1, 1), "base_dim": 8}),
    "fastvit_t8": Small(32, {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64)}),
    "halonet_26t": Small(64, HALO),
    "halonet_h3": Small(
        64,
        {
            "block_size": 2,
            "num_blocks": [1, 1, 1, 1],
            "base_width": 8,
            "convolution_stages": 3,
            "final_dim": 16,
        },
    ),
    "mobilenetv3_isometric_p16": Small(32, {"width": 0.25}),
    "wrn_28_2": Small(16, {"depth": 10, "width": 1}),
    "alexnet": Small(63),
    "alexnet_2012": Small(63),
    "lecun_1989": Small(8),
    "lenet_5": Small(16),
}
#: Where a head has a hidden layer, features are what it takes, and `head_name` is its last layer alone.
MLP_HEADS = {"caformer_s18": "head.fc", "convformer_s18": "head.fc"}
#: Written as ONNX, which takes four times as long as its graph; tests/cli/test_export.py does so for other families.
#: Of other models of timm the graph is timm's matter.
IN_ONNX = {
    "deit_ti16",
    "resmlp_s12_8",
    "efficientnet_l2",
    "convnext_t",
    "gmlp_s16",
    "wrn_28_2",
    "alexnet_2012",
    "lenet_5",
}
STEPS = (
    "data=digits",
    "trainer.precision=bf16-mixed",
    "optimizer=adamw",
    "schedule=constant",
    "augment=basic",
    "test_split=test[:3%]",
    "batch_size=4",
    "duration.steps=2",
    "eval_every.steps=2",
    "checkpoint_every.steps=1",
    "ema_decay=0.9",
    "seed=3",
)


def is_timms(model: str) -> bool:
    return "timm_name" in model_node(model)


@pytest.fixture(autouse=True)
def _small() -> Iterator[None]:
    """timm's functions build the small models."""
    with pytest.MonkeyPatch.context() as patch:
        for name in {model_node(model)["timm_name"] for model in SMALL if is_timms(model)}:
            module = importlib.import_module(timm.model_entrypoint(name).__module__)
            patch.setattr(module, "build_model_with_cfg", build_small)
        patch.setattr(resnetv2, "ResNetV2", functools.partial(narrow_bit, resnetv2.ResNetV2))
        for module_name in ("torchvision.models.alexnet", "mixer_lightning.models.alexnet2012"):
            patch.setattr(importlib.import_module(module_name), "nn", NARROW_NN)
        patch.setattr(efficientnet, "B0", efficientnet.B0[:3])
        patch.setattr(mobilenetv3_isometric, "LARGE", mobilenetv3_isometric.LARGE[::3])
        yield


def build_small(cls: Any, variant: str, pretrained: bool, **options: Any) -> Any:
    """timm's `build_model_with_cfg` with the numbers of SMALL before those of its caller."""
    numbers = next(SMALL[model].numbers for model in SMALL if model_node(model).get("timm_name") == variant)
    return build_model_with_cfg(cls, variant, pretrained, **{**options, **copy.deepcopy(numbers)})


def narrow_bit(build: Any, layers: Any, **options: Any) -> nn.Module:
    """timm's ResNetV2 as BiT has it, small."""
    model: nn.Module = build((1, 1, 1, 1), **{**options, **BIT})
    return model


def narrow(width: int) -> int:
    return width // 16 if width > 16 else width


class NarrowConv2d(nn.Conv2d):
    def __init__(self, in_channels: int, out_channels: int, **options: Any) -> None:
        super().__init__(narrow(in_channels), narrow(out_channels), **options)


class NarrowLinear(nn.Linear):
    def __init__(self, in_features: int, out_features: int) -> None:
        super().__init__(narrow(in_features), narrow(out_features))


#: torch.nn for the AlexNets, whose widths are no parameters.
NARROW_NN = SimpleNamespace(**{**vars(nn), "Conv2d": NarrowConv2d, "Linear": NarrowLinear})


def recipe_of(model: str) -> Any:
    small = SMALL[model]
    numbers = {} if is_timms(model) else small.numbers
    words = [f"model.{key}={value}".replace(" ", "") for key, value in numbers.items()]
    given = (*TINY, f"model={model}", *words, *STEPS, f"image_size={small.image_size}")
    return compose_one("train", given)


def copy_after(step: int, patch: pytest.MonkeyPatch, to: Path) -> None:
    """Keep what stands in a run directory after a step has been saved, as where a run is killed then."""
    save = Checkpoints.save

    def saved(self: Checkpoints, trainer: Any, module: Any, **how: Any) -> None:
        save(self, trainer, module, **how)
        if module.step == step:
            shutil.copytree(self.run_dir, to)

    patch.setattr(Checkpoints, "save", saved)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equal weights, statistics, averages and moments."""
    if isinstance(b, Tensor):
        assert torch.equal(a, b), where
    elif isinstance(b, dict):
        assert a.keys() == b.keys(), where
        for key, value in b.items():
            assert_same(a[key], value, f"{where}.{key}")
    else:
        assert a == b, where


def test_every_family_and_every_class_has_a_model_here() -> None:
    def kinds(models: Iterable[str]) -> set[tuple[str, str]]:
        return {(family_key(model), model_node(model)["_target_"]) for model in models}

    assert kinds(SMALL) == kinds(list_models()), "add a model of the new family or class to SMALL"


@pytest.mark.parametrize("model", SMALL)
def test_a_family_trains_resumes_and_is_exported(model: str, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    recipe = recipe_of(model)
    with pytest.MonkeyPatch.context() as patch:
        copy_after(1, patch, again)
        assert train(recipe, whole) == 0
    result = json.loads((whole / results.RESULT).read_text())
    assert 0 <= result["metrics"]["test/top1"] <= 1
    state = torch_file.load(whole / results.LAST)
    assert state["step"] == 2

    assert train(recipe, again) == 0
    resumed = torch_file.load(again / results.LAST)
    for part in ("step", "state_dict", "ema", "optimizer"):
        assert_same(resumed[part], state[part], part)

    restored = restore_for_export(str(whole), to="safetensors")
    images = torch.randn(3, 3, restored.image_size, restored.image_size)
    check_features(model, restored.model, images)
    if is_timms(model):
        check_timms_own(model, restored, images, tmp_path / hub.FILE)
    if model in IN_ONNX or not is_timms(model):
        check_export(restored, images, tmp_path / "model.onnx" if model in IN_ONNX else None)
    check_gradients(restored.model, images)


@torch.no_grad()
def check_features(model: str, ours: nn.Module, images: Tensor) -> None:
    """What few-shot evaluation sees is what the head is given, in float32 and in bfloat16."""
    features = Network(ours, Machine(accelerator="cpu", precision="32-true")).features(images)
    assert features.shape == (3, ours.num_features)
    head = ours.get_submodule(MLP_HEADS.get(model, ours.head_name))
    is_conv = isinstance(head, nn.Conv2d)
    logits = head(features[:, :, None, None]).flatten(1) if is_conv else head(features)
    torch.testing.assert_close(logits, ours(images))
    bf16 = Network(ours, Machine(accelerator="cpu", precision="bf16-mixed"))
    for found, expected in ((bf16.features(images), features), (bf16.logits(images), logits)):
        torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05 * float(expected.abs().max()))


@torch.no_grad()
def check_timms_own(model: str, restored: Restored, images: Tensor, path: Path) -> None:
    """timm's model computes the same from our weights, and ours from the file that the hub would have of timm's."""
    ours, node = restored.model, model_node(model)
    theirs = timm.create_model(**ours.timm_arguments).eval()
    theirs.load_state_dict(ours.state_dict())
    logits = theirs(images)
    torch.testing.assert_close(ours(images), logits)  # in another memory layout
    features = Network(ours, Machine(accelerator="cpu", precision="32-true")).features(images)
    pre_logits = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features, pre_logits)
    name = node["timm_name"]
    if timm_models().get(name) != model or not (weights := timm.list_pretrained(f"{name}.*")):
        return
    save_file(theirs.state_dict(), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(hub, "fetch", lambda name: path)
        fetched = restore(f"timm:{weights[0]}", image_size=restored.image_size)
    assert fetched.name == model
    torch.testing.assert_close(fetched.model(images), logits)


@torch.no_grad()
def check_export(restored: Restored, images: Tensor, onnx: Path | None) -> None:
    """ONNX, or the graph that it is written from, computes the same for another number of images."""
    if onnx is not None:
        written = write_checked(restored, "onnx", onnx)
        assert written.difference is not None
        return
    batch = torch.export.Dim("batch")
    program = torch.export.export(restored.model, (images[:2],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(images), restored.model(images), rtol=1e-4, atol=1e-5)


def check_gradients(model: nn.Module, images: Tensor) -> None:
    """A step in float32 has finite gradients for every parameter."""
    torch.nn.functional.cross_entropy(model.train()(images), torch.arange(3)).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
