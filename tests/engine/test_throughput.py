"""The rate behind a plan is that of the training step itself."""

from __future__ import annotations

import pytest
import torch

from conftest import TINY
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine import device
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.throughput import training_rate


@pytest.mark.parametrize("model", ["mixer_digits", "convmixer_96_4"])
def test_whole_steps_of_the_classifier_are_timed(monkeypatch, model):
    seen: list[tuple[int, ...]] = []
    step = Classifier.training_step

    def noting(self, batch, batch_idx):
        seen.append(tuple(batch[0].shape))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", noting)
    recipe = compose_one("train", [*TINY, f"model={model}", "device_batch=20", "augment.mixup=0.2"])
    assert training_rate(recipe, seconds=0.05) > 0
    assert len(seen) >= 3  # the first is not timed
    assert set(seen) == {(20, 3, 8, 8)}


@pytest.mark.whole
@pytest.mark.parametrize(("seconds", "side"), [(1e-5, 1024), (0.1, 256)])
def test_the_rate_of_a_device_is_of_matrices_that_are_not_too_large_for_it(monkeypatch, seconds, side):
    """bfloat16 on a CPU without the instructions took nine seconds at the start of every training."""
    sides = []
    monkeypatch.setattr(torch, "mm", lambda left, right, out: sides.append(len(left)))
    monkeypatch.setattr(device, "seconds", lambda step, device, steps: seconds)
    assert device.matrix_rate(Machine(accelerator="cpu"), at_least=0.1) == side**3 / seconds
    assert sides == [256] * 3 + [1024] * 3 * (side == 1024)
