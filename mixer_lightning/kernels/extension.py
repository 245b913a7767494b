"""Native code of this package: csrc/<name>.cpp, compiled when first needed and cached as a shared library.

A kernel is one such file, with `extern "C"` functions, and one Python file beside it that declares their arguments and
holds the plain reference in PyTorch. What kernels share is in headers, csrc/<name>.h.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

import torch  # noqa: F401  (its OpenMP is the kernels')

from mixer_lightning.files import cache_home

CSRC = Path(__file__).parent / "csrc"
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-Wno-psabi")
TIMEOUT_SECONDS = 120

_compiling = threading.Lock()  # decoding threads need a kernel at the same time


def load(name: str, *flags: str) -> ctypes.CDLL | None:
    """The library of csrc/<name>.cpp, compiled if need be; None where no compiler here makes one that loads.

    `flags` are for the compiler, after those of all kernels.

    The library is stored in the user's cache folder, under a name that changes with the source and the headers, the
    compiler's flags and the processor.
    """
    try:
        source = CSRC / f"{name}.cpp"
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
        processor = [
            line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features", "model name"))
        ]
        texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(CSRC.glob("*.h")))]
        key = hashlib.sha256("\n".join([*texts, *FLAGS, *flags, *processor]).encode()).hexdigest()[:16]
        library = cache_home() / f"{name}-{key}.so"
        with _compiling:
            if not library.exists():
                _compile(source, library, flags)
        return ctypes.CDLL(str(library))
    except (OSError, subprocess.SubprocessError):
        return None


def _compile(source: Path, library: Path, flags: tuple[str, ...]) -> None:
    """Several processes may do this at once: each works in its own folder, then moves its file into place."""
    compiler = os.environ.get("CXX") or shutil.which("g++") or "c++"
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        unlinked, linked = (Path(folder, f"{source.stem}.{suffix}") for suffix in ("o", "so"))
        # Linked without OpenMP: it then uses the OpenMP that PyTorch has loaded, and with it the same threads.
        commands = (
            [*FLAGS, *flags, "-c", str(source), "-o", str(unlinked)],
            ["-shared", str(unlinked), "-o", str(linked)],
        )
        for arguments in commands:
            subprocess.run(
                [*shlex.split(compiler), *arguments],
                check=True,
                capture_output=True,
                timeout=TIMEOUT_SECONDS,
            )
        linked.replace(library)
