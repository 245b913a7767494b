"""Checkpoints of every layout give back the same logits; files that are not what they say are refused by name."""

from __future__ import annotations

import argparse
import os
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.describe import describe
from mixer_lightning.checkpoints.load import load
from mixer_lightning.checkpoints.read import read
from mixer_lightning.checkpoints.save import save_flax, save_timm
from mixer_lightning.models.convmixer import ConvMixer
from mixer_lightning.models.mixer import Mixer

IMAGES = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def digits_model(name: str = "mixer_digits", *, seed: int = 0, num_classes: int = 10) -> nn.Module:
    """A small model with random numbers in all of its tensors."""
    torch.manual_seed(seed)
    model = create_model(name, num_classes=num_classes)
    with torch.no_grad():
        for key, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                noise = torch.rand_like(tensor) if "running_var" in key else torch.randn_like(tensor)
                tensor.add_(0.1 * noise)
    return model.eval()


def mixer_arrays(model: Mixer) -> dict[str, np.ndarray]:
    """The official layout, written out as google-research/vision_transformer names it."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays = {
        "stem/kernel": state["stem.proj.weight"].transpose(2, 3, 1, 0),  # [P, P, 3, C]
        "stem/bias": state["stem.proj.bias"],
        "pre_head_layer_norm/scale": state["norm.weight"],
        "pre_head_layer_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}", f"MixerBlock_{i}"
        for n in (0, 1):
            arrays[f"{theirs}/LayerNorm_{n}/scale"] = state[f"{ours}.norm{n + 1}.weight"]
            arrays[f"{theirs}/LayerNorm_{n}/bias"] = state[f"{ours}.norm{n + 1}.bias"]
            for kind in ("token", "channel"):
                dense = f"{theirs}/{kind}_mixing/Dense_{n}"
                arrays[f"{dense}/kernel"] = state[f"{ours}.mlp_{kind}s.fc{n + 1}.weight"].T
                arrays[f"{dense}/bias"] = state[f"{ours}.mlp_{kind}s.fc{n + 1}.bias"]
    return arrays


def older_arrays(model: Mixer) -> dict[str, np.ndarray]:
    """The layout that big_vision converts: one root, numbered kernels, singleton axes."""
    arrays = {}
    for key, array in mixer_arrays(model).items():
        key = key.replace("pre_head_layer_norm", "Mixer/encoder_norm").replace("stem", "Mixer/embedding")
        key = key.replace("MixerBlock_", "Mixer/encoderblock_").replace("_mixing/", "_mixing_phase_0/")
        for n in (0, 1):
            for leaf in ("kernel", "bias"):
                key = key.replace(f"Dense_{n}/{leaf}", f"{leaf}{n + 1}")
        arrays[key] = array[None] if "_phase_0" in key else array
    return arrays


def sequential_names(model: ConvMixer) -> dict[str, torch.Tensor]:
    """The state dict of locuslab/convmixer: layers counted through."""
    depth, renamed = len(model.blocks), {}
    for key, tensor in model.state_dict().items():
        part, _, rest = key.partition(".")
        if part == "stem":
            key = rest
        elif part == "head":
            key = f"{depth + 5}.{rest}"
        else:
            index, _, rest = rest.partition(".")
            key = f"{int(index) + 3}.{rest}"
        renamed[key] = tensor
    assert set(renamed) >= {"0.weight", "2.running_var", "3.0.fn.0.weight", "6.3.bias", "9.weight"}
    return renamed


def assert_same_logits(model: nn.Module, other: nn.Module) -> None:
    with torch.no_grad():
        assert not torch.equal(model.head.weight, torch.zeros_like(model.head.weight))
        assert torch.equal(model.eval()(IMAGES), other.eval()(IMAGES))


# --------------------------------------------------------------------------------------------- layouts


@pytest.mark.parametrize("layout", [mixer_arrays, older_arrays])
@pytest.mark.parametrize("prefix", ["", "params/", "opt/target/"])
def test_flax_files_load(
    tmp_path: Path, layout: Callable[[Mixer], dict[str, np.ndarray]], prefix: str
) -> None:
    model, other = digits_model(), digits_model(seed=1)
    path = tmp_path / "Mixer-B_16.npz"
    np.savez(path, **{prefix + key: array for key, array in layout(model).items()})
    report = load(other, path)
    assert_same_logits(model, other)
    assert report.fresh == []
    assert str(report.checkpoint.model) == "mixer_digits at 8, 10 classes"
    assert ("older" in report.checkpoint.kind) == (layout is older_arrays)


def test_rows_and_columns_of_stem_kernels_stay_apart(tmp_path: Path) -> None:
    sizes = {"patch_size": 2, "num_blocks": 1, "hidden_dim": 8, "tokens_mlp_dim": 4, "channels_mlp_dim": 16}
    model, other = (Mixer(**sizes, num_classes=10, image_size=8) for _ in range(2))
    nn.init.normal_(model.head.weight)
    arrays = mixer_arrays(model)
    assert (
        arrays["stem/kernel"][1, 0, 2, 5] == model.stem.proj.weight[5, 2, 1, 0]
    )  # row, column, colour, channel
    np.savez(tmp_path / "mixer.npz", **arrays)
    load(other, tmp_path / "mixer.npz")
    assert_same_logits(model, other)
    save_flax(model, tmp_path / "again.npz")
    with np.load(tmp_path / "again.npz") as again:
        np.testing.assert_array_equal(again["stem/kernel"], arrays["stem/kernel"])


def test_bfloat16_arrays_of_an_npz_are_understood(tmp_path: Path) -> None:
    model, other = digits_model(), digits_model(seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(parameter.bfloat16())  # then two bytes lose nothing
    arrays = {
        key: (np.ascontiguousarray(array).view(np.uint32) >> 16).astype(np.uint16).view("V2")
        for key, array in mixer_arrays(model).items()
    }
    np.savez(tmp_path / "half.npz", **arrays)
    load(other, tmp_path / "half.npz")
    assert_same_logits(model, other)


def test_a_saved_flax_file_is_in_the_official_layout(tmp_path: Path) -> None:
    model, other = digits_model(), digits_model(seed=1)
    save_flax(model, tmp_path / "mixer.npz")
    with np.load(tmp_path / "mixer.npz", allow_pickle=False) as found:
        expected = mixer_arrays(model)
        assert sorted(found.files) == sorted(expected)
        for key, array in expected.items():
            np.testing.assert_array_equal(found[key], array, err_msg=key)
    load(other, tmp_path / "mixer.npz")
    assert_same_logits(model, other)


@pytest.mark.parametrize("name", ["mixer_digits", "convmixer_96_4"])
@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_timm_files_round_trip(tmp_path: Path, name: str, suffix: str) -> None:
    model, other = digits_model(name), digits_model(name, seed=1)
    save_timm(model, tmp_path / f"model{suffix}")
    report = load(other, tmp_path / f"model{suffix}")
    assert_same_logits(model, other)
    assert report.checkpoint.kind == "timm's names"
    assert report.checkpoint.model == describe(model.state_dict())
    assert report.checkpoint.model.name == name


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("key", ["state_dict", "model", None])
def test_wrapped_state_dicts_load(tmp_path: Path, prefix: str, key: str | None) -> None:
    model, other = digits_model(), digits_model(seed=1)
    state = {prefix + name: tensor for name, tensor in model.state_dict().items()}
    torch.save({key: state, "epoch": 3} if key else state, tmp_path / "model.bin")
    load(other, tmp_path / "model.bin")
    assert_same_logits(model, other)


def test_the_authors_convmixer_files_load(tmp_path: Path) -> None:
    model, other = digits_model("convmixer_96_4"), digits_model("convmixer_96_4", seed=1)
    path = tmp_path / "convmixer_1536_20_ks9_p7.pth.tar"
    state = {f"module.{key}": tensor for key, tensor in sequential_names(model).items()}
    torch.save({"epoch": 149, "args": argparse.Namespace(lr=0.01), "state_dict": state}, path)
    report = load(other, path)
    assert_same_logits(model, other)
    assert str(report.checkpoint) == f"{path.name} (locuslab's ConvMixer: convmixer_96_4, 10 classes)"


def test_files_without_batch_counters_load(tmp_path: Path) -> None:
    model, other = digits_model("convmixer_96_4"), digits_model("convmixer_96_4", seed=1)
    state = {k: v for k, v in model.state_dict().items() if not k.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "old.pth")
    load(other, tmp_path / "old.pth")
    assert_same_logits(model, other)


def run_checkpoint(model: nn.Module, *, ema: nn.Module | None) -> dict[str, object]:
    """What a run of this project writes, so far as weights are concerned."""
    state = {f"model.{key}": tensor for key, tensor in model.state_dict().items()}
    node = {"_target_": f"mixer_lightning.models.convmixer.{type(model).__name__}", "activation": "gelu"}
    content = {"state_dict": state, "recipe": {"model": node, "image_size": 8}, "global_step": 7}
    content["classes"] = [str(digit) for digit in range(10)]
    if ema is not None:
        content["ema"] = dict(ema.named_parameters())
    return content


def test_runs_of_this_project_load(tmp_path: Path) -> None:
    model, other = digits_model("convmixer_96_4"), digits_model("convmixer_96_4", seed=1)
    torch.save(run_checkpoint(model, ema=None), tmp_path / "last.ckpt")
    checkpoint = load(other, tmp_path / "last.ckpt").checkpoint
    assert_same_logits(model, other)
    assert checkpoint.classes == ["0", "1", "2", "3", "4", "5", "6", "7", "8", "9"]
    assert checkpoint.recipe["image_size"] == 8
    assert (checkpoint.model.activation, checkpoint.model.image_size) == ("gelu", 8)


def test_averaged_weights_come_first(tmp_path: Path) -> None:
    model, average, other = (digits_model("convmixer_96_4", seed=seed) for seed in range(3))
    torch.save(run_checkpoint(model, ema=average), tmp_path / "last.ckpt")
    load(other, tmp_path / "last.ckpt")
    assert torch.equal(other.head.weight, average.head.weight)
    # The average holds parameters only: the statistics of BatchNorm are the model's.
    assert torch.equal(other.stem[2].running_mean, model.stem[2].running_mean)


def test_another_activation_is_refused(tmp_path: Path) -> None:
    model = digits_model("convmixer_96_4")
    content = run_checkpoint(model, ema=None)
    content["recipe"]["model"]["activation"] = "relu"
    torch.save(content, tmp_path / "last.ckpt")
    with pytest.raises(ValueError, match="trained with relu, the model has gelu"):
        load(model, tmp_path / "last.ckpt")


# --------------------------------------------------------------------------------------------- misfits


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
    assert "This file holds a mixer_s16 at 224, 21843 classes: use model=mixer_s16 image_size=224." in message
    assert "more" in message
    assert len(message) < 700
    assert all(torch.equal(tensor, before[key]) for key, tensor in model.state_dict().items())


def test_another_image_size_of_a_mixer_is_named(tmp_path: Path) -> None:
    save_flax(digits_model(), tmp_path / "mixer.npz")
    path = tmp_path / "mixer.npz"
    for size, working in ((12, "8 and 16 work"), (20, "16 and 24 work"), (4, "8 and 16 work")):
        message = rf"mixer\.npz holds a mixer_digits at 8, 10 classes.* image_size={size} is not: {working}"
        with pytest.raises(ValueError, match=message):
            create_model("mixer_digits", num_classes=10, image_size=size, checkpoint=path)


def test_another_family_is_named(tmp_path: Path) -> None:
    save_timm(digits_model("convmixer_96_4"), tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="holds a convmixer_96_4, 10 classes: use model=convmixer_96_4"):
        load(digits_model(), tmp_path / "weights.pth")


def test_sizes_without_a_name_are_spelled_out(tmp_path: Path) -> None:
    odd = ConvMixer(dim=8, depth=2, kernel_size=3, patch_size=2, num_classes=5, image_size=8)
    save_timm(odd, tmp_path / "weights.pth")
    sizes = "dim 8, depth 2, patch_size 2, kernel_size 3"
    with pytest.raises(ValueError, match=rf"holds a ConvMixer \({sizes}\), 5 classes"):
        load(digits_model(), tmp_path / "weights.pth")


def test_weights_of_neither_family_are_said_to_be_so(tmp_path: Path) -> None:
    torch.save(nn.Linear(3, 4).state_dict(), tmp_path / "linear.pth")
    with pytest.raises(ValueError, match="holds neither a Mixer nor a ConvMixer"):
        load(digits_model(), tmp_path / "linear.pth")
    np.savez(tmp_path / "vit.npz", **{"Transformer/encoderblock_0/LayerNorm_0/scale": np.ones(3)})
    with pytest.raises(
        ValueError, match=r"not a Mixer of the official code: it holds Transformer/encoderblock_0"
    ):
        read(tmp_path / "vit.npz")


# ------------------------------------------------------------------------------------------ bad files


class Trap:
    """Pickles to an instruction that makes a folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.folder),)


