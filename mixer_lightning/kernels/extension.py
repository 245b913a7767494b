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
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch  # noqa: F401  (its OpenMP is the kernels')

from mixer_lightning.files import cache_home
from mixer_lightning.kernels import compiler

log = logging.getLogger(__name__)

COMPILER_ADVICE = "Install g++, or name a compiler by CXX"


class Missing(NamedTuple):
    """Why a library could not be had, and what to do about it."""

    reason: str
    advice: str


#: Of the libraries that were asked for in vain.
missing: dict[str, Missing] = {}
_compiling = threading.Lock()  # decoding threads need a kernel at the same time


def load(name: str) -> ctypes.CDLL | None:
    """The library of csrc/<name>.cpp; None where neither a compiler here nor the wheel has one that loads.

    One that is compiled here is stored in the user's cache folder, under a name that changes with the source and the
    headers, the compiler's flags and the processor. That there is none is said once, with what to do about it.
    """
    try:
        return _compiled(name)
    except (OSError, subprocess.SubprocessError) as error:
        why = _why(error)
    path = compiler.prebuilt(name)
    if path is not None:
        with contextlib.suppress(OSError):
            return ctypes.CDLL(str(path))
    missing[name] = why
    _say(why)
    return None


def function(library: ctypes.CDLL, name: str, arguments: Sequence[Any], result: Any = None) -> Any:
    """A function of a library, by the ctypes of its arguments and its result."""
    found = getattr(library, name)
    found.argtypes, found.restype = list(arguments), result
    return found


def _compiled(name: str) -> ctypes.CDLL:
    source = compiler.CSRC / f"{name}.cpp"
    texts = [path.read_text(encoding="utf-8") for path in (source, *sorted(compiler.CSRC.glob("*.h")))]
    flags = [*compiler.FLAGS, *compiler.FLAGS_OF.get(name, ()), *compiler.processor()]
    key = hashlib.sha256("\n".join([*texts, *flags]).encode()).hexdigest()[:16]
    library = cache_home() / f"{name}-{key}.so"
    with _compiling:
        if library.exists():
            with contextlib.suppress(OSError):  # a file that a power failure has cut is written again
                return ctypes.CDLL(str(library))
        compiler.compile_library(source, library, march="native")
        return ctypes.CDLL(str(library))


@functools.cache
def _say(why: Missing) -> None:
    log.warning(
        "native code is missing, decoding and training on a CPU are slower: %s. %s", why.reason, why.advice
    )


def _why(error: Exception) -> Missing:
    if isinstance(error, subprocess.SubprocessError):
        said = ""
        if isinstance(error, subprocess.CalledProcessError):
            lines = error.stderr.decode(errors="replace").splitlines()
            said = next((f": {line}" for line in lines if "error" in line), "")
        return Missing(f"the C++ compiler failed{said}", COMPILER_ADVICE)
    if isinstance(error, OSError) and error.filename == compiler.command()[0]:
        return Missing("no C++ compiler was found", COMPILER_ADVICE)
    return Missing(str(error), f"See to the folder {cache_home()}, or name another by XDG_CACHE_HOME")
