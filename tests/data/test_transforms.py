"""Augmentation against torchvision's and timm's own transforms, and against the numbers a recipe states."""

from __future__ import annotations

import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, ks_2samp, kstest
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms as tv
from torchvision.transforms import InterpolationMode, v2

from mixer_lightning.data.crops import FILTERS, Crops, crop_one
from mixer_lightning.data.policies import ColorJitter, RandAugment
from mixer_lightning.data.stateless_random import sample_keys
from mixer_lightning.data.transforms import Augment


def photo(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def keys(count: int, *, seed: int = 0) -> np.ndarray:
    return sample_keys(seed, [(0, image, 0) for image in range(count)])


def extents(image: Image.Image, count: int = 1) -> tuple[np.ndarray, np.ndarray]:
    return np.full(count, image.width), np.full(count, image.height)


def seen(crops: Crops, image: Image.Image, size: int) -> torch.Tensor:
    return torch.stack([crop_one(pixels(image), crops, i, size) for i in range(len(crops))])


def trained(
    augment: Augment, image: Image.Image, size: int, *, count: int = 1, seed: int = 0
) -> torch.Tensor:
    """What training makes of an image, `count` times: uint8 [count, 3, S, S]."""
    named = keys(count, seed=seed)
    crops = augment.train_crops(named, *extents(image, count), size)
    return augment.apply(seen(crops, image, size), augment.sample_params(named))


def evaluated(augment: Augment, image: Image.Image, size: int) -> torch.Tensor:
    """What evaluation makes of an image: uint8 [3, S, S]."""
    return seen(augment.eval_crops(*extents(image), size), image, size)[0]


def assert_close_by(ours: torch.Tensor, theirs: torch.Tensor) -> None:
    """Equal but for rounding: one grey level here and there."""
    assert ours.dtype == theirs.dtype == torch.uint8
    difference = (ours.int() - theirs.int()).float()
    assert difference.abs().max() <= 1
    assert difference.abs().mean() < 0.1
    assert abs(difference.mean()) < 0.04  # neither brighter nor darker


# ---- evaluation


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (33, 33), (20, 97), (28, 28), (641, 480)])
@pytest.mark.parametrize(("eval_crop", "resized"), [(0.875, 36), (1.0, 32), (0.96, 33), (0.95, 33)])
@pytest.mark.parametrize(
    ("name", "mode"), [("bilinear", InterpolationMode.BILINEAR), ("bicubic", InterpolationMode.BICUBIC)]
)
def test_evaluation_is_torchvisions_resize_and_centre_crop(size, eval_crop, resized, name, mode):
    augment = Augment(eval_crop=eval_crop, eval_interpolation=name)
    ours = evaluated(augment, photo(*size), 32)
    on_pillow = tv.Compose([tv.Resize(resized, mode), tv.CenterCrop(32), tv.PILToTensor()])
    assert_close_by(ours, on_pillow(photo(*size)))
    on_tensors = v2.Compose([v2.Resize(resized, mode), v2.CenterCrop(32)])
    assert torch.equal(ours, on_tensors(pixels(photo(*size))))


def test_square_evaluation_ignores_the_aspect():
    augment = Augment(eval_crop=0.875, eval_resize="square")
    expected = photo(90, 40).resize((36, 36), Image.Resampling.BILINEAR).crop((2, 2, 34, 34))
    assert_close_by(evaluated(augment, photo(90, 40), 32), pixels(expected))


def test_area_interpolation_is_the_mean_of_the_pixels_it_covers():
    image = photo(64, 64)
    ours = evaluated(Augment(eval_interpolation="area"), image, 32).float()
    mean = pixels(image).float().view(3, 32, 2, 32, 2).mean((2, 4))
    assert torch.equal(ours, mean.floor())  # as tf.cast


def test_normalisation_is_torchvisions():
    augment = Augment(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    image = photo(32, 32)
    reference = tv.Compose([tv.ToTensor(), tv.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])(image)
    batch = pixels(image)[None]
    torch.testing.assert_close(augment.eval_batch(batch)[0], reference)
    images, targets = augment.train_batch(batch, torch.tensor([2]), augment.sample_params(keys(1)), 5)
    torch.testing.assert_close(images[0], reference)
    assert targets.tolist() == [[0, 0, 1, 0, 0]]


def test_default_range_is_minus_one_to_one():
    batch = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    out = Augment().eval_batch(batch)
    assert (out[0] == -1).all()
    assert (out[1] == 1).all()


# ---- training crops

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)


def boxes(augment: Augment, width: int, height: int, count: int) -> np.ndarray:
    """left, top, width, height of random crops: [4, count]."""
    crops = augment.train_crops(keys(count), np.full(count, width), np.full(count, height), 32)
    assert (crops.to_width == 32).all()
    assert (crops.to_height == 32).all()
    assert not crops.x.any()
    assert not crops.y.any()
    return np.stack([crops.left, crops.top, crops.width, crops.height])


def described(found: np.ndarray, width: int, height: int) -> dict[str, np.ndarray]:
    """Area, aspect and place of boxes [4, count]."""
    left, top, w, h = found
    assert (left >= 0).all()
    assert (top >= 0).all()
    assert (left + w <= width).all()
    assert (top + h <= height).all()
    return {
        "area": w * h,
        "aspect": w / h,
        "left": left,
        "top": top,
        "free across": left / np.maximum(width - w, 1),
        "free down": top / np.maximum(height - h, 1),
    }


@pytest.mark.parametrize("size", [(500, 375), (200, 200), (300, 90), (40, 140), (37, 8)])
@pytest.mark.parametrize("reference", ["timm", "torchvision"])
def test_random_resized_crops_are_distributed_as(reference, size):
    """Kolmogorov and Smirnov on area, aspect and place of 2,000 boxes; long images often end in the fallback."""
    random.seed(0)
    torch.manual_seed(0)
    image, count = Image.new("RGB", size), 2000
    if reference == "timm":
        theirs = [RandomResizedCropAndInterpolation.get_params(image, SCALE, RATIO) for _ in range(count)]
    else:
        theirs = [tv.RandomResizedCrop.get_params(image, SCALE, RATIO) for _ in range(count)]
    top, left, height, width = np.array(theirs).T
    wanted = described(np.stack([left, top, width, height]), *size)
    augment = Augment(crop="random_resized", crop_scale=SCALE, crop_ratio=RATIO)
    for what, values in described(boxes(augment, *size, count=20_000), *size).items():
        assert ks_2samp(values, wanted[what]).pvalue > 0.001, what


@pytest.mark.parametrize("size", [(300, 30), (30, 300), (31, 7), (7, 31), (1, 50), (50, 1), (45, 33)])
def test_a_crop_that_cannot_fit_is_the_largest_in_the_middle(size):
    """The area of everything at an aspect that the image has not: all ten tries fail, here and there."""
    image, ratio = Image.new("RGB", size), (0.8, 1.25)
    top, left, height, width = RandomResizedCropAndInterpolation.get_params(image, (1.0, 1.0), ratio)
    augment = Augment(crop="random_resized", crop_scale=(1.0, 1.0), crop_ratio=ratio)
    assert set(map(tuple, boxes(augment, *size, count=50).T.tolist())) == {(left, top, width, height)}


def test_random_crops_have_the_stated_areas_and_aspects():
    augment = Augment(crop="random_resized", crop_scale=(0.05, 0.6), crop_ratio=(0.75, 4 / 3))
    side = 10_000  # so that rounding to pixels does not count; everything fits at once
    found = described(boxes(augment, side, side, 20_000), side, side)
    area, aspect = found["area"] / side**2, np.log(found["aspect"])
    free = found["free across"], found["free down"]
    assert kstest((area - 0.05) / 0.55, "uniform").pvalue > 0.001
    assert kstest((aspect - np.log(0.75)) / np.log(16 / 9), "uniform").pvalue > 0.001
    for place in free:
        assert kstest(place, "uniform").pvalue > 0.001
    correlations = np.corrcoef([area, aspect, *free])
    assert np.abs(correlations - np.eye(4)).max() < 0.025  # nothing tells of anything else


