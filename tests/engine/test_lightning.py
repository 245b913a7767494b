"""Lightning's callbacks and profilers in a run, and its tools for the time before one."""

from __future__ import annotations

import dataclasses
import json
import math
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Timer
from test_training_features import assert_same, interrupt, run, state_of

from conftest import TINY
from mixer_lightning import results
from mixer_lightning.cli.console import main as mixer
from mixer_lightning.config.compose import compose, compose_one
from mixer_lightning.data.order import MicroBatches, MicroBatchSampler, Order
from mixer_lightning.data.sources.digits import digits
from mixer_lightning.engine import device_batch, evaluation, lightning_callbacks
from mixer_lightning.engine.device_batch import largest_fitting, settle_device_batch
from mixer_lightning.engine.machine import Machine
from mixer_lightning.models.resolution import widen


@pytest.fixture
def data():
    return digits()


def callback(name: str, **parameters: object) -> list[str]:
    """Words that add a callback called `mine`."""
    target = name if "." in name else f"lightning.pytorch.callbacks.{name}"
    given = [f"+callbacks.mine.{key}={value}" for key, value in parameters.items()]
    return [f"+callbacks.mine._target_={target}", *given]


# --------------------------------------------------------------------------------------------- callbacks

REFUSED = {
    "StochasticWeightAveraging": ({"swa_lrs": 0.01}, "ema_decay=0.999"),
    "EMAWeightAveraging": ({}, "ema_decay=0.999"),
    "GradientAccumulationScheduler": ({"scheduling": {0: 2}}, "device_batch"),
    "BatchSizeFinder": ({}, "device_batch=auto"),
    "LearningRateFinder": ({}, "-m optimizer.lr=0.001,0.003"),
    "BackboneFinetuning": ({}, "freeze=[backbone]"),
    "ModelPruning": ({"pruning_fn": "l1_unstructured"}, "after the last checkpoint"),
    "RichProgressBar": ({}, "shows its progress itself"),
    "OnExceptionCheckpoint": ({"dirpath": "x"}, "checkpoint_minutes=10"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_counts_lightnings_epochs_or_does_what_a_run_does_is_refused(name, data):
    """Left alone SWA, pruning and accumulation would run and change nothing, or the wrong thing, in silence."""
    parameters, instead = REFUSED[name]
    node = {"_target_": f"lightning.pytorch.callbacks.{name}", **parameters}
    recipe = dataclasses.replace(compose_one("train", TINY), callbacks={"mine": node})
    with pytest.raises(ValueError, match="does not work here") as caught:
        lightning_callbacks.build_callbacks(recipe, data, {}, device_type="cpu", say=print)
    assert f"callbacks.mine: {name} " in str(caught.value)
    assert instead in str(caught.value)


def test_refusals_come_before_the_start(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "psutil", None)  # not installed
    for words, said in (
        (callback("DeviceStatsMonitor"), "callbacks.mine: DeviceStatsMonitor needs psutil"),
        (
            callback("LearningRateMonitor", logging_interval="epoch"),
            "callbacks.mine.logging_interval: a run is",
        ),
        (callback("collections.OrderedDict"), "callbacks.mine: OrderedDict is no callback of Lightning"),
        (callback("test_lightning.Unreadable"), "callbacks.mine: its state_dict() holds what"),
    ):
        assert run(tmp_path / "run", *words) == 2
        assert said in capsys.readouterr().out
        assert not (tmp_path / "run" / results.LAST).exists()


def test_variable_parameters_are_not_missing_ones():
    """**kwargs of a class that its package hands on: rich's summary takes them, and nobody must give them."""
    composition = compose("train", [*TINY, *callback("ModelSummary", max_depth=2)])
    assert composition.messages == []
    composition = compose("train", [*TINY, *callback("ModelSummary", depth=2)])
    assert "unknown key 'callbacks.mine.depth'" in composition.messages[0]


def test_a_learning_rate_monitor_writes_the_rates_of_the_steps_over_sessions(tmp_path, monkeypatch):
    """Twelve steps of a cosine from 0.01, at layers' own rates; accumulated, so that a step has several batches."""
    words = (
        *callback("LearningRateMonitor"),
        "optimizer.lr=0.01",
        "device_batch=20",
        "log_every_steps=2",
        "evals=none",
    )
    interrupt(monkeypatch, 5)
    assert run(tmp_path / "run", *words) == 143
    monkeypatch.undo()
    assert run(tmp_path / "run", *words) == 0
    rows = [row for row in results.read_metrics(tmp_path / "run") if "lr-AdamW/pg1" in row]
    assert [row["step"] for row in rows] == [2, 4, 6, 8, 10, 12]
    for row in rows:
        expected = 0.01 * 0.5 * (1 + math.cos(math.pi * (row["step"] - 1) / 12))
        assert row["lr-AdamW/pg2"] == pytest.approx(expected, rel=1e-6)
    last = json.loads((tmp_path / "run" / results.RESULT).read_text())["metrics"]
    assert not any(name.startswith("lr-") for name in last)
    assert run(tmp_path / "plain", *words[1:]) == 0
    assert_same(tmp_path / "run", tmp_path / "plain")


class Counter(Callback):
    """Counts steps and evaluations over sessions, and logs by itself."""

    def __init__(self) -> None:
        self.steps, self.seen = 0, list[float]()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.steps += 1
        pl_module.log("mine/steps", float(self.steps))

    def on_validation_end(self, trainer, pl_module):
        self.seen.append(float(trainer.callback_metrics["test/top1"]))

    def on_test_end(self, trainer, pl_module):
        raise AssertionError

    def state_dict(self):
        return {"steps": self.steps, "seen": self.seen}

    def load_state_dict(self, state_dict):
        self.steps, self.seen = state_dict["steps"], state_dict["seen"]


class Unreadable(Callback):
    """Its state is no plain container."""

    def state_dict(self):
        return {"where": Path()}


def test_a_callback_of_ones_own_goes_on_where_it_stood(tmp_path, monkeypatch, capsys):
    words = callback("test_lightning.Counter")
    interrupt(monkeypatch, 8)
    assert run(tmp_path / "run", *words) == 143
    monkeypatch.undo()
    assert "callbacks.mine: on_test_end will not be called" in capsys.readouterr().out
    assert run(tmp_path / "run", *words) == 0
    state = state_of(tmp_path / "run")["callbacks"]["mine"]
    rows = results.read_metrics(tmp_path / "run")
    assert state["steps"] == 12
    assert state["seen"] == pytest.approx([row["test/top1"] for row in rows if "test/top1" in row])
    assert [(row["step"], row["mine/steps"]) for row in rows if "mine/steps" in row] == [(5, 5), (10, 10)]


# --------------------------------------------------------------------------------------------- profilers


def test_profiles_lie_in_the_run_directory(tmp_path):
    short = ("duration.steps=6", "evals=none")
    assert run(tmp_path / "simple", *short, "trainer.profiler=simple") == 0
    lines = (tmp_path / "simple" / "fit-profile.txt").read_text().splitlines()
    (steps,) = [line for line in lines if "run_training_batch" in line]
    assert steps.split("|")[3].strip() == "6"
    assert run(tmp_path / "pytorch", *short, "trainer.profiler=pytorch") == 0
    assert "aten::" in (tmp_path / "pytorch" / "fit-profile.txt").read_text()
    (trace,) = (tmp_path / "pytorch").glob("fit-profile-*.pt.trace.json")
    assert json.loads(trace.read_text())["traceEvents"]
    assert_same(tmp_path / "pytorch", tmp_path / "simple")


def test_an_evaluation_has_no_profiler(monkeypatch):
    parts = SimpleNamespace(report=SimpleNamespace(checkpoint=None), machine=Machine(profiler="simple"))
    monkeypatch.setattr(evaluation.setup, "assemble", lambda *_, **__: parts)
    with pytest.raises(ValueError, match=r"trainer\.profiler is of a training"):
        evaluation.ready(compose_one("evaluate", ["checkpoint=x"]), None)


# ------------------------------------------------------------------------------------------ before a long run


def test_a_fast_dev_run_goes_through_everything_and_leaves_nothing(tmp_path, monkeypatch, capsys):
    """Also of each job of a sweep; warm-up longer than what is tried is as the whole run has it."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    words = ["evals=[accuracy,confusion]", "schedule.warmup_steps=8", "device_batch=20", "logger=tensorboard"]
    assert mixer(["train", *TINY, *words, "fast_dev_run=2", "-m", "seed=0,1"]) == 0
    said = capsys.readouterr().out
    assert said.count("fast_dev_run: 2 of 12 training steps, evaluations, checkpoint and pictures went") == 2
    assert said.count("1,437 train  40 test") == 2  # two batches of 20
    assert "no result" not in said
    assert list(tmp_path.iterdir()) == []


def test_a_fast_dev_run_that_fails_keeps_the_traceback(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(results, "write_metrics_csv", lambda run_dir: 1 / 0)
    assert run(tmp_path / "run", "fast_dev_run=true", "evals=none") == 1
    (log,) = tmp_path.glob("fast_dev_run_*/log.txt")
    assert "ZeroDivisionError" in log.read_text()
    assert str(log) in capsys.readouterr().out


def test_the_same_batches_come_again_and_again():
    micro_batches = MicroBatches(batch_size=8, device_batch=2, world_size=2)

    def batches(start: int, overfit: int | None) -> Iterator[list]:
        sampler = MicroBatchSampler(
            Order([40], window=1, seed=0), micro_batches=micro_batches, rank=1, start_step=start, total_steps=9,
            overfit_batches=overfit,
        )  # fmt: skip
        return (samples.tolist() for samples in sampler)

    usual = [*batches(0, None)]  # two micro-batches a step
    assert [*batches(0, 2)] == (usual[:4] * 5)[:18]
    assert [*batches(5, 2)] == (usual[:4] * 5)[10:18]  # resumed


def test_the_loss_of_one_batch_goes_to_nothing(tmp_path, monkeypatch):
    """Augmented by crops, and the same each time; on test images, which are evaluated as usual, it does not."""
    words = (
        "overfit_batches=1", "duration.steps=50", "eval_every.steps=50", "checkpoint_every.steps=50", "batch_size=16",
        "schedule=constant", "optimizer.lr=0.005", "loss.label_smoothing=0", "log_every_steps=10",
    )  # fmt: skip
    interrupt(monkeypatch, 15)
    assert run(tmp_path / "run", *words) == 143
    monkeypatch.undo()
    assert run(tmp_path / "run", *words) == 0
    rows = results.read_metrics(tmp_path / "run")
    losses = [row["train/loss"] for row in rows if "train/loss" in row]
    assert losses[0] > 1
    assert losses[-1] < 0.1
    (evaluated,) = [row["test/loss"] for row in rows if "test/loss" in row]
    assert evaluated > 1
    assert run(tmp_path / "whole", *words) == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


@pytest.mark.parametrize(
    ("limit", "found"), [(0, 0), (1, 1), (17, 16), (48, 48), (95, 48), (96, 96), (1000, 96)]
)
def test_the_largest_that_fits_is_found_in_few_trials(limit: int, found: int):
    sizes = [size for size in range(1, 97) if 96 % size == 0]
    tried: list[int] = []

    def fits(size: int) -> bool:
        tried.append(size)
        return size <= limit

    assert largest_fitting(sizes, fits) == found
    assert len(tried) <= 4  # of 12 divisors


def test_a_timer_gives_each_session_its_time():
    timer = Timer(duration={"hours": 1})
    states = {"timer": {"time_elapsed": {"train": 5000.0}}}
    driven = lightning_callbacks.DrivenCallbacks({"timer": timer}, start_step=3, states=states)
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    driven.setup(trainer, LightningModule(), "fit")
    assert timer.time_elapsed() == 0
    assert trainer.global_step == 3


def test_device_batch_auto(monkeypatch, tmp_path, capsys):
    """Steps that run out of memory above 16 images, as on a GPU whose memory holds no more, of as large a model."""
    recipe = compose_one("train", [*TINY, "batch_size=96", "device_batch=auto"])
    forward = torch.nn.Module.__call__

    def limited(self, *inputs, **options):
        if isinstance(self, type(model)) and len(inputs[0]) > 16:
            raise torch.OutOfMemoryError("CUDA out of memory")
        if isinstance(self, type(model)):
            assert self.blocks[0].mlp_tokens.fc1.weight.shape == model.blocks[0].mlp_tokens.fc1.weight.shape
        return forward(self, *inputs, **options)

    from mixer_lightning.api import create_model

    model = create_model("mixer_digits", num_classes=10)
    widen(model, parts=2)  # as a checkpoint for smaller images is
    monkeypatch.setattr(torch.nn.Module, "__call__", limited)
    monkeypatch.setattr(Machine, "device_type", "cuda")
    monkeypatch.setattr(device_batch, "_limit_memory", lambda *_: None)
    monkeypatch.setattr(device_batch, "fits", on_the_cpu(monkeypatch, device_batch.fits))
    machine = Machine(accelerator="cpu")
    settled = settle_device_batch(recipe, machine, model=model, num_classes=10, before=None, say=print)
    assert settled.device_batch == 16
    assert "device_batch=auto: 16, of which a batch of 96 is accumulated" in capsys.readouterr().out
    monkeypatch.undo()
    settled = settle_device_batch(recipe, machine, model=model, num_classes=10, before=24, say=print)
    assert settled.device_batch == 24  # of an earlier session: BatchNorm must see as many again
    assert run(tmp_path / "run", "device_batch=auto") == 2
    assert "looks for what fits the memory of a GPU, and this run has none" in capsys.readouterr().out
    assert mixer(["train", *TINY, "device_batch=auto", "plan=true"]) == 2
    assert "state a number here" in capsys.readouterr().out


def on_the_cpu(monkeypatch: pytest.MonkeyPatch, fits):
    """The trial itself as it is, on the CPU."""

    def tried(*arguments, **options):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Machine, "device_type", "cpu")
            return fits(*arguments, **options)

    return tried
