"""What a user adds without touching the package: one file each in a folder of their own, used in a real run.

`--config-dir` names the folder of YAML files; the Python behind them is a module on PYTHONPATH.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
import yaml

from conftest import ROOT

#: The user's module. Images of class 0 are dark, those of class 1 bright.
MODULE = '''
import numpy as np
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger

from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.sources.arrays import Arrays


def shades(contrast: int) -> Dataset:
    splits = {}
    for split, count in (("train", 40), ("test", 20)):
        labels = np.arange(count) % 2
        pixels = np.full((count, 8, 8, 3), 100, np.uint8) + (contrast * labels).astype(np.uint8)[:, None, None, None]
        splits[split] = Arrays("shades", pixels, labels, rows=list(range(count)))
    return Dataset(name="shades", classes=["dark", "bright"], splits=splits)


class Images:
    def __init__(self, per: int = 1):
        self.per = per

    def check(self, data):
        assert data.name == "shades"

    def run(self, predict):
        yield "test/images", np.float32(len(predict.data.splits["test"]) / self.per)


class Half:
    def check(self, data):
        pass


class Fill(torch.optim.SGD):
    """Sets every parameter to one value."""

    @torch.no_grad()
    def step(self, closure=None):
        loss = super().step(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.fill_(self.value)
        return loss


def fill(model, *, lr: float, value: float):
    optimizer = Fill(model.parameters(), lr=lr)
    optimizer.value = value
    return optimizer


class Note(Callback):
    def __init__(self, text: str) -> None:
        self.text = text

    def on_train_end(self, trainer, module):
        print(f"{self.text} {trainer.global_step}", flush=True)


def journal(run_dir, run_name, *, version: str):
    return CSVLogger(str(run_dir), name="journal", version=version)
'''

#: The user's YAML files.
FILES = {
    "model/pebble.yaml": """
        # A Mixer of one block.
        _target_: mixer_lightning.models.mixer.Mixer
        patch_size: 4
        num_blocks: 1
        hidden_dim: 16
        tokens_mlp_dim: 8
        channels_mlp_dim: 32
        """,
    "data/shades.yaml": """
        # Dark and bright squares.
        _target_: own_parts.shades
        contrast: 100
        """,
    "optimizer/fill.yaml": """
        # Sets every parameter to one value.
        _target_: own_parts.fill
        _partial_: true
        lr: 0.1
        value: 0.25
        """,
    "evals/images.yaml": """
        # @package evals.images
        # The number of test images.
        _target_: own_parts.Images
        per: 2
        """,
    "evals/half.yaml": """
        # @package evals.half
        # Not yet an evaluation.
        _target_: own_parts.Half
        """,
    "logger/journal.yaml": """
        # @package logger.journal
        # A CSV file of metrics.
        _target_: own_parts.journal
        version: first
        """,
    "callbacks/note.yaml": """
        # @package callbacks.note
        # Says how many steps there were.
        _target_: own_parts.Note
        text: steps made
        """,
    "experiment/shades.yaml": """
        # @package _global_
        # Everything of one's own at once.
        defaults:
          - override /model: pebble
          - override /data: shades
          - override /optimizer: fill
          - override /evals: [accuracy, images]
          - override /callbacks: note
          - override /logger: journal
          - override /trainer: cpu
        name: own
        image_size: 8
        batch_size: 20
        duration: {epochs: 2}
        eval_every: {epochs: 1}
        checkpoint_every: {epochs: 1}
        log_every_steps: 1
        """,
}


class Extension(NamedTuple):
    """A user's folder with `own_parts.py` and `my/`, and the run of their recipe."""

    folder: Path
    run: subprocess.CompletedProcess[str]

    @property
    def run_dir(self) -> Path:
        return self.folder / "runs/own/pebble-shades-seed0"


