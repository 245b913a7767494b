"""What a run is told about its machine: by a launcher's environment, by the processor, by the user."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from lightning.pytorch.plugins.environments import SLURMEnvironment
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from conftest import TINY
from mixer_lightning import launcher
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine import machine, setup, training
from mixer_lightning.engine.machine import Machine
from mixer_lightning.screen import Screen

TORCHRUN = {"WORLD_SIZE": "32", "RANK": "19", "LOCAL_RANK": "3", "LOCAL_WORLD_SIZE": "8"}
SRUN = {"SLURM_NTASKS": "16", "SLURM_PROCID": "9", "SLURM_LOCALID": "1", "SLURM_NTASKS_PER_NODE": "8"}
SRUN |= {"SLURM_STEP_ID": "0"}


def test_restarts_of_several_nodes_need_stores_of_their_own(monkeypatch):
    """As torchrun sets it; with the shared store two of two restarts failed (tests/engine/test_hosts.py)."""
    for key, value in (TORCHRUN | {"TORCHELASTIC_RUN_ID": "a", "GROUP_WORLD_SIZE": "4"}).items():
        monkeypatch.setenv(key, value)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "0")
    assert Machine(accelerator="cpu", devices=None).world_size == 32
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    with pytest.raises(ValueError, match="TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every node"):
        _ = Machine(accelerator="cpu", devices=None).world_size
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "False")
    assert Machine(accelerator="cpu", devices=None).world_size == 32


SRUN_OF_TWO = {
    "SLURM_JOB_NAME": "night",
    "SLURM_NTASKS": "2",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_NTASKS_PER_NODE": "2",
    "SLURM_STEP_ID": "0",
}


@pytest.fixture(autouse=True)
def _no_launcher(monkeypatch):
    for name in list(os.environ):
        if name.startswith("SLURM_") or name in {*TORCHRUN, "MASTER_ADDR", "MASTER_PORT", "GROUP_RANK"}:
            monkeypatch.delenv(name)


def launch(monkeypatch: pytest.MonkeyPatch, env: dict[str, str]) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)


def place(one: Machine) -> tuple[int, int, int, int, int]:
    return one.world_size, one.rank, one.local_rank, one.local_world_size, one.num_nodes


def test_one_process_without_a_launcher():
    assert place(Machine(accelerator="cpu")) == (1, 0, 0, 1, 1)


@pytest.mark.parametrize(
    ("env", "expected"),
    [
        (TORCHRUN, (32, 19, 3, 8, 4)),
        (TORCHRUN | SRUN, (32, 19, 3, 8, 4)),  # torchrun inside srun: torchrun knows better
        (SRUN, (16, 9, 1, 8, 2)),
    ],
)
def test_the_launcher_says_how_many_and_which(monkeypatch, env, expected):
    launch(monkeypatch, env)
    assert place(Machine(accelerator="cpu", devices=None)) == expected


def test_many_processes_need_a_launcher():
    with pytest.raises(ValueError, match=r"trainer=ddp is started by a launcher.*torchrun --nproc_per_node"):
        _ = Machine(accelerator="cpu", devices=None).world_size


def test_a_stated_number_of_processes_is_the_launchers(monkeypatch):
    with pytest.raises(ValueError, match=r"torchrun --nproc_per_node=8 train\.py"):
        _ = Machine(accelerator="cpu", devices=8).world_size
    launch(monkeypatch, TORCHRUN)
    assert Machine(accelerator="cpu", devices=8).world_size == 32
    with pytest.raises(
        ValueError, match=r"trainer\.devices is 4, and 8 processes were launched on this machine"
    ):
        _ = Machine(accelerator="cpu", devices=4).world_size


def test_processes_without_a_gpu_of_their_own_are_refused(monkeypatch):
    """More of torchrun than there are GPUs; or of srun, each of which sees its own alone, as number 0."""
    launch(monkeypatch, TORCHRUN)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    with pytest.raises(ValueError, match="8 processes were launched on this machine, and each sees 4 GPUs"):
        _ = Machine(devices=None).world_size
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 8)
    assert Machine(devices=None).world_size == 32


def test_many_processes_need_the_trainer_for_them(monkeypatch):
    launch(monkeypatch, TORCHRUN)
    with pytest.raises(
        ValueError, match=r"32 processes were launched for a trainer of one device.*trainer=ddp"
    ):
        _ = Machine(accelerator="cpu").world_size


def test_a_launcher_of_one_process_suits_both_trainers(monkeypatch):
    launch(monkeypatch, {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"})
    for devices in (1, None):
        assert place(Machine(accelerator="cpu", devices=devices)) == (1, 0, 0, 1, 1)


def test_a_gpu_that_is_not_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Machine(accelerator="auto").device_type == "cpu"
    with pytest.raises(ValueError, match=r"trainer\.accelerator is gpu.*trainer=cpu"):
        _ = Machine(accelerator="gpu").device_type


def test_a_gpu_that_is_there(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Machine(accelerator="auto").device_type == Machine(accelerator="gpu").device_type == "cuda"
    assert Machine(accelerator="cpu").device_type == "cpu"


@pytest.mark.parametrize(
    ("gpu", "bf16", "expected"),
    [
        (True, True, "bf16-mixed"),
        (True, False, "16-mixed"),
        (False, True, "bf16-mixed"),
        (False, False, "32-true"),
    ],
)
def test_auto_precision(monkeypatch, gpu, bf16, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpu)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation: bf16 if gpu else not bf16
    )
    monkeypatch.setattr(machine, "cpu_has_bf16", lambda: not bf16 if gpu else bf16)
    assert Machine(precision="auto").chosen_precision == expected
    for said in ("32-true", "bf16-mixed", *(["16-mixed"] if gpu else [])):
        assert Machine(precision=said).chosen_precision == said


def test_float16_on_a_cpu_is_refused_and_not_replaced():
    with pytest.raises(ValueError, match="16-mixed needs a GPU"):
        _ = Machine(accelerator="cpu", precision="16-mixed").chosen_precision


def test_a_slurm_job_of_one_task_needs_no_launcher(monkeypatch):
    launch(
        monkeypatch,
        {"SLURM_JOB_ID": "1", "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_JOB_NAME": "train"},
    )
    machine = Machine(accelerator="cpu")
    assert (machine.world_size, machine.rank, machine.local_world_size) == (1, 0, 1)
    assert [type(plugin).__name__ for plugin in machine.plugins()] == ["LightningEnvironment"]


@pytest.mark.parametrize(
    "env",
    [
        {"WORLD_SIZE": "1", "RANK": "0"},  # Kubeflow, SageMaker
        {"WORLD_SIZE": "1", "RANK": "0", "MASTER_ADDR": "host", "MASTER_PORT": "23456"},
        {"RANK": "3"},
        {"RANK": "3", "LOCAL_RANK": "1"},
        {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "1"},  # a shell of salloc
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"},  # sbatch's script
        {
            "SLURM_NTASKS": "4",
            "SLURM_PROCID": "0",
            "SLURM_STEP_ID": "4294967290",
        },  # salloc's interactive step
        {
            "SLURM_NTASKS": "4",
            "SLURM_PROCID": "0",
            "SLURM_STEP_ID": "0",
            "SLURM_PTY_PORT": "33333",
        },  # srun --pty
    ],
)
def test_what_a_platform_or_a_shell_sets_is_no_launcher(monkeypatch, env):
    launch(monkeypatch, env)
    assert place(Machine(accelerator="cpu")) == (1, 0, 0, 1, 1)
    assert launcher.is_first()
    assert not launcher.is_torchrun()
    with pytest.raises(ValueError, match="trainer=ddp is started by a launcher"):
        _ = Machine(accelerator="cpu", devices=None).world_size


def test_several_processes_that_nothing_numbers_are_refused_once(monkeypatch):
    launch(monkeypatch, {"WORLD_SIZE": "2", "RANK": "1"})
    with pytest.raises(
        ValueError, match=r"WORLD_SIZE=2 announces several processes.*unset WORLD_SIZE and RANK"
    ):
        launcher.launched()
    assert not launcher.is_first()


def test_the_variables_of_a_launcher_are_numbers(monkeypatch):
    launch(monkeypatch, TORCHRUN | {"RANK": "first"})
    with pytest.raises(ValueError, match="RANK=first"):
        launcher.launched()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ("fpu vme avx512f avx512_bf16 amx_tile", True),
        ("fpu amx_bf16", True),
        ("fp asimd bf16", True),
        ("fpu avx2 avx512f", False),
        ("fpu avx512_bf16x", False),
        (None, False),
    ],
)
def test_bf16_of_a_processor(monkeypatch, flags, expected):
    def read(self: Path, encoding: str) -> str:
        if flags is None:
            raise FileNotFoundError
        return f"processor : 0\nflags : {flags}\n"

    monkeypatch.setattr(Path, "read_text", read)
    assert machine.cpu_has_bf16() is expected


def test_threads_are_the_cores_that_a_process_may_use(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(24)), raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for accelerator in ("cpu", "gpu"):
        assert Machine(accelerator=accelerator).threads == 24
        assert Machine(accelerator=accelerator, decode_threads=3).threads == 3
        assert Machine(accelerator=accelerator, decode_threads=0).threads == 1  # some thread must do it
    launch(monkeypatch, TORCHRUN)
    assert Machine(accelerator="gpu", devices=None).threads == 3  # 24 cores, 8 processes
    assert Machine(accelerator="gpu", devices=None, decode_threads=7).threads == 7
    launch(monkeypatch, TORCHRUN | {"LOCAL_WORLD_SIZE": "32"})
    assert Machine(accelerator="gpu", devices=None).threads == 1


def test_srun_has_shared_the_cores_out_already(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(6)), raising=False)
    launch(monkeypatch, SRUN)
    assert Machine(accelerator="cpu", devices=None).threads == 6


def test_a_system_that_does_not_tell_which_cores(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 10)
    assert Machine(accelerator="cpu").threads == 10


def test_batches_are_made_ahead_beside_a_gpu_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Machine(accelerator="cpu").batches_ahead == 0
    assert Machine(accelerator="gpu").batches_ahead > 0


def test_the_gpu_that_decodes_is_the_process_own(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert Machine(accelerator="gpu").decode_device is None
    assert Machine(accelerator="gpu", decode="gpu").decode_device == torch.device("cuda", 0)
    launch(monkeypatch, TORCHRUN)
    assert Machine(accelerator="gpu", devices=None, decode="gpu").decode_device == torch.device("cuda", 3)
    with pytest.raises(ValueError, match=r"trainer\.decode is gpu.*trainer\.decode=cpu"):
        _ = Machine(accelerator="cpu", decode="gpu").decode_device


def test_strategies(monkeypatch):
    assert isinstance(Machine(accelerator="cpu").strategy(), SingleDeviceStrategy)
    launch(monkeypatch, TORCHRUN)
    strategy = Machine(accelerator="cpu", devices=None, process_timeout_minutes=3).strategy()
    assert isinstance(strategy, DDPStrategy)
    assert strategy._timeout.total_seconds() == 180


def test_the_machine_as_text(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    assert str(Machine(accelerator="cpu", precision="32-true")) == "cpu, 2 threads, float32"
    launch(monkeypatch, TORCHRUN)
    words = str(Machine(accelerator="cpu", precision="bf16-mixed", devices=None))
    assert words == "cpu, 2 threads, bf16, 32 processes"


def plugins(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *words: str) -> Any:
    """What Lightning's Trainer is given as cluster environment, under the present environment."""

    class Caught(Exception):
        pass

    given: dict[str, Any] = {}

    def trainer(**options: Any) -> None:
        given.update(options)
        raise Caught

    monkeypatch.setattr(setup, "Trainer", trainer)
    recipe = compose_one("train", [*TINY, "trainer=ddp", "trainer.accelerator=cpu", *words])
    with pytest.raises(Caught):
        training.ready(recipe, tmp_path, Screen(silent=True))
    assert given["num_nodes"] == 1
    return given["plugins"]


