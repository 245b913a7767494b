"""`python -m mixer_lightning <command>` is `mixer <command>`."""

import sys

from mixer_lightning.cli.start import start

if __name__ == "__main__":
    sys.exit(start())
