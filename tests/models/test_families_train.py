"""Families of conf/model through the engine: it trains, is evaluated, resumes to the same bits, and is exported.

The models are those of conf/model, by their names, with fewer and narrower layers: `SHRINK` changes what timm's own
functions give to the classes of timm.
"""

from __future__ import annotations

import functools
import importlib
import json
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import Tensor, nn

from conftest import TINY
from mixer_lightning import results
from mixer_lightning.checkpoints import torch_file
from mixer_lightning.checkpoints.export import restore_for_export
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine import closing
from mixer_lightning.engine.callbacks import MetricsLog
from mixer_lightning.engine.inference import Network
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.run import train
from mixer_lightning.models.presets import model_node
from mixer_lightning.reports import first_batch

FOUR = {"depths": (1, 1, 1, 1), "dims": (8, 16, 32, 64)}
TRANSFORMER = {"embed_dim": 16, "depth": 2, "num_heads": 2}
HALO = {"width_factor": 0.25, "self_attn_kwargs": {"block_size": 2, "halo_size": 1}}

#: Model, side of its images in pixels, timm's module, and what its class is built with in place of the full size.
SHRINK: dict[str, tuple[int, str, dict[str, Any]]] = {
    "resnet50": (32, "resnet", {"layers": [1, 1, 1, 1], "base_width": 8}),
    "deit_ti16": (32, "vision_transformer", TRANSFORMER),
    "vit_b16_dropout": (32, "vision_transformer", TRANSFORMER),
    "swin_t": (32, "swin_transformer", {"embed_dim": 8, "depths": (2, 1), "num_heads": (1, 2)}),
    "convnext_t": (32, "convnext", FOUR),
    "convnextv2_nano": (32, "convnext", FOUR),
    "gmlp_s16": (32, "mlp_mixer", {"num_blocks": 2, "embed_dim": 16}),
    "poolformer_s24": (32, "metaformer", FOUR),
    "caformer_s18": (32, "metaformer", FOUR),
    "starnet_s1": (32, "starnet", {"depths": (1, 1, 1, 1), "base_dim": 8}),
    "fastvit_t8": (32, "fastvit", {"layers": (1, 1, 1, 1), "embed_dims": (8, 16, 32, 64)}),
    "halonet_26t": (64, "byoanet", HALO),
}
#: Where a head has a hidden layer, features are what it takes, and `head_name` is its last layer alone.
MLP_HEADS = {"caformer_s18": "head.fc"}
STEPS = (
    "data=digits",
    "optimizer=adamw",
    "schedule=constant",
    "augment=basic",
    "test_split=test[:10%]",
    "batch_size=8",
    "duration.steps=4",
    "eval_every.steps=4",
    "checkpoint_every.steps=4",
    "ema_decay=0.9",
    "seed=3",
)


@pytest.fixture(autouse=True)
def _shrunken() -> Iterator[None]:
    """timm's functions build the small models; a run draws no pictures."""
    with pytest.MonkeyPatch.context() as patch:
        for module_name in {module_name for _, module_name, _ in SHRINK.values()}:
            module = importlib.import_module(f"timm.models.{module_name}")
            patch.setattr(module, "build_model_with_cfg", smaller(module.build_model_with_cfg))
        patch.setattr(closing, "draw_pictures", lambda *_: None)
        patch.setattr(first_batch, "draw", lambda *_: None)
        yield


def smaller(build: Any) -> Any:
    """timm's `build_model_with_cfg` with the numbers of SHRINK before those of its caller."""
    numbers = {timm_name(model): options for model, (*_, options) in SHRINK.items()}

    @functools.wraps(build)
    def built(cls: Any, variant: str, pretrained: bool, **options: Any) -> Any:
        return build(cls, variant, pretrained, **{**options, **numbers[variant]})

    return built


def timm_name(model: str) -> str:
    return model_node(model)["timm_name"]


def run(run_dir: Path, model: str, *words: str) -> int:
    given = (*TINY, f"model={model}", *STEPS, f"image_size={SHRINK[model][0]}", *words)
    return train(compose_one("train", given), run_dir)


def interrupt(patch: pytest.MonkeyPatch, step: int) -> None:
    """Ask the next runs to stop at a step."""
    on_step = MetricsLog.on_step

    def interrupted(self: MetricsLog, trainer: Any, module: Any) -> None:
        on_step(self, trainer, module)
        if module.step == step:
            signal.raise_signal(signal.SIGTERM)

    patch.setattr(MetricsLog, "on_step", interrupted)


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


@pytest.mark.parametrize("model", SHRINK)
def test_a_family_trains_resumes_and_is_exported(model: str, tmp_path: Path) -> None:
    whole, again = tmp_path / "whole", tmp_path / "again"
    assert run(whole, model) == 0
    result = json.loads((whole / results.RESULT).read_text())
    assert 0 <= result["metrics"]["test/top1"] <= 1
    state = torch_file.load(whole / results.LAST)
    assert all(value.isfinite().all() for value in state["state_dict"].values())

    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, 2)
        assert run(again, model) == 143
    assert run(again, model) == 0
    resumed = torch_file.load(again / results.LAST)
    for part in ("step", "state_dict", "ema", "optimizer"):
        assert_same(resumed[part], state[part], part)

    restored = restore_for_export(str(whole), to="safetensors")
    images = torch.randn(3, 3, restored.image_size, restored.image_size)
    check_features(model, restored.model, images)
    check_export(restored.model, images)


@torch.no_grad()
def check_features(model: str, ours: nn.Module, images: Tensor) -> None:
    """What few-shot evaluation sees: timm's own pre-logits, and what the head of ours is given."""
    features = Network(ours, Machine(accelerator="cpu", precision="32-true")).features(images)
    assert features.shape == (3, ours.num_features)
    logits = ours(images)
    head = ours.get_submodule(MLP_HEADS.get(model, ours.head_name))
    torch.testing.assert_close(head(features), logits)
    name = timm_name(model)
    size = {"img_size": images.shape[-1]} if timm.get_pretrained_cfg(name).fixed_input_size else {}
    theirs = timm.create_model(name, num_classes=10, **size).eval()
    theirs.load_state_dict(ours.state_dict())
    expected = theirs.forward_head(theirs.forward_features(images), pre_logits=True)
    torch.testing.assert_close(features, expected)  # in another memory layout
    torch.testing.assert_close(logits, theirs(images))


@torch.no_grad()
def check_export(model: nn.Module, images: Tensor) -> None:
    """The graph that ONNX is written from computes the same for another number of images."""
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (images[:2],), dynamic_shapes=({0: batch},))
    torch.testing.assert_close(program.module()(images), model(images), rtol=1e-4, atol=1e-5)
