"""Two processes (gloo, CPU) do what one does."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from forks import Forked

from conftest import ROOT, TINY
from mixer_lightning import results


def start(
    folder: Path,
    run: str,
    *words: str,
    processes: int = 2,
    per_rank: dict[int, list[str]] | None = None,
    program: tuple[str, ...] = (str(ROOT / "train.py"),),
) -> list[Forked]:
    """The processes that torchrun would start, but each in our hands."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    started = []
    for rank in range(processes):
        env = os.environ | {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(processes),
            "LOCAL_WORLD_SIZE": str(processes),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": port,
            "TORCHELASTIC_RUN_ID": "test",
            "GROUP_RANK": "0",
        }
        command = [*program, *TINY, "trainer=ddp", "trainer.accelerator=cpu"]
        command += ["trainer.precision=32-true", f"hydra.run.dir={run}", *words]
        command += (per_rank or {}).get(rank, [])
        started.append(Forked(command, cwd=folder, env=env))
    return started


def finish(processes: list[Forked], *, timeout: float = 600) -> list[int]:
    try:
        texts = [process.communicate(timeout=timeout)[0] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        raise
    print("\n".join(texts))
    return [process.returncode for process in processes]


def one(folder: Path, run: str, *words: str) -> None:
    argv = [str(ROOT / "train.py"), *TINY, f"hydra.run.dir={run}", *words]
    assert finish([Forked(argv, cwd=folder, env=os.environ)]) == [0]


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return torch.load(run_dir / results.LAST, weights_only=True)["state_dict"]


def rows(run_dir: Path) -> list[dict[str, float]]:
    found = results.read_metrics(run_dir)
    return [{k: v for k, v in row.items() if k not in results.PACE} for row in found]


@pytest.mark.slow
def test_two_processes_equal_one_that_accumulates(tmp_path):
    words = [
        "optimizer=sgd",
        "optimizer.lr=0.1",
        "device_batch=15",
        "stochastic_depth=0.2",
        "augment.mixup=0.5",
        "ema_decay=0.9",
        "evals=[accuracy,macro,metrics]",
    ]
    one(tmp_path, "one", *words)
    assert finish(start(tmp_path, "two", *words)) == [0, 0]
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=1e-4, atol=1e-6)
    for got, want in zip(rows(tmp_path / "two"), rows(tmp_path / "one"), strict=True):
        assert got == pytest.approx(want, rel=1e-4)


#: A callback ends the training at step 2, and the disk is slower than the patience with a process that has ended.
IMPATIENT = """
import sys, time
from mixer_lightning.cli import start
from mixer_lightning.engine import presence
from mixer_lightning.engine.callbacks import MetricsLog
from mixer_lightning.engine import checkpoint
presence.GRACE_SECONDS, write, heard = 0.2, checkpoint.atomic_write, MetricsLog.on_step
def slowly(*given, **named):
    time.sleep(2.5)
    return write(*given, **named)
def end(self, trainer, module):
    heard(self, trainer, module)
    trainer.should_stop = module.step == 2
checkpoint.atomic_write, MetricsLog.on_step = slowly, end
sys.exit(start.start("train"))
"""


@pytest.mark.slow
def test_a_callback_that_ends_the_training_ends_it_after_the_save(tmp_path):
    processes = start(tmp_path, "two", "device_batch=30", program=("-c", IMPATIENT))
    assert finish(processes) == [1, 1]
    assert torch.load(tmp_path / "two" / results.LAST, weights_only=True)["step"] == 2


@pytest.mark.slow
def test_one_of_two_is_asked_to_stop_and_one_process_goes_on(tmp_path):
    words = ["optimizer=sgd", "device_batch=30", "duration.steps=40", "checkpoint_every.steps=4"]
    words += ["trainer.decode_threads=2"]
    processes = start(tmp_path, "two", *words)
    last = tmp_path / "two" / results.LAST
    deadline = time.monotonic() + 300
    while not last.exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    # As launchers do: the whole process group. The other rank must hear of it.
    os.killpg(processes[1].pid, signal.SIGTERM)
    assert finish(processes) == [143, 143]
    step = torch.load(last, weights_only=True)["step"]
    assert 4 <= step < 40
    one(tmp_path, "two", *words)  # the same global batches on another number of processes
    one(tmp_path, "one", *words)
    for name, value in weights(tmp_path / "one").items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=1e-3, atol=1e-5)


STOPPING = (
    "device_batch=30",
    "train_split=train[:90%]",
    "val_split=train[90%:]",
    "callbacks=[early_stopping,kept_checkpoints]",
    "callbacks.early_stopping.patience=2",
    "callbacks.early_stopping.min_delta=1.0",  # nothing becomes better: it stops at the third evaluation
    "callbacks.kept_checkpoints.every_n_train_steps=4",
    "duration.steps=40",
    "eval_every.steps=3",
    "checkpoint_every.steps=1000",
    "trainer.decode_threads=1",
)

#: In the process of rank 1, SIGTERM comes in the middle of the second evaluation.
STOPPED_WITHIN_AN_EVALUATION = """
import os, signal, sys
from mixer_lightning.cli import start
from mixer_lightning.engine.callbacks import Evaluations
heard = Evaluations._on_batch
def asked(self, what, done, total):
    self.batches = getattr(self, "batches", 0) + 1
    if os.environ["RANK"] == "1" and self.metrics.steps_timed == 6 and done == 1:
        print("asked", what, flush=True)
        os.kill(os.getpid(), signal.SIGTERM)
    elif self.metrics.steps_timed == 6 and done > 1:
        print("went on", flush=True)
    heard(self, what, done, total)
Evaluations._on_batch = asked
sys.exit(start.start("train"))
"""


