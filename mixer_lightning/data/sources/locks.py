"""Work that one process of a machine does for all: the others wait, and share its outcome."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO, TypeVar

from mixer_lightning.files import flock

log = logging.getLogger(__name__)

T = TypeVar("T")

LOG_INTERVAL_SECONDS = 30.0
ERROR_LIFETIME_SECONDS = 60.0  # its cause may be gone after that


class MachineLock(NamedTuple):
    """Held by the one process of this machine that does the work."""

    folder: Path | None  # to store the outcome in; None where no folder is writable
    is_done: bool  # another process did the work after this one had started


@contextmanager
def once_per_machine(
    folders: Iterable[Path], what: str, fingerprint: str, *, name: str
) -> Iterator[MachineLock]:
    """Let one process at a time do `what`, by a lock in the first of `folders` that is writable.

    An error is passed on to the processes that were running when it was raised: of those that a launcher starts
    together, the user sees the messages of one only, and all are ended as soon as one fails.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / f".{what}.lock").open("a+", encoding="utf-8")
        except OSError:
            continue
        with file:
            if not flock(file.fileno(), wait=False):
                log.info("%s: waiting for another process, which works on %s", name, what)
                flock(file.fileno())
            error = _read_outcome(file, fingerprint)
            if error:
                raise ValueError(error)
            try:
                yield MachineLock(folder, error is not None)
            except (ValueError, OSError) as caught:
                _write_outcome(file, fingerprint, str(caught))
                raise
            _write_outcome(file, fingerprint, "")
        return
    yield MachineLock(None, False)


def log_progress(outcomes: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Pass `outcomes` on, and log every half minute how many there were."""
    last = time.perf_counter()
    for count, outcome in enumerate(outcomes, start=1):
        yield outcome
        if time.perf_counter() - last > LOG_INTERVAL_SECONDS:
            last = time.perf_counter()
            log.info("%s %s of %s shards", what, f"{count:,}", f"{total:,}")


def _read_outcome(file: TextIO, fingerprint: str) -> str | None:
    """The outcome of another process of this machine since this one started: an error, or ""; None: no outcome."""
    file.seek(0)
    try:
        note = json.load(file)
        is_same = (note["fingerprint"], note["host"]) == (fingerprint, socket.gethostname())
        since = max(_start_time(), time.time() - ERROR_LIFETIME_SECONDS) if note["error"] else _start_time()
        is_new = note["pid"] != os.getpid() and note["seconds"] > since
        return str(note["error"]) if is_same and is_new else None
    except (ValueError, KeyError, TypeError):  # no process has written one
        return None


def _write_outcome(file: TextIO, fingerprint: str, error: str) -> None:
    about = {"fingerprint": fingerprint, "host": socket.gethostname(), "pid": os.getpid()}
    with contextlib.suppress(OSError):  # a full disk: the others do the work themselves
        file.truncate(0)
        file.write(json.dumps({**about, "seconds": time.time(), "error": error}))
        file.flush()


def _start_time() -> float:
    """About the time at which this process started: when it imported `logging`."""
    record = logging.makeLogRecord({})
    return record.created - record.relativeCreated / 1000
