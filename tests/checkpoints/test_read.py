"""Files of every origin are read; those that are not what they say are refused by name."""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import os
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import assert_same_logits, digits_model, run_checkpoint
from timm.models.mlp_mixer import checkpoint_filter_fn

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.load import load
from mixer_lightning.checkpoints.read import read
from mixer_lightning.checkpoints.restore import restore
from mixer_lightning.checkpoints.save import save_flax, save_own, save_timm
from mixer_lightning.models.convmixer import ConvMixer
from mixer_lightning.models.resmlp import ResMLP


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


def test_the_authors_resmlp_files_load(tmp_path: Path) -> None:
    torch.manual_seed(0)
    sizes = {"patch_size": 2, "num_blocks": 2, "hidden_dim": 8, "layer_scale": 0.1}
    model = ResMLP(**sizes, num_classes=3, image_size=8)
    state = {}
    for name, tensor in model.state_dict().items():  # facebookresearch/deit, resmlp_models.py
        tensor.add_(torch.rand_like(tensor))
        for ours, theirs in (
            ("stem", "patch_embed"),
            ("linear_tokens", "attn"),
            ("mlp_channels", "mlp"),
            ("ls", "gamma_"),
        ):
            name = name.replace(ours, theirs)
        state[name] = tensor.flatten() if name.endswith(("alpha", "beta")) else tensor
    expected = checkpoint_filter_fn(state, None)  # timm's
    assert expected.keys() == model.state_dict().keys()
    torch.save(state, tmp_path / "resmlp_12_no_dist.pth")
    restored = restore(tmp_path / "resmlp_12_no_dist.pth")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in restored.model.state_dict().items())
    assert str(restored.report.checkpoint).startswith(
        "resmlp_12_no_dist.pth (facebookresearch's ResMLP: ResMLP ("
    )
    assert restored.preprocessing["eval_crop"] == 0.9  # README_resmlp.md


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
    with pytest.raises(ValueError, match="holds list, not a dictionary of weights"):
        read(tmp_path / "list.pth")


def test_missing_files_and_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no checkpoint file .*nowhere\.npz"):
        create_model("mixer_digits", checkpoint=tmp_path / "nowhere.npz")
    (tmp_path / "weights.h5").touch()
    with pytest.raises(ValueError, match=r"its name must end in \.npz, \.safetensors, \.pth"):
        read(tmp_path / "weights.h5")


@pytest.mark.parametrize("save", ["timm", "own"])
def test_a_changed_bit_of_an_exported_safetensors_file_is_noticed(tmp_path: Path, save: str) -> None:
    model, path = digits_model(), tmp_path / "model.safetensors"
    if save == "timm":
        save_timm(model, path)
    else:
        save_timm(model, tmp_path / "weights.pth")
        save_own(path, restore(tmp_path / "weights.pth"))
    content = path.read_bytes()
    begin = 8 + int.from_bytes(content[:8], "little")
    stated = json.loads(content[8:begin])["__metadata__"]["mixer_lightning_sha256"]
    assert stated == hashlib.sha256(content[begin:]).hexdigest()
    assert load_file(path).keys() == model.state_dict().keys()  # other programs pass it over
    assert read(path).tensors.keys() == model.state_dict().keys()
    changed = bytearray(content)
    changed[begin + 40] ^= 1
    path.write_bytes(changed)
    with pytest.raises(ValueError, match=rf"{path} is damaged: its tensors are not what was written"):
        read(path)
    path.write_bytes(
        changed[:8] + changed[8:begin].replace(b"mixer_lightning_sha256", b"x" * 22) + changed[begin:]
    )
    read(path)  # files of others have none


def npy(shape: tuple[int, ...], data: bytes) -> bytes:
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue() + data


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_an_npz_that_declares_more_than_it_holds_is_refused_before_memory_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: int
) -> None:
    monkeypatch.setattr(np, "load", pytest.fail)
    with zipfile.ZipFile(tmp_path / "x.npz", "w", method) as archive:
        archive.writestr("stem/kernel.npy", npy((1 << 20, 1 << 20), bytes(64)))
    with pytest.raises(
        ValueError, match=r"x\.npz is damaged, or made up: 'stem/kernel' declares 4,398,046,511,104 bytes"
    ):
        read(tmp_path / "x.npz")


def test_an_npz_whose_arrays_lie_on_top_of_each_other_is_refused(tmp_path: Path) -> None:
    """A thousand entries of one place: the archive unpacks to a thousand times what one entry may."""
    path = tmp_path / "x.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("a.npy", npy((1 << 16,), bytes(1 << 18)))
        (one,) = archive.infolist()
        for number in range(1000):
            again = zipfile.ZipInfo(f"{number}.npy")
            for field in ("compress_type", "header_offset", "CRC", "compress_size", "file_size"):
                setattr(again, field, getattr(one, field))
            archive.filelist.append(again)
        archive.NameToInfo["again"] = again
        archive._didModify = True
    with pytest.raises(ValueError, match=r"x\.npz is no file of weights: its arrays take [\d,]+ bytes"):
        read(path)
