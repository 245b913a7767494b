"""What a launcher (torchrun, srun) says of this process: the one reader of its variables. Standard library only."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from typing import NamedTuple

TORCHRUN = ("WORLD_SIZE", "RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE")
SRUN = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS_PER_NODE")
RESERVED_STEPS = 0xFFFFFFF0  # of Slurm itself, from here on: batch scripts, interactive shells


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
        ValueError: a variable is missing, or no number.
    """
    if _ignored:
        return None
    if is_torchrun():
        names = TORCHRUN
    elif is_srun() and os.environ["SLURM_NTASKS"] != "1":
        names = SRUN  # a Slurm job of one task has no need of a launcher
    elif os.environ.get("WORLD_SIZE", "1") != "1":
        raise ValueError(
            f"WORLD_SIZE={os.environ['WORLD_SIZE']} announces several processes, and torchrun, which numbers them, "
            "did not start this one: use torchrun --nnodes=<machines> --nproc_per_node=<devices of one> train.py "
            "trainer=ddp ..., or unset WORLD_SIZE and RANK for a run of one process"
        )
    else:
        return None
    missing = [name for name in names if name not in os.environ]
    if missing:
        raise ValueError(
            f"the launcher does not say {missing[0]}: under Slurm give srun or sbatch "
            "--ntasks-per-node=<devices of a node>"
        )
    try:
        return Launch(*(int(os.environ[name]) for name in names))
    except ValueError:
        said = ", ".join(f"{name}={os.environ[name]}" for name in names)
        raise ValueError(f"the launcher's variables are no whole numbers: {said}") from None


def is_of_torchrun(name: str) -> bool:
    """Whether a variable is one that torchrun sets for its processes."""
    others = ("MASTER_ADDR", "MASTER_PORT", "GROUP_RANK", "ROLE_RANK", "ROLE_WORLD_SIZE")
    return name in (*TORCHRUN, *others) or name.startswith("TORCHELASTIC_")


def is_trial() -> bool:
    """Whether `wandb agent` has started this process, with settings that its sweep proposes."""
    return bool(os.environ.get("WANDB_SWEEP_ID"))


def suffix_of_trial() -> str:
    """What tells the run directory of a trial of `wandb agent` from those of others: "-<id of its W&B run>".

    Its settings need not show in the name: the agent, which may start a trial once more, knows it by the id.
    """
    run_id = re.sub(r"[^\w-]", "_", os.environ.get("WANDB_RUN_ID", ""))
    return f"-{run_id}" if is_trial() and run_id else ""


def is_torchrun() -> bool:
    """Whether torchrun speaks, even inside srun.

    Platforms set WORLD_SIZE and RANK for every container (Kubeflow, SageMaker) and shells keep them: what is local to
    a machine only torchrun says.
    """
    return all(name in os.environ for name in TORCHRUN)


def is_srun() -> bool:
    """Whether srun started this process as one of its tasks.

    sbatch's own script and salloc's shell have the job's variables too, but no step, or one of a reserved number; a
    shell of `srun --pty` has a terminal's port.
    """
    step = os.environ.get("SLURM_STEP_ID", "")
    is_task = step.isdecimal() and int(step) < RESERVED_STEPS and "SLURM_PTY_PORT" not in os.environ
    return is_task and all(name in os.environ for name in SRUN[:2])


def shares_cores() -> bool:
    """Whether the processes of a node see the same cores; srun gives each process cores of its own."""
    return is_torchrun() and not _ignored


def rank() -> str:
    """The number of this process as text, "0" without a launcher; known before anything is checked."""
    if _ignored:
        return "0"
    if is_torchrun() or os.environ.get("WORLD_SIZE", "1") != "1":  # the latter is refused: by one, not by all
        return os.environ.get("RANK", "0")
    return os.environ["SLURM_PROCID"] if is_srun() else "0"


def is_one_of_several() -> bool:
    """Whether a launcher has started more processes than this; what it says wrongly is refused elsewhere."""
    try:
        return (launched() or ALONE).world_size > 1
    except ValueError:
        return False


def hush() -> None:
    """Let torch not print pages of frames for every try of a connection; to be said before torch is imported."""
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")


def is_first() -> bool:
    """Whether this process speaks for all of its run."""
    return rank() == "0"
