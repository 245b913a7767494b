"""What is written is read again; what cannot be written is refused before a file is there."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_models import assert_same_logits, digits_model

from mixer_lightning.checkpoints.describe import describe
from mixer_lightning.checkpoints.load import load
from mixer_lightning.checkpoints.save import save_flax, save_timm


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


def test_what_cannot_be_saved(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="only a Mixer has an official Flax layout, not convmixer_96_4"):
        save_flax(digits_model("convmixer_96_4"), tmp_path / "model.npz")
    with pytest.raises(ValueError, match=r"ending in \.npz"):
        save_flax(digits_model(), tmp_path / "model.pth")
    with pytest.raises(ValueError, match=r"ending in \.safetensors"):
        save_timm(digits_model(), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []
