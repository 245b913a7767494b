"""Augmentation against torchvision's and timm's own transforms, and against the numbers a recipe states."""

from __future__ import annotations

import dataclasses
import pickle
import random

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data.transforms import RandomResizedCropAndInterpolation
from torchvision import transforms as tv
from torchvision.transforms import InterpolationMode

from mixer_lightning.data.transforms import Augment


def photo(width: int = 50, height: int = 40, seed: int = 0) -> Image.Image:
    small = np.random.default_rng(seed).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def seed_all(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)


def pixels(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


# ---- evaluation


@pytest.mark.parametrize("size", [(50, 40), (40, 50), (33, 33), (20, 97), (28, 28), (641, 480)])
@pytest.mark.parametrize(("eval_crop", "resized"), [(0.875, 36), (1.0, 32), (0.96, 33), (0.95, 33)])
@pytest.mark.parametrize(
    ("name", "mode"), [("bilinear", InterpolationMode.BILINEAR), ("bicubic", InterpolationMode.BICUBIC)]
)
def test_evaluation_is_torchvisions_resize_and_centre_crop(size, eval_crop, resized, name, mode):
    augment = Augment(eval_crop=eval_crop, eval_interpolation=name)
    reference = tv.Compose([tv.Resize(resized, mode), tv.CenterCrop(32), tv.PILToTensor()])
    ours = augment.eval_image(photo(*size), 32)
    assert ours.dtype == torch.uint8
    assert torch.equal(ours, reference(photo(*size)))


def test_square_evaluation_ignores_the_aspect():
    augment = Augment(eval_crop=0.875, eval_resize="square")
    expected = photo(90, 40).resize((36, 36), Image.Resampling.BILINEAR).crop((2, 2, 34, 34))
    assert torch.equal(augment.eval_image(photo(90, 40), 32), pixels(expected))


def test_area_interpolation_is_the_mean_of_the_pixels_it_covers():
    image = photo(64, 64)
    ours = Augment(eval_interpolation="area").eval_image(image, 32).float()
    mean = pixels(image).float().view(3, 32, 2, 32, 2).mean((2, 4))
    assert (ours - mean).abs().max() <= 1  # Pillow rounds twice, by rows and by columns


def test_normalisation_is_torchvisions():
    augment = Augment(mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    image = photo(32, 32)
    reference = tv.Compose([tv.ToTensor(), tv.Normalize([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])])(image)
    batch = pixels(image)[None]
    torch.testing.assert_close(augment.eval_batch(batch)[0], reference)
    images, targets = augment.train_batch(batch, torch.tensor([2]), 5)
    torch.testing.assert_close(images[0], reference)
    assert targets.tolist() == [[0, 0, 1, 0, 0]]


def test_default_range_is_minus_one_to_one():
    batch = torch.tensor([0, 255], dtype=torch.uint8).view(2, 1, 1, 1).expand(2, 3, 4, 4)
    out = Augment().eval_batch(batch)
    assert (out[0] == -1).all()
    assert (out[1] == 1).all()


# ---- training crops


def test_random_resized_crop_is_timms():
    augment = Augment(crop="random_resized", crop_scale=(0.08, 1.0), interpolation="random")
    reference = RandomResizedCropAndInterpolation(32, (0.08, 1.0), (0.75, 1.3333333333333333), "random")
    for seed in range(40):
        size = [(50, 40), (300, 30), (30, 300)][seed % 3]  # the long ones end in the central fallback
        seed_all(seed)
        ours = augment.train_image(photo(*size), 32)
        seed_all(seed)
        assert torch.equal(ours, pixels(reference(photo(*size))))


def test_random_crops_have_the_stated_areas_and_aspects(monkeypatch):
    parts = []
    crop = Image.Image.crop
    monkeypatch.setattr(Image.Image, "crop", lambda self, box: parts.append(box) or crop(self, box))
    augment = Augment(crop="random_resized", crop_scale=(0.05, 0.6), crop_ratio=(0.75, 4 / 3))
    image = photo(200, 200)
    for _ in range(1500):
        augment.train_image(image, 8)
    left, top, right, bottom = np.array(parts).T
    area = (right - left) * (bottom - top) / 200**2
    aspect = (right - left) / (bottom - top)
    assert area.min() > 0.045
    assert area.max() < 0.62
    assert abs(area.mean() - 0.325) < 0.02  # uniform
    assert aspect.min() > 0.72
    assert aspect.max() < 1.39
    assert abs(np.log(aspect).mean()) < 0.02  # log-uniform
    assert abs((left + right).mean() - 200) < 6


def test_crop_of_everything_leaves_a_square_image_alone():
    augment = Augment(crop="random_resized", crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0))
    assert torch.equal(augment.train_image(photo(32, 32), 32), pixels(photo(32, 32)))


def test_pad_shifts_over_black():
    augment = Augment(crop="pad", crop_padding=2)
    image = photo(8, 8)
    padded = np.zeros((12, 12, 3), dtype=np.uint8)
    padded[2:10, 2:10] = np.asarray(image)
    views = {(y, x): padded[y : y + 8, x : x + 8].tobytes() for y in range(5) for x in range(5)}
    seen = set()
    for _ in range(600):
        view = augment.train_image(image, 8).permute(1, 2, 0).numpy().tobytes()
        assert view in views.values()
        seen.add(view)
    assert len(seen) == 25


def test_pad_resizes_other_images_first():
    augment = Augment(crop="pad", crop_padding=0)
    assert torch.equal(augment.train_image(photo(20, 20), 8), pixels(photo(20, 20).resize((8, 8), 2)))


def test_resize_random_takes_parts_of_the_resized_image():
    augment = Augment(crop="resize_random", eval_crop=0.8)
    image = photo(60, 40)
    resized = pixels(image.resize((60, 40), Image.Resampling.BILINEAR))  # 32 / .8 = 40
    corners = set()
    for _ in range(300):
        part = augment.train_image(image, 32)
        places = [
            (y, x)
            for y in range(9)
            for x in range(29)
            if torch.equal(part, resized[:, y : y + 32, x : x + 32])
        ]
        assert places
        corners.add(places[0])
    assert {y for y, _ in corners} == set(range(9))
    assert {x for _, x in corners} == set(range(29))


def test_none_trains_on_the_evaluations_view():
    augment = Augment(eval_crop=0.875)
    assert torch.equal(augment.train_image(photo(), 32), augment.eval_image(photo(), 32))


def test_flip_is_a_mirror_half_of_the_time():
    augment = Augment(flip=0.5)
    image = photo(8, 8)
    upright, mirrored = pixels(image), pixels(image).flip(2)
    count = 0
    for _ in range(600):
        out = augment.train_image(image, 8)
        assert torch.equal(out, upright) or torch.equal(out, mirrored)
        count += torch.equal(out, mirrored)
    assert 240 < count < 360


# ---- colour and RandAugment


EVERYTHING = {
    "crop": "random_resized",
    "interpolation": "random",
    "flip": 0.5,
    "color_jitter": 0.4,
    "mixup": 0.5,
    "cutmix": 0.5,
    "erase": 0.5,
}


@pytest.mark.parametrize("rand_augment", [None, "rand-m9-mstd0.5-inc1", "torchvision-n2-m12"])
def test_equal_seeds_equal_images_and_other_seeds_other_images(rand_augment):
    augment = Augment(**EVERYTHING, rand_augment=rand_augment)
    again = pickle.loads(pickle.dumps(augment))  # as sent to a worker

    def run(one: Augment, seed: int):
        seed_all(seed)
        images = torch.stack([one.train_image(photo(seed=i), 16) for i in range(4)])
        return one.train_batch(images, torch.arange(4), 4)

    for ours, same, other in zip(run(augment, 3), run(again, 3), run(augment, 4), strict=True):
        assert torch.equal(ours, same)
        assert not torch.equal(ours, other)


def test_torchvisions_rand_augment_is_used_as_it_is():
    augment = Augment(rand_augment="torchvision-n2-m12")
    reference = tv.RandAugment(num_ops=2, magnitude=12)
    for seed in range(20):
        seed_all(seed)
        ours = augment.train_image(photo(32, 32), 32)
        seed_all(seed)
        assert torch.equal(ours, pixels(reference(photo(32, 32))))


def test_magnitudes_above_ten_need_mmax():
    """timm clips magnitudes to 10 unless told otherwise; the Mixer recipes rely on 15 and 20."""
    angles = {}
    for text in ("rand-m15-n2-p1", "rand-m15-n2-p1-mmax20", "rand-m10-n2-p1"):
        operations = Augment(rand_augment=text)._rand_augment
        (rotate,) = [each for each in operations.ops if each.name == "Rotate"]
        seen = []
        rotate.aug_fn = lambda image, degrees, seen=seen, **_: seen.append(abs(degrees)) or image
        rotate(photo())
        angles[text] = seen[0]
    assert angles == {"rand-m15-n2-p1": 30, "rand-m15-n2-p1-mmax20": 45, "rand-m10-n2-p1": 30}


def test_rand_augment_fills_with_the_mean_colour_and_the_chosen_interpolation():
    for interpolation, resample in (("bilinear", 2), ("bicubic", 3), ("random", (2, 3))):
        augment = Augment(rand_augment="rand-m9", mean=[0.485, 0.456, 0.406], interpolation=interpolation)
        for each in augment._rand_augment.ops:
            assert each.kwargs == {"fillcolor": (124, 116, 104), "resample": resample}


def test_color_jitter_stays_within_its_range():
    grey = Image.new("RGB", (4, 4), (100, 100, 100))
    values = [Augment(color_jitter=0.2).train_image(grey, 4).float().mean() for _ in range(200)]
    assert 78 <= min(values) < 84  # brightness .8 to 1.2; contrast and saturation leave a grey image alone
    assert 116 < max(values) <= 121


def test_the_order_is_mix_normalise_erase():
    augment = Augment(mixup=1.0, erase=1.0, erase_mode="const", mean=[0.2] * 3, std=[0.1] * 3)
    images = torch.full((64, 3, 16, 16), 255, dtype=torch.uint8)
    out, _ = augment.train_batch(images, torch.arange(64) % 4, 4)
    assert set(out.unique().round().tolist()) == {0.0, 8.0}  # erased to 0, the rest (1 - .2) / .1


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_a_device_gets_the_same_batch_without_waiting(method):
    augment = Augment(**{method: 0.5}, erase=0.5, erase_mode="const", mean=[0.4, 0.5, 0.6])
    images = torch.randint(0, 256, (64, 3, 32, 32), dtype=torch.uint8)
    labels = torch.arange(64) % 7
    on_device, labels_there = images.cuda(), labels.cuda()
    torch.cuda.set_sync_debug_mode("error")
    try:
        seed_all(5)
        there = augment.train_batch(on_device, labels_there, 7)
    finally:
        torch.cuda.set_sync_debug_mode("default")
    seed_all(5)
    here = augment.train_batch(images, labels, 7)
    torch.testing.assert_close(there[0].cpu(), here[0])
    torch.testing.assert_close(there[1].cpu(), here[1])
    noise = Augment(erase=1.0).train_batch(on_device, labels_there, 7)[0]
    assert noise.abs().max() > 1  # outside of the range of pixels


# ---- slips in a recipe


@pytest.mark.parametrize(
    ("field", "value", "complaint"),
    [
        ("crop", "centre", "choose one of random_resized"),
        ("interpolation", "nearest", "choose one of bilinear"),
        ("eval_resize", "both", "choose one of short_side"),
        ("eval_interpolation", "random", "choose one of bilinear, bicubic, area"),
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
        ("eval_crop", 0, r"lie in \(0, 1\]"),
        ("rand_augment", "rand-m9-x3", "cannot read 'rand-m9-x3'"),
        ("rand_augment", "randaug-2-15", "cannot read"),
        ("rand_augment", "torchvision-m12-n2", "cannot read"),
        ("rand_augment", "torchvision-n2-m31", "end at 30"),
    ],
)
def test_every_slip_names_its_key(field, value, complaint):
    with pytest.raises(ValueError, match=rf"^augment\.{field}\b.*{complaint}"):
        Augment(**{field: value})


@pytest.mark.parametrize(
    "text", ["rand-m9-n3-mstd0.5", "rand-mstd1-tweights", "rand-m9-mstd101-inc1", "rand-n2-p0.5"]
)
def test_timms_own_notations_are_understood(text):
    augment = Augment(rand_augment=text)
    for seed in range(10):
        seed_all(seed)
        assert augment.train_image(photo(), 16).shape == (3, 16, 16)


def test_it_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Augment().flip = 1.0
