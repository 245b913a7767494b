"""One entry a family: every model of ours has one, and timm and the conf folder know what it names."""

from __future__ import annotations

import subprocess
import sys

import pytest
import timm
import torch

from mixer_lightning.checkpoints.describe import describe
from mixer_lightning.checkpoints.families import (
    FAMILIES,
    Family,
    family_of_model,
    family_of_timm,
    model_named,
    preprocessing_of,
)
from mixer_lightning.models.presets import build_model, list_models

by_name = pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
# Those of which tensors tell all sizes; checkpoints/recognise.py compares others as a whole.
OURS = [name for name in list_models() if family_of_model(name) is not None]


def test_it_does_not_import_torch() -> None:
    code = (
        "import sys; from mixer_lightning.checkpoints.families import preprocessing_of as f, model_named;"
        "f('mixer_b16', 'x'); model_named('Mixer-B_16.npz', ['mixer_b16']); sys.exit('torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_the_models_that_tensors_tell() -> None:
    assert {name.partition("_")[0] for name in OURS} == {"mixer", "convmixer", "resmlp"}


@pytest.mark.parametrize("name", OURS)
def test_every_model_of_ours_is_recognised(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name, num_classes=7)
    family = family_of_model(name)
    assert family is not None
    found = describe(model.state_dict())
    assert found is not None
    assert (found.family, found.num_classes) == (family, 7)
    assert name in found.names
    activation = {"activation": model.activation} if family.has_activation else {}
    with torch.device("meta"):
        again = family.build(found.sizes | activation, 7, model.image_size)
    assert type(again) is type(model)
    assert {k: v.shape for k, v in again.state_dict().items()} == {
        k: v.shape for k, v in model.state_dict().items()
    }


@by_name
def test_names_of_timm_are_known_on_both_sides(family: Family) -> None:
    for ours, theirs in family.timm_names.items():
        assert family_of_model(ours) is family
        assert family_of_timm(theirs) is family
        assert timm.is_model(theirs)
    assert timm.list_pretrained(f"{family.timm_prefix}*")


def test_other_names_are_of_no_family() -> None:
    assert family_of_model("vit") is None
    assert family_of_timm("resnet50") is None
    assert preprocessing_of("vit", "anything") == {}


@pytest.mark.parametrize(
    ("weights", "mean", "std", "crop", "filter"),
    [
        ("timm:mixer_b16_224.goog_in21k", [0.5] * 3, [0.5] * 3, 0.875, "area"),
        ("Mixer-B_16.npz", [0.5] * 3, [0.5] * 3, 0.875, "area"),
        ("timm:mixer_b16_224.miil_in21k", [0.0] * 3, [1.0] * 3, 0.875, "bilinear"),
        ("timm:convmixer_768_32.in1k", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0.96, "bicubic"),
        ("resmlp_s12.pth", [0.485, 0.456, 0.406], [0.229, 0.224, 0.225], 0.9, "bicubic"),
    ],
)
def test_published_weights_take_images_so(
    weights: str, mean: list[float], std: list[float], crop: float, filter: str
) -> None:
    model = model_named(weights, list_models())
    assert model is not None
    assert preprocessing_of(model, weights) == {
        "mean": mean,
        "std": std,
        "eval_crop": crop,
        "eval_resize": "short_side",
        "eval_interpolation": filter,
        "eval_rounding": "big_vision" if filter == "area" else "torchvision",
    }
    if weights.startswith("timm:"):  # which says so itself
        config = timm.get_pretrained_cfg(weights.removeprefix("timm:"))
        assert (list(config.mean), list(config.std), config.crop_pct) == (mean, std, crop)
        if "goog" not in weights:  # there timm's bicubic is not the paper's
            assert config.interpolation == filter


@pytest.mark.parametrize(
    ("name", "model"),
    [
        ("timm:mixer_l16_224.goog_in21k_ft_in1k", "mixer_l16"),
        ("timm:convmixer_1024_20_ks9_p14.in1k", "convmixer_1024_20"),
        ("~/weights/Mixer-B_16.npz", "mixer_b16"),
        ("timm:resmlp_big_24_224.fb_in22k_ft_in1k", "resmlp_b24_8"),
        ("timm:resmlp_36_224.fb_in1k", None),
        ("convmixer_1536_20_ks9_p7.pth.tar", "convmixer_1536_20"),
        ("weights.npz", None),
    ],
)
def test_published_names_mean_models(name: str, model: str | None) -> None:
    assert model_named(name, list_models()) == model
