"""Work that one process of a machine does for all: the others wait, and share what came of it."""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple, TextIO, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")

SECONDS_BETWEEN_LINES = 30.0
SECONDS_OF_AN_ERROR = 60.0  # its cause may have gone after that


class Turn(NamedTuple):
    """The right to do a piece of work."""

    folder: Path | None  # to keep the outcome in; None where no folder may be written
    is_done: bool  # by another process, while this one was running already


@contextmanager
def alone(folders: Iterable[Path], what: str, fingerprint: str, *, name: str) -> Iterator[Turn]:
    """Keep other processes from doing the same, with a lock in the first folder that may be written.

    An error is handed on to the processes that were running when it came up: of those that a launcher starts together
    only one is heard by the user, and all are ended as soon as one fails.
    """
    for folder in folders:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            file = (folder / f".{what}.lock").open("a+")
        except OSError:
            continue
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("%s: waiting for another process, which is at %s", name, what)
                fcntl.flock(file, fcntl.LOCK_EX)
            except OSError:
                pass  # a file system without locks
            error = _outcome(file, fingerprint)
            if error:
                raise ValueError(error)
            try:
                yield Turn(folder, error is not None)
            except (ValueError, OSError) as caught:
                _note(file, fingerprint, str(caught))
                raise
            _note(file, fingerprint, "")
        return
    yield Turn(None, False)


def told(outcomes: Iterable[T], what: str, total: int) -> Iterator[T]:
    """Hand outcomes on, and say every half minute how many there were."""
    last = time.perf_counter()
    for count, outcome in enumerate(outcomes, start=1):
        yield outcome
        if time.perf_counter() - last > SECONDS_BETWEEN_LINES:
            last = time.perf_counter()
            log.info("%s %s of %s shards", what, f"{count:,}", f"{total:,}")


def _outcome(file: TextIO, fingerprint: str) -> str | None:
    """What another process of this machine came to since this one began: an error, or "" for none; None: nothing."""
    file.seek(0)
    try:
        note = json.load(file)
        theirs = (note["fingerprint"], note["host"]) == (fingerprint, socket.gethostname())
        since = max(_began(), time.time() - SECONDS_OF_AN_ERROR) if note["error"] else _began()
        is_new = note["pid"] != os.getpid() and note["seconds"] > since
        return str(note["error"]) if theirs and is_new else None
    except (ValueError, KeyError, TypeError):  # nobody has been at it
        return None


def _note(file: TextIO, fingerprint: str, error: str) -> None:
    about = {"fingerprint": fingerprint, "host": socket.gethostname(), "pid": os.getpid()}
    with contextlib.suppress(OSError):  # a full disk: the others do the work themselves
        file.truncate(0)
        file.write(json.dumps({**about, "seconds": time.time(), "error": error}))
        file.flush()


def _began() -> float:
    """The time at which this process began, or nearly so: when it loaded `logging`."""
    record = logging.makeLogRecord({})
    return record.created - record.relativeCreated / 1000
