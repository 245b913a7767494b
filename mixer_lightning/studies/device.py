"""What a device can do: its rate of matrix products, its memory, and what a measurement takes of it."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

from mixer_lightning.engine.machine import Machine
from mixer_lightning.studies.training_step import seconds_for

#: Side of the square matrices that are multiplied: large enough for a device's full rate.
MATRIX_SIDE = {"cpu": 1024, "cuda": 8192}
DTYPES = {"bf16-mixed": torch.bfloat16, "16-mixed": torch.float16, "32-true": torch.float32}


def matrix_rate(machine: Machine, *, at_least: float) -> float:
    """Multiply-accumulates per second of a product of two square matrices in the precision of a machine.

    In float32 as `Machine.configure_torch` allows it, that is with TF32 on GPUs. It is measured for `at_least` so many
    seconds, after a warm-up.
    """
    side, dtype = MATRIX_SIDE[machine.device_type], DTYPES[machine.chosen_precision]
    left, right = (torch.randn(side, side, device=machine.device, dtype=dtype) for _ in range(2))
    out = torch.empty_like(left)

    def product() -> None:
        torch.mm(left, right, out=out)

    for _ in range(3):
        product()
    return side**3 / seconds_for(product, device=machine.device_type, at_least=at_least)


def release_memory(machine: Machine) -> None:
    """Give back what an earlier model had, to the device or to the kernel."""
    gc.collect()
    if machine.device_type == "cuda":
        torch.cuda.empty_cache()
        return
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, TypeError, AttributeError):  # no glibc
        return


def available_bytes(machine: Machine) -> int | None:
    """Memory that is free for tensors, by the machine and by the cgroup; None where nothing tells."""
    if machine.device_type == "cuda":
        free, _ = torch.cuda.mem_get_info(machine.device)
        return int(free)
    found = []
    match = re.search(r"MemAvailable:\s+(\d+) kB", _text("/proc/meminfo"))
    if match:
        found.append(1024 * int(match[1]))
    limit, used = _text("/sys/fs/cgroup/memory.max").strip(), _text("/sys/fs/cgroup/memory.current").strip()
    if limit.isdigit() and used.isdigit():
        found.append(max(0, int(limit) - int(used)))
    return min(found, default=None)


class PeakMemory:
    """Largest memory since `start`: of tensors on a GPU, on a CPU by how much the process grew, where Linux tells."""

    def __init__(self, machine: Machine) -> None:
        self.machine = machine
        self.before = 0

    def start(self) -> None:
        """From here on; on a CPU what is there now does not count."""
        if self.machine.device_type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.machine.device)
            return
        self.before = _status("VmRSS") or 0

    def restart(self) -> None:
        """Forget the peak, and keep what `start` saw."""
        if self.machine.device_type == "cuda":
            torch.cuda.reset_peak_memory_stats(self.machine.device)
            return
        try:
            Path("/proc/self/clear_refs").write_text(
                "5", encoding="utf-8"
            )  # proc(5): the peak becomes what is resident now
        except OSError:
            self.before = 0

    def bytes(self) -> int | None:
        """The peak; None where nothing tells."""
        if self.machine.device_type == "cuda":
            return int(torch.cuda.max_memory_allocated(self.machine.device))
        peak = _status("VmHWM")
        return peak - self.before if peak is not None and self.before else None


def _status(key: str) -> int | None:
    """A size in bytes of this process, as Linux tells it."""
    match = re.search(rf"{key}:\s+(\d+) kB", _text("/proc/self/status"))
    return 1024 * int(match[1]) if match else None


def _text(path: str) -> str:
    """What a file of the kernel says; nothing where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8")
    except OSError:
        return ""
