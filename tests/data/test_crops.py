"""Crops are Pillow's crop, resize and crop, of one image and of a batch; TensorFlow's filters are as defined."""

from __future__ import annotations

import functools
import resource
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from mixer_lightning.data.crops import FILTERS, Crops, crop_batch, crop_one, weights
from mixer_lightning.data.transforms import Augment

PILLOW = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


def random_crops(
    rng: np.random.Generator, count: int, *, height: int, width: int, size: int, largest: float = 2
) -> Crops:
    """Any boxes, filters and windows, many of them partly or wholly outside; boxes grow up to `largest` times."""
    w, h = rng.integers(1, width + 1, count), rng.integers(1, height + 1, count)
    to_width = rng.integers(1, np.maximum(2, np.minimum(2 * size, w * largest).astype(int)) + 1)
    to_height = rng.integers(1, np.maximum(2, np.minimum(2 * size, h * largest).astype(int)) + 1)
    return Crops(
        left=rng.integers(0, width - w + 1),
        top=rng.integers(0, height - h + 1),
        width=w,
        height=h,
        to_width=to_width,
        to_height=to_height,
        x=rng.integers(-size - 2, to_width + 3),
        y=rng.integers(-size - 2, to_height + 3),
        filter=rng.integers(0, len(FILTERS), count),
    )


def one_crop(*, box: tuple[int, int, int, int], to: tuple[int, int], at=(0, 0), filter="bilinear") -> Crops:
    names = ("left", "top", "width", "height", "to_width", "to_height", "x", "y", "filter")
    numbers = (*box, *to, *at, FILTERS.index(filter))
    return Crops(**{name: np.array([number]) for name, number in zip(names, numbers, strict=True)})


def matrix_of(filter: str, length: int, to_length: int) -> np.ndarray:
    """Weights [to_length, length] of one of TensorFlow's filters, by its definition."""
    scale, j = length / to_length, np.arange(to_length)
    if filter == "area":
        i, begin = np.arange(length), j[:, None] * scale
        return np.maximum(0, np.minimum(i + 1, begin + scale) - np.maximum(i, begin)) / scale
    matrix = np.zeros((to_length, length))
    position = (j + 0.5) * scale - 0.5
    low = np.floor(position).astype(int)
    for i, weight in ((low, low + 1 - position), (low + 1, position - low)):
        matrix[j, np.clip(i, 0, length - 1)] += weight
    return matrix


def resized(pixels: np.ndarray, width: int, height: int, filter: str, *, passes: int) -> Image.Image:
    """Pixels [H, W, 3] at another size. Newer Pillow chooses which axis comes first; in 2 passes it is the width."""
    if filter in PILLOW:
        image = Image.fromarray(pixels)
        if passes == 2:
            image = image.resize((width, len(pixels)), PILLOW[filter])
        return image.resize((width, height), PILLOW[filter])
    down, across = matrix_of(filter, len(pixels), height), matrix_of(filter, pixels.shape[1], width)
    values = np.einsum("yh,hwc,xw->yxc", down, pixels.astype(float), across, optimize=True)
    return Image.fromarray(np.floor(values + 1e-6).astype(np.uint8))


def by_pillow(pixels: np.ndarray, crops: Crops, i: int, size: int, *, passes: int) -> torch.Tensor:
    """View i of pixels [H, W, 3]."""
    values = {name: int(numbers[i]) for name, numbers in vars(crops).items()}
    left, top, width, height = (values[name] for name in ("left", "top", "width", "height"))
    box = np.ascontiguousarray(pixels[top : top + height, left : left + width])
    image = resized(box, values["to_width"], values["to_height"], FILTERS[values["filter"]], passes=passes)
    x, y = values["x"], values["y"]
    return torch.from_numpy(np.array(image.crop((x, y, x + size, y + size)))).permute(
        2, 0, 1
    )  # black outside


