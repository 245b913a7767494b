"""RandAugment and colour jitter: policies as timm and torchvision read them, sampled with their distributions."""

from __future__ import annotations

import ast
import random
from collections import Counter
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest
import torch
from photos import BATCH, PHOTOS, SIDE, as_batch
from scipy import stats
from timm.data.auto_augment import LEVEL_TO_ARG, rand_augment_choices, rand_augment_transform
from torchvision.transforms import functional as F

from mixer_lightning.data import image_ops, policies
from mixer_lightning.data.image_ops import TAPS, Operation
from mixer_lightning.data.policies import (
    TIMM,
    ColorJitter,
    ColorJitterParams,
    RandAugment,
    RandAugmentParams,
    check_policy,
)
from mixer_lightning.data.stateless_random import sample_keys

MEAN = [0.485, 0.456, 0.406]
FILL = (124, 116, 104)  # MEAN in grey levels
TEXTS = [
    "rand-m9-mstd0.5-inc1",
    "rand-m15-n2-p1-mmax20",
    "rand-m9-n3-p0.7-mstd101",
    "rand-m8-mstd1-tweights",
    "rand-m9-n2-t3a",
    "rand-m7-n3-p1-mstd2-mmax8-t3aw",
]


def keys(count: int):
    return sample_keys(0, np.stack([np.zeros(count), np.arange(count), np.zeros(count)], axis=1))


def same(operation: Operation, argument: float, taps: int = 1, count: int = len(PHOTOS)) -> RandAugmentParams:
    """One operation, the same for every image."""
    return RandAugmentParams(
        operations=np.full((count, 1), int(operation)),
        arguments=np.full((count, 1), float(argument)),
        taps=np.full((count, 1), taps),
        centres=np.zeros((count, 1, 2)),
    )


def timm_like(text: str = "rand-n1", interpolation: str = "bilinear") -> RandAugment:
    return RandAugment(text, interpolation=interpolation, mean=MEAN)


# ---- pixels


def test_operations_follow_each_other():
    params = RandAugmentParams(
        operations=np.tile([int(Operation.ROTATE), int(Operation.IDENTITY), int(Operation.INVERT)], (7, 1)),
        arguments=np.tile([20.0, 0.0, 0.0], (7, 1)),
        taps=np.full((7, 3), TAPS["bilinear"]),
        centres=np.zeros((7, 3, 2)),
    )
    got = timm_like("rand-n3")(BATCH, params)
    turned = timm_like()(BATCH, same(Operation.ROTATE, 20.0, TAPS["bilinear"]))
    torch.testing.assert_close(got, 255 - turned)
    assert got[0, :, 0, 0].tolist() == [255 - channel for channel in FILL]


@pytest.mark.parametrize("order", permutations(range(3)))
def test_color_jitter_to_the_bit(order):
    adjust = (F.adjust_brightness, F.adjust_contrast, F.adjust_saturation)
    factors = np.random.default_rng(1).uniform(0.0, 2.0, (len(PHOTOS), 3))
    wanted = []
    for image, row in zip(PHOTOS, factors, strict=True):
        for i, factor in zip(order, row, strict=True):
            image = adjust[i](image, float(factor))
        wanted.append(image)
    operations = np.tile(ColorJitter.OPERATIONS[list(order)], (len(PHOTOS), 1))
    got = ColorJitter(1.0)(BATCH, ColorJitterParams(operations=operations, factors=factors))
    assert torch.equal(got, as_batch(wanted))


# ---- sampling


@pytest.mark.parametrize("name", TIMM)
def test_arguments_are_timms(name, monkeypatch):
    magnitudes = np.concatenate([np.arange(0, 20.25, 0.25), np.random.default_rng(0).uniform(0, 20, 200)])
    if LEVEL_TO_ARG[name] is None:
        return
    for sign in (1.0, -1.0):
        monkeypatch.setattr(random, "random", lambda negate=sign < 0: 0.9 if negate else 0.1)
        wanted = np.array([LEVEL_TO_ARG[name](float(m), {})[0] for m in magnitudes])
        if name == "Desaturate":  # which timm turns into a factor of Color later
            wanted = np.clip(1 - wanted, 0, 1)
        np.testing.assert_array_equal(TIMM[name][1](magnitudes, np.full_like(magnitudes, sign)), wanted)


