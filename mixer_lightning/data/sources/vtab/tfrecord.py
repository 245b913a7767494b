"""TFRecord files and the `tf.train.Example` messages in them, as far as images need them; no TensorFlow.

A record is its length (8 bytes, little-endian), a checksum of these, the message, and a checksum of it (4 bytes each).
A message is protobuf: fields of (number << 3 | kind), then a varint, 4 or 8 bytes, or a length and that many bytes.
"""

from __future__ import annotations

import mmap
import struct
from collections.abc import Container, Iterator
from pathlib import Path
from typing import NamedTuple

_VARINT, _EIGHT_BYTES, _BYTES, _FOUR_BYTES = 0, 1, 2, 5
_CASTAGNOLI = 0x82F63B78


class Span(NamedTuple):
    """Where some bytes of a file begin and end."""

    begin: int
    end: int


def examples(path: Path, *, texts: Container[str]) -> Iterator[dict[str, Span | int | str]]:
    """The features of every record of a file: an integer, a text if `texts` says so, else where an image lies in it.

    Raises ValueError naming the file and byte at which it is damaged or something else than TFRecords.
    """
    if path.stat().st_size == 0:
        return
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        at = 0
        while at < len(data):
            header = data[at : at + 12]
            if len(header) < 12 or _masked_crc32c(header[:8]) != struct.unpack("<I", header[8:])[0]:
                raise ValueError(f"{path} is not a TFRecord file, or damaged at byte {at:,}.")
            begin = at + 12
            end = begin + struct.unpack("<Q", header[:8])[0]
            if end + 4 > len(data):
                raise ValueError(f"{path} ends inside the record at byte {at:,}: it was cut off.")
            try:
                yield _features(data, Span(begin, end), texts)
            except (ValueError, IndexError, struct.error) as error:
                raise ValueError(f"{path}: cannot read the record at byte {at:,}: {error}") from error
            at = end + 4


def _features(data: mmap.mmap, message: Span, texts: Container[str]) -> dict[str, Span | int | str]:
    """Example { Features { map<name, Feature> } }, of each feature the first value."""
    found: dict[str, Span | int | str] = {}
    for features in _inside(data, message, 1):
        for entry in _inside(data, features, 1):
            name = "".join(_text(data, span) for span in _inside(data, entry, 1))
            for feature in _inside(data, entry, 2):
                value = _first_value(data, feature)
                if value is not None:
                    found[name] = _text(data, value) if isinstance(value, Span) and name in texts else value
    return found


def _first_value(data: mmap.mmap, feature: Span) -> Span | int | None:
    """Feature { BytesList = 1; FloatList = 2; Int64List = 3 }, whose integers may be packed or not."""
    for number, values in _fields(data, feature):
        if number not in (1, 3) or not isinstance(values, Span):
            continue
        for _, value in _fields(data, values):
            if number == 1:
                return value
            packed = _varint(data, value.begin)[0] if isinstance(value, Span) else value
            return packed - 2**64 if packed >= 2**63 else packed
    return None


def _text(data: mmap.mmap, span: Span) -> str:
    return data[span.begin : span.end].decode(errors="surrogateescape")


def _inside(data: mmap.mmap, message: Span, wanted: int) -> list[Span]:
    """The submessages or strings of one field."""
    return [value for number, value in _fields(data, message) if number == wanted and isinstance(value, Span)]


def _fields(data: mmap.mmap, message: Span) -> Iterator[tuple[int, Span | int]]:
    at, end = message
    while at < end:
        tag, at = _varint(data, at)
        kind = tag & 7
        value: Span | int
        if kind == _VARINT:
            value, at = _varint(data, at)
        elif kind == _BYTES:
            length, at = _varint(data, at)
            value = Span(at, at + length)
            at += length
        elif kind in (_FOUR_BYTES, _EIGHT_BYTES):
            size = 4 if kind == _FOUR_BYTES else 8
            value = Span(at, at + size)
            at += size
        else:
            raise ValueError(f"protobuf has no kind of field {kind}")
        if at > end:
            raise ValueError("a field goes beyond its message")
        yield tag >> 3, value


def _varint(data: mmap.mmap, at: int) -> tuple[int, int]:
    """A number in groups of seven bits, lowest first, and where the next field begins."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _masked_crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _CRC_TABLE[(crc ^ byte) & 255] ^ (crc >> 8)
    crc ^= 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc_entry(byte: int) -> int:
    for _ in range(8):
        byte = (byte >> 1) ^ (_CASTAGNOLI if byte & 1 else 0)
    return byte


_CRC_TABLE = [_crc_entry(byte) for byte in range(256)]
