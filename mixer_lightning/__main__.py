"""`python -m mixer_lightning <command>` is `mixer <command>`."""

import sys

from mixer_lightning.cli.console import main

if __name__ == "__main__":
    sys.exit(main())
