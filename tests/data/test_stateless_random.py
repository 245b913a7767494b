"""Random numbers by name: frozen for good, SplitMix64 by the book, uniform, and independent of one another."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from mixer_lightning.data.stateless_random import derive_seed, hash32, sample_keys, uniform

MASK = 2**64 - 1
GOLDEN = 0x9E3779B97F4A7C15


def grid(epochs: int, images: int, repeats: int) -> np.ndarray:
    """All samples [N, 3] of so many epochs, images and repeats."""
    return np.indices((epochs, images, repeats)).reshape(3, -1).T


def splitmix64(state: int, count: int) -> list[int]:
    """The first outputs of Steele, Lea and Flood's generator, in plain integers."""
    outputs = []
    for _ in range(count):
        state = (state + GOLDEN) & MASK
        outputs.append(finish(state))
    return outputs


def finish(z: int) -> int:
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
    return z ^ (z >> 31)


def chi_square(counts: np.ndarray) -> float:
    """How many standard deviations the statistic of equally likely cells lies above or below its mean."""
    expected = counts.sum() / counts.size
    degrees = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - degrees) / np.sqrt(2 * degrees))


# ---- frozen: a change of these numbers changes every run that is under way


def test_keys_of_names_are_fixed_for_good():
    assert derive_seed(0, "order", 0) == 3471081512423777433
    assert derive_seed("spare", 17, 0) == 4170898786704155442


def test_keys_of_samples_are_fixed_for_good():
    samples = [[0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1], [299, 1281166, 2]]
    assert sample_keys(0, samples).tolist() == [
        13750938650627371086,
        18096821900009534097,
        5907437943197619871,
        3825618537541138276,
        131236438245671456,
    ]


def test_numbers_are_fixed_for_good():
    keys = sample_keys(0, [[0, 0, 0], [299, 1281166, 2]])
    assert uniform(keys, "view", 2).tolist() == [
        [0.8732243515512278, 0.5713995087074002],
        [0.5645427182997309, 0.8328561682862079],
    ]
    assert uniform(keys, "flip", 1)[0, 0] == 0.9915858523413632


def test_hashes_of_texts_are_fixed_for_good():
    assert hash32("n01440764/n01440764_10026.JPEG") == 3471610452
    assert hash32("") == 634351890
    assert hash32("000000000") == 4087968233
    assert hash32("caf\u00e9.jpg") == 313512298
    assert hash32("caf\udce9.jpg") == 4240818026  # a file name that is not UTF-8, as os.scandir hands it over


# ---- by the book


def test_the_reference_is_splitmix64():
    # Published outputs for this seed: https://rosettacode.org/wiki/Pseudo-random_numbers/Splitmix64
    assert splitmix64(1234567, 5) == [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]


@pytest.mark.parametrize("seed", [0, 1, 2**62])
def test_keys_chain_its_output_function_over_epoch_image_and_repeat(seed):
    samples = [(0, 0, 0), (3, 1281166, 2), (2**40, 2**33 + 5, 7)]
    expected = []
    for sample in samples:
        state = derive_seed(seed, "sample")
        for part in sample:
            state = finish((state + part * GOLDEN) & MASK)
        expected.append(state)
    assert sample_keys(seed, samples).tolist() == expected


def test_numbers_are_its_outputs_seeded_by_key_and_purpose():
    keys = sample_keys(5, grid(2, 3, 2))
    for purpose, count in (("view", 23), ("flip", 1), ("", 3)):
        streams = [splitmix64(finish(int(k) ^ derive_seed(purpose)), count) for k in keys]
        drawn = uniform(keys, purpose, count)
        assert drawn.dtype == np.float64
        assert drawn.tolist() == [[(x >> 11) / 2**53 for x in stream] for stream in streams]


# ---- independent of how they are asked for


def test_a_sample_gets_the_same_numbers_alone_and_in_any_batch():
    samples = grid(2, 50, 2)
    keys = sample_keys(3, samples)
    shuffled = np.random.default_rng(0).permutation(len(samples))
    assert np.array_equal(sample_keys(3, samples[shuffled]), keys[shuffled])
    assert np.array_equal(sample_keys(3, samples[7:8]), keys[7:8])
    assert np.array_equal(uniform(keys, "view", 5)[shuffled], uniform(keys[shuffled], "view", 5))
    assert np.array_equal(uniform(keys, "view", 9)[:, :5], uniform(keys, "view", 5))


