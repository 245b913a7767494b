"""Operations on uint8 batches against timm's and torchvision's transforms on Pillow's images."""

from __future__ import annotations

import ast
import random
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import BATCH, PHOTOS, as_batch
from PIL import Image
from timm.data.auto_augment import LEVEL_TO_ARG, AugmentOp
from torchvision import transforms

from mixer_lightning.data import image_ops, operations
from mixer_lightning.data.image_ops import TAPS, Operation
from mixer_lightning.data.policies import TIMM, TORCHVISION

FILL = (124, 116, 104)
FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
AFFINE = ("Rotate", "ShearX", "ShearY", "TranslateXRel", "TranslateYRel")


@pytest.fixture(params=["pytorch", "native"], autouse=True)
def _by(request, monkeypatch):
    """Either way is Pillow's; without a compiler both are PyTorch."""
    if request.param == "pytorch":
        monkeypatch.setattr(operations, "apply_operations", image_ops.apply_operations)


def apply(
    images: torch.Tensor, operation: Operation, argument: float, *, taps: int = 1, fill=FILL
) -> torch.Tensor:
    """One operation, the same for every image."""
    count = len(images)
    return operations.apply_operations(
        images,
        np.full((count, 1), int(operation)),
        np.full((count, 1), float(argument)),
        np.full((count, 1), taps),
        fill=np.array(fill, np.uint8),
        centres=np.full((count, 1, 2), 0.4),
    )


@pytest.mark.parametrize(
    ("name", "interpolation"),
    [*((name, "bilinear") for name in TIMM), *((name, "bicubic") for name in AFFINE)],
)
def test_timms_operations(name, interpolation, monkeypatch):
    """Tables, blends and blurs to the bit; affine operations to the level, nearly everywhere to the bit."""
    operation, argument = TIMM[name]
    worst, wrong = 0, []
    for magnitude in (0.0, 1.37, 2.53, 5.11, 9.0, 10.0, 13.71, 20.0):
        for sign in (1.0, -1.0):
            value = float(argument(np.array(magnitude), np.array(sign)))
            if operation == Operation.POSTERIZE and value < 1:
                continue  # which Pillow refuses
            monkeypatch.setattr(random, "random", lambda negate=sign < 0: 0.9 if negate else 0.1)
            options = {"img_mean": FILL, "interpolation": FILTERS[interpolation], "magnitude_max": 20}
            theirs = AugmentOp(name, prob=1.0, magnitude=magnitude, hparams=options)
            wanted = as_batch([theirs(image) for image in PHOTOS])
            got = apply(BATCH, operation, value, taps=TAPS[interpolation])
            difference = (got.int() - wanted.int()).abs()
            worst = max(worst, int(difference.max()))
            wrong.append(float((difference > 0).float().mean()))
    assert worst <= (1 if name in AFFINE else 0)
    assert np.mean(wrong) < 0.01  # mostly means that are whole numbers, such as 0.7 * 10 + 0.3 * 20


@pytest.mark.parametrize("bits", [0, -4])
def test_posterize_without_bits_is_black(bits):
    assert not apply(BATCH, Operation.POSTERIZE, bits).any()


@pytest.mark.parametrize("side", [1, 2, 3])
@pytest.mark.parametrize("operation", Operation)
def test_tiny_images(operation, side, monkeypatch):
    """No operation needs room; the two that look at neighbours do on a few pixels what Pillow does."""
    images = BATCH[..., :side, :side]
    got = apply(images, operation, 0.7, taps=4)
    assert got.shape == images.shape
    if operation in (Operation.SHARPNESS, Operation.BLUR):
        name = {Operation.SHARPNESS: "Sharpness", Operation.BLUR: "GaussianBlur"}[operation]
        monkeypatch.setitem(LEVEL_TO_ARG, name, None)
        theirs = AugmentOp(name, prob=1.0)
        theirs.kwargs["factor"] = 0.7
        torch.testing.assert_close(got, as_batch([theirs(i.crop((0, 0, side, side))) for i in PHOTOS]))


@pytest.mark.parametrize("magnitude", [0, 1, 7, 12, 29, 30])
def test_torchvisions_operations_to_the_bit(magnitude, monkeypatch):
    theirs = transforms.RandAugment(num_ops=1, magnitude=magnitude)
    assert len(TORCHVISION) == 14
    for i, (operation, argument) in enumerate(TORCHVISION.values()):
        for negate in (0, 1):
            # the operation is the first number that torchvision draws, the sign the second
            monkeypatch.setattr(
                torch, "randint", lambda n, _, i=i, s=negate: torch.tensor([i if n > 2 else s])
            )
            wanted = as_batch([theirs(image) for image in PHOTOS])
            value = argument(np.array([magnitude]), np.array([1.0 - 2 * negate]))[0]
            got = apply(BATCH, operation, value, fill=(0, 0, 0))
            assert torch.equal(got, wanted), (operation.name, negate)


def test_the_module_loads_neither_timm_nor_torchvision():
    body = ast.parse(Path(image_ops.__file__).read_text()).body
    lines = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(lines) > 5
    assert not any("timm" in line or "torchvision" in line for line in lines)
