"""From the command line and conf/ to a checked recipe. The only importer of hydra and omegaconf."""
