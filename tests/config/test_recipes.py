"""Every recipe that is shipped composes, passes the check, and everything that it names can be built."""

from __future__ import annotations

import copy
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from torch import nn

from conftest import ROOT
from mixer_lightning.config.compose import compose, compose_one
from mixer_lightning.config.groups import groups
from mixer_lightning.config.recipe import Recipe, refuse_differences
from mixer_lightning.data.crops import crop_one
from mixer_lightning.data.order import split_batch
from mixer_lightning.data.stateless_random import sample_keys
from mixer_lightning.files import CONF
from mixer_lightning.losses import binary_cross_entropy, sigmoid_cross_entropy, softmax_cross_entropy
from mixer_lightning.models.presets import default_image_size, model_node
from mixer_lightning.optim.schedules import constant, cosine, cosine_by_epoch, linear, triangular
from mixer_lightning.targets import build

EXPERIMENTS = groups()["experiment"]
MODELS = groups()["model"]

#: Training images and classes of each data set, as its authors say.
SIZES = {
    "digits": (1437, 10),
    "cifar10": (50_000, 10),
    "cifar100": (50_000, 100),
    "pets": (3680, 37),
    "flowers": (2040, 102),
    "imagenet1k": (1_281_167, 1000),
    "imagenet21k": (14_197_122, 21_843),
    "jft300m": (300_000_000, 18_291),
}


def run_line(name: str) -> list[str]:
    """The words after `# Run:` in an experiment's head."""
    (line,) = re.findall(
        r"^# Run: +(\S.*)$", (CONF / "experiment" / f"{name}.yaml").read_text(), re.MULTILINE
    )
    return line.split()


def build_model(recipe: Recipe, *, num_classes: int) -> nn.Module:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return build(
            recipe.model,
            num_classes=num_classes,
            image_size=recipe.image_size,
            stochastic_depth=recipe.stochastic_depth,
            head_bias=recipe.head_bias,
        )


