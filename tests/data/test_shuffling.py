"""Pixels in one fixed order: which order, where it is applied, and that a checkpoint carries it."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import TINY
from mixer_lightning import results
from mixer_lightning.api import load
from mixer_lightning.config.compose import compose_one
from mixer_lightning.data.shuffling import Shuffle
from mixer_lightning.data.stateless_random import sample_keys
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine.run import train

MASK = (1 << 64) - 1


def splitmix64_order(seed: int, purpose: str, length: int) -> list[int]:
    """The order of the numbers that SplitMix64 gives, in Python's own integers."""

    def digest(text: str) -> int:
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little") >> 1

    def mix(x: int) -> int:
        x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & MASK
        return x ^ (x >> 31)

    stream = mix(digest(f"{seed}/shuffle/{purpose}") ^ digest("order"))
    numbers = [mix((stream + i * 0x9E3779B97F4A7C15) & MASK) >> 11 for i in range(1, length + 1)]
    return sorted(range(length), key=numbers.__getitem__)


def test_the_orders_are_the_same_for_good():
    """A checkpoint means nothing without them."""
    shuffle = Shuffle(kind="patches", patch_size=4, seed=3, image_size=12)
    assert shuffle.patch_order.tolist() == splitmix64_order(3, "patches", 9)
    assert shuffle.pixel_order.tolist() == splitmix64_order(3, "pixels of a patch", 16)
    whole = Shuffle(kind="pixels", patch_size=4, seed=3, image_size=12)
    assert whole.order.tolist() == splitmix64_order(3, "pixels", 144)
    assert replace(whole, seed=4).order.tolist() != whole.order.tolist()


def test_patches_move_as_wholes_and_their_pixels_alike():
    shuffle = Shuffle(kind="patches", patch_size=2, seed=0, image_size=6)
    images = torch.randn(2, 3, 6, 6)
    found = shuffle(images)
    for place, patch in enumerate(shuffle.patch_order):
        for inside, pixel in enumerate(shuffle.pixel_order):
            to_row, to_column = 2 * (place // 3) + inside // 2, 2 * (place % 3) + inside % 2
            row, column = 2 * (patch // 3) + pixel // 2, 2 * (patch % 3) + pixel % 2
            assert torch.equal(found[:, :, to_row, to_column], images[:, :, row, column])
    assert sorted(shuffle.order.tolist()) == list(range(36))


@pytest.mark.parametrize("kind", ["patches", "pixels"])
def test_training_and_evaluation_end_with_the_shuffle(kind):
    """After crop, flip, mixing, normalisation and erasing, whose result is otherwise the same."""
    plain = Augment(crop="none", flip=0.5, cutmix=1.0, erase=0.5, mean=[0.1, 0.2, 0.3], std=[0.2, 0.3, 0.4])
    shuffled = replace(plain, shuffle=kind, shuffle_patch=4, shuffle_seed=7)
    order = Shuffle(kind=kind, patch_size=4, seed=7, image_size=8)
    images = torch.randint(0, 256, (6, 3, 8, 8), dtype=torch.uint8)
    params = plain.sample_params(sample_keys(0, [[0, i, 0] for i in range(6)]))
    batches = []
    for augment in (plain, shuffled):
        torch.manual_seed(0)
        np.random.seed(0)
        batches.append(augment.train_batch(images, torch.arange(6), params, 6)[0])
    assert torch.equal(batches[1], order(batches[0]))
    assert not torch.equal(batches[1], batches[0])
    assert torch.equal(shuffled.eval_batch(images), order(plain.eval_batch(images)))


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    run_dir = tmp_path_factory.mktemp("shuffled") / "run"
    words = ("augment.shuffle=patches", "augment.shuffle_patch=2", "augment.shuffle_seed=5")
    assert train(compose_one("train", [*TINY, *words, "duration.steps=2"]), run_dir) == 0
    return run_dir


@pytest.mark.parametrize("program", ["evaluate", "finetune"])
def test_who_goes_on_from_a_checkpoint_shuffles_as_it_did(trained, program):
    for words in ([], ["augment=none"]):
        augment = compose_one(program, [f"checkpoint={trained}", *words]).augment
        assert augment["shuffle"], augment["shuffle_patch"] == ("patches", 2)
        assert augment["shuffle_seed"] == 5
    asked = compose_one(program, [f"checkpoint={trained}", "augment.shuffle=none"]).augment
    assert asked["shuffle"] == "none"


@pytest.mark.parametrize("file", [results.LAST, results.BEST])
def test_an_image_of_ones_own_is_shuffled_as_in_training(trained, file):
    transform = load(trained / file).transform
    image = Image.fromarray(np.arange(192, dtype=np.uint8).reshape(8, 8, 3))
    plain = replace(transform, augment=replace(transform.augment, shuffle="none"))
    order = Shuffle(kind="patches", patch_size=2, seed=5, image_size=8)
    assert torch.equal(transform(image), order(plain(image)[None])[0])


def test_images_that_cannot_be_cut_are_refused_before_a_run_starts(tmp_path, capsys):
    words = ("augment.shuffle=patches", "augment.shuffle_patch=3")
    assert train(compose_one("train", [*TINY, *words]), tmp_path / "run") == 2
    assert "images of 8 px cannot be cut into patches of 3 px" in capsys.readouterr().out
