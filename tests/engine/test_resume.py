"""Stop anywhere, go on, and end with the bits of an undisturbed run."""

from __future__ import annotations

import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import Forked
from PIL import Image

from conftest import ROOT, TINY
from mixer_lightning import results, stopping
from mixer_lightning.api import create_model
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine.callbacks import MetricsLog, Progress
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.engine.run import finetune, train
from mixer_lightning.files import lock_run_dir

#: With all that a checkpoint must hold: BatchNorm, an average, accumulation, dropped branches, mixing.
RICH = (
    *TINY,
    "model=convmixer_96_4",
    "device_batch=30",
    "ema_decay=0.9",
    "stochastic_depth=0.2",
    "augment.mixup=0.5",
    "augment.erase=0.25",
    "augment.rand_augment=rand-m9-n2",
)


def outcome(run_dir: Path) -> tuple[dict, list[dict]]:
    rows = results.read_metrics(run_dir)
    for row in rows:
        for key in results.PACE:
            row.pop(key, None)
    state = torch.load(run_dir / results.LAST, weights_only=True)
    return state, rows


def assert_same(got: Path, expected: Path) -> None:
    (a, rows_a), (b, rows_b) = outcome(got), outcome(expected)
    assert rows_a == rows_b
    for part in ("state_dict", "ema"):
        for name, value in b.get(part, {}).items():
            assert torch.equal(a[part][name], value), name
    assert a["step"] == b["step"]
    for i, state in b["optimizer"]["state"].items():
        for name, value in state.items():
            assert torch.equal(a["optimizer"]["state"][i][name], value), (i, name)
    for each in (a, b):
        each["metrics"] = {
            k: v for k, v in each["metrics"].items() if "second" not in k and k not in results.PACE
        }
    assert a["metrics"] == b["metrics"]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("undisturbed") / "run"
    assert train(compose_one("train", RICH), run_dir) == 0
    return run_dir


@pytest.mark.parametrize(
    ("step", "number", "code"),
    [(1, signal.SIGTERM, 143), (5, signal.SIGUSR1, 143), (6, signal.SIGINT, 130), (11, signal.SIGTERM, 143)],
)
def test_asked_to_stop_at_any_step(tmp_path, undisturbed, monkeypatch, step, number, code):
    recipe = compose_one("train", RICH)
    on_step = MetricsLog.on_step

    def interrupted(self, trainer, module):
        on_step(self, trainer, module)
        if module.step == step:
            signal.raise_signal(number)

    monkeypatch.setattr(MetricsLog, "on_step", interrupted)
    assert train(recipe, tmp_path / "run") == code
    monkeypatch.undo()
    assert outcome(tmp_path / "run")[0]["step"] == step
    assert train(recipe, tmp_path / "run") == 0
    assert_same(tmp_path / "run", undisturbed)


def test_a_run_whose_parameters_were_grouped_otherwise_is_refused(tmp_path, undisturbed, capsys):
    """As by a version that let all of them decay: before anything is changed."""
    run_dir = tmp_path / "run"
    shutil.copytree(undisturbed, run_dir)
    (run_dir / results.RESULT).unlink()
    state = outcome(run_dir)[0]
    decayed, undecayed = state["optimizer"]["param_groups"]
    sizes = [len(decayed["params"]), len(undecayed["params"])]
    state["optimizer"]["param_groups"] = [decayed | {"params": decayed["params"] + undecayed["params"]}]
    torch.save(state, run_dir / results.LAST)
    before = {path.name: path.read_bytes() for path in run_dir.iterdir()}
    assert train(compose_one("train", RICH), run_dir) == 2
    assert f"as [{sum(sizes)}] by their weight decay; here it is {sizes}" in capsys.readouterr().out
    assert {path.name: path.read_bytes() for path in run_dir.iterdir()} == before


@pytest.mark.parametrize("step", [6, 12])
def test_asked_to_stop_in_an_evaluation(tmp_path, undisturbed, monkeypatch, step):
    """It is broken off after the batch, and made when the run goes on; also the last one, after all steps."""
    recipe = compose_one("train", RICH)
    batches = []
    on_evaluation = Progress.on_evaluation

    def interrupted(self, what, done, total):
        on_evaluation(self, what, done, total)
        batches.append((done, total))
        if done == 2 and self._done == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(Progress, "on_evaluation", interrupted)
    assert train(recipe, tmp_path / "run") == 143
    assert batches[-1] == (2, 12)  # 360 images, 30 at a time
    monkeypatch.undo()
    assert outcome(tmp_path / "run")[0]["step"] == step
    assert not (tmp_path / "run" / results.RESULT).exists()
    assert train(recipe, tmp_path / "run") == 0
    assert_same(tmp_path / "run", undisturbed)


