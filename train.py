"""Pretraining, or training from scratch: compose, check, run."""

from mixer_lightning import config

if __name__ == "__main__":
    config.program(
        "train", run="mixer_lightning.run.train", after_sweep="mixer_lightning.reports.sweep.summarise"
    )