def test_no_samples_draw_nothing():
    keys = sample_keys(0, np.empty((0, 3), np.int64))
    assert keys.shape == (0,)
    assert keys.dtype == np.uint64
    assert uniform(keys, "view", 4).shape == (0, 4)
    assert uniform(sample_keys(0, [[0, 0, 0]]), "view", 0).shape == (1, 0)


# ---- no two alike


def test_a_million_samples_have_a_million_keys():
    assert len(np.unique(sample_keys(0, grid(10, 50_000, 2)))) == 1_000_000


def test_seeds_epochs_images_and_repeats_are_not_mistaken_for_each_other():
    keys = np.concatenate([sample_keys(seed, grid(20, 20, 20)) for seed in range(20)])
    assert len(np.unique(keys)) == 20**4


def test_purposes_of_a_sample_differ():
    keys = sample_keys(0, grid(1, 1000, 1))
    drawn = np.concatenate([uniform(keys, purpose, 3) for purpose in ("view", "flip", "jitter", "")], axis=1)
    assert len(np.unique(drawn)) == drawn.size


# ---- statistics of a fixed sample: each lies within 4 standard deviations of what chance gives


@pytest.mark.parametrize("column", [0, 1, 22])
def test_uniform(column):
    drawn = uniform(sample_keys(0, grid(4, 50_000, 1)), "view", 23)[:, column]
    assert drawn.min() >= 0
    assert drawn.max() < 1
    assert abs(chi_square(np.histogram(drawn, 256, (0, 1))[0])) < 4
    lowest_bits = (drawn * 2**53).astype(np.int64) % 256  # of the 53 that are drawn
    assert abs(chi_square(np.bincount(lowest_bits, minlength=256))) < 4


NEIGHBOURS = {
    "epochs": lambda: (uniform(keys_of(0, 0, 0), "view", 1), uniform(keys_of(0, 1, 0), "view", 1)),
    "repeats": lambda: (uniform(keys_of(0, 0, 0), "view", 1), uniform(keys_of(0, 0, 1), "view", 1)),
    "seeds": lambda: (uniform(keys_of(0, 0, 0), "view", 1), uniform(keys_of(1, 0, 0), "view", 1)),
    "images": lambda: (uniform(keys_of(0, 0, 0)[:-1], "view", 1), uniform(keys_of(0, 0, 0)[1:], "view", 1)),
    "purposes": lambda: (uniform(keys_of(0, 0, 0), "view", 1), uniform(keys_of(0, 0, 0), "flip", 1)),
    "numbers": lambda: np.split(uniform(keys_of(0, 0, 0), "view", 2), 2, axis=1),
}


def keys_of(seed: int, epoch: int, repeat: int) -> np.ndarray:
    images = np.arange(100_000)
    return sample_keys(seed, np.stack([np.full_like(images, epoch), images, np.full_like(images, repeat)], 1))


@pytest.mark.parametrize("what", NEIGHBOURS)
def test_neighbours_have_nothing_to_do_with_each_other(what):
    a, b = (drawn[:, 0] for drawn in NEIGHBOURS[what]())
    assert abs(chi_square(np.histogram2d(a, b, 16, ((0, 1), (0, 1)))[0])) < 4
    assert abs(np.corrcoef(a, b)[0, 1]) * np.sqrt(len(a)) < 4


def test_every_bit_of_a_sample_changes_half_the_bits_of_its_key():
    samples = grid(1, 500, 1)
    keys = sample_keys(0, samples)
    for column, bit in itertools.product(range(3), (0, 1, 10, 20, 31)):
        other = samples.copy()
        other[:, column] ^= 1 << bit
        changed = np.unpackbits((keys ^ sample_keys(0, other)).view(np.uint8)).sum() / len(keys)
        assert abs(changed - 32) < 4 * np.sqrt(16 / len(keys))  # 64 coins for each key


def test_hashes_of_file_names_are_uniform():
    hashes = np.array([hash32(f"class{i % 100:03}/{i:08}.jpg") for i in range(50_000)])
    assert hashes.max() < 2**32
    assert abs(chi_square(np.histogram(hashes, 128, (0, 2**32))[0])) < 4
