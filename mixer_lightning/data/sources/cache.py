"""A folder of bounded size for files from far away, which threads and processes of a machine share.

A file is fetched under a temporary name, checked and renamed, so what bears its name is whole. Locks of the file
system, which end with their process, keep others from fetching it too, and keep it from being removed while somebody
has it open. Otherwise the files that were not opened for longest make room for new ones.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path

from mixer_lightning.data.sources.remote import File, fetch, sha256_of

log = logging.getLogger(__name__)

FETCHERS = 4  # threads of a process that look ahead
MOST_OPEN = 64  # files that one reader keeps open


class Cache:
    """Opens files by address; those of this machine where they are, others as copies in `folder`."""

    def __init__(
        self, folder: Path, *, max_bytes: int, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._sleep = sleep
        self._wanted: deque[File] = deque()
        self._fetchers = 0
        self._lock = threading.Lock()  # of the two above
        self._has_warned = False

    def open(self, file: File) -> int:
        """A descriptor to read from; close it in the end.

        Raises:
            FileNotFoundError, OSError: the file does not exist or cannot be fetched; the message names it.
        """
        if not file.is_remote:
            return os.open(file.address, os.O_RDONLY)
        while True:
            descriptor = self._opened(file)
            if descriptor is None:
                descriptor = self._fetched(file)
            if descriptor is not None:
                return descriptor
            time.sleep(0.05)  # somebody else fetches it

    def has(self, file: File) -> bool:
        """Whether a file could be opened without fetching it."""
        return not file.is_remote or self._path(file).exists()

    def prefetch(self, files: Sequence[File]) -> None:
        """Fetch these in the background, in this order, as far as they fit; what was expected before is forgotten."""
        remote = [file for file in files if file.is_remote]
        sizes = accumulate(file.bytes or 0 for file in remote)
        fitting = [file for file, size in zip(remote, sizes, strict=True) if size <= self.max_bytes]
        if 2 * len(fitting) < len(remote):  # a window of shards, and the next
            self._warn(f"{len(remote):,} shards are read side by side, of which {len(fitting):,} fit")
        for file in reversed(fitting):
            with contextlib.suppress(OSError):
                os.utime(self._path(file))
        with self._lock:
            self._wanted = deque(file for file in fitting if not self.has(file))
            for _ in range(min(FETCHERS, len(self._wanted)) - self._fetchers):
                self._fetchers += 1
                threading.Thread(target=self._look_ahead, name="fetch", daemon=True).start()

    def most_open(self, files: Sequence[File]) -> int:
        """How many of these a reader may keep open: what is open stays, and shall leave half of the room to others."""
        largest = max((file.bytes or 0 for file in files if file.is_remote), default=0)
        return max(1, min(MOST_OPEN, self.max_bytes // 2 // largest)) if largest else MOST_OPEN

    def drop_if_altered(self, file: File) -> None:
        """Forget a copy whose sha256 is not the file's."""
        path = self._path(file)
        if path.exists() and sha256_of(path) != file.sha256:
            path.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------ one file

    def _path(self, file: File) -> Path:
        name = hashlib.sha256(f"{file.address}\n{file.version}".encode()).hexdigest()[:32]
        return self.folder / f"{name}.tar"

    def _opened(self, file: File) -> int | None:
        path = self._path(file)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        fcntl.flock(descriptor, fcntl.LOCK_SH)
        if file.bytes is not None and os.fstat(descriptor).st_size != file.bytes:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # it belongs to somebody else
            os.utime(descriptor)
        return descriptor

    def _fetched(self, file: File) -> int | None:
        """A descriptor of the file, fetched just now; None if it is there or somebody else fetches it."""
        path = self._path(file)
        part = path.with_name(f"{path.stem}-{file.bytes or 0}.part")  # says how much room it will take
        self.folder.mkdir(parents=True, exist_ok=True)
        with self._folder_alone():  # or it might be taken for a leftover before it is locked
            own = part.open("a+b")
            is_ours = _lock(own.fileno())
        with own:
            if not is_ours or not _is_at(own.fileno(), part):  # renamed or removed since it was opened
                return None
            try:
                if path.exists():
                    return None
                self._make_room(keep=path)
                fetch(file, part, sleep=self._sleep)
                os.fsync(own.fileno())
                part.rename(path)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OSError(
                    f"{self.folder} is full: free some space, name a folder on another disk with data.cache, or lower "
                    f"data.cache_bytes ({self.max_bytes:,})"
                ) from error
            finally:
                if _is_at(own.fileno(), part):
                    part.unlink()
            fcntl.flock(own, fcntl.LOCK_SH)
            if file.bytes is None:
                self._make_room(keep=path)
            return os.dup(own.fileno())

    def _look_ahead(self) -> None:
        while True:
            with self._lock:
                if not self._wanted:
                    self._fetchers -= 1
                    return
                file = self._wanted.popleft()
            try:
                descriptor = self._fetched(file)
            except (OSError, ValueError) as error:
                log.debug("not fetched ahead: %s", error)  # who reads the file will hear it
            else:
                if descriptor is not None:
                    os.close(descriptor)

    # ------------------------------------------------------------------------------------------ room

    def _make_room(self, *, keep: Path) -> None:
        """Remove files that nobody has open until all the others, and those under way, fit."""
        with self._folder_alone():
            room = self.max_bytes
            for part in self.folder.glob("*.part"):
                if not _removed(part):  # left by a process that ended
                    room -= int(part.stem.rpartition("-")[2])
            copies = []
            for path in self.folder.glob("*.tar"):
                with contextlib.suppress(FileNotFoundError):
                    state = path.stat()
                    copies.append((state.st_mtime_ns, state.st_size, path))
                    room -= state.st_size
            for _, size, path in sorted(copies):
                if room < 0 and path != keep and _removed(path):
                    room += size
        if room < 0:
            self._warn("the shards that are open do not fit")

    @contextlib.contextmanager
    def _folder_alone(self) -> Iterator[None]:
        with (self.folder / ".lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _warn(self, what: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            log.warning(
                "%s into data.cache_bytes=%d (%s); raise it, or lower shuffle_window",
                what,
                self.max_bytes,
                self.folder,
            )


def _lock(descriptor: int) -> bool:
    """Lock an open file for this descriptor alone, if nobody else has a lock on it; whether that was so."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_at(descriptor: int, path: Path) -> bool:
    """Whether a path still leads to an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _removed(path: Path) -> bool:
    """Remove a file unless somebody has it open; whether it is gone."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not _lock(descriptor):
            return False
        if _is_at(descriptor, path):
            path.unlink()
        return True
    finally:
        os.close(descriptor)