def test_all_operations_of_timm_are_known():
    for name in ("weights", "3a", "3aw", "all others"):
        for increasing in (False, True):
            assert set(rand_augment_choices(name, increasing)) <= set(TIMM)


def timms_samples(text: str, count: int) -> list[list[tuple[Operation, float]]]:
    """What timm's transform would do to `count` images, by its own random numbers."""
    transform = rand_augment_transform(text, {"img_mean": FILL})
    done: list[tuple[Operation, float]] = []

    def note(name):
        def operation(image, *arguments, **_):
            value = float(arguments[0]) if arguments else 0.0
            done.append((TIMM[name][0], 1 - value if name == "Desaturate" else value))
            return image

        return operation

    for each in transform.ops:
        each.aug_fn = note(each.name)
    random.seed(0)
    np.random.seed(0)
    samples = []
    for _ in range(count):
        transform(None)
        samples.append(done.copy())
        done.clear()
    return samples


@pytest.mark.parametrize("text", TEXTS)
def test_params_have_timms_distribution(text):
    count = 6000
    theirs = timms_samples(text, count)
    params = timm_like(text).sample_params(keys(count))
    ours = [
        [(Operation(o), a) for o, a in zip(*rows, strict=True) if o]
        for rows in zip(params.operations, params.arguments, strict=True)
    ]
    # how many, which and in which order
    for count_of in (
        len,
        lambda done: tuple(o for o, _ in done[:2]),
        lambda done: tuple(o for o, _ in done[-1:]),
    ):
        both = [Counter(map(count_of, samples)) for samples in (ours, theirs)]
        kinds = [kind for kind in both[0] | both[1] if both[0][kind] + both[1][kind] >= 20]
        if len(kinds) > 1:
            table = [[counts[kind] for kind in kinds] for counts in both]
            assert stats.chi2_contingency(table).pvalue > 1e-4
    # by how much
    for operation in {o for done in theirs for o, _ in done}:
        a, b = (
            np.array([v for done in samples for o, v in done if o == operation]) for samples in (ours, theirs)
        )
        assert len(a) > 10
        if np.ptp(b) == 0:
            np.testing.assert_array_equal(a, b[0])
        else:
            assert stats.ks_2samp(a, b).pvalue > 1e-4, operation.name


def test_params_have_torchvisions_distribution():
    params = RandAugment("torchvision-n2-m12", interpolation="bilinear", mean=MEAN).sample_params(keys(7000))
    counts = np.bincount(params.operations.ravel(), minlength=len(Operation))
    assert np.count_nonzero(counts) == 14
    assert stats.chisquare(counts[counts > 0]).pvalue > 1e-4
    for operation, value in (
        (Operation.ROTATE, 12.0),
        (Operation.SHEAR_X, 0.12),
        (Operation.SHIFT_Y, 150 / 331 * 0.4),
    ):
        arguments = params.arguments[params.operations == operation]
        np.testing.assert_allclose(np.abs(arguments), value, rtol=1e-6)
        assert stats.binomtest(int((arguments > 0).sum()), len(arguments)).pvalue > 1e-4
    assert set(np.unique(params.taps)) == {1}


