"""Standard streams that cannot end a program: words that cannot be written are lost, and no more.

A reader that went away (`| head`, a lost ssh session), a full disk under a redirected output, a stream that was closed
(`>&-`) and a terminal of few characters are no errors of the work.
"""

from __future__ import annotations

import io
import logging
import os
import re
import sys
from typing import Any


def secure() -> None:
    """Make sys.stdout and sys.stderr such streams, and open those that are closed.

    A stream that is not the process's own, as in a notebook, stays what it is.
    """
    for descriptor in (0, 1, 2):
        try:
            os.fstat(descriptor)
        except OSError:  # else the next file to be opened would get this number, and the words with it
            os.open(os.devnull, os.O_RDWR)
    for descriptor, name in ((1, "stdout"), (2, "stderr")):
        before = getattr(sys, name)
        if before is not None and not _is_own(before, descriptor):
            continue
        stream = io.TextIOWrapper(
            io.BufferedWriter(_Forgiving(descriptor, "wb", closefd=False)),
            encoding=getattr(before, "encoding", None) or "utf-8",
            errors="backslashreplace",
            line_buffering=name == "stderr" or os.isatty(descriptor),
        )
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
    logging.raiseExceptions = False  # a handler that cannot write would print a traceback for every line


class _Forgiving(io.FileIO):
    """A file that takes what it cannot write."""

    def write(self, data: Any) -> int:
        """The number of bytes that were written, or are lost."""
        try:
            written = super().write(data)
        except OSError:
            written = None
        return memoryview(data).nbytes if written is None else written  # None: it would have to wait


def _is_own(stream: Any, descriptor: int) -> bool:
    try:
        return bool(stream.fileno() == descriptor)
    except (AttributeError, OSError, ValueError):
        return False


#: All control characters but tab and newline, the ones that turn the direction of text, and halves of surrogates.
_NOT_PRINTED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Text that does nothing to a terminal: control characters of a name are shown as \x1b or \u202e.

    Bytes of a file name that are not UTF-8 (surrogates, in Python) are shown as \xe9.
    """
    return _NOT_PRINTED.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    code = ord(found[0])
    if 0xDC80 <= code <= 0xDCFF:  # PEP 383
        code -= 0xDC00
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
