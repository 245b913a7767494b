"""Files by address: a path, a URL that fsspec reads, or `pipe:<command>` for what a command writes."""

from __future__ import annotations

import errno
import glob
import hashlib
import re
import subprocess
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")

PIPE = "pipe:"
RETRY_WAITS_SECONDS = (1.0, 2.0, 4.0, 8.0)  # before the second, third, fourth and last try
READ_TIMEOUT_SECONDS = 60  # of HTTP servers
PACKAGES = {"s3": "s3fs", "s3a": "s3fs", "gs": "gcsfs", "gcs": "gcsfs", "http": "aiohttp", "https": "aiohttp"}
VERSION_FIELDS = ("ETag", "etag", "md5Hash", "Last-Modified", "LastModified", "updated", "mtime", "created")


@dataclass(frozen=True)
class File:
    """A file and what its content must be."""

    address: str
    bytes: int | None  # None: not known before it was fetched
    version: str = ""  # differs where the content has changed
    sha256: str | None = None  # None: not checked

    @property
    def is_remote(self) -> bool:
        """Whether it has to be fetched."""
        return is_remote(self.address)

    @property
    def name(self) -> str:
        """A local file's name without its folder; a remote file's address."""
        return self.address if self.is_remote else Path(self.address).name


# -------------------------------------------------------------------------------------------------- addresses


def is_remote(address: str) -> bool:
    """Whether an address is a URL or a command, and no path."""
    return address.startswith(PIPE) or re.match(r"(?!file:|local:)[A-Za-z][\w+.:-]*://", address) is not None


def absolute(address: str) -> str:
    """An address that means the same in every folder."""
    return address.rstrip("/") if is_remote(address) else str(_path(address).absolute())


def expand(pattern: str, root: str) -> list[str]:
    """The addresses that a pattern with {000..009}, {a,b} or * stands for, relative to `root`; sorted where it has *.

    An absolute path is one on this machine, whatever the root is.

    Raises:
        ValueError: its braces are not closed, or a package is missing.
        OSError: a remote folder cannot be listed.
    """
    from braceexpand import braceexpand

    found: list[str] = []
    for each in braceexpand(pattern):
        if is_remote(each) or (is_remote(root) and not _path(each).is_absolute()):
            address = each if is_remote(each) else f"{root}/{each}"
            found += _listed(address) if "*" in address and not address.startswith(PIPE) else [address]
        elif (path := Path(root) / _path(each)).exists() or not glob.has_magic(each):
            found.append(str(path))
        else:
            matches = glob.glob(str(_path(each)), root_dir=root, recursive=True)  # noqa: PTH207
            found += [str(Path(root) / match) for match in sorted(matches)]
    return found


def _path(address: str) -> Path:
    return Path(re.sub(r"^(file|local)://", "", address)).expanduser()


def _listed(pattern: str) -> list[str]:
    def listed() -> list[str]:
        files, inside = _file_system(pattern)
        return sorted(str(files.unstrip_protocol(path)) for path in files.glob(inside))

    try:
        return with_retries(listed, pattern)
    except FileNotFoundError:
        return []


def examine(address: str) -> File:
    """Size and version of a file.

    Raises:
        FileNotFoundError: it does not exist.
        OSError: it cannot be reached.
    """
    if address.startswith(PIPE):
        return File(address, None)
    if not is_remote(address):
        state = Path(address).stat()
        return File(address, state.st_size, str(state.st_mtime_ns))

    def information() -> dict[str, Any]:
        files, inside = _file_system(address)
        return dict(files.info(inside))

    info = with_retries(information, address)
    version = next((f"{key} {info[key]}" for key in VERSION_FIELDS if info.get(key)), "")
    return File(address, info.get("size"), version)


def find(address: str) -> File | None:
    """Size and version of a file, None if it does not exist."""
    try:
        return examine(address)
    except FileNotFoundError:
        return None


