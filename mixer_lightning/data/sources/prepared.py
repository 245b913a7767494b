"""What dataset.json says of a set of shards, and whether the shards are as it says."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from mixer_lightning.data.sources import LabelChange
from mixer_lightning.data.sources.cache import Cache
from mixer_lightning.data.sources.index import Index, array_paths, read
from mixer_lightning.data.sources.locks import log_progress, once_per_machine
from mixer_lightning.data.sources.prepare_defaults import prepare_command
from mixer_lightning.data.sources.remote import File, content, fetch, find, is_remote, sha256_of
from mixer_lightning.data.sources.samples import samples
from mixer_lightning.data.sources.tar import BLOCK

log = logging.getLogger(__name__)

Verify = Literal["size", "full"]  # how shards are compared with dataset.json
THREADS = 16  # they wait for the file system or the network
SHOWN_SHARDS = 5  # in a message


@dataclass(frozen=True)
class Described:
    """A split as `prepare` wrote it."""

    files: list[File]
    samples: list[int]  # of each
    labels_per_image: int
    arrays: dict[str, str]  # files of the index and their sha256; none in sets of earlier versions


@dataclass(frozen=True)
class Description:
    """The content of dataset.json; nothing of it where there is none."""

    classes: list[str] | None
    splits: dict[str, Described]  # none unless `prepare` made the set
    digest: str
    command: str = ""  # that makes the set again
    label_changes_with: tuple[LabelChange, ...] = ()


def describe(name: str, base: str, *, verify: Verify) -> Description:
    """Read `<base>/dataset.json`, which may be missing.

    Raises:
        ValueError: it is not as it should be.
    """
    path = f"{base}/dataset.json"
    text = content(path)
    if text is None:
        return Description(None, {}, "", prepare_command(name, {}))
    try:
        about = json.loads(text)
        classes = about["classes"]
        splits = {
            split: _described(base, split, each, verify=verify)
            for split, each in about.get("splits", {}).items()
        }
        changes = list(about.get("label_changes_with", []))
        if unknown := [each for each in changes if each not in get_args(LabelChange)]:
            raise ValueError(
                f"label_changes_with may name {', '.join(get_args(LabelChange))}, found {unknown[0]!r}"
            )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(
            f'{name}: cannot read {path} ({reason}). Expected {{"classes": ["name", ...]}}, and "splits" as prepare '
            "writes them."
        ) from error
    if not isinstance(classes, list) or not classes or not all(isinstance(each, str) for each in classes):
        raise ValueError(f'{name}: "classes" in {path} must be a list of names.')
    options = about.get("options")
    again = prepare_command(name, options if isinstance(options, dict) else {})
    return Description(classes, splits, hashlib.sha256(text).hexdigest(), again, tuple(changes))


def _described(base: str, name: str, split: dict[str, Any], *, verify: Verify) -> Described:
    files, samples, where = [], [], f"splits.{name}"
    for number, each in enumerate(split["shards"]):
        shard = f"{where}.shards[{number}]"
        file, sha256 = _text(each, "name", shard), _text(each, "sha256", shard)
        full = sha256 if verify == "full" else None
        files.append(File(f"{base}/{file}", _count(each, "bytes", shard), sha256, full))
        samples.append(_count(each, "samples", shard))
    if sum(samples) != _count(split, "samples", where):
        raise ValueError(f"the shards of {where} have {sum(samples):,} samples, not {split['samples']:,}")
    labels_per_image = _count(split, "labels_per_image", where) if "labels_per_image" in split else 1
    arrays = {
        _text(each, "name", f"{where}.arrays"): _text(each, "sha256", f"{where}.arrays")
        for each in split.get("arrays", [])
    }
    own = [path.name for path in array_paths(Path(), name)]
    if foreign := arrays.keys() - own:
        raise ValueError(f"{where}.arrays must be among {' and '.join(own)}, found {min(foreign)!r}")
    return Described(files, samples, labels_per_image, arrays)


def _count(node: dict[str, Any], key: str, where: str) -> int:
    value = node[key]
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{where}.{key} must be a whole number, found {value!r}")
    return value


def _text(node: dict[str, Any], key: str, where: str) -> str:
    value = node[key]
    if not isinstance(value, str):
        raise ValueError(f"{where}.{key} must be a text, found {value!r}")
    return value


# -------------------------------------------------------------------------------------------------- shards


def check_sizes(name: str, base: str, splits: dict[str, Described], again: str) -> list[File]:
    """Compare the sizes of all shards with dataset.json; the shards as they are. `again` makes the set again.

    Raises:
        ValueError: shards are missing or of another size; they are named.
        OSError: they cannot be reached.
    """
    files = [file for described in splits.values() for file in described.files]
    with ThreadPoolExecutor(THREADS) as pool:
        states = list(pool.map(find, [file.address for file in files]))
    wrong = [text for file, state in zip(files, states, strict=True) if (text := _difference(file, state))]
    _refuse(name, base, wrong, len(files), again)
    return [state for state in states if state is not None]


def check_contents(
    name: str,
    base: str,
    splits: dict[str, tuple[Described, Index]],
    states: list[File],
    classes: list[str] | None,
    *,
    store: Cache,
    folder: Path,
    again: str,
) -> None:
    """Compare what all shards hold with dataset.json, and the index with what stands in the shards.

    Local copies of remote shards that turn out to be altered are deleted. `folder` keeps notes of this machine.

    Raises:
        ValueError: shards are other ones, or the index is not theirs; they are named.
        OSError: they cannot be read.
    """
    files = [file for described, _ in splits.values() for file in described.files]
    seen = [
        *((file.address, file.sha256, state.version) for file, state in zip(files, states, strict=True)),
        *(hashlib.sha256(index.rows.tobytes()).hexdigest() for _, index in splits.values()),
    ]
    fingerprint = hashlib.sha256(json.dumps(seen).encode()).hexdigest()
    with once_per_machine([folder], f"verify-{socket.gethostname()}", fingerprint, name=name) as lock:
        if not lock.is_done:
            log.info("%s: comparing the sha256 of %s shards", name, f"{len(files):,}")
            _refuse(name, base, list(_altered(name, files, store)), len(files), again)
            for split, (described, index) in splits.items():
                wrong = _not_of_shards(name, split, described, index, classes, store)
                if wrong:
                    raise ValueError(
                        f"{name}: {wrong} Copy the index again, or make the set again, in another folder, with: {again}"
                    )


def _not_of_shards(
    name: str, split: str, described: Described, index: Index, classes: list[str] | None, store: Cache
) -> str | None:
    """In what an index differs from the headers and labels in the shards that are here; None if in nothing."""
    labels_of = {each: label for label, each in enumerate(classes or [])}
    ends = list(accumulate(described.samples))
    parts = [
        (file, slice(end - count, end))
        for file, end, count in zip(described.files, ends, described.samples, strict=True)
        if not file.is_remote  # of others, the checksum of the index tells
    ]

    def difference(part: tuple[File, slice]) -> str | None:
        file, own = part
        descriptor = store.open(file)
        try:
            rows, labels, _ = samples(descriptor, labels_of)
        except ValueError as error:
            return f"{file.address}: {error}"
        finally:
            os.close(descriptor)
        mine = index.rows[own]
        if len(rows) != len(mine):
            return f"{file.name} holds {len(rows):,} samples, its part of {split}-index.npy {len(mine):,}."
        listed = mine["label"][:, None] if index.labels is None else index.labels[own]
        width = max(labels.shape[1], listed.shape[1])
        same = (_wide(labels, width) == _wide(listed, width)).all(axis=1) & (rows == mine)
        if same.all():
            return None
        row = int(np.flatnonzero(~same)[0])
        return (
            f"{split}-index.npy is not that of {file.name}: image {row + 1:,} there has label(s) "
            f"{_shown(labels[row])} at byte {rows['block'][row] * BLOCK:,}, in the index {_shown(listed[row])} at byte "
            f"{mine['block'][row] * BLOCK:,} ({np.count_nonzero(~same):,} of {len(same):,} differ)."
        )

    with ThreadPoolExecutor(THREADS) as pool:
        for found in log_progress(pool.map(difference, parts), f"{name}: index compared with", len(parts)):
            if found:
                return found
    return None


def _wide(labels: npt.NDArray[np.int32], width: int) -> npt.NDArray[np.int32]:
    return np.pad(labels, ((0, 0), (0, width - labels.shape[1])), constant_values=-1)


def _shown(labels: npt.NDArray[np.int32]) -> str:
    return ", ".join(str(label) for label in labels.tolist() if label >= 0)


def _difference(file: File, state: File | None) -> str | None:
    shard = file.address.rpartition("/")[2]
    if state is None:
        return f"{shard} is missing ({file.bytes:,} bytes)"
    if state.bytes is not None and state.bytes != file.bytes:
        return f"{shard} has {state.bytes:,} bytes instead of {file.bytes:,}"
    return None


def _altered(name: str, files: list[File], store: Cache) -> Iterator[str]:
    here = [file for file in files if store.has(file)]

    def altered(file: File) -> bool:
        if file.is_remote:
            store.drop_if_altered(file)
            return False
        return sha256_of(Path(file.address)) != file.sha256

    with ThreadPoolExecutor(THREADS) as pool:
        outcomes = log_progress(pool.map(altered, here), f"{name}: verified", len(here))
        for file, is_altered in zip(here, outcomes, strict=True):
            if is_altered:
                yield f"{file.name} has another sha256"


def _refuse(name: str, base: str, wrong: list[str], total: int, again: str) -> None:
    if wrong:
        more = f"; and {len(wrong) - SHOWN_SHARDS:,} more" if len(wrong) > SHOWN_SHARDS else ""
        raise ValueError(
            f"{name}: {len(wrong):,} of {total:,} shards under {base} are not those of dataset.json: "
            f"{'; '.join(wrong[:SHOWN_SHARDS])}{more}. Copy them again, or make them again, in "
            f"another folder, with: {again}"
        )


# -------------------------------------------------------------------------------------------------- index


def index_of(name: str, base: str, split: str, about: Description, folder: Path, *, verify: Verify) -> Index:
    """The index of a split that `prepare` made; a remote one is copied to `folder`.

    Raises:
        ValueError: it is missing, or does not fit dataset.json, its checksum among that with verify="full".
    """
    described = about.splits[split]
    shards = [
        (file.address, file.bytes or 0, count)
        for file, count in zip(described.files, described.samples, strict=True)
    ]
    arrays_folder = Path(base)
    try:
        if is_remote(base):
            arrays_folder = folder / about.digest[:16]
            arrays = ["index"] if described.labels_per_image == 1 else ["index", "labels"]
            with once_per_machine([arrays_folder], split, about.digest, name=name):
                for array in arrays:
                    file = f"{split}-{array}.npy"
                    _copy(f"{base}/{file}", arrays_folder / file, described.arrays.get(file))
        for array, sha256 in described.arrays.items() if verify == "full" else ():
            if sha256_of(arrays_folder / array) != sha256:
                raise ValueError(f"{arrays_folder / array} has another sha256 than dataset.json says")
        return read(arrays_folder, split, shards, described.labels_per_image)
    except (ValueError, FileNotFoundError) as error:
        if is_remote(base):  # the next start fetches it again
            for path in arrays_folder.glob(f"{split}-*.npy"):
                path.unlink(missing_ok=True)
        raise ValueError(
            f"{name}: {error}. Copy it again, or make the set again, in another folder, with: {about.command}"
        ) from error


def _copy(address: str, path: Path, sha256: str | None) -> None:
    if not path.exists():
        part = path.with_suffix(".part")
        fetch(File(address, None), part)
        if sha256 is not None and sha256_of(part) != sha256:
            part.unlink()
            raise ValueError(f"{address} has another sha256 than dataset.json says")
        part.rename(path)
