"""All processes of a run must do the same: proven before the first step.

Nodes have disks of their own. Another recipe, another version of the code or of a library, or other images on one of
them would train in silence, and the figures would be nobody's.
"""

from __future__ import annotations

import hashlib
import json
import socket
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer

from mixer_lightning import results
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.data import identity
from mixer_lightning.engine.callbacks import StepCallback
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.distributed import gather_objects, is_distributed
from mixer_lightning.kernels.compiled import compiled

PACKAGE = Path(__file__).parents[1]
SHOWN = 5  # of what differs


@dataclass(frozen=True)
class Standing:
    """What one process is about to do."""

    host: str
    code: Mapping[str, str]  # digests of the package's files
    versions: Mapping[str, str]
    kernels: Mapping[str, bool]  # whether they could be compiled
    recipe: Mapping[str, Any]
    data: Mapping[str, Any]  # data/identity.py's record; nothing where no run is begun
    step: int

    @classmethod
    def here(
        cls, *, recipe: Mapping[str, Any] | None = None, data: Mapping[str, Any] | None = None, step: int = 0
    ) -> Standing:
        """Of this process: of a run, or of its host alone."""
        return cls(
            socket.gethostname(),
            code_digests(),
            results.versions(),
            compiled(),
            recipe or {},
            data or {},
            step,
        )

    def digest(self) -> str:
        """Of all but the host."""
        parts = asdict(self) | {"host": ""}
        return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()


def code_digests(package: Path = PACKAGE) -> dict[str, str]:
    """A digest of each source file of this package, by its path within it."""
    files = sorted(path for path in package.rglob("*") if path.suffix in (".py", ".cpp", ".h"))
    return {
        str(path.relative_to(package)): hashlib.sha256(path.read_bytes()).hexdigest()[:16] for path in files
    }


def disagreement(standings: Sequence[Standing]) -> str | None:
    """In what a process, by its number, differs from process 0; None where all may train together."""
    first = standings[0]
    for rank, other in enumerate(standings):
        who = f"process {rank} (on {other.host})"
        if other.recipe != first.recipe:
            keys = [name for name, *_ in results.differing_keys(first.recipe, other.recipe)]
            return f"{who} has another recipe than process 0, {_listed(keys)}: start all with one command"
        if other.versions != first.versions:
            names = [
                f"{name} {other.versions.get(name, 'missing')} and not {first.versions.get(name, 'missing')}"
                for name in sorted({*first.versions, *other.versions})
                if first.versions.get(name) != other.versions.get(name)
            ]
            return f"{who} has {_listed(names)} of process 0 (on {first.host}): install the same on all nodes"
        if other.code != first.code:
            names = [
                name
                for name in sorted({*first.code, *other.code})
                if first.code.get(name) != other.code.get(name)
            ]
            return (
                f"{who} runs another version of mixer_lightning than process 0 (on {first.host}): {_listed(names)} "
                "differ. Bring all nodes to one commit"
            )
        if other.kernels != first.kernels:
            names = [name for name, is_there in first.kernels.items() if other.kernels.get(name) != is_there]
            return (
                f"{who} and process 0 (on {first.host}) do not both have native code for {_listed(names)}: "
                "install a C++ compiler on all nodes"
            )
        what = identity.difference(other.data, first.data) if first.data else None
        if what is not None:
            return (
                f"{who} has other data than process 0 (on {first.host}, which 'there' means): {what}. All nodes must "
                "see the same images"
            )
        if other.step != first.step:
            return (
                f"process {rank} stands at step {other.step:,}, process 0 at {first.step:,}: "
                "all nodes must see the same run directory"
            )
    return None


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


class Agreement(StepCallback):
    """Refuses to train when processes have different recipes, code, libraries or data, or stand at different steps."""

    def __init__(self, recipe: Recipe, of_data: Mapping[str, Any]) -> None:
        self.recipe, self.of_data = recipe, of_data

    def on_begin(self, trainer: Trainer, module: Classifier) -> None:
        """Compare all processes with the first.

        Raises:
            RuntimeError: they differ, on all processes alike.
        """
        if not is_distributed():
            return
        mine = Standing.here(recipe=self.recipe.to_dict(), data=self.of_data, step=module.step)
        if len(set(gather_objects(mine.digest()))) > 1:  # all the rest is gathered only to say what differs
            what = disagreement(gather_objects(mine))
            if what is not None:
                raise RuntimeError(what)
