"""Models that no family tells are found by building them; the weights of timm's go into them as into timm's own."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor

from mixer_lightning.api import create_model, load
from mixer_lightning.checkpoints import hub, recognise
from mixer_lightning.checkpoints.describe import describe
from mixer_lightning.checkpoints.families import model_named, timm_models
from mixer_lightning.checkpoints.load import load as load_into
from mixer_lightning.checkpoints.read import read
from mixer_lightning.checkpoints.recognise import models_of, recognised
from mixer_lightning.checkpoints.restore import Restored, restore
from mixer_lightning.checkpoints.save import save_own
from mixer_lightning.config.from_checkpoint import overrides_from_checkpoint
from mixer_lightning.models import presets
from mixer_lightning.models.catalogue import counted, family_key
from mixer_lightning.models.presets import list_models

MODELS = presets.MODEL_FOLDER
SMALL = {"resnet50": "test_resnet", "vit_b16": "test_vit", "convnext_t": "test_convnext"}


def written(model: torch.nn.Module, path: Path, prefix: str = "") -> Path:
    save_file({prefix + key: tensor.contiguous() for key, tensor in model.state_dict().items()}, path)
    return path


@pytest.fixture
def small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """conf/model with timm's smallest models under the names of large ones, and two models of ours."""
    folder = tmp_path / "conf_model"
    folder.mkdir()
    for name, timm_name in SMALL.items():
        target = "_target_: mixer_lightning.models.baselines.timm_backbone"
        (folder / f"{name}.yaml").write_text(f"{target}\ntimm_name: {timm_name}\n")
    for name in ("mixer_digits", "convmixer_96_4"):
        (folder / f"{name}.yaml").write_text((presets.MODEL_FOLDER / f"{name}.yaml").read_text())
    monkeypatch.setattr(presets, "MODEL_FOLDER", folder)
    return tmp_path


def test_no_model_of_timm_is_taken_for_one_of_a_family() -> None:
    """Of each family the smallest: sizes change no names."""
    by_size = sorted(timm_models().items(), key=lambda names: -counted()[names[1]].parameters)
    for timm_name in {family_key(model): timm_name for timm_name, model in by_size}.values():
        with torch.device("meta"):
            assert describe(timm.create_model(timm_name).state_dict()) is None, timm_name


