"""Any data set to WebDataset shards, once: `mixer prepare data=... source=... output=...`."""

from __future__ import annotations

from mixer_lightning.prepare.program import main

__all__ = ["main"]
