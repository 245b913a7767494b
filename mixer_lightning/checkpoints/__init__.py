"""Weights from and to files: the official Flax and PyTorch releases, timm, and this project's own runs."""
