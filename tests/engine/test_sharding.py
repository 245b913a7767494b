"""FSDP2 on two processes (gloo, CPU) trains what one process trains, and its checkpoints in parts are whole for all."""

from __future__ import annotations

import shutil
import socket
from pathlib import Path

import pytest
import torch
from test_distributed import finish, rows, start

from conftest import TINY
from mixer_lightning import results
from mixer_lightning.checkpoints import sharded, torch_file
from mixer_lightning.checkpoints.read import read
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine.checkpoint import read_last
from mixer_lightning.engine.run import train

WORDS = (
    "device_batch=30",
    "stochastic_depth=0.2",
    "clip_grad_norm=1.0",
    "optimizer.weight_decay=0.1",
    "schedule=constant",
)

RECOMPUTED = "trainer.activation_checkpointing=true"

#: In both processes: a run, and one that is asked to stop after step 7, is copied, and goes on.
RUNS = """
import os, shutil, signal, sys, threading
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageWriter
from mixer_lightning import stopping
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine import run
from mixer_lightning.engine.callbacks import MetricsLog
from mixer_lightning.engine.distributed import gather_objects
from pathlib import Path
*words, ports = [word for word in sys.argv[1:] if not word.startswith("hydra.")]
ports = ports.split(",")
def train(run_dir, *more):
    os.environ["MASTER_PORT"] = ports.pop()  # the store of the run before may still be there
    return run.train(compose_one("train", [*words, *more]), Path(run_dir))
assert train("whole") == 0
on_step = MetricsLog.on_step
def asked(self, trainer, module):
    on_step(self, trainer, module)
    if module.step == 7:
        assert all(type(each).__name__ == "DTensor" for each in module.model.parameters())
        os.kill(os.getpid(), signal.SIGTERM)
MetricsLog.on_step = asked
assert train("stopped") == 143
if os.environ["RANK"] == "0":
    shutil.copytree("stopped", "copied")
MetricsLog.on_step = on_step
assert train("stopped") == 0
# The files of step 6 are written after step 8; the disk of one process is full at the last step.
write_data, stepped = HuggingFaceStorageWriter.write_data, threading.Event()
def late(self, plan, planner):
    assert stepped.wait(300)
    if "shards-00000012" in str(self.path) and os.environ["RANK"] == "1":
        raise OSError(28, "No space left on device")
    return write_data(self, plan, planner)
def reached(self, trainer, module):
    on_step(self, trainer, module)
    if module.step == 8:
        assert not Path("late/last.ckpt").exists()
        stepped.set()
MetricsLog.on_step, HuggingFaceStorageWriter.write_data = reached, late
assert train("late", "checkpoint_every.steps=6") == 1
MetricsLog.on_step, HuggingFaceStorageWriter.write_data = on_step, write_data
assert train("late", "checkpoint_every.steps=6") == 0
"""


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fsdp")
    ports = ",".join(str(free_port()) for _ in range(5))
    processes = start(folder, "unused", *WORDS, "trainer.fully_shard=true", ports, program=("-c", RUNS))
    assert finish(processes) == [0, 0]
    return folder


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return sharded.load(run_dir / results.LAST)["state_dict"]


def test_two_processes_train_what_one_does(trained, tmp_path):
    """To rounding: one sums gradients over its micro-batches, two over each other."""
    assert train(compose_one("train", [*TINY, *WORDS]), tmp_path / "one") == 0
    expected = torch.load(tmp_path / "one" / results.LAST, weights_only=True)["state_dict"]
    found = weights(trained / "whole")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)
    for got, want in zip(rows(trained / "whole"), rows(tmp_path / "one"), strict=True):
        assert got == pytest.approx(want, rel=1e-3)


def test_a_run_that_was_stopped_ends_with_the_same_bits(trained):
    whole, stopped = (sharded.load(trained / name / results.LAST) for name in ("whole", "stopped"))
    for name, value in whole["state_dict"].items():
        assert torch.equal(stopped["state_dict"][name], value), name
    for number, slots in whole["optimizer"]["state"].items():
        assert {"step", "exp_avg", "exp_avg_sq"} == slots.keys()
        for name, value in slots.items():
            assert torch.equal(stopped["optimizer"]["state"][number][name], value), (number, name)
    assert rows(trained / "stopped") == rows(trained / "whole")


