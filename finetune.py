"""Transfer of a pretrained backbone to a data set: mixer_lightning/cli/finetune.py."""

import sys

from mixer_lightning.cli.start import start

if __name__ == "__main__":
    sys.exit(start("finetune"))
