from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from timm.scheduler import CosineLRScheduler

from mixer_lightning.optim.schedules import constant, cosine, cosine_by_epoch, linear, triangular

IMAGENET_TRAIN = 1_281_167


def curve(schedule: Callable[..., float], total_steps: int, steps_per_epoch: float, **options) -> np.ndarray:
    return np.array([schedule(step, total_steps, steps_per_epoch, **options) for step in range(total_steps)])


class TestTriangular:
    @pytest.mark.parametrize(
        ("epoch", "expected"),
        [(18, 0.5), (36, 1.0), (54, 0.525), (72, 0.05), (81, 0.025), (90, 0.0)],
    )
    def test_knees_of_the_90_epoch_rows_stand_at_36_and_72(self, epoch, expected):
        steps_per_epoch = 10
        step = epoch * steps_per_epoch - 1  # the step that ends the epoch
        assert triangular(step, 900, steps_per_epoch) == pytest.approx(expected, abs=1e-12)

    def test_knees_are_rounded_down_to_whole_epochs(self):
        # 2 * 23 // 5 = 9 and 4 * 23 // 5 = 18, where 2/5 and 4/5 of 23 are 9.2 and 18.4
        assert triangular(9 * 7 - 1, 23 * 7, 7) == 1.0
        assert triangular(18 * 7 - 1, 23 * 7, 7) == pytest.approx(0.05)

    def test_reproduces_the_log_printed_by_the_authors(self):
        # Rates of locuslab/convmixer-cifar10's README at the end of each epoch; peak 0.05, 98 batches an epoch.
        log = [0.005 * (epoch + 1) for epoch in range(10)]
        log += [0.045250, 0.040500, 0.035750, 0.031000, 0.026250, 0.021500, 0.016750, 0.012000, 0.007250]
        log += [0.002500, 0.002000, 0.001500, 0.001000, 0.000500, 0.000000]
        ours = [0.05 * triangular(98 * (epoch + 1) - 1, 25 * 98, 98) for epoch in range(25)]
        np.testing.assert_allclose(ours, log, atol=5e-7)

    @pytest.mark.parametrize("epochs", [3, 4, 25, 90, 100, 150])
    def test_is_numpys_interpolation_of_the_authors_knees(self, epochs):
        steps_per_epoch = 13
        at = (np.arange(epochs * steps_per_epoch) + 1) / steps_per_epoch
        expected = np.interp(at, [0, epochs * 2 // 5, epochs * 4 // 5, epochs], [0, 1, 1 / 20, 0])
        ours = curve(triangular, epochs * steps_per_epoch, steps_per_epoch)
        np.testing.assert_allclose(ours, expected, atol=1e-12)

    @pytest.mark.parametrize("epochs", [90, 100, 150, 300])
    def test_a_fractional_number_of_steps_per_epoch_leaves_the_knees_whole(self, epochs):
        steps_per_epoch = IMAGENET_TRAIN / 640
        total_steps = round(epochs * steps_per_epoch)
        at = (np.arange(0, total_steps, 97) + 1) / steps_per_epoch
        expected = np.interp(at, [0, epochs * 2 // 5, epochs * 4 // 5, epochs], [0, 1, 1 / 20, 0])
        ours = [triangular(step, total_steps, steps_per_epoch) for step in range(0, total_steps, 97)]
        np.testing.assert_allclose(ours, expected, atol=1e-9)

    @pytest.mark.parametrize(
        ("total_steps", "steps_per_epoch"), [(1000, 300), (100, 100), (200, 100), (10, 100)]
    )
    def test_fractional_and_very_short_runs_have_knees_at_two_and_four_fifths(
        self, total_steps, steps_per_epoch
    ):
        assert triangular(total_steps * 2 // 5 - 1, total_steps, steps_per_epoch) == pytest.approx(1.0)
        assert triangular(total_steps * 4 // 5 - 1, total_steps, steps_per_epoch) == pytest.approx(0.05)
        assert triangular(total_steps - 1, total_steps, steps_per_epoch) == pytest.approx(0.0, abs=1e-12)

    @pytest.mark.parametrize("total_steps", range(1, 30))
    def test_stays_between_zero_and_one(self, total_steps):
        for steps_per_epoch in (1, 3, 7.5, 100):
            values = curve(triangular, total_steps, steps_per_epoch)
            assert values.min() >= 0
            assert values.max() <= 1


class TestLinear:
    TOTAL = 92_897  # 300 epochs of 99 % of ImageNet at batch 4096

    @pytest.mark.parametrize(
        ("step", "expected"),
        [
            (0, 0.0),
            (1, 1e-4),
            (5_000, 0.5),
            (9_999, 0.9999),
            (10_000, 1.0),
            (92_896, 1e-5 + (1 - 1e-5) / 82_897),
            (92_897, 1e-5),
        ],
    )
    def test_mixers_warm_up_of_10k_steps_and_end_of_1e_5(self, step, expected):
        ours = linear(step, self.TOTAL, self.TOTAL / 300, warmup_steps=10_000, end=1e-5)
        assert ours == pytest.approx(expected, rel=1e-12)

    def test_is_big_visions_formula(self):
        steps = np.arange(0, self.TOTAL, 101)
        progress = np.clip((steps - 10_000) / (self.TOTAL - 10_000), 0, 1)
        expected = (1e-5 + (1 - 1e-5) * (1 - progress)) * np.minimum(1, steps / 10_000)
        ours = [linear(int(s), self.TOTAL, 309.66, warmup_steps=10_000, end=1e-5) for s in steps]
        np.testing.assert_allclose(ours, expected, rtol=1e-12)

    def test_without_warm_up_it_is_torchs_linear_decay(self):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        reference = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=0.25, total_iters=40
        )
        for step in range(40):
            ours = linear(step, 40, 10, warmup_steps=0, end=0.25)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)
            optimizer.step()
            reference.step()


class TestCosine:
    def test_by_hand(self):
        # 10 steps of warm-up, then 80 of decay: a quarter, half, three quarters through
        expected = {0: 0.0, 5: 0.5, 10: 1.0, 30: (1 + math.sqrt(0.5)) / 2, 50: 0.5, 90: 0.0}
        for step, value in expected.items():
            assert cosine(step, 90, 10, warmup_steps=10) == pytest.approx(value, abs=1e-12)

    def test_a1_warms_up_from_1e_4_over_5_epochs_and_ends_at_1e_6(self):
        options = {"warmup_epochs": 5, "warmup_start": 1e-4, "end": 2e-4}
        steps_per_epoch = 625
        total = 600 * steps_per_epoch
        assert cosine(0, total, steps_per_epoch, **options) == pytest.approx(1e-4)
        assert cosine(3_125 // 2, total, steps_per_epoch, **options) == pytest.approx(
            1e-4 + 0.9999 * 1562 / 3125
        )
        assert cosine(3_125, total, steps_per_epoch, **options) == 1.0
        assert 5e-3 * cosine(total, total, steps_per_epoch, **options) == pytest.approx(1e-6)

    def test_agrees_with_timm(self):
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.4)
        reference = CosineLRScheduler(
            optimizer,
            t_initial=70,
            lr_min=0.02,
            warmup_t=30,
            warmup_lr_init=0.1,
            warmup_prefix=True,
            t_in_epochs=False,
        )
        for step in range(100):
            reference.step_update(step)
            ours = 0.4 * cosine(step, 100, 10, warmup_steps=30, warmup_start=0.25, end=0.05)
            assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-9)

    def test_warm_up_in_epochs_is_warm_up_in_steps(self):
        in_epochs = curve(cosine, 50, 12.5, warmup_epochs=2)
        np.testing.assert_array_equal(in_epochs, curve(cosine, 50, 12.5, warmup_steps=25))


class TestCosineByEpoch:
    """timm's CosineLRScheduler as its train.py and DeiT's main.py make it: stepped once an epoch."""

    @pytest.mark.parametrize("steps_per_epoch", [7, 1251, IMAGENET_TRAIN / 1024])
    def test_agrees_with_timm(self, steps_per_epoch):
        epochs, warmup = 30, 5
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1e-3)
        reference = CosineLRScheduler(
            optimizer, t_initial=epochs, lr_min=1e-5, warmup_t=warmup, warmup_lr_init=1e-6
        )
        options = {"warmup_epochs": warmup, "warmup_start": 1e-3, "end": 1e-2}
        total_steps = round(epochs * steps_per_epoch)
        for epoch in range(epochs):
            reference.step(epoch)
            first = math.ceil(epoch * steps_per_epoch)
            last = math.ceil((epoch + 1) * steps_per_epoch) - 1
            for step in (first, min(last, total_steps - 1)):
                ours = 1e-3 * cosine_by_epoch(step, total_steps, steps_per_epoch, **options)
                assert ours == pytest.approx(optimizer.param_groups[0]["lr"], rel=1e-4), epoch

    def test_without_warm_up_it_starts_at_the_peak(self):
        assert [cosine_by_epoch(step, 8, 2, warmup_epochs=0) for step in (0, 1, 4, 5)] == pytest.approx(
            [1.0, 1.0, 0.5, 0.5]
        )

    def test_a_warm_up_as_long_as_the_run_is_refused_with_one_that_fits(self):
        with pytest.raises(
            ValueError, match=r"warmup_epochs=40 is not shorter than .* 40 epochs: .*_epochs=2 "
        ):
            cosine_by_epoch(0, 400, 10, warmup_epochs=40)
        assert 0 < cosine_by_epoch(0, 400, 10, warmup_epochs=2, warmup_start=0.1) < 1

    def test_fractions_of_the_peak_are_checked(self):
        with pytest.raises(ValueError, match=r"schedule\.end=2 is not in"):
            cosine_by_epoch(0, 400, 10, warmup_epochs=2, end=2)


@pytest.mark.parametrize("schedule", [linear, cosine])
class TestWarmUp:
    @pytest.mark.parametrize("total_steps", [1, 2, 5, 19, 20, 21, 100])
    def test_an_unstated_warm_up_suits_a_run_of_any_length(self, schedule, total_steps):
        values = curve(schedule, total_steps, 1000)
        assert values.max() == 1.0
        assert np.flatnonzero(values == 1.0)[0] == total_steps // 20

    def test_longer_than_the_run_names_the_key_and_a_length_that_fits(self, schedule):
        with pytest.raises(ValueError, match=r"schedule\.warmup_steps=10000 .* only 400: .*warmup_steps=20 "):
            schedule(0, 400, 100, warmup_steps=10_000)
        with pytest.raises(
            ValueError, match=r"warmup_epochs=5 .*\.warmup_steps=20 schedule\.warmup_epochs=null"
        ):
            schedule(0, 400, 100, warmup_epochs=5)

    def test_as_long_as_the_run_is_too_long_and_one_step_less_is_not(self, schedule):
        with pytest.raises(ValueError, match="warm-up of 40 steps"):
            schedule(0, 40, 10, warmup_steps=40)
        assert schedule(39, 40, 10, warmup_steps=39) == 1.0

    def test_the_length_that_the_message_proposes_is_accepted(self, schedule):
        assert schedule(20, 400, 100, warmup_steps=20) == 1.0

    def test_both_units_at_once_are_refused(self, schedule):
        with pytest.raises(
            ValueError, match=r"schedule\.warmup_steps=5 and schedule\.warmup_epochs=1 .* null"
        ):
            schedule(0, 100, 10, warmup_steps=5, warmup_epochs=1)

    def test_a_negative_one_is_refused(self, schedule):
        with pytest.raises(ValueError, match=r"schedule\.warmup_steps=-1 is negative"):
            schedule(0, 100, 10, warmup_steps=-1)

    @pytest.mark.parametrize("key", ["end", "warmup_start"])
    @pytest.mark.parametrize("value", [-0.1, 1.5])
    def test_fractions_of_the_peak_lie_in_the_unit_interval(self, schedule, key, value):
        with pytest.raises(ValueError, match=rf"schedule\.{key}={value}"):
            schedule(0, 100, 10, **{key: value})


def test_constant_is_one():
    np.testing.assert_array_equal(curve(constant, 30, 7), np.ones(30))