def test_steps_go_on_while_a_checkpoint_is_written(trained):
    """It holds the step that it is of. Where a process cannot write its part, all end, and the one before stands."""
    log = (trained / "late" / results.LOG).read_text()
    assert (
        "process 1: [Errno 28] No space left on device. The checkpoint that stood there before is intact"
        in log
    )
    assert "The last good checkpoint, step 6, stands in late/last.ckpt" in log
    assert "resuming late at step 6 of 12" in log
    expected = weights(trained / "whole")
    for name, value in weights(trained / "late").items():
        assert torch.equal(value, expected[name]), name


def test_one_process_goes_on_from_two(trained, tmp_path):
    shutil.copytree(trained / "copied", tmp_path / "run")
    assert train(compose_one("train", [*TINY, *WORDS]), tmp_path / "run") == 0
    expected = weights(trained / "whole")
    for name, value in torch.load(tmp_path / "run" / results.LAST, weights_only=True)["state_dict"].items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-5)


def test_last_and_the_one_before_are_kept_in_parts_of_all_processes(trained, tmp_path, caplog):
    """Each part has a checksum: where one is damaged, the checkpoint before it is taken."""
    run_dir = shutil.copytree(trained / "copied", tmp_path / "run")
    state = torch_file.load(run_dir / results.LAST)
    assert state["state_dict"] == {}
    assert all(slots.keys() == {"step"} for slots in state["optimizer"]["state"].values())
    folders = sorted(path.name for path in run_dir.glob("shards-*"))
    assert [name.split("-")[1] for name in folders] == ["00000006", "00000007"]
    parts = sorted((run_dir / folders[1]).iterdir())
    assert [path.name[:11] for path in parts] == ["shard-00001", "shard-00002"]
    assert read_last(run_dir)[1]["step"] == 7
    content = bytearray(parts[1].read_bytes())
    content[-5] ^= 1
    parts[1].write_bytes(content)
    path, state = read_last(run_dir)
    assert (path.name, state["step"]) == (results.PREVIOUS, 6)
    assert f"its part {parts[1]} is not what was written" in caplog.text
    parts[0].unlink()
    with pytest.raises(torch_file.Damaged, match=r"shard-00001.* is gone"):
        sharded.load(run_dir / results.LAST)
    # A finished run has one, and the averaged or best weights in a file of their own.
    assert len(list((trained / "whole").glob("shards-*"))) == 1


def test_every_command_reads_them_as_one(trained):
    """So `mixer export checkpoint=<run>/last.ckpt` makes one file of them."""
    found = weights(trained / "whole")
    for name in (results.LAST, results.BEST):
        tensors = read(trained / "whole" / name).tensors
        assert {f"model.{key}" for key in tensors} == found.keys()
        assert all(torch.equal(tensors[key.removeprefix("model.")], value) for key, value in found.items())


def test_parts_lie_beside_their_checkpoint(tmp_path):
    """A checkpoint of a stranger names no file elsewhere."""
    torch.save({"shards": {"folder": "../shards-1", "files": {}}}, tmp_path / results.LAST)
    with pytest.raises(ValueError, match="names parts outside its folder"):
        sharded.load(tmp_path / results.LAST)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["optimizer=lamb"], "optimizer Lamb takes norms of whole tensors"),
        (["ema_decay=0.9"], "keeps no average of the weights: use ema_decay=null"),
        (["trainer.compile=true"], "trainer.compile=true is not for shared-out parameters"),
        (["callbacks=kept_checkpoints"], "callbacks.kept_checkpoints saves or averages weights by itself"),
        (["model=convmixer_96_4", RECOMPUTED], "BatchNorm would count every batch twice"),
        (["model=lenet_5", "image_size=32", RECOMPUTED], "LeNet5 does not say what its blocks are"),
    ],
)  # fmt: skip
def test_what_cannot_be_shared_out_is_refused(tmp_path, capsys, words, said):
    recipe = compose_one("train", [*TINY, "trainer.fully_shard=true", *words])
    assert train(recipe, tmp_path / "run") == 2
    assert said in capsys.readouterr().out


def test_recomputed_blocks_give_the_same_bits(tmp_path):
    """The branches that are dropped are the same in both passes."""
    for name, words in (("kept", []), ("recomputed", [RECOMPUTED])):
        recipe = compose_one("train", [*TINY, "duration.steps=3", "stochastic_depth=0.5", *words])
        assert train(recipe, tmp_path / name) == 0
    kept = torch.load(tmp_path / "kept" / results.LAST, weights_only=True)["state_dict"]
    again = torch.load(tmp_path / "recomputed" / results.LAST, weights_only=True)["state_dict"]
    assert all(torch.equal(again[key], value) for key, value in kept.items())