def test_params_have_big_visions_distribution():
    """Sixteen operations, with replacement, each always applied; Cutout anywhere."""
    params = RandAugment("big_vision-n2-m15", interpolation="bicubic", mean=MEAN).sample_params(keys(8000))
    counts = np.bincount(params.operations.ravel(), minlength=len(Operation))
    assert np.count_nonzero(counts) == 16
    assert stats.chisquare(counts[counts > 0]).pvalue > 1e-4
    assert (
        stats.binomtest(int((params.operations[:, 0] == params.operations[:, 1]).sum()), 8000, 1 / 16).pvalue
        > 1e-4
    )
    for operation, value in ((Operation.TF_ROTATE, 45.0), (Operation.TF_TRANSLATE_X, 150.0)):
        arguments = params.arguments[params.operations == operation]
        np.testing.assert_allclose(np.abs(arguments), value)
        assert stats.binomtest(int((arguments > 0).sum()), len(arguments)).pvalue > 1e-4
    centres = params.centres[params.operations == Operation.CUTOUT]
    for column in centres.T:
        assert stats.kstest(column, "uniform").pvalue > 1e-4
    assert abs(np.corrcoef(centres.T)[0, 1]) < 0.1


def test_weighted_choice_repeats_nothing():
    operations = timm_like("rand-n15-p1-tweights").sample_params(keys(300)).operations
    assert all(len(set(row)) == 15 for row in operations.tolist())


def test_random_interpolation_is_drawn_each_time():
    taps = timm_like("rand-n3", "random").sample_params(keys(4000)).taps
    assert set(np.unique(taps)) == {TAPS["bilinear"], TAPS["bicubic"]}
    assert abs((taps == TAPS["bilinear"]).mean() - 0.5) < 0.02
    assert abs(np.corrcoef(taps.T)[0, 1]) < 0.06
    for name in ("bilinear", "bicubic"):
        assert set(np.unique(timm_like("rand-n3", name).sample_params(keys(9)).taps)) == {TAPS[name]}


@pytest.mark.parametrize(("strength", "low", "high"), [(0.2, 0.8, 1.2), (1.5, 0.0, 2.5), (0.0, 1.0, 1.0)])
def test_color_jitter_samples_factors_and_orders_evenly(strength, low, high):
    params = ColorJitter(strength).sample_params(keys(3000))
    orders = Counter(map(tuple, params.operations.tolist()))
    assert len(orders) == 6
    assert stats.chisquare(list(orders.values())).pvalue > 1e-4
    assert params.factors.min() >= low
    assert params.factors.max() <= high
    if strength:
        for column in params.factors.T:
            assert stats.kstest(column, stats.uniform(low, high - low).cdf).pvalue > 1e-4
    else:
        assert torch.equal(ColorJitter(0.0)(BATCH, ColorJitter(0.0).sample_params(keys(7))), BATCH)


# ---- a sample's result depends on nothing else


def rows(params, which):
    return type(params)(**{name: value[which] for name, value in vars(params).items()})


AUGMENTS = [
    timm_like("rand-m9-n3-p0.8-mstd0.5-inc1", "random"),
    timm_like("rand-m9-n2-p1-mstd101-t3a"),
    RandAugment("torchvision-n2-m12", interpolation="bilinear", mean=MEAN),
    RandAugment("big_vision-n2-m15", interpolation="bilinear", mean=MEAN),
    ColorJitter(0.4),
]