def test_srun_is_left_to_requeue_by_itself(monkeypatch, tmp_path):
    launch(monkeypatch, SRUN_OF_TWO)
    (plugin,) = plugins(monkeypatch, tmp_path)
    assert isinstance(plugin, SLURMEnvironment)
    assert plugin.auto_requeue is False


def test_torchrun_inside_srun_says_the_ranks(monkeypatch, tmp_path):
    launch(
        monkeypatch, SRUN_OF_TWO | {"SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_NTASKS_PER_NODE": "1"}
    )
    launch(monkeypatch, {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"})
    launch(monkeypatch, {"TORCHELASTIC_RUN_ID": "1", "GROUP_RANK": "0"})
    assert not plugins(monkeypatch, tmp_path)


def test_srun_without_the_tasks_per_node_is_a_mistake_of_the_user(monkeypatch, tmp_path):
    launch(monkeypatch, {k: v for k, v in SRUN_OF_TWO.items() if k != "SLURM_NTASKS_PER_NODE"})
    with pytest.raises(ValueError, match="--ntasks-per-node"):
        plugins(monkeypatch, tmp_path)


def test_freed_memory_is_kept_for_the_next_step() -> None:
    """Blocks of 64 MiB cause page faults every time under malloc's defaults, and once where freed memory is kept."""
    program = """
import resource, sys, torch
from mixer_lightning.engine.machine import Machine, keep_freed_memory
if not keep_freed_memory(False):
    sys.exit("no glibc")
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(4):
        torch.ones(16 * 2**20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
given_back = faults()
Machine(accelerator="cpu").configure_torch()
faults()
print(given_back, faults())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    if "no glibc" in done.stderr:
        pytest.skip("malloc here is not glibc's")
    given_back, kept = map(int, done.stdout.split())
    assert kept < given_back / 10, done.stderr


def test_tiny_numbers_are_0_in_every_thread_of_a_run_on_a_cpu() -> None:
    """Subnormal numbers, of which a CPU multiplies one in some hundred cycles: also in the threads of an operation."""
    program = """
import threading, torch
from mixer_lightning.engine.machine import Machine
torch.set_num_threads(4)
Machine(accelerator="cpu").configure_torch()
def left():
    print(int(torch.full((4_000_000,), 1e-39).mul(1.0).view(torch.int32).count_nonzero()))
left()
other = threading.Thread(target=left)
other.start()
other.join()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["0", "0"]
