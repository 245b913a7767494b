"""What a launcher (torchrun, srun) says of this process: the one reader of its variables. Standard library only."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from typing import NamedTuple

TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SRUN = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")


class Launch(NamedTuple):
    """Number of processes, number of this one, and the same on its node."""

    world_size: int
    rank: int
    local_rank: int
    local_world_size: int


ALONE = Launch(world_size=1, rank=0, local_rank=0, local_world_size=1)


_ignored = False


@contextlib.contextmanager
def ignored() -> Iterator[None]:
    """For programs of one process: whatever a job's environment says, this process works for itself."""
    global _ignored
    _ignored = True
    try:
        yield
    finally:
        _ignored = False


def launched() -> Launch | None:
    """What torchrun or srun says; None without a launcher.

    Raises:
        ValueError: a variable is missing.
    """
    if _ignored:
        return None
    if all(name in os.environ for name in TORCHRUN[:2]):
        names = TORCHRUN
    elif all(name in os.environ for name in SRUN[:2]) and os.environ["SLURM_NTASKS"] != "1":
        names = SRUN  # a Slurm job of one task has no need of a launcher
    else:
        return None
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(
            f"the launcher does not say {missing[0]}: under Slurm give srun or sbatch "
            "--ntasks-per-node=<devices of a node>"
        )
    return Launch(*(int(os.environ[name]) for name in names))


def is_torchrun() -> bool:
    """Whether torchrun speaks, even inside srun."""
    return "WORLD_SIZE" in os.environ


def shares_cores() -> bool:
    """Whether the processes of a node see the same cores; srun gives each process cores of its own."""
    return "LOCAL_WORLD_SIZE" in os.environ and not _ignored


def rank() -> str:
    """The number of this process as text, "0" without a launcher; known before anything is checked."""
    return "0" if _ignored else os.environ.get("RANK", os.environ.get("SLURM_PROCID", "0"))


def is_first() -> bool:
    """Whether this process speaks for all of its run."""
    return rank() == "0"
