"""Pretraining, or training from scratch."""

import sys

from mixer_lightning.cli.train import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
