"""Any data set to WebDataset shards, once: `mixer prepare data=... source=... output=...`."""
