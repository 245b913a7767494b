"""Every number of a recipe has the range in which it makes sense, checked with its type."""

from __future__ import annotations

import re
from dataclasses import fields

import numpy as np
import pytest
import yaml

from mixer_lightning.config.compose import compose
from mixer_lightning.config.recipe import RUNTIME_ARGS, Duration, EvaluationRecipe, Recipe
from mixer_lightning.config.signatures import signature
from mixer_lightning.data.sources.shards import shards
from mixer_lightning.files import CONF
from mixer_lightning.models.baselines import timm_backbone
from mixer_lightning.models.convmixer import ConvMixer
from mixer_lightning.models.mixer import Mixer
from mixer_lightning.optim.optimizers import adamw
from mixer_lightning.ranges import RANGES

#: Numbers that may be any: a seed, an offset of logits, colours.
ANY_NUMBER = {"seed", "head_bias", "mean"}
NUMBER = re.compile(r"\b(int|float)\b")


def parameters() -> list[tuple[str, str]]:
    """(dotted name, annotation) of all that a recipe of conf/ can set."""
    found = {
        (f"{root.__name__}.{f.name}", str(f.type))
        for root in (Recipe, EvaluationRecipe, Duration)
        for f in fields(root)
    }
    for path in CONF.glob("*/*.yaml"):
        node = yaml.safe_load(path.read_text())
        if isinstance(node, dict) and str(node.get("_target_", "")).startswith("mixer_lightning."):
            of_the_run = RUNTIME_ARGS.get(path.parent.name, {})
            for key, parameter in signature(node["_target_"]).items():
                if key not in of_the_run:
                    found.add((f"{node['_target_']}.{key}", parameter.annotation))
    return sorted(found)


def test_every_number_has_a_range():
    found = parameters()
    without = [
        name for name, text in found if NUMBER.search(text) and name.rpartition(".")[2] not in ANY_NUMBER
    ]
    assert without == []
    assert sum(any(word in RANGES for word in re.findall(r"\w+", text)) for _, text in found) > 60


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.depth=-1", "'model.depth' must be at least 1, found -1"),
        ("model.dim=0", "'model.dim' must be at least 1, found 0"),
        ("model.patch_size=0", "'model.patch_size' must be at least 1, found 0"),
        ("model.kernel_size=-3", "'model.kernel_size' must be at least 1, found -3"),
        ("model=mixer_digits model.hidden_dim=0", "'model.hidden_dim' must be at least 1, found 0"),
        ("image_size=0", "'image_size' must be at least 1, found 0"),
        ("stochastic_depth=2", "'stochastic_depth' must be at least 0 and below 1, found 2"),
        (
            "repeats=1000",
            "'repeats' must be at most batch_size, 60: a batch holds all repeats of a sample; found 1000",
        ),
        ("trainer.decode_threads=-3", "'trainer.decode_threads' must be at least 1, found -3"),
        ("trainer.process_timeout_minutes=0", "'trainer.process_timeout_minutes' must be above 0, found 0"),
        ("optimizer.lr=-0.1", "'optimizer.lr' must be above 0, found -0.1"),
        ("optimizer.weight_decay=-1", "'optimizer.weight_decay' must be at least 0, found -1"),
        ("optimizer.beta1=1", "'optimizer.beta1' must be at least 0 and below 1, found 1"),
        (
            "optimizer=sgd optimizer.momentum=1.5",
            "'optimizer.momentum' must be at least 0 and below 1, found 1.5",
        ),
        ("schedule.warmup_steps=-1", "'schedule.warmup_steps' must be at least 0, found -1"),
        ("loss.label_smoothing=1", "'loss.label_smoothing' must be at least 0 and below 1, found 1"),
        ("augment.flip=2", "'augment.flip' must be at least 0 and at most 1, found 2"),
        ("augment.eval_crop=0", "'augment.eval_crop' must be above 0 and at most 1, found 0"),
        ("augment.std=[0.2,0,0.2]", "'augment.std' must be above 0, found [0.2, 0, 0.2]"),
        ("evals=fewshot evals.fewshot.shots=[0]", "'evals.fewshot.shots' must be at least 1, found [0]"),
        (
            "evals=confusion evals.confusion.examples=0",
            "'evals.confusion.examples' must be at least 1, found 0",
        ),
        ("data=shards data.cache_bytes=0", "'data.cache_bytes' must be at least 1, found 0"),
    ],
)
def test_values_that_cannot_be(override: str, message: str):
    given = [] if override.startswith("data=") else ["batch_size=60"]
    assert compose("train", [*given, *override.split()]).messages == [message]


def test_a_number_of_another_type_is_of_another_type():
    (message,) = compose("train", ["model.depth=deep"]).messages
    assert message == "'model.depth' takes int, found 'deep'"
    (message,) = compose("train", ["model.depth=2.5"]).messages
    assert message == "'model.depth' takes int, found 2.5"


MIXER = {"patch_size": 4, "num_blocks": 1, "hidden_dim": 8, "tokens_mlp_dim": 8, "channels_mlp_dim": 8}
CONVMIXER = {"dim": 8, "depth": 1, "kernel_size": 3, "patch_size": 4}
TIMM = {"timm_name": "resnet18"}


@pytest.mark.parametrize(
    ("make", "given", "wrong", "message"),
    [
        (Mixer, MIXER, {"hidden_dim": 0}, "hidden_dim must be at least 1, found 0"),
        (Mixer, MIXER, {"num_blocks": -1}, "num_blocks must be at least 1, found -1"),
        (
            Mixer,
            MIXER,
            {"tokens_mlp_dim": 2.5},
            "tokens_mlp_dim must be a whole number, at least 1, found 2.5",
        ),
        (Mixer, MIXER, {"patch_size": True}, "patch_size must be a whole number, at least 1, found True"),
        (Mixer, MIXER, {"stochastic_depth": 1}, "stochastic_depth must be at least 0 and below 1, found 1"),
        (
            Mixer,
            MIXER,
            {"stochastic_depth": float("nan")},
            "stochastic_depth must be at least 0 and below 1, found nan",
        ),
        (Mixer, MIXER, {"num_classes": -1}, "num_classes must be at least 0, found -1"),
        (ConvMixer, CONVMIXER, {"depth": 0}, "depth must be at least 1, found 0"),
        (ConvMixer, CONVMIXER, {"dim": -8}, "dim must be at least 1, found -8"),
        (ConvMixer, CONVMIXER, {"image_size": 0}, "image_size must be at least 1, found 0"),
        (timm_backbone, TIMM, {"num_classes": -5}, "num_classes must be at least 0, found -5"),
        (adamw, {"model": None, "weight_decay": 0.1}, {"lr": -1}, "lr must be above 0, found -1"),
        (shards, {"root": "x"}, {"cache_bytes": 0}, "cache_bytes must be at least 1, found 0"),
    ],
)
def test_a_program_is_told_the_range(make, given, wrong, message):
    of_models = {"num_classes": 2, "image_size": 8} if make in (Mixer, ConvMixer, timm_backbone) else {}
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        make(**{**of_models, **given, **wrong})


def test_numbers_of_numpy_are_numbers():
    model = Mixer(**{**MIXER, "hidden_dim": np.int64(8)}, num_classes=0, image_size=8)
    assert model.num_features == 8
    assert all(np.float32(0.5) in RANGES[name][1] for name in ("PositiveFloat", "Fraction", "BelowOne"))
