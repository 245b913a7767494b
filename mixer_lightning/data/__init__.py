"""Samples on their way to the model: sources, order, decoding, cropping, augmentation, mixing."""
