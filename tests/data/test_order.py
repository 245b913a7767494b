"""The order of samples: every sample once per epoch, the same whatever the machine."""

from __future__ import annotations

import collections
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from mixer_lightning.data import order as orders
from mixer_lightning.data.order import (
    BalancedOrder,
    MicroBatches,
    MicroBatchSampler,
    Order,
    seed_generators,
    split_batch,
)
from mixer_lightning.data.stateless_random import derive_seed

Sample = tuple[int, int, int]  # epoch, image, repeat

shards = st.lists(st.integers(0, 12), min_size=1, max_size=9).filter(any)  # some may lend no sample
windows = st.integers(1, 10)


def stream(
    order: Order,
    *,
    steps: int,
    batch: int,
    device_batch: int,
    world: int = 1,
    start: int = 0,
    repeats: int = 1,
) -> list[list[Sample]]:
    """Chunks of all processes in the order of the arithmetic: one after the other, step by step."""
    micro_batches = split_batch(batch_size=batch, device_batch=device_batch, world_size=world)
    ranks = [
        list(
            MicroBatchSampler(
                Order(order.shard_sizes.tolist(), window=order.window, seed=order.seed),
                micro_batches=micro_batches,
                rank=rank,
                start_step=start,
                total_steps=steps,
                repeats=repeats,
            )
        )
        for rank in range(world)
    ]
    assert all(part.shape == (device_batch, 3) and part.dtype == np.int64 for rank in ranks for part in rank)
    in_turn = [ranks[i % world][i // world] for i in range(world * len(ranks[0]))]
    return [[tuple(sample) for sample in part.tolist()] for part in in_turn]


def epoch(order: Order, number: int) -> list[int]:
    return order.images(number, np.arange(order.num_samples)).tolist()


# ------------------------------------------------------------------------------------- windows of shards


@settings(max_examples=60, deadline=None)
@given(shard_sizes=shards, window=windows, number=st.integers(0, 5), seed=st.integers(0, 3))
def test_an_epoch_is_a_permutation_window_by_window(shard_sizes, window, number, seed):
    order = Order(shard_sizes, window=window, seed=seed)
    seen = epoch(order, number)
    assert sorted(seen) == list(range(sum(shard_sizes)))

    samples = np.split(np.arange(sum(shard_sizes)), np.cumsum(shard_sizes)[:-1])  # of each shard
    in_turn: list[int] = []
    for w in range(-(-len(shard_sizes) // window)):
        here = order.shards(number, w)[:window].tolist()
        assert order.shards(number, w)[window:].tolist() == order.shards(number, w + 1)[:window].tolist()
        inside = np.concatenate([samples[shard] for shard in here]).tolist()
        assert sorted(seen[: len(inside)]) == sorted(inside)  # only these shards are read here
        seen, in_turn = seen[len(inside) :], in_turn + here
    assert sorted(in_turn) == list(range(len(shard_sizes)))


@settings(max_examples=60, deadline=None)
@given(shard_sizes=shards, window=windows, number=st.integers(0, 1000), data=st.data())
def test_any_places_in_any_sequence_are_those_of_the_uninterrupted_order(shard_sizes, window, number, data):
    order = Order(shard_sizes, window=window, seed=5)
    whole = {e: epoch(order, e) for e in (number, number + 1)}
    places = st.lists(st.integers(0, order.num_samples - 1), min_size=1, max_size=20)
    fresh = Order(shard_sizes, window=window, seed=5)
    for e in data.draw(st.lists(st.sampled_from([number, number + 1]), min_size=1, max_size=4)):
        offsets = np.array(data.draw(places))
        assert fresh.images(e, offsets).tolist() == [whole[e][offset] for offset in offsets]


def test_a_place_far_into_a_run_costs_one_window(monkeypatch):
    drawn = []
    permutation = orders._permutation
    monkeypatch.setattr(orders, "_permutation", lambda n, *_: drawn.append(n) or permutation(n, *_))
    order = Order([1000] * 500, window=8, seed=0)
    order.images(123, np.array([400_000, 400_001]))
    assert sum(drawn) == 500 + 8 * 1000  # the shards, and the samples of one window
    order.images(123, np.array([400_002]))
    assert sum(drawn) == 500 + 8 * 1000


def test_what_is_read_next_is_announced_before_it_is_read():
    order = Order([4] * 10, window=3, seed=0)
    told: list[list[int]] = []
    order.prefetch = lambda shards: told.append(list(shards))
    for e in (0, 1):
        for offset, image in enumerate(epoch(order, e)):
            order.images(e, np.array([offset]))
            assert image // 4 in told[-1][:3]
    assert [len(shards) for shards in told[-4:]] == [6, 6, 4, 1]  # a window and the next; no next at the end
    assert len(set(itertools.chain(*told[-4::2]))) == 10


def test_every_sample_may_stand_anywhere():
    """Chi-square over 3,000 epochs: shards of equal size, so all places are equally likely."""
    order = Order([2, 2, 2], window=2, seed=0)
    counts = np.zeros((6, 6))
    for e in range(3000):
        counts[np.arange(6), epoch(order, e)] += 1
    assert chisquare(counts.ravel(), ddof=10).pvalue > 0.001


def test_a_window_of_everything_mixes_all_shards():
    order = Order([100] * 10, window=10, seed=0)
    first = collections.Counter(image // 100 for image in epoch(order, 0)[:200])
    assert set(first) == set(range(10))
    assert max(first.values()) < 40


def test_epochs_and_seeds_have_their_own_order():
    found = {
        tuple(epoch(Order(shard_sizes, window=2, seed=seed), e))
        for shard_sizes in ([100], [25, 25, 25, 25])
        for seed in (0, 1)
        for e in (0, 1, 2)
    }
    assert len(found) == 12


def test_order_is_fixed_for_good():
    # A change of these lists breaks the resumption of every run that is under way.
    assert epoch(Order([10], window=32, seed=0), 0) == [6, 9, 2, 1, 5, 4, 8, 7, 3, 0]
    order = Order([3, 2, 4, 1], window=2, seed=7)
    assert [epoch(order, e) for e in (0, 1)] == [
        [8, 5, 0, 2, 7, 1, 6, 4, 9, 3],
        [0, 5, 8, 2, 6, 7, 1, 4, 9, 3],
    ]
    assert stream(order, steps=3, batch=4, device_batch=2, repeats=2) == [
        [(0, 8, 0), (0, 5, 0)],
        [(0, 8, 1), (0, 5, 1)],
        [(0, 0, 0), (0, 2, 0)],
        [(0, 0, 1), (0, 2, 1)],
        [(0, 7, 0), (1, 0, 0)],
        [(0, 7, 1), (1, 0, 1)],
    ]


# ---------------------------------------------------------------------------------------------- batches


@settings(max_examples=60, deadline=None)
@given(
    shard_sizes=shards,
    window=windows,
    device_batch=st.integers(1, 5),
    world=st.sampled_from([1, 2, 3]),
    accumulate=st.integers(1, 3),
    steps=st.integers(1, 12),
)
def test_every_sample_once_per_epoch_and_nothing_dropped(
    shard_sizes, window, device_batch, world, accumulate, steps
):
    batch = device_batch * world * accumulate
    order = Order(shard_sizes, window=window, seed=7)
    seen = list(
        itertools.chain(*stream(order, steps=steps, batch=batch, device_batch=device_batch, world=world))
    )
    assert len(seen) == steps * batch
    by_epoch = [[image for e, image, _ in seen if e == number] for number in range(seen[-1][0] + 1)]
    assert all(images == epoch(order, number) for number, images in enumerate(by_epoch[:-1]))
    assert by_epoch[-1] == epoch(order, len(by_epoch) - 1)[: len(by_epoch[-1])]
    assert {repeat for _, _, repeat in seen} == {0}


@settings(max_examples=40, deadline=None)
@given(
    shard_sizes=shards,
    window=windows,
    world=st.sampled_from([1, 2, 3, 6]),
    start=st.integers(0, 9),
    repeats=st.sampled_from([1, 2, 3]),
)
def test_micro_batches_do_not_depend_on_processes_or_on_where_a_session_began(
    shard_sizes, window, world, start, repeats
):
    order = Order(shard_sizes, window=window, seed=7)
    whole = stream(order, steps=10, batch=12, device_batch=2, repeats=repeats)
    parts = stream(order, steps=10, batch=12, device_batch=2, world=world, start=start, repeats=repeats)
    assert parts == whole[start * 6 :]


def test_repeated_augmentation_shows_a_third_of_the_images_three_times():
    seen = list(
        itertools.chain(
            *stream(Order([30], window=1, seed=7), steps=5, batch=6, device_batch=3, world=2, repeats=3)
        )
    )
    counts = collections.Counter(image for _, image, _ in seen)
    assert len(counts) == 10
    assert set(counts.values()) == {3}
    assert len(set(seen)) == 30  # no two with the same (epoch, image, repeat): each is augmented anew
    for batch in (seen[i : i + 6] for i in range(0, 30, 6)):
        images = [image for _, image, _ in batch]
        assert sorted(collections.Counter(images).values()) == [3, 3]  # all three in one batch,
        assert all(a != b for a, b in itertools.pairwise(images))  # and never side by side


def test_repeats_that_do_not_divide_the_set():
    (samples,) = stream(Order([10], window=1, seed=0), steps=1, batch=10, device_batch=10, repeats=3)
    counts = collections.Counter(image for _, image, _ in samples)
    assert sorted(counts.values()) == [1, 3, 3, 3]
    assert set(counts) == set(epoch(Order([10], window=1, seed=0), 0)[:4])
    assert len(set(samples)) == 10


@pytest.mark.parametrize(
    ("batch", "device_batch", "world", "words"),
    [
        (100, 30, 1, ["device_batch 30", "20", "25"]),
        (10, None, 3, ["batch_size 10", "3 processes"]),
        (64, 128, 1, ["device_batch 128", "64"]),
    ],
)
def test_a_batch_that_does_not_divide_says_what_would(batch, device_batch, world, words):
    with pytest.raises(ValueError, match="does not divide") as error:
        split_batch(batch_size=batch, device_batch=device_batch, world_size=world)
    assert all(word in str(error.value) for word in words)


def test_default_device_batch_is_an_equal_share():
    assert split_batch(batch_size=96, device_batch=None, world_size=4)[1:] == (24, 4)
    assert split_batch(batch_size=96, device_batch=8, world_size=4).accumulate == 3


def test_seeding_covers_all_three_generators():
    import random

    def draw():
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    seed_generators(derive_seed("a", 1))
    first = draw()
    seed_generators(derive_seed("a", 1))
    assert draw() == first
    seed_generators(derive_seed("a", 2))
    assert all(x != y for x, y in zip(draw(), first, strict=True))


def test_length_is_what_is_still_to_come():
    micro_batches = split_batch(batch_size=8, device_batch=2, world_size=2)
    order = Order([20], window=1, seed=0)
    sampler = MicroBatchSampler(order, micro_batches=micro_batches, rank=0, start_step=3, total_steps=10)
    assert len(sampler) == len(list(sampler)) == 7 * 2
    assert np.array_equal(next(iter(sampler)), next(iter(sampler)))  # can be gone through again


# ------------------------------------------------------------------------------------------------- balanced


COUNTS = (50, 3, 0, 11)  # images of four classes, one of them without any


def balanced(
    *, rank: int = 0, world_size: int = 1, start_step: int = 0, repeats: int = 1, seed: int = 0
) -> np.ndarray:
    labels = np.random.default_rng(1).permutation(np.repeat(np.arange(4), COUNTS))
    sampler = MicroBatchSampler(
        BalancedOrder(labels, seed=seed),
        micro_batches=MicroBatches(12, 12 // (2 * world_size), world_size),
        rank=rank,
        start_step=start_step,
        total_steps=60,
        repeats=repeats,
    )
    return np.stack(list(sampler)), labels


def test_each_class_comes_once_among_as_many_images_as_there_are_classes():
    batches, labels = balanced()
    images = batches.reshape(-1, 3)[:, 1]
    rounds = labels[images].reshape(-1, 3)
    assert (np.sort(rounds, axis=1) == [0, 1, 3]).all()
    assert len({tuple(each) for each in rounds}) == 6  # in all orders
    for label, count in enumerate(COUNTS):
        own = images[labels[images] == label]
        for first in range(0, len(own) - count + 1, count) if count else ():
            assert sorted(own[first : first + count]) == np.flatnonzero(labels == label).tolist()


def test_an_image_that_comes_again_is_augmented_otherwise():
    batches, _ = balanced()
    samples = batches.reshape(-1, 3)
    assert len(np.unique(samples, axis=0)) == len(samples)
    assert samples[:, 0].max() > 50  # passes of the class of three images


def test_repeats_of_an_image_meet_in_a_batch():
    batches, labels = balanced(repeats=3)
    for batch in batches.reshape(-1, 12, 3):
        times = np.unique(batch[:, 1], return_counts=True)[1]
        assert (times % 3 == 0).all()
        assert len(np.unique(batch, axis=0)) == 12
    assert set(labels[batches.reshape(-1, 3)[:, 1]]) == {0, 1, 3}


def test_balanced_batches_are_the_same_on_any_machine_and_after_any_stop():
    whole, _ = balanced()
    two = [balanced(rank=rank, world_size=2)[0] for rank in range(2)]
    steps = np.stack([each.reshape(60, 2, 3, 3) for each in two], axis=2)  # [steps, micro, rank, D, 3]
    np.testing.assert_array_equal(steps.reshape(60, 12, 3), whole.reshape(60, 12, 3))
    np.testing.assert_array_equal(balanced(start_step=41)[0], whole[2 * 41 :])
    assert not np.array_equal(balanced(seed=1)[0], whole)


def test_several_labels_cannot_be_balanced():
    with pytest.raises(ValueError, match="sampling=balanced needs one label an image"):
        BalancedOrder(np.zeros((4, 2), np.int64), seed=0)