def check_schedule(recipe: Recipe, *, total_steps: int, steps_per_epoch: float) -> None:
    """The multiplier at the first step, where a piece ends, and at the last step."""
    partial = build(recipe.schedule)
    options = partial.keywords

    def at(step: int) -> float:
        return partial(step, total_steps, steps_per_epoch)

    last = total_steps - 1
    for step in {0, 1, total_steps // 3, total_steps // 2, last}:
        assert 0 <= at(step) <= 1
    if partial.func is constant:
        assert at(0) == at(last) == 1
    elif partial.func is triangular:
        one = 2.5 / total_steps  # a step of the steepest side, up
        assert at(0) == pytest.approx(0, abs=2 * one)
        epochs = round(total_steps / steps_per_epoch)
        peak, tail = epochs * 2 // 5, epochs * 4 // 5
        assert at(round(peak * steps_per_epoch) - 1) == pytest.approx(1, abs=2 * one)
        assert at(round(tail * steps_per_epoch) - 1) == pytest.approx(0.05, abs=2 * one)
        assert at(last) == pytest.approx(0, abs=one)
    elif partial.func is cosine_by_epoch:
        warmup, epochs = options["warmup_epochs"], total_steps / steps_per_epoch
        assert 0 < warmup < epochs / 2
        assert at(0) == pytest.approx(options["warmup_start"])
        within = math.floor(last / steps_per_epoch) / epochs
        expected = options["end"] + (1 - options["end"]) * (1 + math.cos(math.pi * within)) / 2
        assert at(last) == pytest.approx(expected, rel=1e-3)
    else:
        assert partial.func in (linear, cosine)
        if options.get("warmup_steps") is not None:
            knee = options["warmup_steps"]
        elif options.get("warmup_epochs") is not None:
            knee = round(options["warmup_epochs"] * steps_per_epoch)
        else:
            knee = total_steps // 20
        assert 0 < knee < total_steps / 2
        assert at(0) == pytest.approx(options["warmup_start"])
        assert at(knee) == pytest.approx(1)
        assert at(knee - 1) < 1
        assert at(knee + 1) < 1
        assert at(last) == pytest.approx(options["end"], abs=2 / (total_steps - knee))


def check_loss(recipe: Recipe) -> None:
    """At logits 0 every class has probability 1/K, or 1/2: log K, log 2, and K log 2 summed; finite gradients."""
    loss = build(recipe.loss)
    logits = torch.zeros(3, 10, requires_grad=True)
    targets = torch.eye(10)[:3]
    value = loss(logits, targets)
    value.backward()
    expected = {
        softmax_cross_entropy: math.log(10),
        binary_cross_entropy: math.log(2),
        sigmoid_cross_entropy: 10 * math.log(2),
    }
    assert value.item() == pytest.approx(expected[loss.func], rel=1e-5)
    assert logits.grad.isfinite().all()
    assert (logits.grad[torch.arange(3), torch.arange(3)] < 0).all()  # the right class shall grow


def check_optimizer(recipe: Recipe) -> None:
    """It takes a small model, has the recipe's numbers, and moves every weight."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 5))
    optimizer = build(recipe.optimizer)(model)
    decays = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert set(decays) == {id(p) for p in model.parameters()}
    for parameter in model.parameters():
        decayed = parameter.ndim > 1 or recipe.optimizer["decay_bias_and_norm"]
        assert decays[id(parameter)] == (recipe.optimizer["weight_decay"] if decayed else 0)
    assert {group["lr"] for group in optimizer.param_groups} == {recipe.optimizer["lr"]}
    before = [parameter.detach().clone() for parameter in model.parameters()]
    model(torch.randn(8, 3, 4, 4)).logsumexp(1).square().mean().backward()
    optimizer.step()
    moved = [not torch.equal(old, new) for old, new in zip(before, model.parameters(), strict=True)]
    assert moved[0]
    assert sum(moved) >= 4  # a bias before BatchNorm has no gradient
    assert all(parameter.isfinite().all() for parameter in model.parameters())


def check_augment(recipe: Recipe, *, size: int) -> None:
    """From a picture to a batch for the model."""
    augment = build(recipe.augment)
    image = torch.randint(0, 256, (3, 40, 50), dtype=torch.uint8)
    keys, widths, heights = sample_keys(0, [(0, i, 0) for i in range(4)]), np.full(4, 50), np.full(4, 40)
    views = augment.train_crops(keys, widths, heights, size)
    batch = torch.stack([crop_one(image, views, i, size) for i in range(4)])
    assert (batch.dtype, batch.shape) == (torch.uint8, (4, 3, size, size))
    images, targets = augment.train_batch(
        batch, torch.arange(4), augment.sample_params(keys), 10, batch_seed=0
    )
    assert (images.dtype, images.shape, targets.shape) == (torch.float32, batch.shape, (4, 10))
    torch.testing.assert_close(targets.sum(1), torch.ones(4))
    view = crop_one(image, augment.eval_crops(widths, heights, size), 0, size)
    assert augment.eval_batch(view[None]).shape == (1, 3, size, size)


@pytest.mark.parametrize(
    ("name", "num_images", "steps"),
    [
        # timm's DistributedSampler gives each of 10 processes 128,117 images, its loader drops what 64 leaves of them
        ("convmixer_1536_20_imagenet1k", 1_281_167, 150 * (128_117 // 64)),
        ("convmixer_1024_12_imagenet1k", 1_281_167, 90 * 2001),
        # len(trainloader) of locuslab/convmixer-cifar10: the last batch has 336 images
        ("convmixer_256_8_cifar10_25ep", 50_000, 2450),
        ("convmixer_256_8_cifar10_100ep", 50_000, 100 * 98),
        ("convmixer_256_8_p1_k9_cifar10_200ep", 50_000, 200 * 781),
        # DeiT's RASampler: 1,281,024 images, a quarter of them for each process, which drops what 256 leave of them
        ("deit_s16_imagenet1k", 1_281_167, 300 * (1_281_024 // 4 // 256)),
        ("deit_b16_imagenet1k", 1_281_167, 300 * (1_281_024 // 16 // 64)),
        # Swin's DistributedSampler gives each of 8 processes 160,146 images, its loader drops what 128 leave of them
        ("swin_t_imagenet1k", 1_281_167, 300 * (160_146 // 128)),
        # big_vision's `steps`: rounded after the product, of 99 % of the images
        ("mixer_b16_imagenet1k", 1_268_355, 92_897),
        ("mixer_b16_imagenet1k_60ep", 1_268_355, 148_635),
    ],
)
def test_an_experiment_takes_as_many_steps_as_the_published_code(name, num_images, steps):
    recipe = compose_one("train", [f"experiment={name}"])
    assert recipe.duration.to_steps(recipe.optimizer_steps_per_epoch(num_images)) == steps


@pytest.mark.parametrize(("rule", "steps"), [("null", 2.5), ("floor", 2.0), ("ceil", 3.0)])
def test_steps_per_epoch(rule, steps):
    recipe = compose_one("train", [f"steps_per_epoch={rule}", "batch_size=4"])
    assert recipe.optimizer_steps_per_epoch(10) == steps
    assert recipe.optimizer_steps_per_epoch(3) == (0.75 if rule == "null" else 1.0)  # an epoch has a step


def test_what_takes_one_of_a_few_texts_says_which():
    for override, choices in (
        ("steps_per_epoch=round", "floor, ceil, null"),
        ("augment.interpolation=lanczos", "bilinear, bicubic, area, tf_bilinear, random"),
        ("augment.mix_per=epoch", "device_batch, batch"),
    ):
        key, _, value = override.partition("=")
        (message,) = compose("train", [override]).messages
        assert f"'{key}' takes one of {choices}, found '{value}'" in message


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_can_be_run(name):
    recipe = compose_one("train", [f"experiment={name}"])
    num_train, num_classes = SIZES[recipe.choices["data"]]
    assert recipe.name == name  # so that two experiments do not meet in one directory
    model = build_model(recipe, num_classes=num_classes)
    with torch.device("meta"):
        logits = model.eval()(torch.empty(2, 3, recipe.image_size, recipe.image_size))
    assert logits.shape == (2, num_classes)
    steps_per_epoch = recipe.optimizer_steps_per_epoch(num_train)
    total_steps = recipe.duration.to_steps(steps_per_epoch)
    assert total_steps > 100
    check_schedule(recipe, total_steps=total_steps, steps_per_epoch=steps_per_epoch)
    check_loss(recipe)
    check_optimizer(recipe)
    check_augment(recipe, size=min(recipe.image_size, 32))
    assert list(recipe.evals) == ["accuracy"]
    for node in recipe.evals.values():
        build(node)
    assert recipe.checkpoint_every.to_steps(steps_per_epoch) <= total_steps


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_command_of_an_experiment_is_right(name):
    """What stands after `# Run:` composes, and its batch divides among the processes that it starts."""
    words = run_line(name)
    script = words.index("train.py")
    assert words[script - 1] in ("python", f"--nproc_per_node={words[script - 1].rpartition('=')[2]}")
    recipe = compose_one("train", words[script + 1 :])
    assert recipe.choices["experiment"] == name
    processes = 1
    if words[0] == "torchrun":
        processes = int(words[script - 1].partition("=")[2])
        assert recipe.choices["trainer"] == "ddp"
    else:
        assert words[0] == "python"
        assert recipe.choices["trainer"] != "ddp"
    micro_batches = split_batch(
        batch_size=recipe.batch_size, device_batch=recipe.device_batch, world_size=processes
    )
    assert micro_batches.accumulate * micro_batches.device_batch * processes == recipe.batch_size


@pytest.mark.parametrize("name", MODELS)
def test_every_model_comes_into_a_recipe_as_its_file_says(name):
    """It is built, and its multiply-accumulates counted, in tests/models/test_presets.py."""
    recipe = compose_one("train", [f"model={name}", f"image_size={default_image_size(name)}"])
    assert recipe.choices["model"] == name
    assert recipe.model == model_node(name)


@pytest.mark.parametrize("group", [name for name in groups() if name not in ("experiment", "model")])
def test_every_choice_of_every_group(group):
    for choice in groups()[group]:
        task = ["data.task=pets"] if choice.startswith("vtab") else []
        if group == "scratch":  # what training takes with the data set of this name
            assert compose_one("train", [f"data={choice}", *task]).choices["scratch"] == choice
            continue
        if group == "transfer":  # what fine-tuning takes with the data set of this name
            given = ["data=vtab", f"transfer={choice}"] if choice.startswith("vtab_") else [f"data={choice}"]
            assert compose_one("finetune", [*given, *task]).choices["transfer"] == choice
            continue
        _, messages, _ = compose("train", [f"{group}={choice}", *task])
        assert messages == [], (group, choice)


def test_every_part_can_be_built():
    for schedule in groups()["schedule"]:
        check_schedule(
            compose_one("train", [f"schedule={schedule}"]), total_steps=2000, steps_per_epoch=100.0
        )
    for loss in groups()["loss"]:
        check_loss(compose_one("train", [f"loss={loss}"]))
    for optimizer in groups()["optimizer"]:
        check_optimizer(compose_one("train", [f"optimizer={optimizer}"]))
    for augment in groups()["augment"]:
        check_augment(compose_one("train", [f"augment={augment}", "data=pets"]), size=16)
    for trainer in groups()["trainer"]:
        build(compose_one("train", [f"trainer={trainer}"]).trainer)


def numbers(recipe: Recipe) -> dict[str, object]:
    return {key: value for key, value in recipe.to_dict().items() if key not in ("name", "choices")}


def test_the_default_is_the_experiment_of_the_digits():
    assert numbers(compose_one("train")) == numbers(compose_one("train", ["experiment=convmixer_digits"]))


def test_the_command_of_the_card():
    recipe = compose_one("train", ["model=mixer_l16", "data=imagenet21k"])
    assert (recipe.image_size, recipe.model["hidden_dim"], recipe.data["num_classes"]) == (224, 1024, 21_843)
    check_schedule(recipe, total_steps=100_000, steps_per_epoch=SIZES["imagenet21k"][0] / recipe.batch_size)


# --------------------------------------------------------------------------------------------------- files


def files(group: str = "**") -> list[Path]:
    return sorted(path for path in CONF.glob(f"{group}/*.yaml") if path.parent.name != "hydra")


def test_no_interpolation_outside_hydra():
    """Of values, that is: in a defaults list, a choice may follow another of the same name."""
    lines = [line.partition("#")[0].rstrip() for path in files() for line in path.read_text().splitlines()]
    found = {line for line in lines if "${" in line}
    assert found == {"  - optional scratch: ${data}", "  - optional transfer: ${data}"}
    assert "${" in (CONF / "hydra" / "default.yaml").read_text()


def test_experiments_are_flat():
    """`experiment=glob(*)` looks into no folder."""
    assert all(path.parent == CONF / "experiment" for path in (CONF / "experiment").rglob("*"))
    assert len(EXPERIMENTS) > 30


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_names_parts_and_leaves_the_machine_alone(name):
    content = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text())
    assert not {"model", "data", "trainer", "logger", "seed", "evals"} & content.keys()
    parts = [next(iter(entry)) for entry in content["defaults"]]
    assert all(part.startswith("override /") for part in parts)
    assert "override /experiment" not in parts
    assert {"override /model", "override /data"} <= set(parts)
    assert content["duration"].keys() <= {"epochs", "steps"}


def test_every_file_says_what_it_is():
    for path in files():
        first = next(line for line in path.read_text().splitlines() if "@package" not in line)
        assert re.match(r"# \S.{9,}", first), path


def test_nothing_points_out_of_the_project():
    for path in files():
        assert str(ROOT) not in path.read_text()
        assert not re.search(r"/(home|root|Users|work|tmp)/", path.read_text()), path


def test_a_recipe_of_an_earlier_version_is_the_same_where_what_it_lacks_is_the_default():
    now = compose_one("train", []).to_dict()
    before = copy.deepcopy(now)
    for key in ("mix_per", "eval_rounding"):
        del before["augment"][key]
    del before["steps_per_epoch"], before["evals"]["accuracy"]
    before["evals"]["accuracy"] = {"_target_": now["evals"]["accuracy"]["_target_"]}
    refuse_differences("there is", before, now)
    now["augment"]["mix_per"] = "batch"
    with pytest.raises(ValueError, match=r"augment\.mix_per: 'device_batch' there, 'batch' here"):
        refuse_differences("there is", before, now)
    before["augment"]["_target_"] = "elsewhere.Augment"  # whose defaults are others
    with pytest.raises(ValueError, match=r"augment\.eval_rounding: None there"):
        refuse_differences("there is", before, now)
