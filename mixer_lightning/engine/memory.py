"""Memory of a device and of this process: what is free, and what is taken."""

from __future__ import annotations

import ctypes
import gc
import re
from pathlib import Path

import torch

from mixer_lightning.engine.machine import Machine


def release_memory(machine: Machine) -> None:
    """Give back what an earlier model had, to the device or to the kernel."""
    gc.collect()
    give_back(machine)


def give_back(machine: Machine) -> None:
    """To the device or to the kernel what is free already."""
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


def taken_bytes(machine: Machine) -> int | None:
    """The most that tensors have taken on a GPU; on a CPU what this process takes now, None where nothing tells."""
    if machine.device_type == "cuda":
        return int(torch.cuda.max_memory_allocated(machine.device))
    return _status("VmRSS")


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