@pytest.mark.parametrize(("number", "code"), [(signal.SIGUSR1, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_before_the_first_step(tmp_path, monkeypatch, capsys, number, code):
    """While images are decoded into memory, which may take long."""
    before = [(each, signal.getsignal(each)) for each in (*stopping.SIGNALS, signal.SIGHUP)]

    def decode(self):
        signal.raise_signal(number)

    monkeypatch.setattr(DataModule, "train_dataloader", decode)
    try:
        stopping.install()
        assert train(compose_one("train", TINY), tmp_path / "run") == code
    finally:
        for each, handler in before:
            signal.signal(each, handler)
    said = capsys.readouterr().out
    assert f"stopped by {signal.Signals(number).name} before another step. Nothing had been saved yet" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("step", [2, 8])
def test_killed_without_a_word(tmp_path, undisturbed, monkeypatch, step):
    """A crash after steps that no checkpoint holds: they are done again, and logged once."""

    class Crash(BaseException):
        pass

    on_step = MetricsLog.on_step

    def crashing(self, trainer, module):
        on_step(self, trainer, module)
        if module.step == step:
            raise Crash

    monkeypatch.setattr(MetricsLog, "on_step", crashing)
    with pytest.raises(Crash):
        train(compose_one("train", RICH), tmp_path / "run")
    monkeypatch.undo()
    assert train(compose_one("train", RICH), tmp_path / "run") == 0
    assert_same(tmp_path / "run", undisturbed)


def test_kill_9_and_the_same_command_again(tmp_path, undisturbed):
    words = [str(ROOT / "train.py"), *RICH, "hydra.run.dir=run"]
    process = Forked(words, cwd=tmp_path, env=os.environ)
    last = tmp_path / "run" / results.LAST
    deadline = time.monotonic() + 300
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert torch.load(last, weights_only=True)["step"] >= 3
    again = Forked(words, cwd=tmp_path, env=os.environ)
    said, _ = again.communicate()
    assert again.returncode == 0, said
    assert "resuming run at step" in said or "has finished" in said
    assert_same(tmp_path / "run", undisturbed)
    assert not [p.name for p in (tmp_path / "run").iterdir() if p.name.startswith(".")]


def test_data_may_move_but_not_become_other_data(tmp_path, capsys):
    """A folder at another place is the same run; another folder of as many classes is not, finished or not."""
    for place, names in (("birds", "ab"), ("moved", "ab"), ("other", "ac"), ("more", "ab")):
        for i in range(16 if place != "more" else 18):
            path = tmp_path / place / ("train" if i < 10 else "val") / names[i % 2] / f"{i}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 9 * i, np.uint8)).save(path)

    def session(place: str) -> int:
        words = (*RICH, "data=folder", f"data.root={tmp_path / place}", "image_size=8", "batch_size=4")
        return train(compose_one("train", [*words, "device_batch=4"]), tmp_path / "run")

    assert session("birds") == 0
    assert session("moved") == 0
    assert "has finished this recipe" in capsys.readouterr().out
    for finished in (True, False):
        if not finished:
            (tmp_path / "run" / results.RESULT).unlink()
        assert session("other") == 2
        assert "on other data: other classes, 'b' there, 'c' here" in capsys.readouterr().out
        assert session("more") == 2
        assert "10 train, 6 val there, 10 train, 8 val here" in capsys.readouterr().out
    for name, to in (("a", "x"), ("b", "a"), ("x", "b")):  # same classes, counts and, of most, names
        (tmp_path / "birds/train" / name).rename(tmp_path / "birds/train" / to)
    assert session("birds") == 2
    assert "on other data: as many train images as here, but others" in capsys.readouterr().out
    assert session("moved") == 0
    assert (tmp_path / "run" / results.RESULT).exists()
    assert session("birds") == 2
    assert "on other data" in capsys.readouterr().out
    shutil.rmtree(tmp_path / "moved")
    assert session("moved") == 0, "a finished run outlives its data"


def test_a_finetuning_outlives_its_checkpoint_and_refuses_another_in_its_place(tmp_path, monkeypatch, capsys):
    """Finished or not, also where it has widened the model for larger images."""
    path, gone, run_dir = tmp_path / "start.pth", tmp_path / "gone.pth", tmp_path / "run"
    torch.save(create_model("mixer_digits", num_classes=7).state_dict(), path)
    words = [*TINY[1:], f"checkpoint={path}", "image_size=16", "duration.steps=4", "device_batch=60"]
    recipe = compose_one("finetune", [*words, "schedule.warmup_steps=1", "evals=none"])
    assert finetune(recipe, tmp_path / "undisturbed") == 0
    with monkeypatch.context() as patch:
        on_step = MetricsLog.on_step

        def interrupted(self, trainer, module):
            on_step(self, trainer, module)
            assert self.macs == 3 * forward
            if module.step == 3:
                signal.raise_signal(signal.SIGTERM)

        forward = 256 * 3 * 64 + 64 * 10 + 4 * 2 * (64 * 256 * (4 * 32) + 256 * 64 * 256)
        patch.setattr(MetricsLog, "on_step", interrupted)
        assert finetune(recipe, run_dir) == 143
    path.rename(gone)
    path.write_bytes(b"others")
    assert finetune(recipe, run_dir) == 2
    assert "was begun with other weights than" in capsys.readouterr().out
    path.unlink()
    assert finetune(recipe, run_dir) == 0
    assert_same(run_dir, tmp_path / "undisturbed")
    assert finetune(recipe, run_dir) == 0
    assert "has finished this recipe" in capsys.readouterr().out
    path.write_bytes(b"others")
    assert finetune(recipe, run_dir) == 2
    assert "was begun with other weights than" in capsys.readouterr().out
    gone.replace(path)
    assert finetune(recipe, run_dir) == 0


def test_threads_bad_images_and_sessions_change_nothing(tmp_path, monkeypatch):
    """Photographs of many sizes are decoded anew each time; each session finds out that two are damaged."""
    for i in range(40):
        path = tmp_path / "photos" / ("train" if i < 30 else "val") / ("cats", "dogs")[i % 2] / f"{i}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        noise = np.random.default_rng(i).integers(0, 256, (9 + i % 5, 14 - i % 3, 3), dtype=np.uint8)
        Image.fromarray(noise).save(path)
        if i in (3, 20):
            path.write_bytes(path.read_bytes()[:200])
    words = (*RICH, "data=folder", f"data.root={tmp_path / 'photos'}", "image_size=8", "max_bad_fraction=0.1")
    words = (*words, "batch_size=12", "device_batch=6", "augment.crop=random_resized", "augment.flip=0.5")
    one, three = (compose_one("train", [*words, f"trainer.decode_threads={n}"]) for n in (1, 3))
    on_step = MetricsLog.on_step

    def interrupted(self, trainer, module):
        on_step(self, trainer, module)
        if module.step == 7:
            signal.raise_signal(signal.SIGTERM)

    assert train(one, tmp_path / "whole") == 0
    monkeypatch.setattr(MetricsLog, "on_step", interrupted)
    assert train(three, tmp_path / "run") == 143
    monkeypatch.undo()
    assert train(three, tmp_path / "run") == 0
    assert_same(tmp_path / "run", tmp_path / "whole")


def test_the_layout_of_the_weights_may_change_between_sessions(tmp_path, undisturbed, monkeypatch):
    """Fused optimisers walk over memory: their state must follow the layout of the weights."""
    on_step = MetricsLog.on_step

    def interrupted(self, trainer, module):
        on_step(self, trainer, module)
        if module.step == 5:
            signal.raise_signal(signal.SIGTERM)

    words = (*TINY, "model=convmixer_96_4", "optimizer.eps=1e-3")
    assert train(compose_one("train", words), tmp_path / "whole") == 0
    monkeypatch.setattr(MetricsLog, "on_step", interrupted)
    assert train(compose_one("train", words), tmp_path / "run") == 143
    monkeypatch.undo()
    assert train(compose_one("train", [*words, "trainer.channels_last=false"]), tmp_path / "run") == 0
    for name, value in outcome(tmp_path / "whole")[0]["state_dict"].items():
        torch.testing.assert_close(
            outcome(tmp_path / "run")[0]["state_dict"][name], value, rtol=1e-2, atol=1e-4
        )


def test_two_at_once_in_one_directory_are_refused(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    with lock_run_dir(tmp_path / "run"):
        assert train(compose_one("train", TINY), tmp_path / "run") == 2
    assert "another process is at work in" in capsys.readouterr().out
    assert train(compose_one("train", TINY), tmp_path / "run") == 0


def test_a_damaged_checkpoint_is_named(tmp_path, undisturbed):
    recipe = compose_one("train", RICH)
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    (run_dir / results.LAST).write_bytes((undisturbed / results.LAST).read_bytes()[:1000])
    assert train(recipe, run_dir) == 2


def test_the_machine_may_change_between_sessions_but_not_the_recipe(tmp_path, capsys):
    assert train(compose_one("train", TINY), tmp_path / "run") == 0
    assert train(compose_one("train", [*TINY, "trainer.decode_threads=1"]), tmp_path / "run") == 0
    assert "has finished" in capsys.readouterr().out
    assert train(compose_one("train", [*TINY, "optimizer.lr=0.5"]), tmp_path / "run") == 2
    assert "optimizer.lr: 0.001 there, 0.5 here" in capsys.readouterr().out
