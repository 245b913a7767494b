"""Shards that come as a stream: read to their very end, named where they fail, and broken off from another thread."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import tarfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from webdataset.gopen import Pipe, gopen
from webdataset.tariterators import group_by_keys

from mixer_lightning.data.sources import BadImage, remote
from mixer_lightning.data.sources.tar import MAX_PADDING

MAX_FAILING_SHARDS = 20  # in a row
PIPE_BYTES = 8192  # read at once, as webdataset does
FAILED = "__failed__"  # of an item that stands for a shard
NOTES_ON_SHARD = re.compile(r"__[^/]*__(?:$|/)")  # names that webdataset passes over


class StrictHeader(tarfile.TarInfo):
    """A header of a tar, where Python's tarfile takes a damaged one behind the first for the end."""

    @classmethod
    def fromtarfile(cls, tar: tarfile.TarFile) -> StrictHeader:
        """The next header.

        Raises:
            tarfile.EOFHeaderError: it is the block of zeros that ends the tar.
            tarfile.ReadError: it is damaged, or not there.
        """
        try:
            return super().fromtarfile(tar)
        except tarfile.HeaderError as error:
            if tar.offset == 0 or isinstance(error, tarfile.EOFHeaderError):  # type: ignore[attr-defined]
                raise
            if isinstance(error, tarfile.InvalidHeaderError):  # type: ignore[attr-defined]
                raise tarfile.ReadError(
                    f"at byte {tar.offset:,} is no tar header, or a damaged one"
                ) from error
            raise tarfile.ReadError("it ends before the tar does: it was cut") from error


def shard_files(url: str, stream: Any) -> Iterator[dict[str, Any]]:
    """The files of a shard as webdataset's `tar_file_expander` gives them, and an empty item behind the last.

    Raises:
        tarfile.TarError, OSError: it is cut, or is not a tar.
        ValueError: more than a few zeros follow its end.
    """
    with tarfile.open(fileobj=stream, mode="r|*", tarinfo=StrictHeader) as tar:
        for member in tar:
            if member.isreg() and not NOTES_ON_SHARD.match(member.name):
                data = tar.extractfile(member)
                assert data is not None
                yield {"fname": member.name, "data": data.read(), "__url__": url}
            tar.members = []  # type: ignore[attr-defined]  # or it keeps every header
        assert tar.fileobj is not None
        rest = tar.fileobj.read(MAX_PADDING + 1)
        if len(rest) > MAX_PADDING or rest.strip(b"\0"):
            raise ValueError(f"it ends at byte {tar.offset:,}, but more follows: it is empty in the middle")
    yield {}


class Watched:
    """An opened shard that says of a command that fails how it ended."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream

    def read(self, count: int) -> bytes:
        """The next bytes, fewer only at the end."""
        with self._exit_code():
            data: bytes = self.stream.read(count)
        return data

    def close(self) -> None:
        """Close the shard; OSError where the command that gave it failed."""
        with self._exit_code():
            self.stream.close()

    @contextlib.contextmanager
    def _exit_code(self) -> Iterator[None]:
        """Say of a command that fails how it ended, and no more."""
        try:
            yield
        except OSError as error:
            if isinstance(self.stream, Pipe) and (code := self.stream.proc.returncode):
                raise OSError(f"its command ended with exit code {code}") from error
            raise

    def kill(self) -> None:
        """End the command, if there is one, and what it started: a thread that reads from it goes on."""
        if isinstance(self.stream, Pipe):
            if self.stream.proc.poll() is None:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.stream.proc.pid, signal.SIGKILL)
            self.stream.proc.kill()

    def break_off(self) -> None:
        """Close it in the middle, without waiting for a command that may never end."""
        self.kill()
        with contextlib.suppress(OSError):
            self.stream.close()


@dataclass
class Reading:
    """Which shard a reader has open; `close` breaks it off from another thread."""

    shard: Watched | None = None
    closed: bool = False

    def open(self, url: str) -> Watched:
        """The opened shard."""
        self.shard = None
        self.shard = Watched(_open(url))
        if self.closed:  # meanwhile
            self.shard.kill()
        return self.shard

    def break_off(self) -> None:
        """Close the shard in the middle."""
        if self.shard is not None:
            self.shard.break_off()

    def close(self) -> None:
        """End the command that gives the shard, if one does; no other is opened."""
        self.closed = True
        if self.shard is not None:
            self.shard.kill()


def _open(url: str) -> Any:
    """A shard as webdataset opens it; a command in a group of its own, with what it starts: a pipeline is several."""
    if not url.startswith(remote.PIPE):
        return gopen(url)
    return Pipe(
        url.removeprefix(remote.PIPE),
        mode="rb",
        shell=True,
        bufsize=PIPE_BYTES,
        ignore_status=[128 + signal.SIGPIPE],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def read_shards(shards: Iterable[dict[str, str]], reading: Reading | None = None) -> Iterator[dict[str, Any]]:
    """The samples of shards, as webdataset groups their files; one that fails gives an item that says why.

    After one that failed it waits, as sources/remote.py does, before it opens the next.

    Raises:
        BadImage: shard after shard fails.
    """
    failing: set[str] = set()  # since one could be read
    reading = reading or Reading()
    for url in (shard["url"] for shard in shards):
        if failing:
            waits = remote.RETRY_WAITS_SECONDS
            time.sleep(waits[min(len(failing), len(waits)) - 1])
        if reading.closed:
            return
        is_empty = True
        try:
            shard = reading.open(url)
            for sample in group_by_keys(shard_files(url, shard)):
                is_empty = False
                yield sample
            shard.close()
            if is_empty:
                raise ValueError("it holds no sample")
            failing.clear()
        except GeneratorExit:
            reading.break_off()
            raise
        except Exception as error:  # what Python's tarfile, a command or a file system says
            reading.break_off()
            reason = _reason(error)
            if url in failing or len(failing) >= MAX_FAILING_SHARDS:
                shards_failed = f"{len(failing):,} shards" if len(failing) > 1 else "the shard"
                raise BadImage(
                    f"cannot read {url}: {reason}; {shards_failed} before it could not be read either"
                ) from error
            failing.add(url)
            yield {FAILED: reason, "__url__": url}


def _reason(error: Exception) -> str:
    """What an error says, without the objects that webdataset adds to it."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    said = [each for each in error.args[:1] if isinstance(each, str)]
    return said[0] if said else type(error).__name__