def test_random_interpolation_is_each_half_of_the_time():
    image = photo()
    augment = Augment(crop="random_resized", crop_scale=(1.0, 1.0), crop_ratio=(1.25, 1.25))
    crops = dataclasses.replace(augment, interpolation="random").train_crops(
        keys(1000), *extents(image, 1000), 32
    )
    kinds = [FILTERS[i] for i in crops.filter]
    assert binomtest(kinds.count("bicubic"), 1000).pvalue > 0.001
    assert set(kinds) == {"bilinear", "bicubic"}
    for name, resample in (("bilinear", 2), ("bicubic", 3)):
        one = crops[kinds.index(name) : kinds.index(name) + 1]
        assert_close_by(seen(one, image, 32)[0], pixels(image.resize((32, 32), resample)))
        assert trained(dataclasses.replace(augment, interpolation=name), image, 32).equal(
            seen(one, image, 32)
        )


def test_crop_of_everything_leaves_a_square_image_alone():
    augment = Augment(crop="random_resized", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert torch.equal(trained(augment, photo(32, 32), 32)[0], pixels(photo(32, 32)))


def test_pad_shifts_over_black():
    augment = Augment(crop="pad", crop_padding=2)
    image = photo(8, 8)
    padded = np.zeros((12, 12, 3), dtype=np.uint8)
    padded[2:10, 2:10] = np.asarray(image)
    crops = {(y, x): padded[y : y + 8, x : x + 8].tobytes() for y in range(5) for x in range(5)}
    found = [crop.permute(1, 2, 0).numpy().tobytes() for crop in trained(augment, image, 8, count=1500)]
    counts = [found.count(crop) for crop in crops.values()]
    assert sum(counts) == 1500
    assert min(counts) > 30  # 60 each
    assert max(counts) < 95


def test_pad_resizes_other_images_first():
    augment = Augment(crop="pad", crop_padding=0)
    expected = pixels(photo(20, 20).resize((8, 8), Image.Resampling.BILINEAR))
    assert_close_by(trained(augment, photo(20, 20), 8)[0], expected)


@pytest.mark.parametrize(("crop", "size"), [("resize_random", (60, 40)), ("square_random", (40, 40))])
def test_a_random_part_of_the_resized_image(crop, size):
    augment = Augment(crop=crop, crop_fraction=0.8, eval_crop=0.5)
    image = photo(90, 60)
    whole = pixels(image.resize(size, Image.Resampling.BILINEAR))  # 32 / .8 = 40
    corners = set()
    crops = augment.train_crops(keys(400), *extents(image, 400), 32)
    for x, y, part in zip(crops.x, crops.y, seen(crops, image, 32), strict=True):
        assert_close_by(part, whole[:, y : y + 32, x : x + 32])
        corners.add((int(y), int(x)))
    assert {y for y, _ in corners} == set(range(9))
    assert {x for _, x in corners} == set(range(size[0] - 31))


def test_none_trains_on_the_crop_of_evaluation():
    augment = Augment(eval_crop=0.875, eval_interpolation="bicubic", interpolation="bilinear")
    assert torch.equal(trained(augment, photo(), 32)[0], evaluated(augment, photo(), 32))


def test_flip_is_a_mirror_as_often_as_stated():
    image = photo(8, 8)
    for flip in (0.0, 0.3, 0.5, 1.0):
        found = trained(Augment(flip=flip), image, 8, count=1000)
        upright = (found == pixels(image)).all(3).all(2).all(1)
        mirrored = (found == pixels(image).flip(2)).all(3).all(2).all(1)
        assert torch.equal(mirrored, ~upright)
        assert binomtest(int(mirrored.sum()), 1000, flip).pvalue > 0.001


def test_flip_does_not_tell_where_the_crop_is():
    augment = Augment(crop="random_resized", flip=0.5)
    named = keys(20_000)
    crops = augment.train_crops(named, np.full(20_000, 500), np.full(20_000, 400), 32)
    flips = augment.sample_params(named).flip
    for values in (crops.left, crops.top, crops.width * crops.height):
        assert abs(np.corrcoef(values, flips)[0, 1]) < 0.025


# ---- what a sample's augmentation depends on

EVERYTHING = {
    "crop": "random_resized",
    "interpolation": "random",
    "flip": 0.5,
    "color_jitter": 0.4,
    "mixup": 0.5,
    "cutmix": 0.5,
    "erase": 0.5,
}


@pytest.mark.parametrize("crop", ["random_resized", "inception"])
@pytest.mark.parametrize(
    "rand_augment", [None, "rand-m9-mstd0.5-inc1", "torchvision-n2-m12", "big_vision-n2-m15"]
)
def test_a_sample_does_not_depend_on_its_batch(rand_augment, crop):
    augment = Augment(**EVERYTHING | {"crop": crop}, rand_augment=rand_augment)
    images = [photo(50 + i, 40 + i % 7, seed=i) for i in range(24)]
    widths, heights = np.array([image.size for image in images]).T

    def run(which: np.ndarray) -> torch.Tensor:
        named = sample_keys(3, [(1, image, 0) for image in which])
        crops = augment.train_crops(named, widths[which], heights[which], 16)
        shown = [crop_one(pixels(images[image]), crops, i, 16) for i, image in enumerate(which)]
        return augment.apply(torch.stack(shown), augment.sample_params(named))

    whole = run(np.arange(24))
    assert len({image.numpy().tobytes() for image in whole}) == 24
    for which in (np.arange(24)[::-1], np.array([5]), np.array([23, 2, 11, 7]), np.array([4, 4])):
        assert torch.equal(run(which), whole[which.copy()])


def test_every_part_of_a_samples_name_counts():
    augment = Augment(**EVERYTHING)
    samples = {
        "seed": (1, (0, 0, 0)),
        "epoch": (0, (1, 0, 0)),
        "image": (0, (0, 1, 0)),
        "repeat": (0, (0, 0, 1)),
    }
    places = {}
    for what, (seed, sample) in ({"none": (0, (0, 0, 0))} | samples).items():
        crops = augment.train_crops(sample_keys(seed, [sample]), *extents(photo(500, 400)), 32)
        places[what] = (crops.left[0], crops.top[0], crops.width[0], crops.height[0])
    assert len(set(places.values())) == 5


def test_equal_seeds_equal_batches_and_other_seeds_other_ones():
    augment = Augment(**EVERYTHING)
    images = torch.stack([pixels(photo(16, 16, seed=i)) for i in range(8)])

    def run(seed: int):
        np.random.seed(seed)
        torch.manual_seed(seed)
        return augment.train_batch(images, torch.arange(8), augment.sample_params(keys(8)), 8)

    for ours, same, other in zip(run(3), run(3), run(4), strict=True):
        assert torch.equal(ours, same)
        assert not torch.equal(ours, other)


# ---- colour and RandAugment


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "random"])
@pytest.mark.parametrize("rand_augment", ["rand-m9-n2-p1", "torchvision-n2-m12"])
def test_rand_augment_has_the_recipes_colour_and_interpolation(rand_augment, interpolation):
    mean = [0.485, 0.456, 0.406]
    augment = Augment(rand_augment=rand_augment, mean=mean, interpolation=interpolation)
    images = torch.stack([pixels(photo(32, 32, seed=i)) for i in range(64)])
    part = RandAugment(rand_augment, interpolation=interpolation, mean=mean)
    out = augment.apply(images, augment.sample_params(keys(64)))
    assert torch.equal(out, part(images, part.sample_params(keys(64))))
    for other in {"bilinear", "bicubic", "random"} - {interpolation}:
        different = dataclasses.replace(augment, interpolation=other)
        same = torch.equal(different.apply(images, different.sample_params(keys(64))), out)
        assert same == rand_augment.startswith("torchvision")  # whose operations take the nearest pixel
    fill = (124, 116, 104) if rand_augment.startswith("rand") else (0, 0, 0)
    corners = out[..., [0, 0, -1, -1], [0, -1, 0, -1]].transpose(1, 2).reshape(-1, 3)  # [64 * 4, 3]
    assert (corners == torch.tensor(fill)).all(1).sum() > 10


