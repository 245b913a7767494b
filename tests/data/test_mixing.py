"""mixup, CutMix and erasing against their formulas and against the statistics of timm and torchvision."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import ks_2samp
from timm.data.random_erasing import RandomErasing as TimmsErasing
from torchvision.transforms import RandomErasing

from mixer_lightning.data.mixing import box, erase, mix, targets_of


def batch(size: int = 6, side: int = 16):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (size, 3, side, side), dtype=torch.uint8, generator=generator)
    return images, torch.arange(size) % 4


def mixed(images, labels, *, mixup=0.0, cutmix=0.0, probability=1.0, switch=0.5, seed=None):
    return mix(
        images,
        labels,
        num_classes=4,
        mixup=mixup,
        cutmix=cutmix,
        probability=probability,
        switch=switch,
        seed=seed,
    )


@pytest.fixture(autouse=True)
def seeded():
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)


@pytest.mark.parametrize("size", [1, 2, 5, 6])
@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_targets_sum_to_one_and_mass_is_conserved(method, size):
    images, labels = batch(size)
    for _ in range(20):
        out, targets = mixed(images, labels, **{method: 1.0})
        assert out.dtype == targets.dtype == torch.float32
        torch.testing.assert_close(targets.sum(1), torch.ones(size))
        # every image gives away what it takes: the batch as a whole keeps its labels, and its light
        torch.testing.assert_close(targets.sum(0), torch.bincount(labels, minlength=4).float())
        torch.testing.assert_close(out.sum(0), images.float().sum(0), rtol=1e-4, atol=1e-2)


def test_mixup_is_the_convex_combination_that_the_targets_state():
    images, labels = batch(4)  # labels 0, 1, 2, 3: the target shows lam
    out, targets = mixed(images, labels, mixup=0.5)
    lam = targets[0, 0]
    assert 0 < lam < 1
    assert targets[0, 3] == pytest.approx(1 - float(lam))  # image 0's predecessor is the last one
    for i in range(4):
        torch.testing.assert_close(out[i], lam * images[i].float() + (1 - lam) * images[i - 1].float())


def test_cutmix_pastes_one_box_and_the_targets_state_its_area():
    labels = torch.arange(4)
    images = (labels.view(4, 1, 1, 1) * 10).expand(4, 3, 12, 12).to(torch.uint8)  # image i is 10 i all over
    lams = set()
    for _ in range(50):
        out, targets = mixed(images, labels, cutmix=1.0)
        kept = (out[1, 0] == 10).float().mean()
        pasted = out[1, 0] == 0
        torch.testing.assert_close(targets[1, 1], kept)
        torch.testing.assert_close(targets[1, 0], pasted.float().mean())
        rows, columns = pasted.any(1).sum(), pasted.any(0).sum()
        assert pasted.sum() == rows * columns  # a rectangle
        lams.add(round(float(kept), 3))
    assert len(lams) > 10


def test_nothing_to_mix_gives_one_hot_targets_and_the_images():
    images, labels = batch()
    for options in ({}, {"mixup": 0.5, "cutmix": 0.5, "probability": 0.0}):
        out, targets = mixed(images, labels, **options)
        assert torch.equal(out, images.float())
        assert torch.equal(targets.argmax(1), labels)
        assert set(targets.unique().tolist()) == {0.0, 1.0}


def test_a_batch_of_one_is_its_own_partner():
    images, labels = batch(1)
    for options in ({"mixup": 1.0}, {"cutmix": 1.0}):
        out, targets = mixed(images, labels, **options)
        torch.testing.assert_close(out, images.float())
        torch.testing.assert_close(targets, torch.tensor([[1.0, 0, 0, 0]]))


def test_probability_and_switch_are_frequencies():
    labels = torch.arange(4)
    images = (labels.view(4, 1, 1, 1) * 10).expand(4, 3, 12, 12).to(torch.uint8)
    plain = pasted = 0
    for _ in range(2000):
        out, _ = mixed(images, labels, mixup=1.0, cutmix=1.0, probability=0.8, switch=0.25)
        values = set(out[3].unique().tolist())
        plain += values == {30.0}
        pasted += values == {20.0, 30.0} or values == {20.0}
    assert 0.16 < plain / 2000 < 0.27  # .2, and boxes of no pixel
    assert 0.15 < pasted / 2000 < 0.25  # .8 x .25


def test_lam_follows_the_beta_distribution():
    images, labels = batch(4, side=2)
    lams = np.array([float(mixed(images, labels, mixup=0.2)[1][0, 0]) for _ in range(4000)])
    assert abs(lams.mean() - 0.5) < 0.03
    assert abs(lams.var() - 1 / (4 * (2 * 0.2 + 1))) < 0.01  # variance of Beta(a, a)


def test_boxes_stay_inside_and_have_the_asked_area_away_from_the_border():
    for lam in (0.0, 0.3, 0.75, 0.999):
        areas = []
        for _ in range(300):
            top, bottom, left, right = box(height=20, width=30, lam=lam)
            assert 0 <= top <= bottom <= 20
            assert 0 <= left <= right <= 30
            areas.append((bottom - top) * (right - left))
        side = (1 - lam) ** 0.5
        assert max(areas) <= int(20 * side) * int(30 * side)
        if lam == 0.75:
            assert max(areas) == 10 * 14  # 15, half on either side


def rand_bbox(height, width, lam):
    """CutMix's own box (clovaai/CutMix-PyTorch, and timm 0.5.0 in locuslab/convmixer): half of it on either side."""
    cut_height, cut_width = int(height * np.sqrt(1 - lam)), int(width * np.sqrt(1 - lam))
    row, column = np.random.randint(height), np.random.randint(width)
    rows = np.clip([row - cut_height // 2, row + cut_height // 2], 0, height)
    columns = np.clip([column - cut_width // 2, column + cut_width // 2], 0, width)
    return (*rows.tolist(), *columns.tolist())


def test_boxes_are_those_of_convmixers_training():
    for seed in range(100):
        np.random.seed(seed)
        ours = box(height=20, width=31, lam=seed / 100)
        np.random.seed(seed)
        assert ours == rand_bbox(20, 31, seed / 100)


def test_a_box_of_odd_length_loses_a_pixel():
    lengths = [box(height=100, width=100, lam=1 - 0.11**2) for _ in range(50)]  # 11 pixels long
    assert {
        (bottom - top, right - left) for top, bottom, left, right in lengths if 6 < top < 80 and 6 < left < 80
    } == {(10, 10)}


# ---- one factor for a global batch


@pytest.mark.parametrize("strengths", [(0.5, 0.0), (0.0, 0.5), (0.5, 0.5)])
def test_parts_of_a_global_batch_share_what_is_drawn(strengths):
    """big_vision draws one factor for all devices, each of which mixes its own images."""
    images, labels = batch(8)
    mixup, cutmix = strengths
    for seed in range(20):
        found = []
        for part in (slice(0, 4), slice(4, 8), slice(0, 8)):
            np.random.seed(len(found))  # the state of a process does not matter
            out, targets = mixed(images[part], labels[part], mixup=mixup, cutmix=cutmix, seed=seed)
            found.append((out != images[part].float(), targets[1]))
        assert torch.equal(found[0][1], found[1][1])
        assert torch.equal(found[0][1], found[2][1])
        if mixup == 0:  # the same box: grey levels of two images are equal at some places in it
            rows, columns = (
                [touched.any(dim=(0, 1)).any(dim=axis) for touched, _ in found] for axis in (1, 0)
            )
            assert torch.equal(rows[0], rows[1])
            assert torch.equal(columns[0], columns[1])


def test_other_seeds_draw_other_factors():
    images, labels = batch(4)
    assert len({float(mixed(images, labels, mixup=0.5, seed=seed)[1][1, 1]) for seed in range(20)}) == 20


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_a_seed_leaves_the_global_generator_alone(method):
    images, labels = batch()
    np.random.seed(3)
    expected = np.random.rand()
    np.random.seed(3)
    mixed(images, labels, seed=1, **{method: 0.5})
    assert np.random.rand() == expected


# ---- several labels

SEVERAL = torch.tensor([[3, -1, -1], [0, 2, -1], [1, 2, 3], [1, 1, -1]])


def test_targets_of_one_label_are_torchs_one_hot():
    labels = torch.arange(12) % 5
    targets = targets_of(labels, num_classes=5)
    assert targets.dtype == torch.float32
    assert torch.equal(targets, F.one_hot(labels, 5).float())
    assert torch.equal(targets_of(labels[:, None], num_classes=5), targets)


def test_targets_of_several_labels_hold_several_ones():
    assert targets_of(SEVERAL, num_classes=4).tolist() == [
        [0, 0, 0, 1],
        [1, 0, 1, 0],
        [0, 1, 1, 1],
        [0, 1, 0, 0],  # said twice, true once
    ]
    assert targets_of(torch.full((2, 3), -1), num_classes=4).tolist() == [[0] * 4] * 2


@pytest.mark.parametrize("method", ["mixup", "cutmix"])
def test_several_labels_are_mixed_as_one_is(method):
    """Targets are linear in the labels: those of [B, L] are sums of those of its columns, with the same draws."""
    images, _ = batch(4)
    labels = torch.tensor([[3, 0], [0, 2], [1, 3], [2, 1]])
    results = []
    for part in (labels, labels[:, 0], labels[:, 1]):
        np.random.seed(3)
        results.append(mixed(images, part, **{method: 1.0}))
    (both, targets), (first, some), (_, others) = results
    assert torch.equal(both, first)
    assert 0 < some[0, 3] < 1
    torch.testing.assert_close(targets, some + others)


def test_equal_seeds_equal_batches():
    images, labels = batch()
    results = []
    for _ in range(2):
        np.random.seed(7)
        results.append(mixed(images, labels, mixup=0.3, cutmix=0.4))
    assert torch.equal(results[0][0], results[1][0])
    assert torch.equal(results[0][1], results[1][1])


# ---- erasing


def erased_boxes(images):
    """Height and width of the erased (that is, not 7) rectangle of each image, and whether it is one."""
    holes = (images != 7).all(1)  # [B, H, W]
    heights, widths = holes.any(2).sum(1), holes.any(1).sum(1)
    assert torch.equal(holes.sum((1, 2)), heights * widths)
    return heights.double(), widths.double()


def test_erasing_has_timms_statistics():
    ours = erase(torch.full((6000, 3, 32, 32), 7.0), probability=0.25, mode="pixel")
    theirs = torch.full((6000, 3, 32, 32), 7.0)
    TimmsErasing(probability=0.25, mode="pixel", device="cpu")(theirs)
    (h, w), (their_h, their_w) = erased_boxes(ours), erased_boxes(theirs)
    assert abs((h > 0).double().mean() - 0.25) < 0.02
    h, w, their_h, their_w = h[h > 0], w[w > 0], their_h[their_h > 0], their_w[their_w > 0]
    for mine, reference in (
        (h * w, their_h * their_w),
        ((h / w).log(), (their_h / their_w).log()),
        (h, their_h),
    ):
        spread = reference.std() / len(reference) ** 0.5
        assert abs(mine.mean() - reference.mean()) < 6 * spread
        assert abs(mine.std() / reference.std() - 1) < 0.08
        for q in (0.02, 0.98):
            assert abs(mine.quantile(q) - reference.quantile(q)) < 0.12 * (reference.max() - reference.min())
    area = h * w / 32**2
    assert area.min() > 0.015
    assert area.max() < 0.36
    assert (h / w).min() > 0.2
    assert (h / w).max() < 5


def test_erasing_with_a_constant_has_torchvisions_statistics():
    """Areas up to .33 and aspect ratios up to 3.3, where timm's go to 1/3 and 1/.3."""
    ours = erase(torch.full((6000, 3, 32, 32), 7.0), probability=1.0, mode="const")
    transform = RandomErasing(p=1.0)
    theirs = torch.stack([transform(image) for image in torch.full((3000, 3, 32, 32), 7.0)])
    (h, w), (their_h, their_w) = erased_boxes(ours), erased_boxes(theirs)
    for mine, reference in ((h, their_h), (w, their_w), (h * w, their_h * their_w)):
        assert ks_2samp(mine, reference).pvalue > 1e-3
    large = erase(torch.full((400, 1, 400, 400), 7.0), probability=1.0, mode="const")
    h, w = erased_boxes(large)
    assert (h * w / 400**2).max() < 0.3325
    assert (h / w).max() < 3.32


def test_every_place_is_erased_about_as_often_as_by_timm():
    ours = erase(torch.full((4000, 1, 16, 16), 7.0), probability=1.0, mode="pixel")[:, 0] != 7
    theirs = torch.full((4000, 1, 16, 16), 7.0)
    TimmsErasing(probability=1.0, mode="const", device="cpu")(theirs)
    difference = ours.double().mean(0) - (theirs[:, 0] != 7).double().mean(0)
    assert difference.abs().max() < 0.05


def test_fill_is_unit_noise_or_zero():
    images = torch.full((500, 3, 32, 32), 7.0)
    noise = erase(images, probability=1.0, mode="pixel")
    noise = noise[noise != 7]
    assert abs(noise.mean()) < 0.02
    assert abs(noise.std() - 1) < 0.02
    const = erase(images, probability=1.0, mode="const")
    assert set(const.unique().tolist()) == {0.0, 7.0}
    assert torch.equal(images, torch.full_like(images, 7.0))  # the input is left alone


def test_no_probability_no_change_and_tiny_images_do_not_fail():
    images = torch.full((8, 3, 32, 32), 7.0)
    assert torch.equal(erase(images, probability=0.0, mode="pixel"), images)
    for side in (1, 2, 3):
        assert erase(torch.full((50, 3, side, side), 7.0), probability=1.0, mode="const").shape[-1] == side