def test_pickled_code_is_refused_and_does_not_run(tmp_path: Path) -> None:
    folder = tmp_path / "made"
    torch.save({"state_dict": Trap(folder)}, tmp_path / "trap.pth")
    with (tmp_path / "plain.ckpt").open("wb") as file:
        pickle.dump(Trap(folder), file)
    np.savez(tmp_path / "trap.npz", **{"stem/kernel": np.array([Trap(folder)], dtype=object)})
    for name, message in (
        ("trap.pth", "holds pickled objects .* run code"),
        ("plain.ckpt", "is a plain pickle, .* run code"),
        ("trap.npz", "holds pickled objects .* run code"),
    ):
        with pytest.raises(ValueError, match=message):
            read(tmp_path / name)
    assert not folder.exists()
    pickle.loads((tmp_path / "plain.ckpt").read_bytes())
    assert folder.exists()  # the trap works where it is let


@pytest.mark.parametrize("suffix", [".npz", ".pth", ".safetensors"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "it is damaged or cut short"),
        (b"", "it is empty"),
        (b"<!DOCTYPE html><html>Sign in</html>", "it is a web page"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "it is a Git LFS pointer"),
        (b"\x00\x01 nothing in particular " * 20, "it is damaged or cut short"),
    ],
)
def test_files_that_are_not_what_they_say(
    tmp_path: Path, suffix: str, content: bytes | None, message: str
) -> None:
    path = tmp_path / f"weights{suffix}"
    if content is None:
        (save_flax if suffix == ".npz" else save_timm)(digits_model(), path)
        content = path.read_bytes()[:-5000]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as error:
        read(path)
    assert str(path) in str(error.value)


def test_dictionaries_without_weights_are_refused(tmp_path: Path) -> None:
    torch.save({"epoch": 3, "lr": 0.1}, tmp_path / "empty.pth")
    with pytest.raises(ValueError, match="holds no weights: its keys are epoch, lr"):
        read(tmp_path / "empty.pth")
    torch.save([torch.zeros(2)], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds a list, not a dictionary of weights"):
        read(tmp_path / "list.pth")


def test_missing_files_and_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*nowhere\.npz"):
        create_model("mixer_digits", checkpoint=tmp_path / "nowhere.npz")
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ValueError, match=r"its name must end in \.npz, \.safetensors, \.pth"):
        read(tmp_path / "weights.h5")


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only a Mixer has an official Flax layout, not convmixer_96_4"):
        save_flax(digits_model("convmixer_96_4"), tmp_path / "model.npz")
    with pytest.raises(ValueError, match=r"ending in \.npz"):
        save_flax(digits_model(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"ending in \.safetensors"):
        save_timm(digits_model(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
