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
from mixer_lightning.checkpoints.read import read
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


def older_arrays(
    model: Mixer, *, norms: tuple[int, int] = (0, 2), first_block: int = 0
) -> dict[str, np.ndarray]:
    """The layout that big_vision converts (`load` of models/mlp_mixer.py at 0127fb6), read backwards.

    It takes `embedding` from the root, `encoder_norm` and `encoderblock_<i>` from `Mixer`, and of a block's
    `token_mixing_phase_0` and `channel_mixing_phase_0` the leaves kernel1, bias1, kernel2, bias2, squeezed; before that
    it renumbers (flax.training.checkpoints.convert_pre_linen): before Linen all parts of a module had one count, of
    which the two LayerNorms of a block are `norms`.
    """
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    arrays = {
        "embedding/kernel": state["stem.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["stem.proj.bias"],
        "Mixer/encoder_norm/scale": state["norm.weight"],
        "Mixer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        ours, theirs = f"blocks.{i}", f"Mixer/encoderblock_{i + first_block}"
        for n in (0, 1):
            arrays[f"{theirs}/LayerNorm_{norms[n]}/scale"] = state[f"{ours}.norm{n + 1}.weight"]
            arrays[f"{theirs}/LayerNorm_{norms[n]}/bias"] = state[f"{ours}.norm{n + 1}.bias"]
            for kind in ("token", "channel"):
                mlp = f"{theirs}/{kind}_mixing_phase_0"
                arrays[f"{mlp}/kernel{n + 1}"] = state[f"{ours}.mlp_{kind}s.fc{n + 1}.weight"].T[None]
                arrays[f"{mlp}/bias{n + 1}"] = state[f"{ours}.mlp_{kind}s.fc{n + 1}.bias"][None]
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


@pytest.mark.parametrize("norms", [(0, 1), (0, 2), (1, 3), (2, 10)])
def test_norms_are_renumbered_in_their_order(tmp_path: Path, norms: tuple[int, int]) -> None:
    """convert_pre_linen sorts by number (2 before 10), and counts each kind of part from 0."""
    model, other = digits_model(), digits_model(seed=1)
    np.savez(tmp_path / "mixer.npz", **older_arrays(model, norms=norms, first_block=norms[0]))
    load(other, tmp_path / "mixer.npz")
    assert_same_logits(model, other)


@pytest.mark.parametrize("root", ["params/", "opt/target/"])
def test_the_state_of_an_optimiser_is_left_out(tmp_path: Path, root: str) -> None:
    model, other = digits_model(), digits_model(seed=1)
    arrays = {root + key: array for key, array in mixer_arrays(model).items()}
    arrays |= {"opt/state/step": np.int64(7), "opt/0/mu/stem/kernel": arrays[f"{root}stem/kernel"]}
    np.savez(tmp_path / "checkpoint.npz", **arrays)
    load(other, tmp_path / "checkpoint.npz")
    assert_same_logits(model, other)


def test_blocks_keep_their_order_beyond_ten(tmp_path: Path) -> None:
    sizes = {"patch_size": 4, "hidden_dim": 8, "tokens_mlp_dim": 4, "channels_mlp_dim": 16, "num_blocks": 12}
    model, other = (Mixer(**sizes, num_classes=10, image_size=8).eval() for _ in range(2))
    nn.init.normal_(model.head.weight)
    for arrays in (mixer_arrays(model), older_arrays(model, first_block=3)):
        np.savez(tmp_path / "mixer.npz", **arrays)
        load(other, tmp_path / "mixer.npz")
        assert_same_logits(model, other)
        nn.init.zeros_(other.head.weight)


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


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("Transformer/encoderblock_0/LayerNorm_0/scale", "holds a ViT of .*: `mixer models vit` lists"),
        ("opt/target/Transformer/encoderblock_0/LayerNorm_0/scale", "holds a ViT of"),
        ("resnet/root_block/standardized_conv2d/kernel", "holds a BiT of .*: `mixer models bit` lists"),
        ("resnet/conv1/kernel", "is not a Mixer of the official code"),
    ],
)
def test_networks_of_others_are_named(tmp_path: Path, name: str, message: str) -> None:
    """The names that timm reads in those files: timm/models/vision_transformer.py and resnetv2.py, `_load_weights`."""
    np.savez(tmp_path / "weights.npz", **{name: np.zeros((3, 3), np.float32)})
    with pytest.raises(ValueError, match=message):
        read(tmp_path / "weights.npz")
