"""What a machine should have for a long run, looked at in a second: `mixer doctor`."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from packaging.requirements import Requirement

from mixer_lightning import launcher, results
from mixer_lightning.files import existing_part, fsync
from mixer_lightning.kernels import extension
from mixer_lightning.kernels.compiled import compiled

State = Literal["ok", "warning", "failure"]

GB = 10**9
WRITTEN_MB = 64
#: Below these a long run gets into trouble, sooner or later.
MIN_OPEN_FILES = 4096
MIN_SHARED_MEMORY = 1 * GB
MIN_DISK = 20 * GB


class Finding(NamedTuple):
    """What one check has found, and what would mend it where it is not well."""

    name: str
    state: State
    said: str
    remedy: str = ""


def findings_of_host(out: Path, data: Path | None) -> Iterator[Finding]:
    """The checks of this process's machine; `out` is the folder that runs are written to, `data` a data set's."""
    yield packages()
    yield kernels()
    yield devices()
    yield cores()
    yield open_files()
    yield shared_memory()
    if (launcher.launched() or launcher.ALONE).local_rank == 0:  # not all of a node at once
        yield disk(out)
    if data is not None:
        yield images(data)


def packages() -> Finding:
    """The versions, and whether they are those that the package asks for."""
    versions = ", ".join(f"{name} {version}" for name, version in results.versions().items())
    wrong = list(_wrong_versions())
    if wrong:
        return Finding("versions", "failure", "; ".join(wrong), "pip install -c constraints.txt -e .")
    return Finding("versions", "ok", versions)


def _wrong_versions() -> Iterator[str]:
    try:
        wanted = [Requirement(text) for text in metadata.requires("mixer-lightning") or []]
    except metadata.PackageNotFoundError:  # from a checkout
        return
    for each in wanted:
        if each.marker is not None and not each.marker.evaluate({"extra": ""}):
            continue
        try:
            there = metadata.version(each.name)
        except metadata.PackageNotFoundError:
            yield f"{each.name} is missing"
            continue
        if not each.specifier.contains(there, prereleases=True):
            yield f"{each.name} is {there}, and {each.name}{each.specifier} is needed"


def kernels() -> Finding:
    """Whether the native code is there, without which training on a CPU takes longer."""
    missing = [name for name, is_there in compiled().items() if not is_there]
    if missing:
        why = extension.missing[missing[0]]
        return Finding(
            "kernels",
            "warning",
            f"{' and '.join(missing)}: PyTorch does it, slower on a CPU: {why.reason}",
            why.advice,
        )
    return Finding("kernels", "ok", "compiled")


def devices() -> Finding:
    """GPUs, as many as processes were launched here."""
    launch = launcher.launched() or launcher.ALONE
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if count == 0:
        if torch.version.cuda is not None and Path("/proc/driver/nvidia/version").exists():
            return Finding(
                "devices",
                "failure",
                "an NVIDIA driver is there, but torch sees no GPU",
                f"look at CUDA_VISIBLE_DEVICES, and at nvidia-smi: torch needs a driver for CUDA {torch.version.cuda}",
            )
        return Finding("devices", "ok", f"no GPU: {results.cpu_name()}")
    names = [torch.cuda.get_device_properties(index) for index in range(count)]
    memory = ", ".join(f"{each.name} {each.total_memory / GB:.0f} GB" for each in names)
    if launch.local_world_size > count:
        return Finding(
            "devices",
            "failure",
            f"{launch.local_world_size} processes for {count} GPUs: {memory}",
            f"launch as many as there are: --nproc_per_node={count}",
        )
    return Finding("devices", "ok", memory)


def cores() -> Finding:
    """Cores that this process may use, for each of the processes beside it."""
    launch = launcher.launched() or launcher.ALONE
    there = os.cpu_count() or 1
    mine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    sharing = launch.local_world_size if launcher.shares_cores() else 1
    each = mine / sharing
    said = f"{mine} of {there} cores" + (f" for {sharing} processes" if sharing > 1 else "")
    if torch.cuda.is_available() and each < 4:
        return Finding(
            "cores",
            "warning",
            f"{said}: few to decode images for a GPU",
            "srun --cpus-per-task=<8 or more>, or trainer.decode=gpu",
        )
    return Finding("cores", "ok", said)


def open_files() -> Finding:
    """The limit of open files: shards and sockets are some."""
    try:
        import resource
    except ImportError:
        return Finding("open files", "ok", "no limit on Windows")
    limit, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= limit < MIN_OPEN_FILES:
        may = f"ulimit -n {most if 0 <= most < 65536 else 65536}"
        return Finding(
            "open files", "warning", f"at most {limit:,}", f"{may} (docker run --ulimit nofile=65536)"
        )
    return Finding("open files", "ok", f"at most {limit:,}" if limit >= 0 else "no limit")


def shared_memory(folder: Path = Path("/dev/shm")) -> Finding:
    """Shared memory, through which NCCL's processes of a machine speak."""
    if not folder.is_dir():
        return Finding("shared memory", "ok", "none on this system")
    size = shutil.disk_usage(folder)
    said = f"{size.free / GB:.1f} of {size.total / GB:.1f} GB free"
    launch = launcher.launched() or launcher.ALONE
    if size.free < MIN_SHARED_MEMORY and launch.local_world_size > 1:
        return Finding("shared memory", "warning", said, "docker run --shm-size=64g")
    return Finding("shared memory", "ok", said)


def disk(out: Path) -> Finding:
    """Whether checkpoints can be written into a folder, and how fast: written, flushed, renamed, as they are."""
    there = existing_part(out)
    partial = there / f".doctor-{os.getpid()}.partial"
    try:
        began = time.perf_counter()
        with partial.open("wb") as file:
            for _ in range(WRITTEN_MB):
                file.write(os.urandom(1 << 10) * (1 << 10))
            file.flush()
            fsync(file.fileno())
        partial.replace(partial.with_suffix(".whole"))
        speed = WRITTEN_MB / (time.perf_counter() - began)
        free = shutil.disk_usage(there).free
    except OSError as error:
        return Finding(
            "disk",
            "failure",
            f"{there} cannot be written to: {error.strerror}",
            "make room, or write runs elsewhere",
        )
    finally:
        for left in (partial, partial.with_suffix(".whole")):
            left.unlink(missing_ok=True)
    said = f"{there}: {free / GB:,.0f} GB free, {speed:,.0f} MB/s written to disk"
    if free < MIN_DISK:
        return Finding(
            "disk", "warning", said, "make room: a checkpoint of mixer_l16 is 2.5 GB, and two are kept"
        )
    return Finding("disk", "ok", said)


def images(folder: Path) -> Finding:
    """Whether a data set's folder is there, and how long its first file takes."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder))
        began = time.perf_counter()
        first = next((path for path in sorted(folder.iterdir()) if path.is_file()), None)
        if first is not None:
            with first.open("rb") as file:
                file.read(1 << 20)
        seconds = time.perf_counter() - began
    except OSError as error:
        return Finding(
            "data",
            "failure",
            f"{folder} cannot be read: {error.strerror}",
            "mount it on this node as on the others",
        )
    if not names:
        return Finding("data", "failure", f"{folder} is empty", "mount it on this node as on the others")
    more = ", ..." if len(names) > 3 else ""
    slow = f", {seconds:.1f} s to its first file" if seconds > 1 else ""
    return Finding("data", "ok", f"{len(names):,} entries ({', '.join(names[:3])}{more}){slow}")