def content(address: str) -> bytes | None:
    """The content of a small file, None if it does not exist."""
    if not is_remote(address):
        path = Path(address)
        return path.read_bytes() if path.exists() else None

    def read() -> bytes:
        files, inside = _file_system(address)
        return bytes(files.cat_file(inside))

    try:
        return with_retries(read, address)
    except (FileNotFoundError, PermissionError):  # S3 forbids what does not exist to those who may not list
        return None


def fetch(file: File, path: Path, *, sleep: Callable[[float], object] = time.sleep) -> None:
    """Write a file's bytes to `path`, and check that it is complete.

    Raises:
        OSError: it could not be fetched in any of the tries; or the disk is full.
    """

    def fetch_once() -> None:
        if file.address.startswith(PIPE):
            _run(file.address.removeprefix(PIPE).strip(), path)
        else:
            files, inside = _file_system(file.address)
            files.get_file(inside, str(path))
        found = path.stat().st_size
        if file.bytes is not None and found != file.bytes:
            raise OSError(f"it gave {found:,} of {file.bytes:,} bytes")
        if file.sha256 is not None and sha256_of(path) != file.sha256:
            raise OSError("its sha256 is not that of dataset.json")

    with_retries(fetch_once, file.address, sleep=sleep)


def sha256_of(path: Path) -> str:
    """The checksum of a file's content."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def with_retries(work: Callable[[], T], address: str, *, sleep: Callable[[float], object] = time.sleep) -> T:
    """The result of `work`, tried five times where the network may be the cause.

    Raises:
        FileNotFoundError, OSError: naming the address.
        ValueError: the address needs a package that is missing.
    """
    for wait in (*RETRY_WAITS_SECONDS, None):
        try:
            return work()
        except ImportError as error:
            package = PACKAGES.get(address.partition(":")[0])
            fix = f"pip install {package}" if package else str(error)
            raise ValueError(f"{address} cannot be read without another package: {fix}") from error
        except ValueError as error:
            raise ValueError(f"{address}: {error}") from error
        except Exception as error:  # the libraries behind fsspec have errors of their own
            if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise
            cause = error.__cause__
            status = getattr(cause or error, "status", None)  # of HTTP
            if isinstance(error, PermissionError) or status in (401, 403):
                raise PermissionError(f"{address} may not be read: {cause or error}") from error
            # over HTTP, fsspec says "not found" whatever went wrong, and gives the reason as cause
            known = cause is None or status in (404, 410) or not address.startswith("http")
            if isinstance(error, FileNotFoundError) and known:
                raise FileNotFoundError(f"{address} does not exist") from error
            if wait is None:
                reason = str(error.__cause__ or error) or type(error).__name__
                raise OSError(
                    f"{address} could not be read in {len(RETRY_WAITS_SECONDS) + 1} tries: {reason}"
                ) from error
            sleep(wait)
    raise AssertionError


def _file_system(address: str) -> tuple[Any, str]:
    """fsspec's file system, and the file's name there."""
    import fsspec  # type: ignore[import-untyped]

    options: dict[str, Any] = {}
    if address.startswith(("http://", "https://")):
        import aiohttp

        # aiohttp gives up after five minutes, even while data arrives
        timeout = aiohttp.ClientTimeout(total=None, sock_connect=30, sock_read=READ_TIMEOUT_SECONDS)
        options["client_kwargs"] = {"timeout": timeout}
    return fsspec.core.url_to_fs(address, **options)  # type: ignore[no-any-return]


def _run(command: str, path: Path) -> None:
    """Write a command's output to `path`."""
    with path.open("wb") as out:
        done = subprocess.run(
            command, shell=True, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, check=False
        )
    if done.returncode:
        lines = done.stderr.decode(errors="replace").strip().splitlines()
        raise OSError(f"the command ended with {done.returncode}{f': {lines[-1]}' if lines else ''}")
