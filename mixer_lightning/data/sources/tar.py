"""Headers of tar files, read without the files between them: POSIX "ustar" and "pax", and GNU's long names.

Twenty times as fast as `tarfile`, and stricter: two blocks of zeros must follow the last file, so a tar that was cut
between two files is noticed as well.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NamedTuple

BLOCK = 512  # tar files consist of blocks of this many bytes
LONGEST_PADDING = 2**20  # of zeros at the end of a tar; common programs write 10,240 bytes or less
AGAIN = "Copy or make this shard again."


class Member(NamedTuple):
    """A file in a tar."""

    name: str
    offset: int  # of its first byte
    size: int  # in bytes


def members(fd: int, *, start: int = 0) -> Iterator[Member]:
    """The regular files of a tar, in order; of those from a header at byte `start` on.

    Raises:
        ValueError: it is cut, or is no tar; the message does not name it.
    """
    end = os.fstat(fd).st_size
    position, name, size = start, None, None
    while True:
        header = os.pread(
            fd, 2 * BLOCK, position
        )  # data, another header or two blocks of zeros follow a header
        if len(header) < 2 * BLOCK:
            raise ValueError(f"it is cut after {end:,} bytes. {AGAIN}")
        if not any(header):
            _check_padding(fd, position, end)
            return
        if not _checksum_agrees(header[:BLOCK]):
            packed = " (it is compressed: unpack it with gunzip)" if header[:2] == b"\x1f\x8b" else ""
            raise ValueError(f"there is no tar header at byte {position:,}{packed}. {AGAIN}")
        kind = header[156:157]
        data_start, length = position + BLOCK, _number(header[124:136])
        is_extension = kind in (b"x", b"g", b"L", b"K")  # describes the file that follows
        if not is_extension:
            length = length if size is None else size
        if kind in (
            b"1",
            b"2",
            b"3",
            b"4",
            b"5",
            b"6",
        ):  # links, devices and folders have nothing behind their header
            length = 0
        if data_start + length > end:
            raise ValueError(f"it is cut after {end:,} bytes, inside {name or _ustar_name(header)}. {AGAIN}")
        if kind == b"x":
            fields = _pax(os.pread(fd, length, data_start))
            name = fields.get("path", name)
            size = int(fields["size"]) if "size" in fields else size
        elif kind == b"L":
            name = os.pread(fd, length, data_start).split(b"\0")[0].decode(errors="surrogateescape")
        elif not is_extension:
            if kind in (b"0", b"\0", b"7"):
                yield Member(name or _ustar_name(header), data_start, length)
            name = size = None
        position = after(data_start, length)


def after(offset: int, size: int) -> int:
    """Where the header that follows a file begins."""
    return offset + (size + BLOCK - 1) // BLOCK * BLOCK


def _check_padding(fd: int, position: int, end: int) -> None:
    """ValueError unless the zeros at `position` are the end of a tar, and not a hole in it."""
    if position == 0 or end - position > LONGEST_PADDING:  # a file made to size, then not filled
        raise ValueError(f"from byte {position:,} on it is empty. {AGAIN}")
    padding = os.pread(fd, end - position, position)
    if padding.strip(b"\0"):
        more = len(padding) - len(padding.lstrip(b"\0"))
        raise ValueError(
            f"it ends at byte {position:,}, but more follows at byte {position + more:,}. {AGAIN}"
        )


def _checksum_agrees(block: bytes) -> bool:
    """The header's sum of bytes, in which the checksum itself counts as eight spaces."""
    try:
        return _number(block[148:156]) == sum(block) - sum(block[148:156]) + 8 * ord(" ")
    except ValueError:
        return False


def _number(raw: bytes) -> int:
    """Octal digits, or GNU's binary form for sizes from 8 GiB on, marked by the highest bit."""
    if raw[0] & 0x80:
        return int.from_bytes(raw, "big") & ~(0x80 << (8 * len(raw) - 8))
    return int(raw.split(b"\0")[0].strip() or b"0", 8)


def _ustar_name(header: bytes) -> str:
    name = header[:100].split(b"\0")[0]
    if header[257:265] == b"ustar\x0000" and header[345]:  # POSIX: names over 100 bytes are split
        name = header[345:500].split(b"\0")[0] + b"/" + name
    return name.decode(errors="surrogateescape")


def _pax(data: bytes) -> dict[str, str]:
    """Records "<length> <key>=<value>\\n"."""
    fields = {}
    while data[:1].isdigit():
        digits, _, _ = data.partition(b" ")
        length = int(digits)
        if not len(digits) + 1 < length <= len(data):
            raise ValueError(f"an extended header is damaged. {AGAIN}")
        key, _, value = data[len(digits) + 1 : length - 1].partition(b"=")
        fields[key.decode(errors="replace")] = value.decode(errors="surrogateescape")
        data = data[length:]
    return fields
