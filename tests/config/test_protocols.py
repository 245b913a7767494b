"""A protocol states all its numbers: nothing of ours that is merely usual reaches a recipe of a paper."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
import yaml

from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.groups import groups
from mixer_lightning.config.recipe import RUNTIME_ARGS, Recipe
from mixer_lightning.config.signatures import signature
from mixer_lightning.files import CONF
from mixer_lightning.results import flatten
from mixer_lightning.targets import build

PARTS = ("augment", "optimizer", "schedule", "loss")
#: What no paper's result hangs on: where and how often something is written, and the machine.
OPERATION = {
    "name",
    "seed",
    "checkpoint",
    "device_batch",
    "eval_every",
    "checkpoint_every",
    "checkpoint_minutes",
    "log_every_steps",
    "fast_dev_run",
    "overfit_batches",
    "shuffle_window",
    "max_bad_fraction",
}
#: What no paper of ours has, while it is null.
OFF = {"freeze", "sampling", "optimizer.layer_decay", "loss.class_weights"}
TRANSFER = groups()["transfer"]
EXPERIMENTS = groups()["experiment"]


def stated(path: Path) -> set[str]:
    """Dotted keys of a YAML file, and of those that it is made from."""
    content = yaml.safe_load(path.read_text())
    keys = set(flatten({key: value for key, value in content.items() if key != "defaults"}))
    for name in content.get("defaults", []):
        if isinstance(name, str) and name != "_self_":
            keys |= stated(path.with_name(f"{name}.yaml"))
    return keys


def transferred(name: str) -> Recipe:
    if name.startswith("vtab"):
        return compose_one("finetune", ["data=vtab", "data.task=pets", f"transfer={name}"])
    return compose_one("finetune", [f"data={name}"])


def unstated(recipe: Recipe, own: set[str], parts: dict[str, Path]) -> Iterator[str]:
    """Keys of a composed recipe that neither `own`, the keys of its files, nor a part that belongs to it state.

    A part belongs to a recipe when it is written for it. Where another file has changed such a part's number, the
    recipe must state it again.
    """
    values = recipe.to_dict()
    own = own | {key for key, value in flatten(values).items() if key in OFF and value is None}
    numbers = {key for key, value in values.items() if not isinstance(value, dict)} | {"duration"}
    yield from sorted(numbers - OPERATION - {key.partition(".")[0] for key in own})
    for group in PARTS:
        node = values[group]
        of_part = yaml.safe_load(parts[group].read_text()) if group in parts else {}
        runtime = RUNTIME_ARGS.get(group, {})
        for name in signature(node["_target_"]):
            if name in runtime or f"{group}.{name}" in own:
                continue
            if name not in node or name not in of_part or of_part[name] != node[name]:
                yield f"{group}.{name}"


@pytest.mark.parametrize("name", TRANSFER)
def test_fine_tuning_states_all_its_numbers(name: str) -> None:
    own = stated(CONF / "finetune.yaml") | stated(CONF / "transfer" / f"{name}.yaml")
    parts = {group: CONF / group / "transfer.yaml" for group in PARTS}
    assert list(unstated(transferred(name), own, parts)) == []


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_states_all_its_numbers(name: str) -> None:
    recipe = compose_one("train", [f"experiment={name}"])
    own = stated(CONF / "experiment" / f"{name}.yaml")
    augment = {"augment": CONF / "augment" / f"{recipe.choices['augment']}.yaml"}  # whole, as a paper has it
    assert list(unstated(recipe, own, augment)) == []


@pytest.mark.parametrize("part", ["evals/fewshot", *(f"model/{name}" for name in groups()["model"])])
def test_a_part_of_a_paper_states_all_its_numbers(part: str) -> None:
    node = yaml.safe_load((CONF / f"{part}.yaml").read_text())
    not_numbers = {"split", *RUNTIME_ARGS["model"]}  # which images are judged; what the run supplies
    assert signature(node["_target_"]).keys() - not_numbers <= node.keys()


def test_a_number_that_is_only_usual_is_found() -> None:
    recipe = compose_one("train", ["experiment=mixer_b16_imagenet1k", "loss=softmax"])
    own = stated(CONF / "experiment" / "mixer_b16_imagenet1k.yaml") - {"clip_grad_norm", "optimizer.eps"}
    augment = {"augment": CONF / "augment" / "basic.yaml"}
    found = set(unstated(recipe, own, augment))
    assert {"clip_grad_norm", "optimizer.eps", "loss.label_smoothing", "augment.mixup"} <= found
    assert "augment.flip" not in found


#: arXiv 2105.01601, App. C, and arXiv 2010.11929, App. B.1.1: steps (Table 4 there) and what the text says; the warm-up
#: of big_vision's configs/transfer.py; VTAB's 2,500 of arXiv 1912.11370, App. F.
LENGTHS = {
    "imagenet1k": (20_000, 500),
    "cifar10": (10_000, 500),
    "cifar100": (10_000, 500),
    "flowers": (500, 100),
    "pets": (500, 100),
    "digits": (500, 100),
}


@pytest.mark.parametrize("name", [*TRANSFER, "pets"])
def test_the_protocol_of_fine_tuning(name: str) -> None:
    recipe = transferred(name)
    steps, warmup = LENGTHS.get(name, (2500, 200))
    assert recipe.duration.steps == steps
    assert (recipe.batch_size, recipe.clip_grad_norm, recipe.image_size) == (512, 1.0, 224)
    assert (recipe.ema_decay, recipe.stochastic_depth, recipe.head_bias, recipe.repeats) == (None, 0, 0, 1)
    learning_rate = recipe.optimizer["lr"]
    assert learning_rate in (0.003, 0.01, 0.03, 0.06)  # the grid of Mixer
    assert {k: v for k, v in recipe.optimizer.items() if k[0] != "_"} == {
        "lr": learning_rate,
        "momentum": 0.9,
        "weight_decay": 0.0,
        "nesterov": False,
        "decay_bias_and_norm": False,
        "layer_decay": None,
    }
    multiplier = build(recipe.schedule)  # vit_jax/utils.py: linear warm-up, half a cosine to 0
    for step, expected in ((0, 0.0), (warmup // 2, 0.5), (warmup, 1.0), ((warmup + steps) // 2, 0.5)):
        assert multiplier(step, steps, 10.0) == pytest.approx(expected)
    assert [recipe.augment[key] for key in ("mixup", "cutmix", "erase", "color_jitter")] == [0.0] * 4
    assert recipe.augment["rand_augment"] is None


@pytest.mark.parametrize("name", TRANSFER)
def test_fine_tuning_minimises_plain_cross_entropy(name: str) -> None:
    """vit_jax/train.py and big_vision's softmax_xent: -mean over images of sum(labels · log softmax(logits))."""
    logits = torch.tensor([[2.0, -1.0, 0.5], [0.0, 3.0, -2.0]])
    labels = torch.tensor([0, 2])
    loss = build(transferred(name).loss)(logits, F.one_hot(labels, 3).float())
    torch.testing.assert_close(loss, F.cross_entropy(logits, labels))


def test_fine_tuning_without_a_file_for_the_data_is_the_protocol_too() -> None:
    recipe, flowers = compose_one("finetune", ["data=pets"]), transferred("flowers")
    keys = ("optimizer", "schedule", "loss", "augment", "duration", "batch_size", "clip_grad_norm")
    assert {key: recipe.to_dict()[key] for key in keys} == {key: flowers.to_dict()[key] for key in keys}


def test_another_optimiser_in_fine_tuning_has_its_own_numbers() -> None:
    """SGD's learning rate is ten times too much for Adam."""
    for data in ("folder", "imagenet1k", "digits"):
        found: dict[str, Any] = compose_one("finetune", [f"data={data}", "optimizer=adamw"]).optimizer
        assert found == yaml.safe_load((CONF / "optimizer" / "adamw.yaml").read_text())


@pytest.mark.parametrize("data", ["pets", "cifar10", "imagenet1k"])
def test_another_augmentation_in_fine_tuning_is_its_file(data: str) -> None:
    found = compose_one("finetune", [f"data={data}", "augment=convmixer_cifar10_25"]).augment
    assert found == yaml.safe_load((CONF / "augment" / "convmixer_cifar10_25.yaml").read_text())
