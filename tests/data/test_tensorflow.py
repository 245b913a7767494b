"""What Google's pipeline makes of images, beside its own results.

tensorflow.npz holds what google-research/big_vision (commit 0127fb6: pp/ops_image.py, pp/archive/autoaugment.py) made
under TensorFlow 2.15.1 and TensorFlow Addons 0.23.0 of a photograph-like image [45, 62, 3] and of an image [16, 16, 3]
with plain corners.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from mixer_lightning.data.crops import FILTERS, Crops, crop_batch, crop_one
from mixer_lightning.data.transforms import Augment

REFERENCE = dict(np.load(Path(__file__).with_name("tensorflow.npz")))


def planar(image: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(image).permute(2, 0, 1)


def whole(image: torch.Tensor, *, to_width: int, to_height: int, filter: str) -> Crops:
    height, width = image.shape[1:]
    numbers = (0, 0, width, height, to_width, to_height, 0, 0, FILTERS.index(filter))
    names = ("left", "top", "width", "height", "to_width", "to_height", "x", "y", "filter")
    return Crops(**{name: np.array([number]) for name, number in zip(names, numbers, strict=True)})


def assert_same_levels(ours: torch.Tensor, theirs: np.ndarray) -> None:
    """Equal, but where float32 in its order of adding falls just below a whole level, which is then cut off."""
    difference = (ours.int() - planar(theirs).int()).abs()
    assert difference.max() <= 1
    assert (difference > 0).float().mean() < 0.005


# ---- resizing


def test_area_weighs_by_how_much_of_a_pixel_is_covered():
    """[0, 100, 200, 50, 25] to 3 pixels of 5/3: (0 + 2/3 100) / (5/3), (1/3 100 + 200 + 1/3 50) / (5/3), ..."""
    row = torch.tensor([0, 100, 200, 50, 25], dtype=torch.uint8).expand(3, 5, 5)
    crop = whole(row, to_width=3, to_height=3, filter="area")
    for seen in (crop_one(row, crop, 0, 3), crop_batch(row[None], crop, 3)[0]):
        assert seen[:, 0].tolist() == [[40, 150, 35]] * 3
    back = crop_one(row.mT, crop, 0, 3)
    assert back[:, :, 0].tolist() == [[40, 150, 35]] * 3


@pytest.mark.parametrize("size", [20, 31])
@pytest.mark.parametrize(("name", "filter"), [("resize_small", "area"), ("resize", "tf_bilinear")])
def test_resizing_is_big_visions(name, filter, size):
    photo, theirs = planar(REFERENCE["photo"]), REFERENCE[f"{name}_{size}"]
    height, width, _ = theirs.shape
    side = max(height, width)
    crop = whole(photo, to_width=width, to_height=height, filter=filter)
    for seen in (crop_one(photo, crop, 0, side), crop_batch(photo[None], crop, side)[0]):
        assert_same_levels(seen[:, :height, :width], theirs)


def test_sizes_and_offsets_of_an_evaluation_are_big_visions():
    """resize_small(256) and central_crop(224) of 60 images; torchvision's rounding gives others for 37 of them."""
    width, height, *expected = REFERENCE["geometry"].T
    crops = Augment(eval_crop=0.875, eval_rounding="big_vision").eval_crops(width, height, 224)
    for ours, theirs in zip((crops.to_width, crops.to_height, crops.x, crops.y), expected, strict=True):
        np.testing.assert_array_equal(ours, theirs)
    others = Augment(eval_crop=0.875).eval_crops(width, height, 224)
    assert (np.stack([others.to_width, others.to_height, others.x, others.y]) != expected).any(0).sum() == 37


def test_an_evaluation_is_big_visions():
    photo = planar(REFERENCE["photo"])
    augment = Augment(eval_crop=17 / 20, eval_interpolation="area", eval_rounding="big_vision")
    crops = augment.eval_crops(np.array([62]), np.array([45]), 17)
    assert_same_levels(crop_one(photo, crops, 0, 17), REFERENCE["centre_small_20_17"])


def test_a_random_part_is_of_an_image_resized_with_the_same_rounding():
    named = np.arange(40, dtype=np.uint64)
    width, height, to_width, to_height, *_ = REFERENCE["geometry"][:40].T
    crops = Augment(crop="resize_random", eval_crop=0.875, eval_rounding="big_vision").train_crops(
        named, width, height, 224
    )
    np.testing.assert_array_equal(crops.to_width, to_width)
    np.testing.assert_array_equal(crops.to_height, to_height)
