"""Every file in conf/augment, conf/data and conf/scratch: complete, buildable, and with the numbers of its source."""

from __future__ import annotations

import dataclasses
import importlib
import inspect
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from mixer_lightning.data.crops import crop_one
from mixer_lightning.data.stateless_random import sample_keys
from mixer_lightning.data.transforms import Augment

CONF = Path(__file__).parents[2] / "conf"
AUGMENTS = sorted(path.stem for path in (CONF / "augment").glob("*.yaml"))
DATA = sorted(path.stem for path in (CONF / "data").glob("*.yaml"))
SCRATCH = sorted(path.stem for path in (CONF / "scratch").glob("*.yaml"))
KEYS = {field.name for field in dataclasses.fields(Augment)}


def read(group: str, name: str) -> dict:
    return yaml.safe_load((CONF / group / f"{name}.yaml").read_text())


def augment(name: str) -> Augment:
    recipe = read("augment", name)
    assert recipe.pop("_target_") == "mixer_lightning.data.transforms.Augment"
    return Augment(**recipe)


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augmentation_states_every_number(name):
    assert set(read("augment", name)) == KEYS | {"_target_"}


@pytest.mark.parametrize("name", AUGMENTS)
def test_every_augmentation_runs(name):
    one = augment(name)
    np.random.seed(0)
    torch.manual_seed(0)
    noise = torch.randint(0, 256, (3, 40, 56), dtype=torch.uint8)
    keys = sample_keys(0, [(0, image, 0) for image in range(12)])
    widths, heights = np.full(12, 56), np.full(12, 40)
    for size in (32, 8):
        crops = one.train_crops(keys, widths, heights, size)
        images = torch.stack([crop_one(noise, crops, i, size) for i in range(12)])
        assert images.dtype == torch.uint8
        assert images.shape == (12, 3, size, size)
        out, targets = one.train_batch(images, torch.arange(12) % 5, one.sample_params(keys), 5, batch_seed=0)
        assert out.dtype == torch.float32
        assert out.shape == images.shape
        assert out.isfinite().all()
        torch.testing.assert_close(targets.sum(1), torch.ones(12))
        crop = crop_one(noise, one.eval_crops(widths, heights, size), 0, size)
        assert crop.shape == (3, size, size)
        assert one.eval_batch(crop[None]).isfinite().all()


IMAGENET = ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
HALF = ([0.5] * 3, [0.5] * 3)
PUBLISHED = [  # name, RandAugment, mixup, CutMix, erasing, smallest crop, evaluation's crop, mean and std
    ("mixer_imagenet1k", "big_vision-n2-m15", 0.5, 0.0, 0.0, 0.05, 0.875, HALF),
    ("mixer_b_imagenet21k", "big_vision-n2-m10", 0.2, 0.0, 0.0, 0.05, 0.875, HALF),
    ("mixer_l_imagenet21k", "big_vision-n2-m20", 0.5, 0.0, 0.0, 0.05, 0.875, HALF),
    ("mixer_jft", None, 0.0, 0.0, 0.0, 0.05, 0.875, HALF),
    ("convmixer_imagenet1k", "rand-m9-mstd0.5-inc1", 0.5, 0.5, 0.25, 0.08, 0.96, IMAGENET),
    ("convmixer_a1", "rand-m7-mstd0.5-inc1", 0.2, 1.0, 0.0, 0.08, 0.95, IMAGENET),
]


@pytest.mark.parametrize(
    ("name", "rand", "mixup", "cutmix", "erase", "low", "eval_crop", "colours"), PUBLISHED
)
def test_published_numbers(name, rand, mixup, cutmix, erase, low, eval_crop, colours):
    one = augment(name)
    is_mixer = name.startswith("mixer")
    assert (one.rand_augment, one.flip) == (rand, 0.5)
    assert one.crop == ("inception" if is_mixer else "random_resized")
    assert one.mix_per == ("batch" if is_mixer and mixup else "device_batch")
    assert one.eval_rounding == ("big_vision" if is_mixer else "torchvision")
    if is_mixer:
        assert (one.interpolation, one.eval_interpolation) == ("tf_bilinear", "area")
    assert (one.mixup, one.cutmix, one.erase, one.eval_crop) == (mixup, cutmix, erase, eval_crop)
    assert one.crop_scale == [low, 1.0]
    assert one.crop_ratio == pytest.approx([3 / 4, 1.33 if is_mixer else 4 / 3])
    assert (one.mean, one.std) == colours


def test_the_two_cifar_recipes_differ_in_jitter_and_erasing_only():
    short, long = read("augment", "convmixer_cifar10_25"), read("augment", "convmixer_cifar10_100")
    assert {key: (short[key], long[key]) for key in KEYS if short[key] != long[key]} == {
        "color_jitter": (0.0, 0.2),
        "erase": (0.0, 0.2),
    }


@pytest.mark.parametrize("name", DATA)
def test_every_data_set_names_a_source_and_its_parameters(name):
    node = read("data", name)
    node = node.get("data", node)
    module, _, function = node.pop("_target_").rpartition(".")
    parameters = inspect.signature(getattr(importlib.import_module(module), function)).parameters
    assert set(node) == set(parameters)


@pytest.mark.parametrize("name", SCRATCH)
def test_numbers_for_training_from_scratch_are_of_a_data_set(name):
    recipe = read("scratch", name)
    assert name in DATA
    assert "data" not in recipe
    if name != "flowers":  # one of the few thousand photographs that conf/train.yaml has in mind
        assert {"image_size", "batch_size", "device_batch", "duration", "checkpoint_every"} <= set(recipe)
    assert set(recipe.get("augment", {})) <= KEYS
    if recipe.get("device_batch"):
        assert recipe["batch_size"] % recipe["device_batch"] == 0


@pytest.mark.parametrize(
    ("group", "name"),
    [
        (group, name)
        for group, names in (("augment", AUGMENTS), ("data", DATA), ("scratch", SCRATCH))
        for name in names
    ],
)
def test_every_file_opens_with_what_it_is(group, name):
    lines = (CONF / group / f"{name}.yaml").read_text().splitlines()
    if group == "scratch" or name.startswith("vtab_"):
        assert lines.pop(0) == "# @package _global_"
    assert lines[0].startswith("# ")
    assert lines[0].endswith(".")
