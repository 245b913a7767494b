"""A least-recently-used cache of remote files: a folder of bounded size, shared by a machine's threads and processes.

A file is fetched under a temporary name, checked and renamed, so a file under its final name is complete. File locks,
which end with their process, keep other processes from fetching it too, and keep it from being removed while it is open
anywhere. Otherwise the files that were not opened for longest are removed for new ones.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import accumulate
from pathlib import Path
from typing import BinaryIO

from mixer_lightning.data.sources.remote import File, fetch, sha256_of
from mixer_lightning.files import flock, fsync, is_at

log = logging.getLogger(__name__)

MAX_FETCH_THREADS = 4  # of a process, for prefetching
MAX_OPEN_FILES = 64  # of one reader


class Cache:
    """Opens files by address; local ones in place, remote ones as copies in `folder`."""

    def __init__(
        self, folder: Path, *, max_bytes: int, sleep: Callable[[float], object] = time.sleep
    ) -> None:
        self.folder, self.max_bytes = folder, max_bytes
        self._sleep = sleep
        self._asked: dict[int, list[File]] = {}  # by whom
        self._queue: deque[File] = deque()
        self._num_fetching = 0
        self._lock = threading.Lock()  # of the three above
        self._has_warned = False

    def open(self, file: File) -> int:
        """A file descriptor to read from; the caller closes it.

        Raises:
            FileNotFoundError, OSError: the file does not exist or cannot be fetched; the message names it.
        """
        if not file.is_remote:
            return os.open(file.address, os.O_RDONLY)
        while True:
            descriptor = self._open_copy(file)
            if descriptor is None:
                descriptor = self._fetch(file)
            if descriptor is not None:
                return descriptor
            time.sleep(0.05)  # another process fetches it

    def has(self, file: File) -> bool:
        """Whether a file could be opened without fetching it."""
        return not file.is_remote or self._path(file).exists()

    def prefetch(self, files: Sequence[File], *, of: object = None) -> None:
        """Fetch these in the background, in this order, as far as they fit.

        Earlier requests `of` the same split are dropped; those of several splits are fetched side by side.
        """
        with self._lock:
            self._asked[id(of)] = [file for file in files if file.is_remote]
            asked = [*self._asked.values()]
        places = [(place / len(of_one), file) for of_one in asked for place, file in enumerate(of_one)]
        remote = [file for _, file in sorted(places, key=lambda each: each[0])]
        sizes = accumulate(file.bytes or 0 for file in remote)
        fitting = [file for file, size in zip(remote, sizes, strict=True) if size <= self.max_bytes]
        if 2 * len(fitting) < len(remote):  # a window of shards, and the next
            self._warn(f"{len(remote):,} shards are read side by side, of which {len(fitting):,} fit")
        for file in reversed(fitting):
            with contextlib.suppress(OSError):
                os.utime(self._path(file))
        with self._lock:
            self._queue = deque(file for file in fitting if not self.has(file))
            for _ in range(min(MAX_FETCH_THREADS, len(self._queue)) - self._num_fetching):
                self._num_fetching += 1
                threading.Thread(target=self._fetch_queued, name="fetch", daemon=True).start()

    def max_open(self, files: Sequence[File]) -> int:
        """How many of these a reader may keep open: open files stay, and must leave half of the space to others."""
        largest = max((file.bytes or 0 for file in files if file.is_remote), default=0)
        return max(1, min(MAX_OPEN_FILES, self.max_bytes // 2 // largest)) if largest else MAX_OPEN_FILES

    def drop_if_altered(self, file: File) -> None:
        """Remove a copy whose sha256 is not the file's."""
        path = self._path(file)
        if path.exists() and sha256_of(path) != file.sha256:
            path.unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------ one file

    def _path(self, file: File) -> Path:
        name = hashlib.sha256(f"{file.address}\n{file.version}".encode()).hexdigest()[:32]
        return self.folder / f"{name}.tar"

    def _open_copy(self, file: File) -> int | None:
        path = self._path(file)
        try:
            descriptor = os.open(path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        flock(descriptor, shared=True)
        if file.bytes is not None and os.fstat(descriptor).st_size != file.bytes:
            os.close(descriptor)
            path.unlink(missing_ok=True)
            return None
        with contextlib.suppress(OSError):  # it belongs to another user
            os.utime(descriptor)
        return descriptor

    def _fetch(self, file: File) -> int | None:
        """A descriptor of the file, fetched just now; None if it is there or another process fetches it."""
        path = self._path(file)
        part = path.with_name(f"{path.stem}-{file.bytes or 0}.part")  # says how much space it will use
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with self._folder_lock():  # or it might count as a leftover before it is locked
                own = _open_part(part)
                is_ours = own is not None and flock(own.fileno(), wait=False)
        except PermissionError as error:
            raise PermissionError(
                f"{self.folder} is not yours to write into: set data.cache to a folder that is, or share it with your "
                f"group (chmod -R g+rwX) ({error})"
            ) from error
        if own is None:
            return None
        with own:
            if not is_ours or not is_at(own.fileno(), part):  # renamed or removed since it was opened
                return None
            try:
                if path.exists():
                    return None
                self._free_space(keep=path)
                fetch(file, part, sleep=self._sleep)
                fsync(own.fileno())
                with contextlib.suppress(OSError):  # a file system without modes
                    os.fchmod(own.fileno(), 0o644)
                with self._folder_lock():  # or it might count under both names
                    part.rename(path)
            except OSError as error:
                if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                    raise
                raise OSError(
                    f"{self.folder} is full: free some space, set data.cache to a folder on another disk, or lower "
                    f"data.cache_bytes ({self.max_bytes:,})"
                ) from error
            finally:
                if is_at(own.fileno(), part):
                    part.unlink()
            flock(own.fileno(), shared=True)
            if file.bytes is None:
                self._free_space(keep=path)
            return os.dup(own.fileno())

    def _fetch_queued(self) -> None:
        while True:
            with self._lock:
                if not self._queue:
                    self._num_fetching -= 1
                    return
                file = self._queue.popleft()
            try:
                descriptor = self._fetch(file)
            except (OSError, ValueError) as error:
                log.debug("not prefetched: %s", error)  # reading the file will raise it
            else:
                if descriptor is not None:
                    os.close(descriptor)

    # ------------------------------------------------------------------------------------------ space

    def _free_space(self, *, keep: Path) -> None:
        """Remove files that are open nowhere until the others, and those being fetched, fit."""
        with self._folder_lock():
            space = self.max_bytes
            for part in self.folder.glob("*.part"):
                if not _remove_unless_open(part):  # left by a process that ended
                    space -= int(part.stem.rpartition("-")[2])
            copies = []
            for path in self.folder.glob("*.tar"):
                with contextlib.suppress(FileNotFoundError):
                    state = path.stat()
                    copies.append((state.st_mtime_ns, state.st_size, path))
                    space -= state.st_size
            for _, size, path in sorted(copies):
                if space < 0 and path != keep and _remove_unless_open(path):
                    space += size
        if space < 0:
            self._warn("the shards that are open do not fit")

    @contextlib.contextmanager
    def _folder_lock(self) -> Iterator[None]:
        with open(self.folder / ".lock", "ab", opener=_open_for_all) as lock:
            flock(lock.fileno())
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


def _open_part(part: Path) -> BinaryIO | None:
    """To write into; None where another user fetches it. What another user has left is removed."""
    with contextlib.suppress(FileNotFoundError):
        if part.stat().st_uid != os.geteuid() and not _remove_unless_open(part):
            return None
    return open(part, "a+b", opener=_open_for_all)


def _open_for_all(path: str, flags: int) -> int:
    """As `open` does it, but other users of the folder may lock what is made: NFS wants the right to write for that."""
    descriptor = os.open(path, flags, 0o666)
    with contextlib.suppress(OSError):  # it is another user's, who has done so
        os.fchmod(descriptor, 0o666)
    return descriptor


def _remove_unless_open(path: Path) -> bool:
    """Remove a file unless it is open anywhere; whether it is gone."""
    try:
        try:
            descriptor = os.open(path, os.O_RDWR)  # NFS locks exclusively what is open for writing
        except PermissionError:  # another user's
            descriptor = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        if not flock(descriptor, wait=False):
            return False
        if is_at(descriptor, path):
            path.unlink()
        return True
    except OSError as error:
        if error.errno != errno.EBADF:
            raise
        return False  # another user's on NFS: stays
    finally:
        os.close(descriptor)