def planar(pixels: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(pixels).permute(0, 3, 1, 2)  # [B, 3, H, W]


def noise(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    return rng.integers(0, 256, (count, height, width, 3), dtype=np.uint8)


@functools.cache
def photo() -> np.ndarray:
    from sklearn.datasets import load_sample_images

    return load_sample_images().images[0]  # [427, 640, 3]


def photos(rng: np.random.Generator, count: int, height: int, width: int) -> np.ndarray:
    tops, lefts = rng.integers(0, 427 - height, count), rng.integers(0, 640 - width, count)
    return np.stack([photo()[t : t + height, x : x + width] for t, x in zip(tops, lefts, strict=True)])


def levels(a: torch.Tensor, b: torch.Tensor) -> int:
    """The largest difference of two images in grey levels."""
    assert a.dtype == b.dtype == torch.uint8
    assert a.shape == b.shape
    return int((a.int() - b.int()).abs().max())


# ---- against Pillow


@pytest.mark.parametrize(("height", "width"), [(60, 80), (200, 130), (7, 90)])
def test_photos_look_as_pillow_makes_them(height, width):
    rng = np.random.default_rng(height)
    pixels = photos(rng, 150, height, width)
    crops = random_crops(rng, 150, height=height, width=width, size=24, largest=1.5)
    expected = torch.stack([by_pillow(pixels[i], crops, i, 24, passes=1) for i in range(150)])
    one_by_one = torch.stack([crop_one(image, crops, i, 24) for i, image in enumerate(planar(pixels))])
    cubic = torch.from_numpy(crops.filter == FILTERS.index("bicubic"))
    for seen in (one_by_one, crop_batch(planar(pixels), crops, 24)):
        assert levels(seen[~cubic], expected[~cubic]) <= 1
        # Overshoot is cut off after either pass, so at hard edges it matters which axis comes first.
        far = (seen[cubic].int() - expected[cubic].int()).abs() > 1
        assert far.float().mean() < 1e-4


@pytest.mark.parametrize(("height", "width"), [(60, 80), (200, 130), (7, 90), (1, 1), (1, 9), (9, 1)])
def test_noise_looks_as_pillow_makes_it_axis_by_axis(height, width):
    rng = np.random.default_rng(width)
    pixels = noise(rng, 200, height, width)
    crops = random_crops(rng, 200, height=height, width=width, size=20, largest=20)
    expected = torch.stack([by_pillow(pixels[i], crops, i, 20, passes=2) for i in range(200)])
    one_by_one = torch.stack([crop_one(image, crops, i, 20) for i, image in enumerate(planar(pixels))])
    batch = crop_batch(planar(pixels), crops, 20)
    for seen in (one_by_one, batch):
        assert levels(seen, expected) <= 2
        assert (seen != expected).float().mean() < 0.005  # ties, rounded the other way


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    height=st.integers(1, 40),
    width=st.integers(1, 40),
    size=st.integers(1, 24),
    count=st.integers(1, 5),
)
def test_one_by_one_and_as_a_batch_agree(seed, height, width, size, count):
    rng = np.random.default_rng(seed)
    images = planar(noise(rng, count, height, width))
    crops = random_crops(rng, count, height=height, width=width, size=size, largest=20)
    one_by_one = torch.stack([crop_one(image, crops, i, size) for i, image in enumerate(images)])
    assert levels(crop_batch(images, crops, size), one_by_one) <= 2


def test_pixels_outside_the_box_do_not_matter():
    rng = np.random.default_rng(0)
    pixels = noise(rng, 1, 30, 40)
    crop = one_crop(box=(5, 6, 20, 17), to=(16, 16), filter="bicubic")
    other = noise(rng, 1, 30, 40)
    other[:, 6:23, 5:25] = pixels[:, 6:23, 5:25]
    assert torch.equal(crop_batch(planar(pixels), crop, 16), crop_batch(planar(other), crop, 16))
    assert torch.equal(crop_one(planar(pixels)[0], crop, 0, 16), crop_one(planar(other)[0], crop, 0, 16))


def test_any_memory_layout_gives_the_same():
    rng = np.random.default_rng(0)
    pixels = noise(rng, 8, 30, 40)
    crops = random_crops(rng, 8, height=30, width=40, size=16)
    batch = crop_batch(planar(pixels), crops, 16)
    assert torch.equal(crop_batch(planar(pixels).contiguous(), crops, 16), batch)
    for i, image in enumerate(planar(pixels)):
        assert torch.equal(crop_one(image.contiguous(), crops, i, 16), crop_one(image, crops, i, 16))


@pytest.mark.parametrize("filter", FILTERS)
def test_a_grey_image_of_one_channel_shown_thrice(filter):
    grey = noise(np.random.default_rng(0), 1, 30, 40)[0, :, :, :1]
    crop = one_crop(box=(3, 2, 30, 25), to=(12, 14), at=(-1, 1), filter=filter)
    thrice = torch.from_numpy(grey).permute(2, 0, 1).expand(3, -1, -1)
    expected = by_pillow(np.repeat(grey, 3, axis=2), crop, 0, 12, passes=2)
    assert levels(crop_one(thrice, crop, 0, 12), expected) <= 1


# ---- windows


def test_a_window_shows_black_outside():
    white = torch.full((1, 3, 10, 10), 255, dtype=torch.uint8)
    crop = one_crop(box=(0, 0, 10, 10), to=(10, 10), at=(-3, 6))
    expected = torch.zeros(3, 8, 8, dtype=torch.uint8)
    expected[:, :4, 3:] = 255
    assert torch.equal(crop_one(white[0], crop, 0, 8), expected)
    assert torch.equal(crop_batch(white, crop, 8)[0], expected)


@pytest.mark.parametrize("at", [(-8, 0), (0, -8), (10, 0), (0, 10), (-100, 100)])
def test_a_window_wholly_outside_is_black(at):
    white = torch.full((1, 3, 10, 10), 255, dtype=torch.uint8)
    crop = one_crop(box=(0, 0, 10, 10), to=(10, 10), at=at)
    assert not crop_one(white[0], crop, 0, 8).any()
    assert not crop_batch(white, crop, 8).any()


def test_the_whole_image_at_its_own_size_is_handed_on_untouched():
    images = planar(noise(np.random.default_rng(0), 2, 12, 12))
    one = one_crop(box=(0, 0, 12, 12), to=(12, 12), filter="bicubic")
    two = Crops(**{name: np.repeat(number, 2) for name, number in vars(one).items()})
    assert two.is_whole_box.all()
    assert crop_batch(images, two, 12) is images
    assert torch.equal(crop_one(images[1], two, 1, 12), images[1])


def test_shifted_pixels_keep_their_values():
    images = planar(noise(np.random.default_rng(0), 1, 12, 12))
    crop = one_crop(box=(0, 0, 12, 12), to=(12, 12), at=(2, -1))
    expected = torch.zeros(3, 12, 12, dtype=torch.uint8)
    expected[:, 1:, :10] = images[0, :, :11, 2:]
    assert torch.equal(crop_batch(images, crop, 12)[0], expected)
    assert torch.equal(crop_one(images[0], crop, 0, 12), expected)


@pytest.mark.parametrize(("height", "width"), [(12, 13), (13, 12), (15, 15), (9, 12), (9, 9)])
def test_the_upper_left_corner_of_an_image_of_another_size(height, width):
    images = planar(noise(np.random.default_rng(0), 1, height, width))
    crop = one_crop(box=(0, 0, width, height), to=(width, height))
    expected = torch.zeros(3, 12, 12, dtype=torch.uint8)
    expected[:, :height, :width] = images[0, :, :12, :12]
    assert torch.equal(crop_batch(images, crop, 12)[0], expected)
    assert torch.equal(crop_one(images[0], crop, 0, 12), expected)


def test_the_corner_of_a_box_of_another_size_than_the_crop():
    images = planar(noise(np.random.default_rng(0), 1, 12, 12))
    crop = one_crop(box=(2, 3, 8, 8), to=(8, 8))
    expected = torch.zeros(3, 12, 12, dtype=torch.uint8)
    expected[:, :8, :8] = images[0, :, 3:11, 2:10]
    assert torch.equal(crop_batch(images, crop, 12)[0], expected)
    assert torch.equal(crop_one(images[0], crop, 0, 12), expected)


# ---- extremes


@pytest.mark.parametrize("filter", FILTERS)
def test_one_pixel_fills_a_crop(filter):
    image = torch.tensor([7, 130, 255], dtype=torch.uint8)[:, None, None]
    crop = one_crop(box=(0, 0, 1, 1), to=(9, 9), filter=filter)
    expected = image.expand(3, 9, 9)
    assert torch.equal(crop_one(image, crop, 0, 9), expected)
    assert torch.equal(crop_batch(image[None], crop, 9)[0], expected)


@pytest.mark.parametrize("filter", FILTERS)
def test_a_crop_of_one_pixel(filter):
    pixels = noise(np.random.default_rng(0), 1, 31, 17)
    crop = one_crop(box=(0, 0, 17, 31), to=(1, 1), filter=filter)
    expected = by_pillow(pixels[0], crop, 0, 1, passes=2)
    assert levels(crop_one(planar(pixels)[0], crop, 0, 1), expected) <= 1
    assert levels(crop_batch(planar(pixels), crop, 1)[0], expected) <= 1


@pytest.mark.parametrize("level", [0, 1, 127, 254, 255])
@pytest.mark.parametrize("filter", FILTERS)
def test_a_plain_image_stays_plain(level, filter):
    images = torch.full((1, 3, 37, 53), level, dtype=torch.uint8)
    for to in ((16, 16), (101, 60), (53, 16)):
        crop = one_crop(box=(0, 0, 53, 37), to=to, filter=filter)
        size = min(to)
        assert (crop_batch(images, crop, size) == level).all()
        assert (crop_one(images[0], crop, 0, size) == level).all()


@pytest.mark.parametrize("filter", FILTERS)
def test_a_long_axis_is_not_lost_to_rounding(filter):
    pixels = noise(np.random.default_rng(0), 1, 5, 6000)
    crop = one_crop(box=(1, 0, 5999, 5), to=(4001, 5), at=(3990, 0), filter=filter)
    expected = by_pillow(pixels[0], crop, 0, 11, passes=2)
    assert levels(crop_one(planar(pixels)[0], crop, 0, 11), expected) <= 1
    assert levels(crop_batch(planar(pixels), crop, 11)[0], expected) <= 1


def test_no_images():
    none = Crops(**dict.fromkeys(vars(one_crop(box=(0, 0, 1, 1), to=(1, 1))), np.empty(0, np.int64)))
    assert len(none) == 0
    assert crop_batch(torch.empty(0, 3, 8, 8, dtype=torch.uint8), none, 8).shape == (0, 3, 8, 8)


# ---- weights


def test_weights_of_a_pixel_sum_to_one_inside_and_to_nothing_outside():
    rng = np.random.default_rng(0)
    crops = random_crops(rng, 300, height=1, width=50, size=16, largest=20)
    matrix = weights(
        crops.left,
        crops.width,
        crops.to_width,
        crops.x,
        crops.filter,
        length=50,
        size=16,
        device=torch.device("cpu"),
    )
    assert matrix.dtype == torch.float32
    assert matrix.shape == (300, 16, 50)
    j = torch.arange(16) + torch.from_numpy(crops.x)[:, None]
    inside = (j >= 0) & (j < torch.from_numpy(crops.to_width)[:, None])
    assert inside.any()
    assert not inside.all()
    torch.testing.assert_close(matrix.sum(2), inside.float(), rtol=0, atol=1e-6)
    pixel = torch.arange(50)[None, None]
    left, width = (torch.from_numpy(numbers)[:, None, None] for numbers in (crops.left, crops.width))
    assert not matrix[((pixel < left) | (pixel >= left + width)).expand_as(matrix)].any()


def test_halving_by_area_takes_the_mean_of_two():
    number = np.array([0])
    matrix = weights(
        number,
        number + 8,
        number + 4,
        number,
        number + FILTERS.index("area"),
        length=8,
        size=4,
        device=torch.device("cpu"),
    )
    assert torch.equal(matrix[0], torch.eye(4).repeat_interleave(2, dim=1) / 2)


# ---- the rest


def test_a_slice_of_crops_is_theirs():
    crops = random_crops(np.random.default_rng(0), 9, height=20, width=20, size=8)
    part = crops[2:5]
    assert len(part) == 3
    assert all(np.array_equal(vars(part)[name], vars(crops)[name][2:5]) for name in vars(crops))


def test_the_networks_precision_is_left_alone_and_has_no_say():
    rng = np.random.default_rng(0)
    images = planar(noise(rng, 4, 40, 40))
    crops = random_crops(rng, 4, height=40, width=40, size=16)
    expected = crop_batch(images, crops, 16)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with torch.autocast("cpu", torch.bfloat16):
            seen = crop_batch(images, crops, 16)
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
    assert torch.equal(seen, expected)


# ---- images so long that their resized box would fill the memory


@pytest.mark.parametrize("filter", ["bilinear", "bicubic", "area"])
@pytest.mark.parametrize(
    ("width", "height"), [(2000, 1), (1, 3000), (900, 7), (3, 400), (40, 1500), (1500, 40)]
)
@pytest.mark.parametrize("shift", [0.0, 0.5, 1.0])
def test_only_what_is_seen_is_resized_and_it_is_the_same(monkeypatch, filter, width, height, shift):
    image = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, height, width), dtype=np.uint8))
    augment = Augment(eval_crop=0.875, eval_interpolation=filter)
    crop = augment.eval_crops(np.array([width]), np.array([height]), 32)
    crop = replace(
        crop,
        x=np.floor(shift * (crop.to_width - 32)).astype(np.int64),
        y=np.floor(shift * (crop.to_height - 32)).astype(np.int64),
    )
    whole = crop_one(image, crop, 0, 32)
    monkeypatch.setattr("mixer_lightning.data.crops.MAX_RESIZED_PIXELS", 0)
    seen = crop_one(image, crop, 0, 32)
    assert (seen.int() - whole.int()).abs().max() <= 2  # torch's weights for bytes are in fixed point
    assert (seen != whole).float().mean() < 0.15


@pytest.mark.parametrize(
    "augment",
    [Augment(), Augment(crop="resize_random", crop_fraction=1.0), Augment(crop="pad", crop_padding=4)],
)
def test_an_image_of_one_row_costs_no_gigabytes(augment):
    """Its box at 224 px is 20,000 * 224 pixels wide: 3 GB as grey levels, 12 in float32."""
    values = np.repeat(np.arange(20_000, dtype=np.int64)[None, None] // 80, 3, axis=0).astype(np.uint8)
    image = torch.from_numpy(values)  # [3, 1, 20000]
    width, height = np.array([20_000]), np.array([1])
    crop = (
        augment.eval_crops(width, height, 224)
        if augment.crop == "none"
        else augment.train_crops(np.array([7], dtype=np.uint64), width, height, 224)
    )
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = crop_one(image, crop, 0, 224)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000  # kilobytes
    middle = int(crop.x[0] + 112) // 224  # one pixel of the image is a square of 224 of the box
    assert abs(int(found[0, 112, 112]) - int(values[0, 0, min(max(middle, 0), 19_999)])) <= 1
