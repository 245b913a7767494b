"""MLP-Mixer and ConvMixer, pretrained and transferred, with PyTorch Lightning and Hydra.

>>> from mixer_lightning import create_model
>>> model = create_model("mixer_b16", num_classes=10, image_size=224)
"""

from mixer_lightning.api import create_model, list_models

__all__ = ["create_model", "list_models"]
__version__ = "0.1.0"