def test_flip_rand_augment_jitter_follow_each_other():
    """The order shows in the pixels: shears do not commute with a mirror, nor tables with factors."""
    augment = Augment(flip=1.0, rand_augment="rand-m9-n2-p1", color_jitter=0.4)
    images = torch.stack([pixels(photo(16, 16, seed=i)) for i in range(32)])
    first = RandAugment("rand-m9-n2-p1", interpolation="bilinear", mean=[0.5] * 3)
    then = ColorJitter(0.4)
    flipped = images.flip(-1)
    expected = then(first(flipped, first.sample_params(keys(32))), then.sample_params(keys(32)))
    assert torch.equal(augment.apply(images, augment.sample_params(keys(32))), expected)
    assert not torch.equal(
        first(then(flipped, then.sample_params(keys(32))), first.sample_params(keys(32))), expected
    )


def test_color_jitter_stays_within_its_range():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    values = trained(Augment(color_jitter=0.2), grey, 4, count=300).float().mean((1, 2, 3))
    assert 78 <= values.min() < 84  # brightness .8 to 1.2; contrast and saturation leave a grey image alone
    assert 116 < values.max() <= 121


def test_the_order_is_mix_normalise_erase():
    augment = Augment(mixup=1.0, erase=1.0, erase_mode="const", mean=[0.2] * 3, std=[0.1] * 3)
    images = torch.full((64, 3, 16, 16), 255, dtype=torch.uint8)
    out, _ = augment.train_batch(images, torch.arange(64) % 4, augment.sample_params(keys(64)), 4)
    assert set(out.unique().round().tolist()) == {0.0, 8.0}  # erased to 0, the rest (1 - .2) / .1


