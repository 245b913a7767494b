"""Checkpoints in parts: each process of a run writes what it has of every tensor, by torch.distributed.checkpoint.

Training waits until its tensors are copied, not until they are on the disk.

Beside last.ckpt, which then holds all but those tensors, lies a folder `shards-<step>-<token>` of .safetensors files,
which last.ckpt names with their SHA-256. So a checkpoint takes the place of another in one move, and nothing that is
read can run code. Reading puts the tensors together: any number of processes goes on from them, and every command
takes last.ckpt as it takes one of a single file.
"""

from __future__ import annotations

import copy
import functools
import hashlib
import shutil
import uuid
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader, HuggingFaceStorageWriter
from torch.distributed.checkpoint.metadata import TensorStorageMetadata
from torch.distributed.checkpoint.state_dict_loader import load as read_parts
from torch.distributed.checkpoint.state_dict_saver import async_save
from torch.distributed.tensor import DTensor

from mixer_lightning import results
from mixer_lightning.checkpoints import torch_file

KEY = "shards"
PREFIX = "shards-"
WEIGHTS, OPTIMIZER = "state_dict", "optimizer"
_INTACT = "The checkpoint that stood there before is intact"


def is_sharded(state: Mapping[str, Any]) -> bool:
    """Whether tensors of a state are shared out over processes."""
    return any(isinstance(value, DTensor) for value in state[WEIGHTS].values())


class Writer:
    """Writes states whose tensors are shared out into a run directory, while the training goes on.

    Its processes speak to each other apart from the training's, through the CPU: a thread waits for the files.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._group: Any = None

    def begin(self, state: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        """Copy a state, which may change from then on; all processes call it, one state after the other.

        Returns:
            What waits for the files of its tensors, in any thread, and gives the rest of the state, which names them.
            It raises OSError in all processes where one could not write its part.

        Raises:
            OSError: the folder cannot be made.
        """
        if self._group is None:
            self._group = torch.distributed.new_group(backend="gloo")
        rest, tensors = _split(state)
        folder = self._new_folder(state["step"])
        writer = HuggingFaceStorageWriter(str(folder), save_distributed=True)
        written = async_save(tensors, storage_writer=writer, process_group=self._group)
        return functools.partial(self._finish, copy.deepcopy(rest), folder, written)

    def _new_folder(self, step: int) -> Path:
        """One that the first process has made."""
        folder = self.run_dir / f"{PREFIX}{step:08d}-{uuid.uuid4().hex[:8]}"
        said = [folder.name, ""]
        if torch.distributed.get_rank() == 0:
            try:
                folder.mkdir(parents=True)
            except OSError as error:
                said[1] = str(error)
        torch.distributed.broadcast_object_list(said, group=self._group)
        if said[1]:
            raise OSError(f"cannot make {folder}: {said[1]}. {_INTACT}")
        return self.run_dir / said[0]

    def _finish(self, rest: dict[str, Any], folder: Path, written: Any) -> dict[str, Any]:
        rank, size = torch.distributed.get_rank(), torch.distributed.get_world_size()
        mine: dict[str, str] | str
        try:
            written.result()
            mine = {path.name: _sha256(path) for path in folder.glob(f"shard-{rank + 1:05d}-*")}
        except CheckpointException as error:  # of all processes; it is no Exception
            mine = "; ".join(f"process {which}: {each[0]}" for which, each in sorted(error.failures.items()))
        except (OSError, RuntimeError) as error:
            mine = f"process {rank}: {error}"
        gathered: list[Any] = [None] * size
        torch.distributed.all_gather_object(gathered, mine, group=self._group)
        for each in gathered:
            if isinstance(each, str):
                raise OSError(f"cannot write {folder}: {each}. {_INTACT}")
        files = {name: digest for each in gathered for name, digest in each.items()}
        return {**rest, KEY: {"folder": folder.name, "files": files}}


def remove_unused(run_dir: Path) -> None:
    """Remove the folders that neither last.ckpt nor the one before it names; nothing where one cannot be read."""
    used = set()
    for path in (run_dir / results.LAST, run_dir / results.PREVIOUS):
        if path.exists():
            try:
                used.add(torch_file.load(path).get(KEY, {}).get("folder"))
            except (ValueError, OSError):
                return
    for folder in run_dir.glob(f"{PREFIX}*"):
        if folder.name not in used:
            shutil.rmtree(folder, ignore_errors=True)


def load(path: Path) -> dict[str, Any]:
    """What a torch file holds, with the tensors of the files that it names, whole and on the CPU.

    Raises:
        torch_file.Damaged: a file is missing, or not what was written.
        ValueError: it is no checkpoint that could be loaded.
    """
    content = torch_file.load(path)
    if KEY not in content:
        return content
    parts = content.pop(KEY)
    name = str(parts["folder"])
    folder = path.parent / name
    if Path(name).name != name or not name.startswith(PREFIX):  # a file may not name what lies elsewhere
        raise ValueError(f"{path} names parts outside its folder: {name}")
    for file, digest in parts["files"].items():
        part = folder / Path(file).name
        if not part.is_file() or _sha256(part) != digest:
            what = "is not what was written" if part.is_file() else "is gone"
            raise torch_file.Damaged(f"{path} is damaged: its part {part} {what}. Restore it from a copy")
    reader = HuggingFaceStorageReader(str(folder))
    tensors = {
        name: torch.empty(each.size, dtype=each.properties.dtype)
        for name, each in reader.read_metadata().state_dict_metadata.items()
        if isinstance(each, TensorStorageMetadata)
    }
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="torch.distributed is disabled")  # as is meant
        read_parts(tensors, storage_reader=HuggingFaceStorageReader(str(folder)), no_dist=True)
    return _joined(content, tensors)


def _split(state: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """A state without the tensors that are shared out, and these by names."""
    tensors: dict[str, Tensor] = {}

    def without(prefix: str, values: Mapping[Any, Any]) -> dict[Any, Any]:
        found = {f"{prefix}/{key}": value for key, value in values.items() if isinstance(value, DTensor)}
        tensors.update(found)
        return {key: value for key, value in values.items() if not isinstance(value, DTensor)}

    slots = {
        number: without(f"{OPTIMIZER}/{number}", each) for number, each in state[OPTIMIZER]["state"].items()
    }
    rest = {WEIGHTS: without(WEIGHTS, state[WEIGHTS]), OPTIMIZER: {**state[OPTIMIZER], "state": slots}}
    return {**state, **rest}, tensors


def _joined(content: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The state that was split."""
    weights = dict(content[WEIGHTS])
    slots = {number: dict(each) for number, each in content[OPTIMIZER]["state"].items()}
    for name, tensor in tensors.items():
        kind, _, key = name.partition("/")
        if kind == WEIGHTS:
            weights[key] = tensor
        else:
            number, _, slot = key.partition("/")
            slots[int(number)][slot] = tensor
    return {**content, WEIGHTS: weights, OPTIMIZER: {**content[OPTIMIZER], "state": slots}}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