@pytest.mark.slow
def test_an_early_stop_ends_all_processes_and_a_stop_within_an_evaluation_changes_no_bit(tmp_path, capsys):
    assert finish(start(tmp_path, "whole", *STOPPING)) == [0, 0]
    result = results.read_result(tmp_path / "whole")
    assert result is not None
    assert result["steps"] == 9
    assert "did not improve" in result["ended_early"]
    kept = {"step_00000004.ckpt", "step_00000008.ckpt"}
    assert {path.name for path in (tmp_path / "whole" / "checkpoints").iterdir()} == kept
    evaluated = [row["step"] for row in rows(tmp_path / "whole") if "val/top1" in row]
    assert evaluated == [3, 6, 9]
    capsys.readouterr()

    program = ("-c", STOPPED_WITHIN_AN_EVALUATION)
    assert finish(start(tmp_path, "run", *STOPPING, program=program)) == [143, 143]
    said = capsys.readouterr().out
    assert "asked " in said
    assert "went on" not in said
    state = torch.load(tmp_path / "run" / results.LAST, weights_only=True)
    assert (state["step"], state["evaluation_due"]) == (6, True)
    # Saved after each step from here on, by the clock of the first process alone.
    assert finish(start(tmp_path, "run", *STOPPING, "checkpoint_minutes=1e-7")) == [0, 0]
    for name, value in weights(tmp_path / "whole").items():
        assert torch.equal(weights(tmp_path / "run")[name], value), name
    assert {path.name for path in (tmp_path / "run" / "checkpoints").iterdir()} == kept
    assert rows(tmp_path / "run") == rows(tmp_path / "whole")
    again = results.read_result(tmp_path / "run")
    assert again is not None
    assert (again["steps"], again["best"]) == (9, result["best"])


def evaluate(state: dict[str, torch.Tensor]) -> float:
    from mixer_lightning import create_model
    from mixer_lightning.data.sources.digits import digits
    from mixer_lightning.data.transforms import Augment

    model = create_model("convmixer_96_4", num_classes=10).eval()
    model.load_state_dict(state)
    test = digits().splits["test"]
    everything = np.arange(len(test))
    images = torch.from_numpy(np.stack([test.read(i) for i in everything])).permute(0, 3, 1, 2)
    with torch.no_grad():
        logits = model(Augment().eval_batch(images))
    return float((logits.argmax(-1) == torch.from_numpy(test.labels(everything))).double().mean())


@pytest.mark.slow
def test_batch_norm_statistics_are_the_mean_of_the_processes(tmp_path):
    words = ["model=convmixer_96_4", "device_batch=30", "ema_decay=0.5"]
    assert finish(start(tmp_path, "two", *words)) == [0, 0]
    one(tmp_path, "one", *words)
    (result,) = (results.read_result(tmp_path / "two"),)
    assert result is not None
    # The averaged network evaluated alone from its file, all of its statistics being those of both processes.
    two = torch.load(tmp_path / "two" / results.LAST, weights_only=True)
    assert evaluate(two["ema"]) == pytest.approx(result["metrics"]["test/top1"], abs=1e-6)
    for name, value in weights(tmp_path / "one").items():
        if name.endswith(("weight", "bias")):
            torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=1e-2, atol=1e-4)
        elif name.endswith("running_mean"):
            # one process updates its statistics by both micro_batches of a step, each of two by its own chunk
            assert torch.nn.functional.cosine_similarity(weights(tmp_path / "two")[name], value, dim=0) > 0.9


@pytest.mark.slow
def test_processes_with_different_recipes_are_refused(tmp_path):
    processes = start(tmp_path, "two", "device_batch=30", per_rank={1: ["optimizer.lr=0.02"]})
    codes = finish(processes)
    assert all(code != 0 for code in codes)
    assert "another recipe than process 0" in (tmp_path / "two" / results.LOG).read_text()


def test_lightning_still_has_the_question_that_a_run_silences():
    """training.py replaces this private method: another Lightning may name it otherwise, and ask at every batch."""
    from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop

    assert callable(_TrainingEpochLoop._broadcast_sigterm_tensor)


@pytest.mark.slow
def test_two_processes_train_on_a_stream_and_one_goes_on(tmp_path, capfd):
    for name, count in (("x-0", 40), ("x-1", 30), ("x-2", 50), ("val-0", 20)):
        with webdataset.TarWriter(str(tmp_path / f"{name}.tar")) as tar:
            for number in range(count):
                pixels = np.full((8, 8, 3), 25 * (number % 10), np.uint8)
                tar.write({"__key__": f"{name}{number:03d}", "png": pixels, "cls": number % 10})
    (tmp_path / "names.txt").write_text("\n".join(map(str, range(10))))
    words = [
        *("data=stream", "data.root=.", "data.train=x-{0..2}.tar", "data.classes=names.txt", "image_size=8"),
        *(
            "data.samples_per_epoch=120",
            "schedule=constant",
            "eval_every.steps=2",
            "checkpoint_every.steps=2",
        ),
    ]
    assert finish(start(tmp_path, "run", *words, "duration.steps=2")) == [0, 0]
    said = capfd.readouterr().out
    assert said.count("training reads a stream of 3 shards: an epoch is 120 samples by count") == 1
    first = weights(tmp_path / "run")
    one(tmp_path, "run", *words, "duration.steps=4")
    state = torch.load(tmp_path / "run" / results.LAST, weights_only=True)
    assert state["step"] == 4
    assert any((state["state_dict"][name] != value).any() for name, value in first.items())
    steps = [row["step"] for row in results.read_metrics(tmp_path / "run") if "val/top1" in row]
    assert steps == [2, 4]
