"""Fast paths for an operation, each beside its plain PyTorch reference."""
