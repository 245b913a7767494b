"""Longer runs, early stops, kept checkpoints, frozen parts, layers at their own rates: all resume to the same bits."""

from __future__ import annotations

import json
import signal
import time
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image

from conftest import TINY
from mixer_lightning import results
from mixer_lightning.checkpoints import torch_file
from mixer_lightning.checkpoints.read import read
from mixer_lightning.config.compose import compose_one
from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.transforms import Augment
from mixer_lightning.engine import first_batch, setup
from mixer_lightning.engine.callbacks import Evaluations, MetricsLog
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.run import train
from mixer_lightning.evals import Predict, names_of
from mixer_lightning.reports import first_batch as picture

draw = picture.draw  # itself, below

VAL = ("train_split=train[:90%]", "val_split=train[90%:]")


def run(run_dir: Path, *words: str) -> int:
    return train(compose_one("train", [*TINY, *words]), run_dir)


def interrupt(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Ask the runs from here on to stop at a step."""
    on_step = MetricsLog.on_step

    def interrupted(self, trainer, module):
        on_step(self, trainer, module)
        if module.step == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "on_step", interrupted)


def state_of(run_dir: Path) -> dict:
    return torch_file.load(run_dir / results.LAST)


def assert_same(got: Path, expected: Path) -> None:
    """Equal weights and moments."""
    a, b = state_of(got), state_of(expected)
    assert a["step"] == b["step"]
    for name, value in b["state_dict"].items():
        assert torch.equal(a["state_dict"][name], value), name
    for i, slots in b["optimizer"]["state"].items():
        for name, value in slots.items():
            assert torch.equal(a["optimizer"]["state"][i][name], value), (i, name)


# ------------------------------------------------------------------------------------------------- longer runs


def test_a_finished_run_is_extended_to_what_a_longer_one_would_have_been(tmp_path, capsys):
    words = ("schedule=constant", "model=convmixer_96_4", "ema_decay=0.9")
    assert run(tmp_path / "run", *words, "duration.steps=5") == 0
    assert run(tmp_path / "run", *words, "duration.steps=12") == 0
    assert "at step 5 of 12" in capsys.readouterr().out
    assert run(tmp_path / "long", *words, "duration.steps=12") == 0
    assert_same(tmp_path / "run", tmp_path / "long")
    result = json.loads((tmp_path / "run" / results.RESULT).read_text())
    assert (result["steps"], result["recipe"]["duration"]) == (12, {"steps": 12})
    assert run(tmp_path / "run", *words, "duration.steps=12") == 0
    assert "has finished this recipe" in capsys.readouterr().out
    assert run(tmp_path / "run", *words, "duration.steps=9") == 2
    assert "has trained 12 steps of 12 steps, and duration is 9 steps here, which it is past" in (
        capsys.readouterr().out
    )


def test_killed_while_it_is_extended_it_is_not_finished(tmp_path, monkeypatch):
    words = ("schedule=constant",)
    assert run(tmp_path / "run", *words, "duration.steps=5") == 0
    interrupt(monkeypatch, 8)
    assert run(tmp_path / "run", *words, "duration.steps=12") == 143
    monkeypatch.undo()
    assert not (tmp_path / "run" / results.RESULT).exists()
    assert run(tmp_path / "run", *words, "duration.steps=12") == 0
    assert run(tmp_path / "long", *words, "duration.steps=12") == 0
    assert_same(tmp_path / "run", tmp_path / "long")


def test_a_schedule_that_has_ended_says_how_to_go_on(tmp_path, capsys):
    assert run(tmp_path / "run", "duration.steps=5") == 0
    assert run(tmp_path / "run", "duration.steps=12") == 2
    said = capsys.readouterr().out
    assert "its schedule depends on the length" in said
    assert f"checkpoint={tmp_path}/run name=<word>" in said
    assert json.loads((tmp_path / "run" / results.RESULT).read_text())["steps"] == 5
    again = ["schedule=constant", "duration.steps=2", f"checkpoint={tmp_path}/run"]
    assert run(tmp_path / "on", *again) == 0  # the advice works
    assert run(tmp_path / "run", "duration.steps=12", "seed=1") == 2
    assert "seed: 0 there, 1 here" in capsys.readouterr().out


# -------------------------------------------------------------------------------------------------- callbacks

STOPPING = (
    *VAL,
    "callbacks=early_stopping",
    "callbacks.early_stopping.patience=2",
    "callbacks.early_stopping.min_delta=1.0",  # nothing becomes better: it stops at the third evaluation
    "evals=[accuracy,confusion]",
    "duration.steps=40",
    "eval_every.steps=3",
    "checkpoint_every.steps=2",
)


def test_an_early_stop_finishes_the_run_wherever_it_was_interrupted(tmp_path, monkeypatch, capsys):
    assert run(tmp_path / "whole", *STOPPING) == 0
    assert (
        "stopped early at step 9 of 40: Monitored metric val/top1 did not improve" in capsys.readouterr().out
    )
    assert (tmp_path / "whole" / results.CONFUSION).exists()  # what waits for the end
    result = json.loads((tmp_path / "whole" / results.RESULT).read_text())
    assert result["steps"] == 9
    assert "did not improve" in result["ended_early"]
    for step in (7, 9):  # between evaluations, and at the stop itself
        interrupt(monkeypatch, step)
        assert run(tmp_path / f"at{step}", *STOPPING) == 143
        monkeypatch.undo()
        assert run(tmp_path / f"at{step}", *STOPPING) == 0
        assert_same(tmp_path / f"at{step}", tmp_path / "whole")
        assert json.loads((tmp_path / f"at{step}" / results.RESULT).read_text())["steps"] == 9
    assert run(tmp_path / "whole", *STOPPING) == 0
    assert "has finished this recipe" in capsys.readouterr().out


@pytest.mark.parametrize("number", [3, 4], ids=["the evaluation that ends it", "what waits for the end"])
def test_an_early_stop_whose_evaluation_was_broken_off(tmp_path, monkeypatch, number):
    """Asked to stop within the evaluation that will end the run, or within those after it: made anew, counted once."""
    words = [word for word in STOPPING if not word.startswith("checkpoint_every")]
    assert run(tmp_path / "whole", *words) == 0
    evaluate, calls = Evaluations.run, []

    def interrupted(self, module, evals):
        calls.append(module.step)
        if len(calls) == number:
            signal.raise_signal(signal.SIGTERM)
        return evaluate(self, module, evals)

    monkeypatch.setattr(Evaluations, "run", interrupted)
    assert run(tmp_path / "run", *words) == 143
    monkeypatch.undo()
    assert calls[-1] == state_of(tmp_path / "run")["step"] == 9
    assert run(tmp_path / "run", *words) == 0
    assert_same(tmp_path / "run", tmp_path / "whole")
    assert (tmp_path / "run" / results.CONFUSION).exists()
    rows, expected = (
        [row["step"] for row in results.read_metrics(tmp_path / name)] for name in ("run", "whole")
    )
    assert rows == expected


def test_a_metric_that_there_is_not_is_refused(tmp_path, capsys):
    assert run(tmp_path / "run", "callbacks=early_stopping") == 2
    said = capsys.readouterr().out
    assert "callbacks.early_stopping.monitor: digits has no val split here: train_split='train[:90%]'" in said
    assert run(tmp_path / "run", *VAL, "callbacks=early_stopping", "callbacks.early_stopping.mode=up") == 2
    assert "callbacks.early_stopping: `mode` can be" in capsys.readouterr().out
    kept = ("callbacks=kept_checkpoints", "callbacks.kept_checkpoints.every_n_train_steps=null")
    for words, sentence in (
        (
            ["callbacks=early_stopping", "callbacks.early_stopping.monitor=val/top2"],
            "monitor: no metric 'val/top2': did you mean 'val/top5'? There are: val/loss, val/top1, val/top5\n",
        ),
        (
            [
                *kept,
                "callbacks.kept_checkpoints.monitor=val/macro_f1",
                "evals=[macro]",
                "evals.macro.at_end=true",
            ],
            "callbacks.kept_checkpoints.monitor: 'val/macro_f1' is measured after the last step only",
        ),
        (
            [*kept, "callbacks.kept_checkpoints.monitor=test/top1"],
            "callbacks.kept_checkpoints.monitor: 'test/top1' would choose by the test images",
        ),
        ([kept[0], "callbacks.kept_checkpoints.monitor=val/top1"], "these checkpoints are of other steps"),
        (kept, "callbacks.kept_checkpoints: nothing says when to keep a checkpoint"),
        (
            [*kept, "callbacks.kept_checkpoints.every_n_epochs=2"],
            "callbacks.kept_checkpoints.every_n_epochs: a run is one of Lightning's epochs",
        ),
    ):
        assert run(tmp_path / "run", *VAL, *words) == 2
        assert sentence in capsys.readouterr().out
        assert not (tmp_path / "run").exists()


class Quiet:
    """An evaluation that does not say what its figures are called."""

    def check(self, data: Dataset) -> None:
        pass

    def run(self, predict: Predict) -> Iterator[tuple[str, float]]:
        yield "val/mine", 0.5


def test_figures_that_nobody_names_are_met_at_the_first_evaluation(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(setup, "checked_eval", lambda name, built: Quiet())
    words = (*VAL, "callbacks=early_stopping", "callbacks.early_stopping.monitor=val/")
    assert run(tmp_path / "other", *words[:-1], words[-1] + "other") == 1
    assert "no metric 'val/other', there are: val/mine" in capsys.readouterr().out
    assert run(tmp_path / "mine", *words[:-1], words[-1] + "mine") == 0


def test_evaluations_name_their_figures_before_they_are_made(tmp_path, monkeypatch):
    run_of, found = Evaluations.run, []

    def compared(self, module, evals):
        values = run_of(self, module, evals)
        names = [name for each in evals.values() for name in names_of(each, self.data.source) or []]
        found.append((sorted(values), sorted(names)))
        return values

    monkeypatch.setattr(Evaluations, "run", compared)
    words = ("evals=[accuracy,macro,fewshot,confusion]", "evals.accuracy.crops=[short_side,square]")
    assert run(tmp_path / "run", *VAL, *words, "duration.steps=2", "eval_every.steps=2") == 0
    (pair,) = found
    assert pair[0] == pair[1]
    assert {"val/loss_square", "test/top5", "test/macro_f1"} < set(pair[0])


def test_kept_checkpoints_are_those_of_an_undisturbed_run(tmp_path, monkeypatch):
    """Whatever save_weights_only: they never hold what only training needs."""
    words = ("callbacks=kept_checkpoints", "callbacks.kept_checkpoints.every_n_train_steps=4")
    weights_only = "callbacks.kept_checkpoints.save_weights_only=true"
    assert run(tmp_path / "whole", *words, weights_only, "ema_decay=0.9") == 0
    interrupt(monkeypatch, 8)
    assert run(tmp_path / "run", *words, "ema_decay=0.9") == 143
    monkeypatch.undo()
    assert run(tmp_path / "run", *words, "ema_decay=0.9") == 0
    names = ["step_00000004.ckpt", "step_00000008.ckpt", "step_00000012.ckpt"]
    for folder in ("whole", "run"):
        assert sorted(path.name for path in (tmp_path / folder / "checkpoints").iterdir()) == names
    best = read(tmp_path / "run" / results.BEST)
    of_whole = read(tmp_path / "whole" / results.BEST).recipe
    for name in names:
        kept, expected = (read(tmp_path / folder / "checkpoints" / name) for folder in ("run", "whole"))
        assert (kept.recipe, expected.recipe) == (best.recipe, of_whole)
        for key, value in expected.tensors.items():
            assert torch.equal(kept.tensors[key], value)
    for key, value in best.tensors.items():  # the final, averaged weights
        assert torch.equal(kept.tensors[key], value)


def test_the_best_checkpoints_are_kept_over_sessions(tmp_path, monkeypatch):
    words = (*VAL, "callbacks=kept_checkpoints", "eval_every.steps=2", "optimizer.lr=0.01")
    node = "callbacks.kept_checkpoints"
    words += (f"{node}.monitor=val/top1", f"{node}.save_top_k=2", f"{node}.every_n_train_steps=null")
    evaluate = Evaluations.run

    def interrupted(self, module, evals):
        if module.step == 12:  # the last one
            signal.raise_signal(signal.SIGTERM)
        return evaluate(self, module, evals)

    monkeypatch.setattr(Evaluations, "run", interrupted)
    assert run(tmp_path / "run", *words) == 143
    monkeypatch.undo()
    assert run(tmp_path / "run", *words) == 0
    rows = [row for row in results.read_metrics(tmp_path / "run") if "val/top1" in row]
    paths = [*(tmp_path / "run" / "checkpoints").iterdir()]
    kept = {int(path.stem[5:]) for path in paths}
    assert len(kept) == 2
    assert {torch_file.load(path)["step"] for path in paths} == kept
    worst = min(row["val/top1"] for row in rows if row["step"] in kept)
    assert worst >= max(row["val/top1"] for row in rows if row["step"] not in kept)


def test_a_checkpoint_after_so_many_minutes(tmp_path, monkeypatch):
    words = ("checkpoint_every.steps=1000", "duration.steps=6")
    saved: list[int] = []
    link = results.flush_metrics
    monkeypatch.setattr(results, "flush_metrics", lambda run_dir: (saved.append(1), link(run_dir)))
    assert run(tmp_path / "never", *words, "checkpoint_minutes=60") == 0
    assert len(saved) == 1
    saved.clear()
    interrupt(monkeypatch, 4)
    assert run(tmp_path / "run", *words, "checkpoint_minutes=0.0000001") == 143
    assert len(saved) == 4
    monkeypatch.undo()
    assert run(tmp_path / "run", *words) == 0  # the machine's business: it may change
    assert_same(tmp_path / "run", tmp_path / "never")


# ----------------------------------------------------------------------------------------------- frozen, slowed


@pytest.mark.parametrize(
    ("names", "trained"), [("backbone", "head."), ("stem,blocks.0", "blocks.1|2|3 head.")]
)
def test_frozen_parts_stay_to_the_bit(tmp_path, monkeypatch, names, trained):
    """Their weights, and the statistics of their BatchNorm, whatever evaluations do in between."""
    words = ("model=convmixer_96_4", "eval_every.steps=2", "stochastic_depth=0.1", f"freeze=[{names}]")
    interrupt(monkeypatch, 1)
    assert run(tmp_path / "run", *words) == 143
    monkeypatch.undo()
    before = state_of(tmp_path / "run")["state_dict"]
    assert run(tmp_path / "run", *words) == 0
    after = state_of(tmp_path / "run")["state_dict"]
    changed = {
        name.removeprefix("model.") for name, value in after.items() if not torch.equal(before[name], value)
    }
    assert changed
    if names == "backbone":
        assert all(name.startswith(trained) for name in changed)
    else:
        assert not any(name.startswith(("stem", "blocks.0")) for name in changed)
        assert any(name.startswith("blocks.1") for name in changed)
    assert run(tmp_path / "whole", *words) == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_what_cannot_be_frozen_is_named(tmp_path, capsys):
    assert run(tmp_path / "run", "freeze=[stm]") == 2
    assert "freeze: no part 'stm': did you mean 'stem'?" in capsys.readouterr().out
    assert run(tmp_path / "run", "freeze=[backbone,head]") == 2
    assert "unfreeze at least its head" in capsys.readouterr().out


def test_layers_learn_at_their_rates_and_resume(tmp_path, monkeypatch):
    words = ("optimizer.layer_decay=0.5", "schedule=constant", "optimizer.lr=0.01")
    assert run(tmp_path / "whole", *words) == 0
    interrupt(monkeypatch, 5)
    assert run(tmp_path / "run", *words) == 143
    monkeypatch.undo()
    assert run(tmp_path / "run", *words) == 0
    assert_same(tmp_path / "run", tmp_path / "whole")
    rates = sorted({group["lr"] for group in state_of(tmp_path / "run")["optimizer"]["param_groups"]})
    assert rates == pytest.approx([0.01 * 0.5**k for k in range(len(rates))][::-1])
    assert len(rates) == 2 + 4  # stem, blocks, head
    assert all(row.get("train/lr", 0.01) == 0.01 for row in results.read_metrics(tmp_path / "run"))


# -------------------------------------------------------------------------------------------------- first batch


def test_the_picture_shows_what_the_network_is_given(tmp_path, monkeypatch):
    drawn, given = [], []
    monkeypatch.setattr(
        picture, "draw", lambda path, images, captions: drawn.append((path, images, captions))
    )
    step = Classifier.training_step

    def spied(self, batch, batch_idx):
        given.append(batch)
        return step(self, batch, batch_idx)

    monkeypatch.setattr(Classifier, "training_step", spied)
    assert run(tmp_path / "run", "duration.steps=2", "augment.mixup=1.0", "augment.flip=0.5") == 0
    ((path, images, captions),) = drawn
    assert path == tmp_path / "run" / "first_batch.png"
    augment = Augment(**{k: v for k, v in compose_one("train", [*TINY]).augment.items() if k != "_target_"})
    mean, std = torch.tensor(augment.mean), torch.tensor(augment.std)
    shown = (torch.from_numpy(images) / 255 - mean) / std
    torch.testing.assert_close(shown, given[0][0][:32].permute(0, 2, 3, 1), atol=0.02, rtol=0)
    assert all(" % " in caption for caption in captions)


def test_a_caption_names_the_classes_of_a_target():
    names = ["cat", "dog", "owl"]
    assert first_batch.caption(torch.tensor([0.0, 1.0, 0.0]), names) == "dog"
    assert first_batch.caption(torch.tensor([0.7, 0.0, 0.3]), names) == "70 % cat\n30 % owl"
    assert first_batch.caption(torch.tensor([0.3, 0.7]), names[:2]) == "70 % dog\n30 % cat"  # no class is 0
    assert first_batch.caption(torch.tensor([0.0, 1.0]), names[:2]) == "dog"
    assert first_batch.caption(torch.tensor([0.0, 1.0]), ["a", "b\nc"]) == "b c"


def test_the_picture_is_a_png_of_all_its_images(tmp_path):
    images = torch.randint(0, 256, (11, 8, 8, 3), dtype=torch.uint8).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # of glyphs that no font has
        draw(tmp_path / "x.png", images, ["$a_b$ [x]", "深圳", "שלום"] + ["x" * 40] * 8)
    with Image.open(tmp_path / "x.png") as image:
        assert image.format == "PNG"
        assert image.width > 400


def test_rows_say_how_long_images_were_waited_for_and_what_memory_is_taken(tmp_path, monkeypatch):
    """Of the seconds of two steps, those that the loader slept, however long the rest took."""
    from mixer_lightning.data.loader import Loader

    wait_for = Loader._wait_for

    def slowly(self, batch):
        return wait_for(self, lambda: (time.sleep(0.2), batch())[1])

    monkeypatch.setattr(Loader, "_wait_for", slowly)
    monkeypatch.setattr("mixer_lightning.engine.callbacks.matrix_rate", lambda machine, at_least: 1e9)
    words = ["duration.steps=4", "log_every_steps=2", "evals=none"]
    assert train(compose_one("train", [*TINY, *words]), tmp_path / "run") == 0
    rows = [row for row in results.read_metrics(tmp_path / "run") if "train/data_wait" in row]
    assert [row["step"] for row in rows] == [2, 4]
    for row in rows:
        seconds = 2 * 60 / row["train/images_per_second"]
        assert 0.4 <= row["train/data_wait"] * seconds < 0.8
    assert all(0.05 < row["train/memory_gb"] < 50 for row in rows)
    assert rows[0]["train/device_days"] < rows[1]["train/device_days"] < 1 / 24
    patches, hidden, tokens, channels, blocks = 64, 64, 32, 256, 4
    forward = patches * 3 * hidden + hidden * 10
    forward += blocks * 2 * (hidden * patches * tokens + patches * hidden * channels)
    for row in rows:  # of a device of 10^9 multiply-accumulates a second
        expected = row["train/images_per_second"] * 3 * forward / 1e9
        assert row["train/mfu"] == pytest.approx(expected, rel=1e-9)
    result = results.read_result(tmp_path / "run")
    assert result is not None
    assert not set(result["metrics"]) & set(results.PACE)
