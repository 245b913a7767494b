"""`mixer train ... plan=true`: the numbers of a training before it is made."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

from conftest import TINY
from mixer_lightning import create_model
from mixer_lightning.checkpoints import hub
from mixer_lightning.cli.console import main as mixer
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine import throughput
from mixer_lightning.models.presets import count_macs
from mixer_lightning.studies import training_plan
from mixer_lightning.studies.training_plan import Plan, moments, num_evaluations, plan_of

PLAN = Plan(
    images=1000,
    num_classes=10,
    batch_size=50,
    device_batch=25,
    steps=200,
    steps_per_epoch=20.0,
    parameters=10**9,
    macs=2 * 10**9,
    rate=2.0,
    eval_images=6000,
    memory_bytes=3 * 10**9,
    shared_bytes=0,
    numbers_per_weight=4,
    devices=3,
    price=1.8,
)


@pytest.fixture
def rate(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int | None]]:
    """What was to be measured: batch sizes, the global one and a device's. The answer is 100 images/s."""
    asked: list[tuple[int, int | None]] = []

    def measured(recipe, *, seconds, accumulate, like):
        asked.append((recipe.batch_size, recipe.device_batch))
        return 100.0

    monkeypatch.setattr(training_plan, "training_rate", measured)
    return asked


def test_time_work_disk_and_cost_follow_from_what_was_counted():
    assert PLAN.samples == 10_000
    assert PLAN.device_seconds == 6000  # 10,000 images, and 6,000 at a third of the time, at 2 a second
    assert PLAN.disk_bytes == 4 * (4 + 4 + 4 + 1) * 10**9
    rows = dict(PLAN.rows())
    assert rows["steps"] == "200 of 50 images: 10 epochs of 1,000"
    assert rows["work"].startswith("6e+13 multiply-accumulates")
    assert rows["time"] == "33 min on 3 devices, if they scale perfectly; 0.0694 device-days"
    assert rows["disk"] == "52 GB of checkpoints"
    assert rows["memory"] == "3.00 GB at 25 images, measured here"
    assert rows["cost"] == "3.00 at 1.8 a device hour"
    assert "cost" not in dict(dataclasses.replace(PLAN, price=None).rows())


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["optimizer=sgd", "optimizer.momentum=0.0"], 0),
        (["optimizer=sgd", "optimizer.momentum=0.9"], 1),
        (["optimizer=adamw"], 2),
        (["optimizer=lamb"], 2),
    ],
)
def test_moments_are_those_of_the_optimiser(words: list[str], expected: int):
    assert moments(compose_one("train", [*TINY, *words])) == expected


def test_evaluations_are_counted_as_a_run_makes_them():
    recipe = compose_one("train", [*TINY, "evals=[accuracy,confusion]", "eval_every.steps=5"])
    assert (
        num_evaluations(recipe, 12, 24.0) == 4
    )  # of accuracy after 5, 10 and 12 steps, of confusion at the end


