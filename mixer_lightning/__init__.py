"""MLP-Mixer and ConvMixer, pretrained and transferred, with PyTorch Lightning and Hydra.

>>> from mixer_lightning import create_model, load
>>> model = create_model("mixer_b16", num_classes=10, image_size=224)
>>> model, classes, transform = load("runs/finetune/mixer_b16-folder-seed0")
"""

from mixer_lightning.api import create_model, list_models, load

__all__ = ["create_model", "list_models", "load"]
__version__ = "0.1.0"
