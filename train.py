"""Pretraining, or training from scratch: mixer_lightning/cli/train.py."""

import sys

from mixer_lightning.cli.start import start

if __name__ == "__main__":
    sys.exit(start("train"))
