"""Transfer of a pretrained backbone to a data set: compose, check, run."""

from mixer_lightning import config

if __name__ == "__main__":
    config.program(
        "finetune",
        run="mixer_lightning.run.finetune",
        after_sweep="mixer_lightning.reports.sweep.summarise",
        implied="mixer_lightning.pretrained.implied",
    )
