"""TensorBoard: event files in the run directory."""

from __future__ import annotations

from pathlib import Path

from lightning.pytorch.loggers import TensorBoardLogger


def tensorboard_logger(run_dir: Path, run_name: str) -> TensorBoardLogger:
    """Event files in `<run_dir>/tensorboard`: `tensorboard --logdir runs`."""
    return TensorBoardLogger(save_dir=str(run_dir), name="tensorboard", version="", default_hp_metric=False)