def test_a_plan_of_the_digits(rate: list[tuple[int, int | None]], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["plan=true", "plan.devices=4", "plan.price=2"]
    assert mixer(["train", *TINY, "ema_decay=0.9", "batch_size=64", *words]) == 0
    assert rate == [(64, 16)]
    said = " ".join(capsys.readouterr().out.split())
    assert "steps 12 of 64 images" in said
    assert "100 images/s" in said
    assert "on 4 devices" in said
    assert "at 2 a device hour" in said
    assert list(tmp_path.iterdir()) == []  # nothing is begun


def test_a_plan_without_the_data(rate: list[tuple[int, int | None]], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["experiment=mixer_b16_imagenet1k", "device_batch=4", "trainer=cpu", "plan=true"]
    assert mixer(["train", *words]) == 2
    assert "plan.images=" in capsys.readouterr().out
    assert mixer(["train", *words, "plan.images=1281167"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "59,880,472 parameters, 12.6 GMACs an image, 1,000 classes" in said
    assert "epochs of 1,281,167" in said


def test_a_plan_downloads_nothing(rate: list[tuple[int, int | None]], tmp_path: Path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert mixer(["train", "data=cifar10", "data.root=here", "plan=true"]) == 2
    said = capsys.readouterr().out
    assert "and a plan downloads nothing" in said
    assert "plan.images=" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("trainer", "part"), [("ddp", 1), ("fsdp", 8)])
@pytest.mark.parametrize("devices", [1, 8])
def test_what_is_shared_out_is_divided_by_the_devices(
    rate, monkeypatch, trainer: str, part: int, devices: int
):
    """AdamW in float32: 16 bytes a parameter of weight, gradient and two moments, beside the activations."""
    recipe = compose_one("train", [*TINY, f"trainer={trainer}", "trainer.accelerator=cpu", "batch_size=64"])
    parameters, activations = 10_000_000, 7 * 10**7
    monkeypatch.setattr(training_plan, "as_begun", lambda *args, **kwargs: nn.Linear(9_999, 1_000))
    monkeypatch.setattr(training_plan, "count_macs", lambda *args, **kwargs: 1)
    monkeypatch.setattr(training_plan.PeakMemory, "bytes", lambda self: 16 * parameters + activations)
    plan = plan_of(recipe, images=640, num_classes=5, devices=devices, price=None, say=print)
    part = min(part, devices)
    assert plan.memory_bytes == activations + 16 * parameters // part
    assert plan.shared_bytes == (16 * parameters // devices if trainer == "fsdp" else 0)
    assert plan.device_batch == 64 // devices
    assert rate == [(64, 64 // devices)]


def test_a_plan_is_of_the_model_that_a_checkpoint_for_smaller_images_widens(rate, tmp_path, monkeypatch):
    """At twice the side token mixing has four times as many tokens and hidden units: sixteen times the weights."""
    torch.save(create_model("mixer_digits", num_classes=10).state_dict(), tmp_path / "small.pth")
    words = [*TINY, "image_size=16", "device_batch=1"]
    plain, tuned = (
        compose_one("train", [*words, *more]) for more in ([], [f"checkpoint={tmp_path / 'small.pth'}"])
    )
    found = [
        plan_of(each, images=64, num_classes=10, devices=1, price=None, say=print) for each in (plain, tuned)
    ]
    loaded = create_model("mixer_digits", num_classes=10, image_size=16, checkpoint=tmp_path / "small.pth")
    assert found[1].parameters == sum(each.numel() for each in loaded.parameters()) > found[0].parameters
    assert found[1].macs == count_macs(loaded, image_size=16) > found[0].macs
    seen = []
    monkeypatch.setattr(
        throughput.setup, "classifier", lambda recipe, model, *args, **kwargs: seen.append(model)
    )
    with pytest.raises(AttributeError):  # there is no classifier
        throughput.training_rate(tuned, num_classes=10)
    assert sum(each.numel() for each in seen[0].parameters()) == found[1].parameters


def test_a_plan_from_a_checkpoint_that_is_not_there(capsys):
    assert mixer(["train", *TINY, "checkpoint=nope.npz", "plan=true"]) == 2
    said = capsys.readouterr().out
    assert "there is no checkpoint file nope.npz" in said
    assert "plan.images" not in said  # which would not help


def test_a_plan_of_weights_of_timm_fetches_none(rate, monkeypatch):
    recipe = compose_one("train", [*TINY, "model=mixer_b16", "image_size=448", "device_batch=1"])
    plain = plan_of(recipe, images=64, num_classes=10, devices=1, price=None, say=print)
    monkeypatch.setattr(hub, "fetch", lambda name: pytest.fail("fetched"))
    recipe = dataclasses.replace(recipe, checkpoint="timm:mixer_b16_224.goog_in21k_ft_in1k")
    found = plan_of(recipe, images=64, num_classes=10, devices=1, price=None, say=print)
    more = 12 * (2 * 784 * 3 * 384 + 3 * 384)  # blocks, W1 and W2 over 784 tokens, b1
    assert found.parameters - plain.parameters == more


def test_a_plan_for_processes_wants_their_number(capsys):
    assert mixer(["train", *TINY, "trainer=ddp", "plan=true"]) == 2
    assert "plan.devices=8" in capsys.readouterr().out


def test_gradients_are_accumulated_as_the_devices_need_it():
    recipe = compose_one("train", [*TINY, "batch_size=64", "device_batch=3"])
    with pytest.raises(ValueError, match="batch_size"):
        plan_of(recipe, images=100, num_classes=5, devices=4, price=None, say=print)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["plan=maybe"], "choose from 'true', 'false'"),
        (["plan=true", "plan.prize=3"], "did you mean 'plan.price'"),
        (["plan=true", "plan.price=-1"], "plan.price must be 0 or more"),
        (["plan=true", "plan.devices=0"], "devices must be at least 1"),
        (["plan.classes=3"], "give plan.images too"),
        (["plan=true", "-m", "seed=1,2"], "a plan is of one training"),
    ],
)
def test_wrong_words(words: list[str], said: str, capsys):
    with pytest.raises(SystemExit, match="2"):
        mixer(["train", *TINY, *words])
    assert said in capsys.readouterr().err
