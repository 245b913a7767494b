"""The machine of a run: devices, precision, memory layout, processes. Never part of the recipe."""

from __future__ import annotations

import contextlib
import ctypes
import datetime
import os
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.utilities.rank_zero import rank_zero_only
from lightning.pytorch.profilers import Profiler, PyTorchProfiler, SimpleProfiler
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy, SingleDeviceStrategy, Strategy
from torch import nn

from mixer_lightning.launcher import ALONE, is_torchrun, launched, shares_cores
from mixer_lightning.ranges import PositiveFloat, PositiveInt

Precision = Literal["32-true", "bf16-mixed", "16-mixed"]


@dataclass(frozen=True, kw_only=True)
class Machine:
    """Where and how a run computes.

    accelerator: auto takes a GPU where there is one.
    devices: 1; or null for one device per process under torchrun or srun; a number is how many processes each job of a
        sweep or search is given, and under a launcher what it must have started on a machine.
    precision: auto is bf16-mixed on GPUs and on CPUs with bf16 instructions, else 32-true.
    channels_last: null leaves it to the model (ConvMixer gains, Mixer does not).
    compile: torch.compile of the forward and backward pass and of evaluations; takes a minute at the start of each.
    decode_threads: threads per device that read and decode images; null is all cores of this process. On a CPU they
        work between the steps, on a GPU beside them.
    decode: "gpu" lets the GPU decode JPEGs (nvJPEG) and resize, for machines with few CPU cores; its pixels differ
        slightly from the CPU's.
    deterministic: only kernels that give the same bits every time; slower on GPUs.
    process_timeout_minutes: after this long without an answer from another process, the run fails.
    fully_shard: share parameters, gradients and optimiser state out over the processes (FSDP2), for models that are too
        large for one device.
    activation_checkpointing: keep of each block its input alone, and compute the rest anew for the backward pass: less
        memory, about a third more time, the same numbers.
    silence_seconds: a process that has not come, or is not heard of, for so long is given up, and the others end.
    profiler: Lightning's, of a training's session, into the run directory: "simple" sums up seconds of each part,
        "pytorch" traces operators of some steps (torch.profiler), for chrome://tracing.
    """

    accelerator: Literal["auto", "cpu", "gpu"] = "auto"
    devices: PositiveInt | None = 1
    precision: Literal["auto", Precision] = "auto"
    channels_last: bool | None = None
    compile: bool = False
    decode_threads: PositiveInt | None = None
    decode: Literal["cpu", "gpu"] = "cpu"
    deterministic: bool = False
    process_timeout_minutes: PositiveFloat = 10.0
    silence_seconds: PositiveFloat = 45.0
    fully_shard: bool = False
    activation_checkpointing: bool = False
    profiler: Literal["simple", "pytorch"] | None = None

    @property
    def device_type(self) -> Literal["cpu", "cuda"]:
        """The device type.

        Raises:
            ValueError: a GPU is asked for and there is none.
        """
        if self.accelerator == "cpu" or (self.accelerator == "auto" and not torch.cuda.is_available()):
            return "cpu"
        if not torch.cuda.is_available():
            raise ValueError("trainer.accelerator is gpu, but torch sees no GPU here: use trainer=cpu")
        return "cuda"

    @property
    def device(self) -> torch.device:
        """The device of this process."""
        return torch.device("cuda", self.local_rank) if self.device_type == "cuda" else torch.device("cpu")

    @property
    def world_size(self) -> int:
        """Number of processes, as the launcher says; 1 without one.

        Raises:
            ValueError: the trainer wants many processes and there is no launcher, or the reverse; more processes than
                GPUs; or restarts that would fail.
        """
        launch = launched() or ALONE
        if self.devices != 1 and launched() is None:
            raise ValueError(
                "trainer=ddp is started by a launcher, one process per device: "
                f"torchrun --nproc_per_node={self.devices or '<devices>'} train.py trainer=ddp ..."
            )
        if self.devices == 1 and launch.world_size > 1:
            raise ValueError(
                f"{launch.world_size} processes were launched for a trainer of one device: use trainer=ddp"
            )
        if self.devices not in (None, 1, launch.local_world_size):
            raise ValueError(
                f"trainer.devices is {self.devices}, and {launch.local_world_size} processes were launched on this "
                "machine: leave trainer.devices out, or start as many"
            )
        there = torch.cuda.device_count() if self.device_type == "cuda" else 0
        if 0 < there < launch.local_world_size:
            raise ValueError(
                f"{launch.local_world_size} processes were launched on this machine, and each sees {there} GPUs: start "
                "no more (torchrun --nproc_per_node, srun --ntasks-per-node), or let each see all (srun without "
                "--gpus-per-task)"
            )
        env = os.environ
        several, restarts = (
            env.get("GROUP_WORLD_SIZE", "1") != "1",
            env.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0",
        )
        if several and restarts and env.get("TORCHELASTIC_USE_AGENT_STORE") == "True":
            raise ValueError(  # the processes of the next round would look for those of this one
                "torchrun cannot start several nodes anew while it shares one store among its rounds: set "
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE=1 for torchrun on every node, or --max-restarts=0"
            )
        return launch.world_size

    @property
    def rank(self) -> int:
        """Number of this process, 0 ... world_size - 1."""
        return (launched() or ALONE).rank

    @property
    def local_rank(self) -> int:
        """Number of this process on its node."""
        return (launched() or ALONE).local_rank

    @property
    def local_world_size(self) -> int:
        """Processes on this node."""
        return (launched() or ALONE).local_world_size

    @property
    def num_nodes(self) -> int:
        """Number of nodes."""
        return max(1, self.world_size // self.local_world_size)

    @property
    def chosen_precision(self) -> Precision:
        """Precision with `auto` resolved."""
        if self.precision == "16-mixed" and self.device_type == "cpu":
            raise ValueError("trainer.precision=16-mixed needs a GPU: use bf16-mixed or 32-true")
        if self.precision != "auto":
            return self.precision
        if self.device_type == "cuda":
            return "bf16-mixed" if torch.cuda.is_bf16_supported(including_emulation=False) else "16-mixed"
        return "bf16-mixed" if cpu_has_bf16() else "32-true"

    def autocast(self) -> AbstractContextManager[object]:
        """The context of a forward pass at `chosen_precision`, as Lightning makes it for training."""
        dtype = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16}.get(self.chosen_precision)
        return (
            contextlib.nullcontext()
            if dtype is None
            else torch.autocast(self.device_type, dtype, cache_enabled=False)
        )

    def memory_format(self, model: nn.Module) -> torch.memory_format:
        """Layout of images and weights in memory: what the trainer states, else what suits the model."""
        if self.fully_shard:  # which takes contiguous parameters alone
            return torch.contiguous_format
        channels_last = model.channels_last if self.channels_last is None else self.channels_last
        return torch.channels_last if channels_last else torch.contiguous_format

    def place(self, model: nn.Module) -> nn.Module:
        """The model on the device of this process, in its memory format."""
        placed: nn.Module = model.to(self.device).to(memory_format=self.memory_format(model))
        return placed

    def compiled(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """A model, or a method of one, through torch.compile if the machine asks for it."""
        return torch.compile(function) if self.compile else function

    @property
    def threads(self) -> int:
        """Threads of this process that read and decode images."""
        if self.decode_threads is not None:
            return max(1, self.decode_threads)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        return max(1, cores // (self.local_world_size if shares_cores() else 1))

    @property
    def decode_device(self) -> torch.device | None:
        """The GPU that decodes images, if one shall.

        Raises:
            ValueError: it shall, and there is none.
        """
        if self.decode == "cpu":
            return None
        if self.device_type == "cpu":
            raise ValueError("trainer.decode is gpu, but this run has none: use trainer.decode=cpu")
        return self.device

    @property
    def batches_ahead(self) -> int:
        """Batches in the making while one is used: none on a CPU, where decoding and training share the cores."""
        return 0 if self.device_type == "cpu" else 3

    def strategy(self) -> Strategy:
        """Lightning's strategy: one device, FSDP2, or DistributedDataParallel with buffers left to each process."""
        if self.world_size == 1:
            return SingleDeviceStrategy(self.device)
        timeout = datetime.timedelta(minutes=self.process_timeout_minutes)
        if self.fully_shard:  # by Classifier.configure_model
            return ModelParallelStrategy(
                data_parallel_size=self.world_size, tensor_parallel_size=1, timeout=timeout
            )
        return DDPStrategy(
            broadcast_buffers=False,  # BatchNorm statistics are averaged when they are used: see distributed.py
            gradient_as_bucket_view=True,
            timeout=timeout,
        )

    def lightning_profiler(self, run_dir: Path | None) -> Profiler | None:
        """The profiler of a training in `run_dir`, where it writes fit-profile*.txt and a trace; None without."""
        if self.profiler is None or run_dir is None:
            return None
        if self.profiler == "simple":
            return SimpleProfiler(dirpath=run_dir, filename="profile")
        # Its hooks on modules would put PyTorch's operations in the place of our kernels.
        return PyTorchProfiler(dirpath=run_dir, filename="profile", record_module_names=False)

    def plugins(self) -> list[Any]:
        """Lightning's view of the launcher where its own guess would do more than we want."""
        if is_torchrun() or not SLURMEnvironment.detect():
            return []
        return [SLURMEnvironment(auto_requeue=False) if launched() is not None else LightningEnvironment()]

    @staticmethod
    def say_where_to_meet() -> None:
        """Set MASTER_ADDR and MASTER_PORT where they are not: torchrun says where, of srun Lightning knows."""
        if "MASTER_ADDR" not in os.environ:
            slurm = SLURMEnvironment(auto_requeue=False)
            os.environ |= {"MASTER_ADDR": slurm.main_address, "MASTER_PORT": str(slurm.main_port)}

    def init_process_group(self) -> None:
        """Meet the other processes of this run, where Lightning's Trainer does not do so."""
        if self.world_size == 1:
            return
        self.say_where_to_meet()
        if self.device_type == "cuda":
            torch.cuda.set_device(self.local_rank)
        torch.distributed.init_process_group(
            "nccl" if self.device_type == "cuda" else "gloo",
            rank=self.rank,
            world_size=self.world_size,
            timeout=datetime.timedelta(minutes=self.process_timeout_minutes),
        )

    def configure_torch(self) -> None:
        """Process-wide switches: TF32 products for what stays in float32, determinism; on CPUs, freed memory is kept
        and numbers below 1e-38 count as 0.

        A CPU takes some hundred cycles for each such number, and once a network has learnt something they come by the
        million: slopes of GELU far below 0, times small gradients (results/cifar10_cpu.md).
        """
        if self.device_type == "cpu":
            keep_freed_memory()
            torch.set_flush_denormal(True)  # in this thread, and in those that it starts from here on
        # Lightning takes it from variables that a shell may have kept
        rank_zero_only.rank = self.rank  # type: ignore[attr-defined]
        torch.set_float32_matmul_precision("high")
        torch.backends.cudnn.benchmark = not self.deterministic
        torch.use_deterministic_algorithms(self.deterministic)

    def __str__(self) -> str:
        if self.device_type == "cuda":
            device = torch.cuda.get_device_name(self.local_rank)
        else:
            device = f"cpu, {torch.get_num_threads()} threads"
        precision = self.chosen_precision.removesuffix("-mixed").replace("32-true", "float32")
        processes = f", {self.world_size} processes" if self.world_size > 1 else ""
        return f"{device}, {precision}{processes}"


def keep_freed_memory(keep: bool = True) -> bool:
    """Let glibc hand freed memory out again, instead of giving it back to the kernel; False where there is no glibc.

    The activations of a training step on a CPU are larger than the 32 MiB from which on malloc maps fresh pages. The
    kernel clears them one by one, which can take longer than the step's arithmetic (results/cifar_cpu.md).
    `keep=False` is glibc's own way, where its thresholds end up once blocks of 32 MiB have been freed (mallopt(3)).
    """
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, TypeError, AttributeError):  # Windows, macOS, musl
        return False
    trim_threshold, top_pad, mmap_threshold, mmap_max = -1, -2, -3, -4  # malloc.h
    mib = 2**20
    chosen = {mmap_max: 65536, mmap_threshold: 32 * mib, trim_threshold: 64 * mib, top_pad: mib // 8}
    if keep:
        chosen |= {mmap_max: 0, trim_threshold: 2**31 - 1, top_pad: 64 * mib}
    return all(bool(mallopt(name, value)) for name, value in chosen.items())


def cpu_has_bf16() -> bool:
    """Whether this CPU multiplies bfloat16 in hardware (AVX-512 BF16, AMX, or Arm's bf16)."""
    try:
        flags = Path("/proc/cpuinfo").read_text(encoding="utf-8").split()
    except OSError:
        return False
    return not {"avx512_bf16", "amx_bf16", "bf16"}.isdisjoint(flags)
