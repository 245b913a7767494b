"""Tar archives read from front to end, also inside each other and compressed, and never unpacked to disk.

`tarfile` takes an archive that was cut between two files for a whole one; this reader does not. What it yields is an
`ArchiveMember`, itself a stream, so `archive_members(member, ...)` reads an archive inside an archive.
"""

from __future__ import annotations

import gzip
import logging
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, Protocol

from mixer_lightning.data.sources import tar

log = logging.getLogger(__name__)

READ_BYTES = 2**20  # at a time


class Stream(Protocol):
    """Bytes from front to end."""

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end."""

    def skip(self, count: int) -> None:
        """Go on after `count` bytes; ValueError when there are not as many."""


class ArchiveStream:
    """An archive file on disk, plain or gzip: its first bytes tell, whatever its name."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("rb", buffering=READ_BYTES)
        self._bytes = path.stat().st_size
        self.offset = 0  # in the archive itself, unpacked where it is compressed
        self.compressed = is_gzip(path)
        self._stream: BinaryIO | gzip.GzipFile = (
            gzip.GzipFile(fileobj=self._file) if self.compressed else self._file
        )

    def read(self, count: int) -> bytes:
        """The next `count` bytes, fewer only at the end."""
        try:
            data = self._stream.read(count)
            self.offset += len(data)
            return data
        except (EOFError, zlib.error, gzip.BadGzipFile) as error:
            raise ValueError(f"{self.path} is damaged or cut ({error}). Fetch it again.") from error

    def skip(self, count: int) -> None:
        """Go on after `count` bytes, without reading them unless the file is compressed."""
        if self.compressed:
            while count and (data := self.read(min(count, READ_BYTES))):
                count -= len(data)
        elif self._file.tell() + count <= self._bytes:
            self._file.seek(count, 1)
            self.offset += count
            count = 0
        if count:
            raise ValueError(f"{self.path} is cut after {self._bytes:,} bytes. Fetch it again.")

    def position(self) -> int:
        """Bytes of the file on disk that lie behind."""
        return self._file.tell()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


class ArchiveMember:
    """A file inside a tar: read it, or leave it, before asking for the next."""

    def __init__(self, name: str, size: int, stream: Stream, where: str) -> None:
        self.name, self.size = name, size
        self.where = f"{where}: {name}"
        self._stream, self._left = stream, size

    def read(self, count: int | None = None) -> bytes:
        """The next `count` bytes or, without it, all that are left; ValueError when they are too many for an image."""
        if count is None and self._left > tar.MAX_IMAGE_BYTES:
            raise ValueError(f"{self.where} has {self.size:,} bytes: that is no image.")
        count = self._left if count is None else min(count, self._left)
        data = self._stream.read(count)
        self._left -= len(data)
        if len(data) < count:
            raise ValueError(f"{self.where} is cut after {self.size - self._left:,} of {self.size:,} bytes.")
        return data

    def skip(self, count: int | None = None) -> None:
        """Go on after `count` bytes or, without it, to the end."""
        count = self._left if count is None else count
        if count > self._left:
            raise ValueError(f"{self.where} is cut after {self.size:,} bytes.")
        self._stream.skip(count)
        self._left -= count


def is_gzip(path: Path) -> bool:
    """Whether a file's first bytes are those of gzip."""
    with path.open("rb") as file:
        return file.read(2) == tar.GZIP_MAGIC


def archive_members(stream: Stream, where: str, *, nested: bool = False) -> Iterator[ArchiveMember]:
    """The regular files of a tar in order; ValueError when it is cut or is not a tar.

    A tar ends with zeros. One inside another may also end where its own size says, because that much is there.
    """
    extension, num_links = tar.Extension(), 0
    position = 0  # where the header begins
    while True:
        block = stream.read(tar.BLOCK)
        if not block and nested:
            return
        if len(block) < tar.BLOCK:
            raise ValueError(f"{where} is cut: a tar ends with blocks of zeros. Fetch it again.")
        if not any(block):
            if not nested:
                _check_end(stream, where)
            if num_links:
                log.warning("%s: %s links are left out: a stream does not go back", where, f"{num_links:,}")
            return
        try:
            header = extension.apply(tar.parse_header(block))
            member = ArchiveMember(header.name, header.size, stream, where)
            if header.is_extension:
                extension.read(header, member.read())
        except tar.TarError as error:
            raise ValueError(
                f"{where} is not a tar, or damaged ({error}; at its byte {position:,}). Fetch it again."
            ) from error
        num_links += header.is_link
        if header.is_regular:
            yield member
        member.skip()
        stream.read(tar.padding(header.size))
        position = tar.after(position + tar.BLOCK, header.size)


def _check_end(stream: Stream, where: str) -> None:
    """ValueError unless a few zeros and nothing else follow: a file made to size and not filled has many."""
    rest = stream.read(tar.MAX_PADDING + 1)
    if len(rest) > tar.MAX_PADDING or any(rest):
        raise ValueError(
            f"{where} is empty in the middle, as if it had not been fetched to the end. Fetch it again."
        )
