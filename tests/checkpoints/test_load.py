"""All of a checkpoint or nothing: new heads, other classes, and files of other models, which are named."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from small_models import IMAGES, assert_same_logits, digits_model, run_checkpoint
from torch import nn

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.load import load
from mixer_lightning.checkpoints.read import read
from mixer_lightning.checkpoints.save import save_flax, save_timm
from mixer_lightning.data.sources.imagenet_archives import class_names, wnid_list
from mixer_lightning.models.baselines import timm_backbone
from mixer_lightning.models.convmixer import ConvMixer


def test_files_without_batch_counters_load(tmp_path: Path) -> None:
    model, other = digits_model("convmixer_96_4"), digits_model("convmixer_96_4", seed=1)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    load(other, tmp_path / "old.pth")
    assert_same_logits(model, other)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    model = digits_model("convmixer_96_4")
    content = run_checkpoint(model, ema=None)
    content["recipe"]["model"]["activation"] = "relu"
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="trained with relu, the model has gelu"):
        load(model, tmp_path / "last.ckpt")


def test_another_head_stays_fresh_with_a_warning(tmp_path: Path) -> None:
    model = digits_model(num_classes=21)
    save_flax(model, tmp_path / "mixer.npz")
    message = r"mixer_digits at 8, 21 classes\); the head stays fresh: 21 classes there, 10 here"
    with pytest.warns(UserWarning, match=message):
        other = create_model(
            "mixer_digits", num_classes=10, head_bias=-3.0, checkpoint=tmp_path / "mixer.npz"
        )
    assert not other.head.weight.any()
    assert torch.equal(other.head.bias, torch.full((10,), -3.0))
    with torch.no_grad():
        assert torch.equal(other.forward_features(IMAGES), model.forward_features(IMAGES))


@pytest.mark.parametrize("name", ["mixer_digits", "convmixer_96_4"])
def test_a_file_without_a_head_leaves_one_of_zeros(tmp_path: Path, name: str) -> None:
    model, other = digits_model(name), digits_model(name, seed=1)
    assert other.head.weight.all()
    save_file({k: v for k, v in model.state_dict().items() if "head" not in k}, tmp_path / "f.safetensors")
    report = load(other, tmp_path / "f.safetensors")
    assert report.fresh == ["head.weight", "head.bias"]
    assert "the head stays fresh: the file has none" in str(report)
    assert not other.head.weight.any()
    assert not other.head.bias.any()


def named_run(folder: Path, classes: list[str]) -> Path:
    """A checkpoint of our own for classes of these names."""
    content = run_checkpoint(digits_model(num_classes=len(classes)), ema=None) | {"classes": classes}
    torch.save(content, folder / "last.ckpt")
    return folder / "last.ckpt"


def test_a_head_for_classes_of_other_names_is_not_kept(tmp_path: Path) -> None:
    path = named_run(tmp_path, ["cat", "dog", "emu"])
    same, renamed, reordered = (digits_model(seed=1, num_classes=3) for _ in range(3))
    assert load(same, path, classes=["cat", "dog", "emu"]).fresh == []
    assert_same_logits(digits_model(num_classes=3), same)
    report = load(renamed, path, classes=["cat", "fox", "emu"])
    assert str(report).endswith("the head stays fresh: other classes ('dog' there, 'fox' here)")
    assert load(reordered, path, classes=["dog", "cat", "emu"]).fresh == ["head.weight", "head.bias"]
    for model in (renamed, reordered):
        assert not model.head.weight.any()
        assert torch.equal(model.stem.proj.weight, same.stem.proj.weight)


def test_a_kept_head_of_nameless_classes_is_said(tmp_path: Path) -> None:
    model = digits_model(num_classes=3)
    save_timm(model, tmp_path / "mixer.pth")
    other = digits_model(seed=1, num_classes=3)
    report = load(other, tmp_path / "mixer.pth", classes=["cat", "dog", "emu"])
    assert str(report).endswith("the head is kept: 3 classes on both sides, of which the file says no names")
    assert_same_logits(model, other)
    assert "head" not in str(load(other, tmp_path / "mixer.pth"))  # nobody named any


def test_a_nameless_head_of_21843_classes_is_for_googles_order(tmp_path: Path) -> None:
    google, fall11 = wnid_list("google"), wnid_list("fall11")
    numbers = [str(label) for label in range(len(google))]
    path = tmp_path / "mixer.npz"
    save_flax(digits_model(num_classes=len(google)), path)
    model = digits_model(seed=1, num_classes=len(google))
    for kept in (google, class_names(google), numbers, ["my cat", *numbers[1:]]):
        assert load(model, path, classes=kept).fresh == []
    for names in (fall11, class_names(fall11)):
        reordered = [*names, *numbers[len(names) :]]
        report = load(model, path, classes=reordered)
        assert report.fresh == ["head.weight", "head.bias"]
        first = (class_names(google) if names != fall11 else google)[9205]
        assert f"another order than Google's ('{first}' there, '{names[9205]}' here)" in str(report)


def test_a_new_or_the_old_head_can_be_asked_for(tmp_path: Path) -> None:
    path = named_run(tmp_path, ["cat", "dog", "emu"])
    fitting, other = digits_model(seed=1, num_classes=3), digits_model(seed=1, num_classes=4)
    report = load(fitting, path, head="new")
    assert str(report).endswith("the head stays fresh: as asked for")
    assert not fitting.head.weight.any()
    load(fitting, path, head="keep")
    assert_same_logits(digits_model(num_classes=3), fitting)
    before = other.stem.proj.weight.clone()
    with pytest.raises(
        ValueError, match=r"head=keep, but .*last\.ckpt .* 3 classes there, 4 here\. Use head=new"
    ):
        load(other, path, head="keep")
    with pytest.raises(ValueError, match="other classes"):
        load(fitting, path, head="keep", classes=["cat", "fox", "emu"])
    with pytest.raises(ValueError, match="head must be auto, keep or new, found 'old'"):
        load(fitting, path, head="old")  # type: ignore[arg-type]
    assert torch.equal(other.stem.proj.weight, before)


def test_a_fitting_file_is_loaded_without_a_warning(tmp_path: Path) -> None:
    saved = digits_model()
    save_timm(saved, tmp_path / "mixer.pth")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = create_model("mixer_digits", num_classes=10, checkpoint=tmp_path / "mixer.pth")
    assert all(torch.equal(loaded.state_dict()[key], value) for key, value in saved.state_dict().items())


def test_another_models_file_is_named_and_nothing_is_copied(tmp_path: Path) -> None:
    model = digits_model()
    path = tmp_path / "weights.pth"
    with torch.device("meta"):
        other = create_model("mixer_s16", num_classes=21843)
    # One zero stands for every number, so that the file stays small.
    torch.save({key: torch.zeros(1).expand(x.shape) for key, x in other.state_dict().items()}, path)
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    with pytest.raises(ValueError, match="does not fit mixer_digits at 8, 10 classes") as error:
        load(model, path)
    message = str(error.value)
    assert "stem.proj.weight is [512, 3, 16, 16], expected [64, 3, 1, 1]" in message
    assert (
        "This file holds weights of mixer_s16 at 224, 21843 classes: use model=mixer_s16 image_size=224."
        in message
    )
    assert "more" in message
    assert len(message) < 700
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_another_image_size_of_a_mixer_is_named(tmp_path: Path) -> None:
    save_flax(digits_model(), tmp_path / "mixer.npz")
    path = tmp_path / "mixer.npz"
    for size, working in ((12, "8 and 16 work"), (20, "16 and 24 work"), (4, "8 and 16 work")):
        message = rf"mixer\.npz holds weights of mixer_digits at 8, 10 classes.* image_size={size} is not: {working}"
        with pytest.raises(ValueError, match=message):
            create_model("mixer_digits", num_classes=10, image_size=size, checkpoint=path)


def test_another_family_is_named(tmp_path: Path) -> None:
    save_timm(digits_model("convmixer_96_4"), tmp_path / "weights.pth")
    with pytest.raises(
        ValueError, match="holds weights of convmixer_96_4, 10 classes: use model=convmixer_96_4"
    ):
        load(digits_model(), tmp_path / "weights.pth")


def test_sizes_without_a_name_are_spelled_out(tmp_path: Path) -> None:
    odd = ConvMixer(dim=8, depth=2, kernel_size=3, patch_size=2, num_classes=5, image_size=8)
    save_timm(odd, tmp_path / "weights.pth")
    sizes = "dim 8, depth 2, patch_size 2, kernel_size 3"
    with pytest.raises(ValueError, match=rf"holds weights of ConvMixer \({sizes}\), 5 classes"):
        load(digits_model(), tmp_path / "weights.pth")


def test_weights_of_no_model_are_said_to_be_so(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match="holds none of the models that"):
        load(digits_model(), tmp_path / "linear.pth")
    np.savez(tmp_path / "vit.npz", **{"Transformer/encoderblock_0/LayerNorm_0/scale": np.ones(3)})
    with pytest.raises(ValueError, match=r"holds a ViT of google-research"):
        read(tmp_path / "vit.npz")


# ------------------------------------------------------------------------------------- families of timm


@pytest.mark.parametrize(
    ("name", "head"),
    [("deit_tiny_patch16_224", "head"), ("swin_tiny_patch4_window7_224", "head.fc"), ("resnet18", "fc")],
)
def test_weights_of_timm_go_into_its_models(tmp_path: Path, name: str, head: str) -> None:
    size = 64
    torch.manual_seed(0)
    theirs = timm.create_model(name, num_classes=7, **({} if name == "resnet18" else {"img_size": size}))
    nn.init.normal_(theirs.get_classifier().bias)
    torch.save(theirs.state_dict(), tmp_path / "w.pth")
    same = timm_backbone(timm_name=name, num_classes=7, image_size=size)
    assert load(same, tmp_path / "w.pth").fresh == []
    images = torch.randn(2, 3, size, size)
    with torch.no_grad():
        assert torch.equal(same.eval()(images), theirs.eval()(images))
    other = timm_backbone(timm_name=name, num_classes=5, image_size=size, head_bias=-2.0)
    report = load(other, tmp_path / "w.pth")
    assert report.fresh == [f"{head}.weight", f"{head}.bias"]
    assert str(report).endswith("the head stays fresh: 7 classes there, 5 here")
    with torch.no_grad():
        assert torch.equal(other.eval()(images), torch.full((2, 5), -2.0))
