"""Atomic writes, locks, and where the recipes and the cache are. Standard library only."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import functools
import hashlib
import json
import logging
import os
import stat
import tempfile
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

log = logging.getLogger(__name__)

#: What a file system answers that lacks a call.
_NOT_OFFERED = (errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP, errno.EINVAL)
_NO_LOCKS = (*_NOT_OFFERED, errno.ENOLCK)

NAME = "mixer_lightning"
_HERE = Path(__file__).parent
#: The recipes: in a checkout beside the package, in an installed package inside it.
CONF = _HERE / "conf" if (_HERE / "conf").is_dir() else _HERE.parent / "conf"


def cache_home() -> Path:
    """The user's cache folder of this package: $XDG_CACHE_HOME/mixer_lightning, or ~/.cache/mixer_lightning.

    Where there is no home, or none that can be written (a container with an unknown user id), one of the user's own
    under the system's temporary folder, which is said once.
    """
    if os.environ.get("XDG_CACHE_HOME"):
        return Path(os.environ["XDG_CACHE_HOME"]) / NAME
    try:
        folder = Path.home() / ".cache" / NAME
    except RuntimeError:  # no HOME, and no such user
        return _temporary_cache("there is no home folder")
    existing = existing_part(folder)
    if existing == folder or os.access(existing, os.W_OK):
        return folder
    return _temporary_cache(f"{existing} may not be written")


@functools.cache
def _temporary_cache(why: str) -> Path:
    """A folder that nobody else can write, since compiled code is loaded from it."""
    folder = Path(tempfile.gettempdir()) / f"{NAME}-{os.getuid()}"
    with contextlib.suppress(OSError):
        folder.mkdir(mode=0o700)
    try:
        state = folder.lstat()
        is_ours = stat.S_ISDIR(state.st_mode) and state.st_uid == os.getuid() and not state.st_mode & 0o022
    except OSError:
        is_ours = False
    if not is_ours:
        folder = Path(tempfile.mkdtemp(prefix=f"{NAME}-"))
    log.warning(
        "%s: copies and compiled kernels are kept in %s; XDG_CACHE_HOME=<folder> names another", why, folder
    )
    return folder


def readable(text: str) -> str:
    r"""A text from outside as valid Unicode: a byte of a file's name that is not UTF-8 becomes \xe9, as it is shown."""
    try:
        text.encode()
    except UnicodeEncodeError:
        try:
            return text.encode(errors="surrogateescape").decode(errors="backslashreplace")
        except UnicodeEncodeError:  # half a pair, as JSON can write it
            return text.encode(errors="backslashreplace").decode()
    return text


def read_lines(path: Path) -> list[str]:
    """The lines of somebody's text file without spaces around them; no BOM, and what is not UTF-8 made `readable`."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape") as file:
        return [readable(line.strip()) for line in file]


def from_json(text: str, where: str) -> Any:
    """A text of JSON.

    Raises:
        ValueError: it is none, or nested too deep to be read.
    """
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where} is not readable JSON: {error}") from None


def sha256(paths: Iterable[Path]) -> str:
    """Of the bytes of all these files, one after the other."""
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            hashlib.file_digest(file, lambda: digest)
    return digest.hexdigest()


def atomic_write(path: Path, write: Callable[[BinaryIO], None]) -> None:
    """Replace `path` by what `write` puts into a file: all of it, or nothing.

    Raises:
        OSError: the disk is full or the folder may not be written; the old file still stands.
    """
    temporary = path.with_name(f".{path.name}.part")  # one name: what a kill leaves behind is written over
    try:
        with temporary.open("wb") as file:
            write(file)
            file.flush()
            fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    fsync_folder(path.parent)


def fsync_folder(folder: Path) -> None:
    """Wait until the disk has the names in a folder, after a file in it was made or renamed."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except PermissionError:  # one may write into it, and not list it
        return
    try:
        fsync(descriptor)
    finally:
        os.close(descriptor)


def fsync(descriptor: int) -> None:
    """Wait until the disk has what was written to an open file, or renamed in an open folder.

    A file system that has no such call (folders on CIFS and some FUSE) is said once, and goes without.

    Raises:
        OSError: the disk failed or is full.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NOT_OFFERED:
            raise
        _say_unsynced(error.strerror)


@functools.cache
def _say_unsynced(why: str) -> None:
    log.warning(
        "a file system here does not flush to disk when asked to (%s): a power cut may cost what is new", why
    )


def write_text(path: Path, text: str) -> None:
    """Replace `path` by `text` atomically."""

    def write(file: BinaryIO) -> None:
        file.write(readable(text).encode())

    atomic_write(path, write)


def existing_part(folder: Path) -> Path:
    """The folder itself where it is there, else the nearest above it that is."""
    folder = folder.absolute()
    # not Path.exists, which raises where a folder of another user may not be entered
    return next(each for each in (folder, *folder.parents) if os.path.exists(each))  # noqa: PTH110


def check_writable(run_dir: Path) -> None:
    """Create `run_dir` and prove that a file can be written there.

    Raises:
        OSError: it can not; the message names the directory.
    """
    probe = run_dir / ".probe"
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        probe.write_bytes(b"\0" * 4096)
    except OSError as error:
        raise OSError(
            f"cannot write into the run directory {run_dir}: {error.strerror or error}. "
            "Free some space, or choose another place with hydra.run.dir=<folder>, of a sweep hydra.sweep.dir=<folder>."
        ) from error
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def flock(descriptor: int, *, shared: bool = False, wait: bool = True) -> bool:
    """Lock an open file until it is closed; False where another process holds it and `wait` is False.

    A file system without locks (Lustre mounted without `flock`, some FUSE and NFS) is said once, and counts as locked:
    what the lock protects from is two processes at once, which the user can see to.
    """
    try:
        fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        _say_unlocked(error.strerror)
    return True


@functools.cache
def _say_unlocked(why: str) -> None:
    log.warning("a file system here has no locks (%s): see to it that one process at a time works there", why)


@contextlib.contextmanager
def lock_run_dir(run_dir: Path, *, shared: bool = False) -> Iterator[None]:
    """Hold the run directory for one run at a time, as long as the process lives; `shared`, beside others that share.

    Raises:
        ValueError: another run holds it.
    """
    path = run_dir / ".lock"
    while True:
        with path.open(
            "a+", encoding="utf-8"
        ) as file:  # NFS wants reading for a shared lock, writing for another
            if not flock(file.fileno(), shared=shared, wait=False):
                raise ValueError(
                    f"another process is at work in {run_dir}: wait for it, or use name=<another>"
                )
            if not is_at(
                file.fileno(), path
            ):  # its holder removed it after it was opened here: a lock of nothing
                continue
            try:
                yield
            finally:
                if not shared:  # those that share hold this very file
                    with contextlib.suppress(
                        OSError
                    ):  # the work is done: a disk that became read-only keeps the file
                        path.unlink()  # while it is still held, or it might be another's
            return


def is_at(descriptor: int, path: Path) -> bool:
    """Whether a path is still that of an open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False
