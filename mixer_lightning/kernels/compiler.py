"""How csrc/<name>.cpp becomes a shared library. Standard library alone: a wheel is built before torch is there.

A wheel brings libraries for the common levels of x86-64, where there was a compiler when it was built. Where one is
when the program runs, it goes first: it knows the processor.
"""

from __future__ import annotations

import functools
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

CSRC = Path(__file__).parent / "csrc"
PREBUILT = Path(__file__).parent / "prebuilt"
FLAGS = ("-std=c++17", "-O3", "-fopenmp", "-fPIC", "-Wno-psabi")
#: More for those whose results may not depend on the processor: products are rounded one by one, and not fused.
FLAGS_OF = {
    "jpeg": ("-ffp-contract=off",),
    "augment": ("-ffp-contract=off", "-fno-trapping-math"),
}
TIMEOUT_SECONDS = 120

#: Levels of the x86-64 psABI, the most capable first, and what of /proc/cpuinfo tells that a processor has them.
LEVELS = {
    "x86-64-v4": {"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
    "x86-64-v3": {"avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave"},
}


def command() -> list[str]:
    """How the compiler is called."""
    return shlex.split(os.environ.get("CXX") or shutil.which("g++") or "c++")


def compile_library(source: Path, library: Path, *, march: str) -> None:
    """Compile a kernel. Several processes may do this at once: each in its own folder, then its file takes the place.

    Raises:
        OSError, subprocess.SubprocessError: there is no compiler, or it failed.
    """
    library.parent.mkdir(parents=True, exist_ok=True)
    flags = [*FLAGS, f"-march={march}", *FLAGS_OF.get(source.stem, ())]
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        unlinked, linked = (Path(folder, f"{source.stem}.{suffix}") for suffix in ("o", "so"))
        # Linked without OpenMP: it then uses the OpenMP that PyTorch has loaded, and with it the same threads.
        commands = (
            [*flags, "-c", str(source), "-o", str(unlinked)],
            ["-shared", str(unlinked), "-o", str(linked)],
        )
        for arguments in commands:
            subprocess.run(
                [*command(), *arguments],
                check=True,
                capture_output=True,
                timeout=TIMEOUT_SECONDS,
            )
        linked.replace(library)


def prebuild(folder: Path, *, levels: tuple[str, ...] = tuple(LEVELS)) -> bool:
    """Compile all kernels into <folder>/<level>/<name>.so; whether there is a compiler that could.

    Raises:
        subprocess.CalledProcessError: a kernel is wrong.
    """
    if not (platform.system() == "Linux" and platform.machine() == "x86_64"):
        return False
    try:
        for level in levels:
            for source in sorted(CSRC.glob("*.cpp")):
                compile_library(source, folder / level / f"{source.stem}.so", march=level)
    except FileNotFoundError:  # no compiler
        return False
    return True


def prebuilt(name: str) -> Path | None:
    """The library of the wheel that suits this processor best; None without one."""
    found = (PREBUILT / level / f"{name}.so" for level in LEVELS if LEVELS[level] <= _abilities())
    return next((path for path in found if path.exists()), None)


@functools.cache
def _abilities() -> frozenset[str]:
    """Instruction sets of this processor, as Linux names them."""
    for line in processor():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


def processor() -> list[str]:
    """The lines of /proc/cpuinfo on which code that was compiled for this processor depends; none elsewhere."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return []
    return [line for line in first.splitlines() if line.startswith(("flags", "Features", "model name"))]
