"""What only the first step, or nothing at all, would tell is said before a run starts."""

from __future__ import annotations

import signal

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from conftest import TINY
from mixer_lightning.api import create_model
from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.groups import numbers_for_other_choices, numbers_of_other_data
from mixer_lightning.engine import run
from mixer_lightning.engine.callbacks import MetricsLog
from mixer_lightning.engine.startup_checks import refuse_one_value, slow_average


def steps(model: nn.Module, side: int) -> None:
    model.train()(torch.zeros(1, 3, side, side))


@pytest.mark.parametrize("side", [1, 2, 8])
def test_one_value_a_channel_is_refused_where_torch_refuses_it(side):
    """A ConvMixer whose patches are pixels: at 1 px one value, at 2 px four."""
    model = create_model("convmixer_96_4", num_classes=3, image_size=side).eval()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    if side == 1:
        with pytest.raises(ValueError, match="more than 1 value per channel"):
            steps(model, side)
        model.eval()
        with pytest.raises(ValueError, match=r"device_batch=1 at image_size=1 leaves BatchNorm one value"):
            refuse_one_value(model, image_size=side, device_batch=1)
    else:
        refuse_one_value(model, image_size=side, device_batch=1)
    refuse_one_value(model, image_size=side, device_batch=2)
    assert not model.training
    if side != 1:
        assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
        steps(model, side)


def test_a_run_of_one_value_ends_before_it_starts(tmp_path, capsys):
    words = (*TINY, "model=convmixer_96_4", "image_size=1", "device_batch=1", "batch_size=4")
    assert run.train(compose_one("train", words), tmp_path / "run") == 2
    assert "device_batch=1 at image_size=1 leaves BatchNorm one value" in capsys.readouterr().out


@pytest.mark.parametrize("decay", [0.9999, 0.999, 0.99, 0.9])
@pytest.mark.parametrize("total_steps", [50, 500])
def test_the_weight_of_the_beginning_is_that_of_torchs_average(decay, total_steps):
    model = nn.Linear(1, 1, bias=False)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(decay))
    nn.init.ones_(model.weight)
    average.update_parameters(model)
    nn.init.zeros_(model.weight)  # all later steps: what is left is the share of the first
    for _ in range(total_steps - 1):
        average.update_parameters(model)
    share = float(average.module.weight.detach())
    said = slow_average(decay=decay, total_steps=total_steps)
    assert (said is not None) == (share > 0.1)
    if said is not None:
        assert f"{100 * share:.0f} % will be those of the first step" in said
        fitting = float(said.rpartition(", or ema_decay=null")[0].rpartition("ema_decay=")[2])
        assert slow_average(decay=fitting, total_steps=total_steps) is None
    assert slow_average(decay=None, total_steps=total_steps) is None


@pytest.mark.parametrize("total_steps", [21, 2_450, 300_000, 7_000_000])
def test_the_decay_that_is_advised_is_one(total_steps):
    said = slow_average(decay=1 - 1e-9, total_steps=total_steps)
    fitting = float(said.rpartition(", or ema_decay=null")[0].rpartition("ema_decay=")[2])
    assert 0 < fitting < 1
    assert slow_average(decay=fitting, total_steps=total_steps) is None


def test_a_slow_average_is_said_at_the_start(tmp_path, capsys):
    assert run.train(compose_one("train", [*TINY, "ema_decay=0.9999"]), tmp_path / "run") == 0
    said = capsys.readouterr().out
    assert "ema_decay=0.9999 is slow for 12 steps" in " ".join(said.split())


def test_a_balanced_run_is_the_same_after_a_stop(tmp_path, capsys):
    """Sampling and class weights together, from the command line."""
    words = [*TINY, "sampling=balanced", "loss.class_weights=balanced", "evals=none"]
    assert run.train(compose_one("train", words), tmp_path / "whole") == 0
    recipe = compose_one("train", words)
    assert recipe.sampling == "balanced"
    stopped = tmp_path / "stopped"
    on_step = MetricsLog.on_step

    def stop(self, trainer, module):
        on_step(self, trainer, module)
        if module.step == 7:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsLog, "on_step", stop)
        assert run.train(recipe, stopped) == 143
    assert run.train(recipe, stopped) == 0
    places = (tmp_path / "whole", stopped)
    one, two = (torch.load(each / "last.ckpt", weights_only=True)["state_dict"] for each in places)
    assert all(torch.equal(one[name], two[name]) for name in one)


def test_a_model_larger_than_the_memory_is_not_begun(tmp_path, capsys):
    words = [*TINY, "model=mixer_digits", f"image_size={2**17}"]
    assert run.train(compose_one("train", words), tmp_path / "run") == 2
    assert "GB of memory: is num_classes or image_size a misspelling?" in " ".join(
        capsys.readouterr().out.split()
    )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["data=digits"], None),
        (["data=imagenet1k"], None),
        (
            ["data=digits", "scratch=cifar10"],
            "scratch=cifar10 states numbers for cifar10, and these are digits",
        ),
        (["data=folder", "scratch=cifar10"], None),
        (["data=digits", "scratch=shards"], None),
        (["experiment=mixer_digits"], None),
        (["experiment=mixer_b16_imagenet1k"], None),
        (
            ["experiment=mixer_b16_imagenet1k", "data=digits"],
            "experiment=mixer_b16_imagenet1k states numbers for im",
        ),
        (["experiment=mixer_b16_imagenet1k", "data=folder"], None),
    ],
)
def test_numbers_of_another_data_set_are_said(words, said):
    found = numbers_of_other_data(compose_one("train", words).choices)
    assert (found is None) == (said is None)
    assert said is None or found.startswith(said)


@pytest.mark.parametrize(
    ("words", "kept", "own"),
    [
        (["augment=basic"], None, None),
        (
            ["augment=none", "augment.eval_crop=0.9"],
            "augment.crop=pad, augment.crop_padding=1.",
            "augment.crop=none",
        ),
        (["experiment=mixer_b16_imagenet1k", "optimizer=adamw"], None, None),
        (
            ["experiment=mixer_b16_imagenet1k", "optimizer=adam"],
            "optimizer.weight_decay=0.1.",
            "weight_decay=0.0",
        ),
        (
            ["experiment=mixer_b16_imagenet1k", "optimizer=lamb"],
            "optimizer.lr=0.001, optimizer.weig",
            "eps=1e-06",
        ),
    ],
)
def test_numbers_for_another_choice_of_a_group_are_said(words, kept, own):
    """Adam would add AdamW's weight decay to the gradient, and LAMB would learn at a fifth of its rate, in silence."""
    recipe = compose_one("train", words)
    said = " ".join(numbers_for_other_choices(recipe.to_dict(), recipe.choices))
    assert bool(said) == (kept is not None)
    if kept is not None:
        chosen = next(word for word in words if word.startswith(("augment=", "optimizer=")))
        assert f"stay with {chosen}: {kept}" in said
        assert f"{own}'" in said
