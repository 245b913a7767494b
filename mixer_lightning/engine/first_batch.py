"""A picture of the first training batch as the network sees it: after the crop, augmentation and mixing."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor

from mixer_lightning import results
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.screen import last_line

log = logging.getLogger(__name__)

NUM_SHOWN = 32
NUM_NAMED = 2  # classes of a mixed target


class FirstBatch(Callback):
    """Writes first_batch.png at the first step of a run."""

    def __init__(self, run_dir: Path, augment: Augment, classes: Sequence[str]) -> None:
        self.path, self.augment, self.classes = run_dir / results.FIRST_BATCH, augment, classes

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: tuple[Tensor, Tensor], batch_idx: int
    ) -> None:
        """Lightning's hook."""
        assert isinstance(pl_module, Classifier)
        if pl_module.step or batch_idx or trainer.global_rank:
            return
        from mixer_lightning.reports import first_batch  # matplotlib: half a second

        images, targets = (part[:NUM_SHOWN].float().cpu() for part in batch)
        try:
            first_batch.draw(
                self.path, pixels(images, self.augment), [caption(each, self.classes) for each in targets]
            )
        except Exception as error:  # training must not hang on a picture
            log.warning("no %s: %s", self.path.name, last_line(error))


def pixels(images: Tensor, augment: Augment) -> Any:
    """Normalised images [B, 3, S, S] as uint8 [B, S, S, 3], a NumPy array."""
    mean, std = (torch.tensor(values).view(1, -1, 1, 1) for values in (augment.mean, augment.std))
    return ((images * std + mean) * 255).round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def caption(target: Tensor, classes: Sequence[str]) -> str:
    """The classes of a target [K] as the loss is given it: 'cat', or mixed '70 % cat' and '30 % dog' in two lines."""
    value, label = target.topk(min(NUM_NAMED, len(target)))
    named = [(classes[k], v) for k, v in zip(label.tolist(), value.tolist(), strict=True) if v > 0.01]
    if len(named) == 1:
        return _in_a_line(named[0][0])
    return "\n".join(f"{100 * share:.0f} % {_in_a_line(name)}" for name, share in named)


def _in_a_line(name: str) -> str:
    return " ".join(name.split())
