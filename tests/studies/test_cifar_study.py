"""The study of CIFAR training: both sides hand over the same kind of batch, and both train."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mixer_lightning.studies import cifar, cifar_training

CPU = torch.device("cpu")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Class folders of 12 images of 32 px, each of one shade of grey."""
    for i in range(12):
        folder = tmp_path / "train" / f"class{i % 3}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((32, 32, 3), 20 * i, np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "train"


@pytest.mark.parametrize("side", [cifar_training.ours, cifar_training.torchvisions])
def test_both_sides_make_normalised_batches_that_a_step_takes(side, root: Path) -> None:
    batches = side(root, batch_size=4, workers=1, device=CPU, ahead=0)
    images, targets = next(batches)
    assert tuple(images.shape) == (4, 3, 32, 32)
    assert images.dtype == torch.float32
    assert -3 < images.min() < images.max() < 3
    assert targets.sum(dim=1).tolist() == [1.0] * 4
    step = cifar_training.training_step(CPU, num_classes=3)
    assert cifar_training.measured(batches, step, count=1, device=CPU) > 0
    batches.close()


def test_what_it_writes(root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cifar_training, "keep_freed_memory", lambda _: True)
    speeds = iter(
        [100.0, 300.0, 400.0, 100.0, 10.0, 15.0, 15.0, 10.0, 5.0, 6.0, 7.0, 5.0]
    )  # theirs, ours, in turns
    monkeypatch.setattr(cifar_training, "measured", lambda *_, **__: next(speeds))
    cifar.main([f"root={root}", "rounds=2", "batch_size=4", f"out={tmp_path / 'out'}"])
    text = (tmp_path / "out/cifar_cpu.md").read_text()
    assert "| input alone | 100 | 350 | 3.50 (3.25 to 3.75) |" in text
    assert "| with training | 10 | 15 | 1.50 (1.50 to 1.50) |" in text
    assert "| with training, freed memory given back | 5 | 6 | 1.30 (1.25 to 1.35) |" in text


def test_wrong_arguments(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cifar.settings([f"root={root}", "rounds=1"])
    assert end.value.code == 2
    assert "rounds must be at least 2" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        ("batch_size=13", "12 images are fewer than a batch of 13"),
        ("root={root}/class0", "class0 holds no class folders, but 4 image files"),
        ("root={root}", "cannot identify image file <_io.BufferedReader name='{root}/class0/3.png'>"),
    ],
)
def test_images_of_which_nothing_comes_are_named(
    broken: str, message: str, root: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    if broken == "root={root}":
        (root / "class0" / "3.png").write_bytes(b"nothing")
    small = [f"root={root}", "batch_size=12", "workers=1", f"out={tmp_path}"]
    with pytest.raises(SystemExit) as end:
        cifar.main([*small, broken.format(root=root)])
    assert end.value.code == 2
    lines = capfd.readouterr().err.splitlines()
    assert len(lines) == 1
    assert message.format(root=root) in lines[0]
