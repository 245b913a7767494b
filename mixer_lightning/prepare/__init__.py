"""Any data set to WebDataset shards, once: `python -m mixer_lightning.prepare data=... source=... output=...`."""
