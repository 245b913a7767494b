"""Transfer of a pretrained backbone to a data set."""

import sys

from mixer_lightning.cli.finetune import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