def test_several_labels_are_several_ones():
    labels = torch.tensor([[1, -1, -1], [0, 3, 4], [2, 2, -1]])
    images = torch.zeros(3, 3, 4, 4, dtype=torch.uint8)
    _, targets = Augment().train_batch(images, labels, Augment().sample_params(keys(3)), 5)
    assert targets.tolist() == [[0, 1, 0, 0, 0], [1, 0, 0, 1, 1], [0, 0, 1, 0, 0]]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_a_device_gets_the_same_batch_without_waiting(method):
    augment = Augment(**{method: 0.5}, flip=0.5, erase=0.5, erase_mode="const", mean=[0.4, 0.5, 0.6])
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(64) % 7
    on_device, labels_there = images.cuda(), labels.cuda()
    params = augment.sample_params(keys(64))

    def seed_all() -> None:
        np.random.seed(5)
        torch.manual_seed(5)

    torch.cuda.set_sync_debug_mode("error")
    try:
        seed_all()
        there = augment.train_batch(on_device, labels_there, params, 7)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    seed_all()
    here = augment.train_batch(images, labels, params, 7)
    torch.testing.assert_close(there[0].cpu(), here[0])
    torch.testing.assert_close(there[1].cpu(), here[1])
    noise = Augment(erase=1.0).train_batch(on_device, labels_there, params, 7)[0]
    assert noise.abs().max() > 1  # outside of the range of pixels


# ---- slips in a recipe


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("crop", "centre", "choose one of random_resized, inception"),
        ("mix_per", "epoch", "choose one of device_batch, batch"),
        ("interpolation", "nearest", "choose one of bilinear"),
        ("eval_resize", "both", "choose one of short_side"),
        ("eval_interpolation", "random", "choose one of bilinear, bicubic, area, tf_bilinear"),
        ("eval_rounding", "up", "choose one of torchvision, big_vision"),
        ("erase_mode", "rand", "choose one of pixel, const"),
        ("flip", 50, "not between 0 and 1"),
        ("erase", -0.1, "not between 0 and 1"),
        ("mix_switch", 2, "not between 0 and 1"),
        ("mixup", -1, "must not be negative"),
        ("crop_padding", -1, "must not be negative"),
        ("crop_scale", (0.5, 0.2), "0 < low <= high <= 1"),
        ("crop_scale", (0.5, 1.2), "0 < low <= high <= 1"),
        ("crop_ratio", (0, 1), "0 < low <= high"),
        ("mean", [0.5], "three numbers"),
        ("std", [0.5, 0.5, 0], "must be positive"),
        ("eval_crop", 0, r"be in \(0, 1\]"),
        ("rand_augment", "rand-m9-x3", "cannot read 'rand-m9-x3'"),
        ("rand_augment", "randaug-2-15", "cannot read"),
        ("rand_augment", "torchvision-m12-n2", "cannot read"),
        ("rand_augment", "torchvision-n2-m31", "end at 30"),
    ],
)
def test_every_slip_names_its_key(field, value, complaint):
    with pytest.raises(ValueError, match=rf"^augment\.{field}\b.*{complaint}"):
        Augment(**{field: value})


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Augment().flip = 1.0
