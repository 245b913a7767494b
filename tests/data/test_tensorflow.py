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
from scipy.stats import ks_2samp

from mixer_lightning.data.crops import FILTERS, Crops, crop_batch, crop_one
from mixer_lightning.data.image_ops import Operation, apply_operations
from mixer_lightning.data.policies import BIG_VISION
from mixer_lightning.data.stateless_random import sample_keys
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
    crops = Augment(crop="resize_random", crop_fraction=0.875, eval_rounding="big_vision").train_crops(
        named, width, height, 224
    )
    np.testing.assert_array_equal(crops.to_width, to_width)
    np.testing.assert_array_equal(crops.to_height, to_height)


# ---- the Inception crop


def inception_boxes(width: int, height: int, count: int, **shape: tuple[float, float]) -> np.ndarray:
    """left, top, width, height [4, count]."""
    augment = Augment(crop="inception", interpolation="tf_bilinear", **shape)
    named = sample_keys(0, [(0, image, 0) for image in range(count)])
    crops = augment.train_crops(named, np.full(count, width), np.full(count, height), 32)
    assert (crops.filter == FILTERS.index("tf_bilinear")).all()
    return np.stack([crops.left, crops.top, crops.width, crops.height])


SHAPE = {"crop_scale": (0.05, 1.0), "crop_ratio": (0.75, 1.33)}


@pytest.mark.parametrize("size", [(500, 375), (300, 90), (40, 140), (37, 8)])
def test_inception_crops_are_distributed_as_tensorflows(size):
    """Kolmogorov and Smirnov on place, extent and area of TensorFlow's 1,500 boxes."""
    width, height = size
    ours = inception_boxes(width, height, 20_000, **SHAPE)
    theirs = REFERENCE[f"boxes_{width}_{height}"].astype(np.int64).T
    for a, b in (*zip(ours, theirs, strict=True), (ours[2] * ours[3], theirs[2] * theirs[3])):
        assert ks_2samp(a, b).pvalue > 0.001
    assert (ours[0] + ours[2] <= width).all()
    assert (ours[1] + ours[3] <= height).all()
    free = width - ours[2]
    assert (ours[0][free > 0] < free[free > 0]).all()  # Uniform(width - crop width): never the last place


def test_inception_crops_are_smaller_than_timms():
    """Means of areas on a 500 x 375 image: .34, where uniform areas that fit have .41."""
    areas = {}
    for crop in ("inception", "random_resized"):
        crops = Augment(crop=crop, **SHAPE).train_crops(
            sample_keys(0, [(0, image, 0) for image in range(20_000)]),
            np.full(20_000, 500),
            np.full(20_000, 375),
            32,
        )
        areas[crop] = (crops.width * crops.height).mean() / (500 * 375)
    assert areas["inception"] == pytest.approx(0.342, abs=0.006)
    assert areas["random_resized"] == pytest.approx(0.414, abs=0.006)


def test_an_image_too_narrow_for_any_box_is_taken_whole():
    """Of 1,000 x 20 pixels, aspect 1.33 allows 20 x 27: 2.7 % of the area, where 5 % are asked for."""
    assert set(map(tuple, inception_boxes(1000, 20, 40, **SHAPE).T.tolist())) == {(0, 0, 1000, 20)}


def test_a_box_is_tried_for_again():
    """Of 500 x 20 pixels only aspects above 1.25 reach 5 % of the area, one in seven: ten tries would often fail."""
    _, _, width, height = inception_boxes(500, 20, 2000, **SHAPE)
    assert (width < 500).all()
    assert (width * height >= 0.05 * 500 * 20).all()
    assert (width / height > 1.24).all()


# ---- RandAugment


def in_big_vision(name: str, argument: float, centre: tuple[float, float] = (0.0, 0.0)) -> torch.Tensor:
    return apply_operations(
        planar(REFERENCE["image"])[None],
        np.full((1, 1), int(BIG_VISION[name][0])),
        np.full((1, 1), argument),
        np.ones((1, 1), np.int64),
        fill=np.full(3, 128, np.uint8),
        centres=np.array(centre).reshape(1, 1, 2),
    )[0]


@pytest.mark.parametrize("name", sorted(set(BIG_VISION) - {"Cutout"}))
def test_operations_are_big_visions(name):
    """To the bit; at magnitudes 10, 15 and 20 of the Mixer paper, and where no bits are left to Posterize."""
    seen = 0
    for magnitude in (2, 5, 10, 15, 20):
        for sign in (1, -1):
            theirs = REFERENCE.get(f"{name}_{magnitude}_{sign}")
            if theirs is None:  # which has no direction
                continue
            argument = BIG_VISION[name][1](np.array(float(magnitude)), np.array(float(sign)))
            difference = (in_big_vision(name, float(argument)).int() - planar(theirs).int()).abs()
            # its mean of 3 x 3 is a sum in float32, which may fall just below a whole level
            assert (difference > 0).float().mean() <= (0.003 if name == "Sharpness" else 0)
            seen += 1
    assert seen in (5, 10)


@pytest.mark.parametrize(("row", "column"), [(0, 0), (5, 13), (15, 15), (8, 7)])
def test_cutout_is_big_visions(row, column):
    cut = in_big_vision("Cutout", 5, ((row + 0.5) / 16, (column + 0.5) / 16))
    assert torch.equal(cut, planar(REFERENCE[f"Cutout_{row}_{column}_5"]))
    assert BIG_VISION["Cutout"][1](np.array([10.0, 15.0, 20.0]), np.ones(3)).tolist() == [40, 60, 80]


def test_thresholds_of_solarize_wrap_around():
    """256 and 512 become 0, which inverts everything; 384 becomes 128."""
    levels = BIG_VISION["Solarize"][1](np.array([10.0, 15.0, 20.0]), np.ones(3))
    assert levels.tolist() == [0, 128, 0]
    assert torch.equal(in_big_vision("Solarize", 0), 255 - planar(REFERENCE["image"]))
    added = BIG_VISION["SolarizeAdd"][1](np.array([10.0, 15.0, 20.0]), np.ones(3))
    assert added.tolist() == [110, 165, 220]


def test_contrast_blends_with_the_number_of_pixels_in_a_bin():
    """224 * 224 / 256 = 196, whatever the image; at 1.9, 196 + 1.9 (level - 196) of the first rows of one."""
    rows = planar(REFERENCE["contrast_224_in"])
    image = torch.zeros(1, 3, 224, 224, dtype=torch.uint8)
    image[0, :, :2] = rows
    seen = apply_operations(
        image,
        np.full((1, 1), int(Operation.TF_CONTRAST)),
        np.full((1, 1), 1.9),
        np.ones((1, 1), np.int64),
        fill=np.full(3, 128, np.uint8),
    )
    assert torch.equal(seen[0, :, :2], planar(REFERENCE["contrast_224_rows"]))
    assert not seen[0, :, 2:].any()
