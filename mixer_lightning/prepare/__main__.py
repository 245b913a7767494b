"""Run: python -m mixer_lightning.prepare data=... source=... output=..."""

from __future__ import annotations

import sys

from mixer_lightning.prepare.program import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