@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_sample_does_not_depend_on_its_batch(augment, monkeypatch):
    images = BATCH.repeat(6, 1, 1, 1)
    count = len(images)
    params = augment.sample_params(keys(count))
    before = images.clone()
    result = augment(images, params)
    assert torch.equal(images, before)
    assert (result != before).flatten(1).any(1).sum() > count / 2
    order = np.random.default_rng(0).permutation(count)
    for which in (order, order[: count // 3], slice(5, 6)):
        some = augment.sample_params(keys(count)[which])
        for name, value in vars(rows(params, which)).items():
            np.testing.assert_array_equal(vars(some)[name], value)
        torch.testing.assert_close(augment(images[which], some), result[which], rtol=0, atol=0)
    monkeypatch.setattr(image_ops, "BYTES_PER_CALL", 3 * 3 * SIDE * SIDE)  # three images go through together
    torch.testing.assert_close(augment(images, params), result, rtol=0, atol=0)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_memory_format_does_not_matter(augment):
    params = augment.sample_params(keys(len(BATCH)))
    result = augment(BATCH, params)
    assert result.is_contiguous()
    assert result.dtype == torch.uint8
    for images in (
        BATCH.to(memory_format=torch.channels_last),
        BATCH.flip(0).flip(0),
        BATCH.mT.contiguous().mT,
    ):
        assert torch.equal(augment(images, params), result)


@pytest.mark.parametrize("augment", AUGMENTS)
def test_no_images_and_no_operations(augment):
    assert augment(BATCH[:0], augment.sample_params(keys(0))).shape == (0, 3, SIDE, SIDE)
    for text in ("rand-n0", "torchvision-n0-m3", "big_vision-n0-m3"):
        nothing = timm_like(text)
        assert torch.equal(nothing(BATCH, nothing.sample_params(keys(len(BATCH)))), BATCH)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("deterministic", [False, True])
@pytest.mark.parametrize("augment", AUGMENTS)
def test_a_gpu_makes_the_same_images_without_being_waited_for(augment, deterministic):
    images = BATCH.repeat(40, 1, 1, 1)
    params = augment.sample_params(keys(len(images)))
    there = images.cuda()
    torch.use_deterministic_algorithms(deterministic)
    try:
        augment(there, params)  # the first time something may be set up
        torch.cuda.set_sync_debug_mode("default" if deterministic else "error")
        result = augment(there, params)
    finally:
        torch.cuda.set_sync_debug_mode("default")
        torch.use_deterministic_algorithms(False)
    difference = (result.cpu().int() - augment(images, params).int()).abs()
    # fused multiply-adds round interpolated values otherwise; a level of difference may then grow by a later contrast
    assert (difference > 1).float().mean() < 1e-3
    assert (difference > 0).float().mean() < 5e-3


# ---- notations


@pytest.mark.parametrize(
    "text",
    [*TEXTS, "rand", "rand-m10-n2-p1-mmax20", "rand-m5-inc0-p0.3", "torchvision-n2-m30", "big_vision-n2-m22"],
)
def test_readable_notations(text):
    check_policy(text)
    timm_like(text).sample_params(keys(3))


def test_timms_options_are_read():
    read = timm_like("rand-m7-n3-p0.25-mstd0.5-mmax12")
    assert (read.magnitude, read.num_operations, read.probability) == (7, 3, 0.25)
    assert (read.magnitude_std, read.magnitude_max) == (0.5, 12)
    assert read.fill.tolist() == list(FILL)
    assert RandAugment("torchvision-n2-m12", interpolation="bilinear", mean=MEAN).fill.tolist() == [0, 0, 0]
    assert RandAugment("big_vision-n2-m9", interpolation="bilinear", mean=MEAN).fill.tolist() == [128] * 3
    assert (timm_like("rand-m9").magnitude_std, timm_like("rand-m9").magnitude_max) == (0, 10)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("rand-m9-x3", "cannot read 'rand-m9-x3'"),
        ("rand-m9-mstdinf", "cannot read"),
        ("rand-m9-tfoo", "cannot read"),
        ("rand-p7", "cannot read"),
        ("randaug-2-15", "Write timm's notation, as in rand-m9-mstd0.5-inc1"),
        ("torchvision-m12-n2", "cannot read"),
        ("torchvision-n2-m31", "torchvision's magnitudes end at 30"),
        ("big_vision-n2-m23", "big_vision's magnitudes end at 22"),
        ("big_vision-m2-n15", "or big_vision's as big_vision-n2-m15"),
        ("rand-n16-tweights", "has only 15"),
        ("rand-t3aw-n15", "has only 14"),
        ("", "cannot read"),
    ],
)
def test_other_notations_are_refused(text, message):
    for refuse in (check_policy, timm_like):
        with pytest.raises(ValueError, match=message):
            refuse(text)


def test_the_module_loads_neither_timm_nor_torchvision():
    body = ast.parse(Path(policies.__file__).read_text()).body
    lines = [ast.unparse(node) for node in body if isinstance(node, ast.Import | ast.ImportFrom)]
    assert len(lines) > 5
    assert not any("timm" in line or "torchvision" in line for line in lines)
