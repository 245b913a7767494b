"""The official Flax layout and the older one, written out by hand: the same logits come back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from small_models import assert_same_logits, digits_model
from torch import nn

from mixer_lightning.checkpoints.load import load
from mixer_lightning.checkpoints.save import save_flax
from mixer_lightning.models.mixer import Mixer


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
