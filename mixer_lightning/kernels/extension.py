"""Native code of this package: csrc/<name>.cpp as a shared library, compiled when first needed, else the wheel's.

A kernel is one such file, with `extern "C"` functions, and one Python file beside it that declares their arguments and
holds the plain reference in PyTorch. What kernels share is in headers, csrc/<name>.h.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import logging
import subprocess
import threading
from pathlib import Path

import torch  # noqa: F401  (its OpenMP is the kernels')

from mixer_lightning.files import cache_home
from mixer_lightning.kernels import compiler

log = logging.getLogger(__name__)

_compiling = threading.Lock()  # decoding threads need a kernel at the same time


def load(name: str) -> ctypes.CDLL | None:
    """The library of csrc/<name>.cpp; None where neither a compiler here nor the wheel has one that loads.

    One that is compiled here is stored in the user's cache folder, under a name that changes with the source and the
    headers, the compiler's flags and the processor. That there is none is said once, with what to do about it.
    """
    try:
        return ctypes.CDLL(str(_compiled(name)))
    except (OSError, subprocess.SubprocessError) as error:
        reason = _reason(error)
    path = compiler.prebuilt(name)
    if path is not None:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    _say(reason)
    return None


def _compiled(name: str) -> Path:
    source = compiler.CSRC / f"{name}.cpp"
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(compiler.CSRC.glob("*.h")))]
    flags = [*compiler.FLAGS, *compiler.FLAGS_OF.get(name, ()), *compiler.processor()]
    key = hashlib.sha256("\n".join([*texts, *flags]).encode()).hexdigest()[:16]
    library = cache_home() / f"{name}-{key}.so"
    with _compiling:
        if not library.exists():
            compiler.compile_library(source, library, march="native")
    return library


@functools.cache
def _say(reason: str) -> None:
    log.warning(
        "native code is missing, decoding and training on a CPU are slower: %s. Install g++, or name a compiler by CXX",
        reason,
    )


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError):
        return "no C++ compiler was found"
    if isinstance(error, subprocess.CalledProcessError):
        lines = error.stderr.decode(errors="replace").splitlines()
        said = next((line for line in lines if "error" in line), "")
        return f"the C++ compiler failed: {said}" if said else "the C++ compiler failed"
    return str(error)