def test_models_that_a_file_cannot_be_of_are_not_built(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[str] = []
    skeleton = recognise.skeleton
    monkeypatch.setattr(recognise, "skeleton", lambda name: built.append(name) or skeleton(name))
    with torch.device("meta"):
        vgg, resnet = (timm.create_model(name).state_dict() for name in ("vgg11", "resnet50"))
    assert models_of(vgg) == built == []
    assert models_of({f"of_another.{key}": tensor for key, tensor in resnet.items()}) == []
    assert models_of(resnet) == ["resnet50"]
    assert set(built) == {"resnet50", "bit_r50x1"}  # whose largest tensors are of the same sizes


def test_every_weight_of_timm_names_its_model() -> None:
    names = hub.names()
    for timm_name, model in timm_models().items():
        mine = [name for name in names if name.startswith(f"{timm_name}.")]
        assert mine, timm_name
        assert {model_named(f"timm:{name}", list_models()) for name in mine} == {model}
    assert (
        model_named("deit_small_patch16_224-cd65a155.pth", list_models()) == "deit_s16"
    )  # as its authors call it
    assert model_named("resnet50-0676ba61.pth", list_models()) == "resnet50"
    assert model_named("timm:resnet50d.ra2_in1k", list_models()) is None


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("prefix", ["", "module.", "net.backbone."])
def test_a_bare_file_is_recognised(small: Path, name: str, prefix: str) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(SMALL[name], num_classes=5).eval()
    path = written(theirs, small / "weights.safetensors", prefix)
    restored = restore(path, image_size=160)
    assert (restored.name, restored.num_classes) == (name, 5)
    assert f": {name})" in str(restored.report)
    config = timm.get_pretrained_cfg(SMALL[name])  # of the weights that timm has first
    assert restored.preprocessing["mean"] == list(config.mean)
    assert restored.preprocessing["eval_crop"] == config.crop_pct
    assert "mean" in restored.report.checkpoint.assumed
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(restored.model(images), theirs(images))
    assert models_of({"stem.weight": torch.zeros(1)}) == []


def test_of_equal_models_that_see_images_differently_somebody_says_which(small: Path) -> None:
    """DeiT and ViT have the same tensors; timm's weights of the former take ImageNet's mean, of the latter .5."""
    target = "_target_: mixer_lightning.models.baselines.timm_"
    for name, says in (
        ("deit_ti16", "backbone\ntimm_name: deit_tiny_patch16_224"),
        ("deit_ti7", "transformer\ntimm_name: deit_tiny_patch16_224\npatch_size: 7"),
        ("vit_ti16", "backbone\ntimm_name: vit_tiny_patch16_224"),
    ):
        (presets.MODEL_FOLDER / f"{name}.yaml").write_text(f"{target}{says}\n")
    path = written(
        timm.create_model("vit_tiny_patch16_224", img_size=256, num_classes=5), small / "w.safetensors"
    )
    assert models_of(read(path).tensors) == ["deit_ti16", "vit_ti16"]  # and not deit_ti7
    with pytest.raises(
        ValueError,
        match="of deit_ti16 and of vit_ti16, which see images differently: say model=deit_ti16 or model=vit_ti16",
    ):
        recognised(read(path))
    assert recognised(read(path), model="deit_ti16").preprocessing["mean"] == [0.485, 0.456, 0.406]
    stated = {"checkpoint": [str(path)], "model": ["vit_ti16"]}
    assert overrides_from_checkpoint(stated, {"model": list_models()}).values["augment.mean"] == [
        0.5,
        0.5,
        0.5,
    ]
    named = path.rename(small / "vit_ti16.safetensors")
    assert recognised(read(named)).preprocessing["mean"] == [0.5, 0.5, 0.5]


def test_a_file_of_another_model_is_named_as_what_it_is(small: Path) -> None:
    path = written(timm.create_model("test_resnet", num_classes=5), small / "weights.safetensors")
    for name in ("convnext_t", "mixer_digits", "vit_b16"):
        with pytest.raises(ValueError, match="This file holds weights of resnet50: use model=resnet50"):
            restore(path, model=name)
    (small / "conf_model" / "alexnet.yaml").write_text((MODELS / "lecun_1989.yaml").read_text())
    path = written(create_model("alexnet", num_classes=5), small / "alexnet.safetensors")
    with pytest.raises(ValueError, match="This file holds weights of alexnet: use model=alexnet"):
        restore(path, model="vit_b16")
    path = written(create_model("mixer_digits", num_classes=5), small / "mixer.safetensors")
    with pytest.raises(
        ValueError, match="This file holds weights of mixer_digits at 8, 5 classes: use model=mixer_digits"
    ):
        restore(path, model="resnet50")


def interpolated(state: Mapping[str, Tensor], *, grid: int, to: int) -> Tensor:
    """The position table of a ViT on a larger grid, by its definition: the patches' part as an image."""
    table = state["pos_embed"]
    prefix = table.shape[1] - grid**2
    image = table[:, prefix:].reshape(1, grid, grid, -1).permute(0, 3, 1, 2)
    larger = torch.nn.functional.interpolate(image, (to, to), mode="bicubic", antialias=True)
    return torch.cat([table[:, :prefix], larger.permute(0, 2, 3, 1).reshape(1, to**2, -1)], dim=1)


def test_a_position_table_of_another_grid_is_interpolated(small: Path) -> None:
    theirs = timm.create_model("test_vit", num_classes=5)  # 160 px in patches of 16
    path = written(theirs, small / "weights.safetensors")
    restored = restore(path, model="vit_b16", image_size=192)
    expected = interpolated(theirs.state_dict(), grid=10, to=12)
    torch.testing.assert_close(restored.model.state_dict()["pos_embed"], expected)
    assert "pos_embed interpolated" in str(restored.report)


@pytest.mark.filterwarnings("error::UserWarning")  # of torch, about how timm interpolates: not for users
def test_relative_positions_of_another_window_are_interpolated(tmp_path: Path) -> None:
    made = {"embed_dim": 8, "depths": (1, 1), "num_heads": (1, 2), "num_classes": 3}
    theirs = timm.models.swin_transformer.SwinTransformer(img_size=56, window_size=7, **made)
    ours = timm.models.swin_transformer.SwinTransformer(img_size=64, window_size=8, **made)
    ours.pretrained_cfg, ours.head_name, ours.image_size, ours.head_bias = {}, "head.fc", 64, 0.0
    report = load_into(ours, read(written(theirs, tmp_path / "weights.safetensors")))
    assert any(key.endswith("relative_position_bias_table") for key in report.resized)
    assert ours.layers[0].blocks[0].attn.relative_position_bias_table.shape == (15**2, 1)


def test_token_mixing_of_another_size_names_the_size_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "conf_model"
    folder.mkdir()
    target = "_target_: mixer_lightning.models.baselines.timm_backbone"
    (folder / "gmlp_s16.yaml").write_text(f"{target}\ntimm_name: gmlp_ti16_224\n")
    monkeypatch.setattr(presets, "MODEL_FOLDER", folder)
    model = create_model("gmlp_s16", num_classes=3, image_size=32)
    path = tmp_path / "own.safetensors"
    save_own(path, Restored(model, "gmlp_s16", 32, None, {}, None))  # type: ignore[arg-type]
    assert restore(path).image_size == 32
    with pytest.raises(
        ValueError, match="This file holds weights of gmlp_s16: use model=gmlp_s16 image_size=32"
    ):
        restore(path, image_size=64)
    bare = written(create_model("gmlp_s16", num_classes=3), tmp_path / "bare.safetensors")
    with pytest.raises(
        ValueError, match="This file holds weights of gmlp_s16: use model=gmlp_s16 image_size=224"
    ):
        restore(bare, image_size=64)


def test_weights_by_timms_name(small: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The hub is played by a folder; what images the weights take follows from timm's config."""
    torch.manual_seed(0)
    theirs = timm.create_model("test_resnet", num_classes=1000).eval()
    path = written(theirs, small / hub.FILE)
    monkeypatch.setattr(hub, "fetch", lambda name: path)
    model, classes, transform = load("timm:test_resnet.r160_in1k")
    config = timm.get_pretrained_cfg("test_resnet.r160_in1k")
    assert classes is None
    assert transform.image_size == config.input_size[-1] == 160
    assert list(config.mean) == transform.augment.mean
    assert config.crop_pct == transform.augment.eval_crop
    images = torch.randn(2, 3, 160, 160)
    with torch.no_grad():
        assert torch.equal(model(images), theirs(images))
    with pytest.raises(ValueError, match=r"timm has no weights 'test_resnet.*did you mean test_resnet.r160"):
        hub.image_size("test_resnet.r160_in2k")


def test_a_model_of_ours_without_a_family_is_found_too(small: Path) -> None:
    for name in ("halonet_h0", "halonet_h1"):
        (small / "conf_model" / f"{name}.yaml").write_text((MODELS / f"{name}.yaml").read_text())
    with torch.device("meta"):
        tensors = create_model("halonet_h1", num_classes=3).state_dict()
    assert models_of(tensors) == ["halonet_h1"]
