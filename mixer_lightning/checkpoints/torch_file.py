"""Torch files: read without running anything that they hold, and not read where a bit of them has changed.

`torch.save` stores each tensor as a record of a zip archive with its CRC-32, which `torch.load` never looks at: a file
with a flipped bit loads, with another weight. Looking costs half a second a gigabyte. A .safetensors file has no
checksums of its own, so our exports state one.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

CHECKSUM = "mixer_lightning_sha256"  # in the metadata of a .safetensors file: of all bytes after its header


class Damaged(ValueError):
    """The file is not whole, or not what was written."""


def load(path: Path) -> dict[str, Any]:
    """The dictionary in a torch file, tensors on the CPU.

    Raises:
        Damaged: the file cannot be read, or a record is not what its checksum says.
        ValueError: it holds pickled objects, or no dictionary.
    """
    record = damaged_record(path)
    if record is not None:
        raise Damaged(f"{path} is damaged: its part {record} is not what was written. Restore it from a copy")
    try:
        # timm's trainer, which the ConvMixer authors used, keeps its options in a Namespace: harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can fail with any exception
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))  # a class or function that the pickle asks for
        if refused:
            raise ValueError(pickled(path, refused[1])) from error
        raise Damaged(broken(path, "torch file")) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds {type(content).__name__}, not a dictionary of weights")
    return {str(key): value for key, value in content.items()}


def damaged_record(path: Path) -> str | None:
    """The first record whose bytes are not those of its CRC-32; None where all are, or where the file has no such.

    Torch before 1.6 wrote no archives, and `torch.serialization.set_crc32_options(False)` writes zeros for checksums.
    """
    try:
        if not zipfile.is_zipfile(path):
            return None
        with zipfile.ZipFile(path) as archive:
            has_checksums = any(record.CRC for record in archive.infolist())
            return archive.testzip() if has_checksums else None
    except Exception as error:  # BadZipFile, EOFError, struct.error: zipfile raises many
        raise Damaged(broken(path, "torch file")) from error


def first_tensor_byte(begin: bytes) -> int:
    """Where the tensors of a .safetensors file begin, of its first 8 bytes: they say how long the header is."""
    return 8 + int.from_bytes(begin[:8], "little")


def check_safetensors(path: Path, texts: Mapping[str, str]) -> None:
    """See that the tensors of a .safetensors file are those of the checksum in its metadata, where there is one.

    Raises:
        Damaged: they are not.
    """
    if CHECKSUM not in texts:
        return
    with path.open("rb") as file:
        file.seek(first_tensor_byte(file.read(8)))
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != texts[CHECKSUM]:
        raise Damaged(f"{path} is damaged: its tensors are not what was written. Restore it from a copy")


def broken(path: Path, what: str) -> str:
    """What to say of a file that does not open."""
    return (
        f"{path} is not a readable {what}: {_looks_like(path) or 'it is damaged or cut short; copy it again'}"
    )


def pickled(path: Path, what: str) -> str:
    """What to say of a file that holds Python objects."""
    return (
        f"{path} holds pickled objects ({what}), and to load those would let the file run code. "
        "Save the weights alone where you trust it: torch.save(model.state_dict(), path)"
    )


def _looks_like(path: Path) -> str | None:
    """What the first bytes of a broken file betray about how it came here."""
    with path.open("rb") as file:
        start = file.read(256)
    text = start.lstrip().lower()
    if not text:
        return "it is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; the download needs another address or a login"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with git lfs pull"
    torch_magic = b"\x80\x02\x8a\x0a"  # torch before 1.6 wrote pickles too, of a number first
    if start.startswith(b"\x80") and not start.startswith(torch_magic):
        return "it is a plain pickle, and to load one would let it run code"
    return None
