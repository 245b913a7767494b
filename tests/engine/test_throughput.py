"""The rate behind a plan is that of the training step itself."""

from __future__ import annotations

import pytest

from conftest import TINY
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine.classifier import Classifier
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