def mixer(folder: Path, *argv: str) -> subprocess.CompletedProcess[str]:
    """`mixer <argv>` as the user types it in their folder."""
    return subprocess.run(
        [sys.executable, "-m", "mixer_lightning", *argv],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Extension:
    folder = tmp_path_factory.mktemp("own")
    (folder / "own_parts.py").write_text(MODULE)
    for name, text in FILES.items():
        path = folder / "my" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = text.strip("\n").splitlines()
        path.write_text("\n".join(line.removeprefix(" " * 8) for line in lines).rstrip() + "\n")
    done = mixer(folder, "train", "--config-dir=my", "experiment=shades")
    assert done.returncode == 0, done.stdout + done.stderr
    return Extension(folder, done)


def metrics(own: Extension) -> list[dict[str, float]]:
    return [json.loads(line) for line in (own.run_dir / "metrics.jsonl").read_text().splitlines()]


def test_a_model_size(own: Extension):
    stem, head = 3 * 4 * 4 * 16 + 16, 16 * 2 + 2
    tokens, channels = 4 * 8 + 8 + 8 * 4 + 4, 16 * 32 + 32 + 32 * 16 + 16  # 2x2 tokens
    norms = 3 * (16 + 16)
    result = json.loads((own.run_dir / "result.json").read_text())
    assert result["num_parameters"] == stem + tokens + channels + norms + head
    assert "pebble" in own.run.stdout


def test_a_data_set(own: Extension):
    for text in ("shades", "40 train", "20 test", "2 classes"):
        assert text in own.run.stdout.splitlines()[0]
    assert (own.run_dir / "per_class_test.csv").read_text().splitlines()[1].startswith("dark,10,")


def test_a_recipe(own: Extension):
    recipe = yaml.safe_load((own.run_dir / "recipe.yaml").read_text())
    assert (recipe["name"], recipe["batch_size"], recipe["duration"]) == ("own", 20, {"epochs": 2})
    assert metrics(own)[-1]["step"] == 4  # two epochs of 40 images, 20 at a time


def test_an_evaluation(own: Extension):
    assert [row["test/images"] for row in metrics(own) if "test/images" in row] == [10.0, 10.0]
    assert "test/images" in own.run.stdout


def test_an_evaluation_of_a_checkpoint(own: Extension):
    done = mixer(own.folder, "evaluate", "--config-dir=my", f"checkpoint={own.run_dir}", "evals=images")
    assert done.returncode == 0, done.stdout + done.stderr
    (written,) = own.folder.glob("runs/evaluate/*images/*/evaluation.json")
    assert json.loads(written.read_text())["metrics"] == {"test/images": 10.0}


def test_what_is_no_evaluation_is_refused_before_the_start(own: Extension):
    done = mixer(own.folder, "train", "--config-dir=my", "experiment=shades", "evals=half", "name=half")
    assert done.returncode == 2
    assert "evals.half: Half has no run(predict)" in done.stdout
    assert not (own.folder / "runs/half").exists()


def test_an_optimiser(own: Extension):
    weights = torch.load(own.run_dir / "last.ckpt", weights_only=True)["state_dict"]
    values = torch.cat([tensor.flatten() for name, tensor in weights.items() if "head" in name])
    assert len(values) >= 34
    assert values.unique().tolist() == [0.25]


def test_a_logger(own: Extension):
    lines = (own.run_dir / "journal/first/metrics.csv").read_text().splitlines()
    assert "test/images" in lines[0]


def test_a_lightning_callback(own: Extension):
    assert "steps made 4" in own.run.stdout


def test_help_shows_them(own: Extension):
    said = mixer(own.folder, "train", "--config-dir=my", "--help").stdout
    for name, text in FILES.items():
        about = next(
            line.strip(" #")
            for line in text.splitlines()
            if line.strip().startswith("# ") and "@" not in line
        )
        assert f"  {Path(name).stem} " in said
        assert about in said


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.contrst=3", "unknown key 'data.contrst': did you mean 'data.contrast'?"),
        ("optimizer.value=much", "'optimizer.value' takes float, found 'much'"),
        ("model=peble", "unknown model 'peble': did you mean 'pebble'?"),
    ],
)
def test_a_typo_in_ones_own_is_named(own: Extension, override: str, message: str):
    done = mixer(own.folder, "train", "--config-dir=my", "experiment=shades", override)
    assert done.returncode == 2
    assert message in done.stderr
