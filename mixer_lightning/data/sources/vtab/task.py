"""What is published of a task, what a user asks of it, and what its original archives hold.

Legend: B images chosen out of a split.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

if TYPE_CHECKING:
    from mixer_lightning.data.sources import Images, Indices, LabelChange

NUM_TRAIN = 800
NUM_VAL = 200

Split = Literal["train800", "trainval1000"]


@dataclass(frozen=True)
class Task:
    """How many images lie in each split of the task's TFDS builder, which of them VTAB-1k takes, and how they are read.

    The 800 are always the first of "train", in the order in which TFDS stores it. `val` and `test` are a split and the
    position at which the 200, and the test images, begin there; the test images go on to the split's end.
    """

    name: str
    classes: int
    sizes: dict[str, int]
    val: tuple[str, int]
    test: tuple[str, int]
    read: Callable[[Request], Originals]  # the original archives
    source: str  # of the original archives
    label_changes_with: tuple[LabelChange, ...] = ()
    other_folders: tuple[str, ...] = ()

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders under root in which the task is looked for: its name, and what others call it."""
        return (self.name, *self.other_folders)

    @property
    def num_test(self) -> int:
        """Number of test images."""
        split, begin = self.test
        return self.sizes[split] - begin


@dataclass(frozen=True)
class Request:
    """A task, and the parameters of `tasks.vtab`, which explains them."""

    task: Task
    root: Path
    split: Split
    lists: str | None
    check_counts: bool
    download: bool
    process: bool

    @property
    def folders(self) -> list[Path]:
        """Where the task's data may lie: in a folder of its own under root, or in root itself."""
        return [*(self.root / folder for folder in self.task.folders), self.root]


@dataclass(frozen=True)
class Pool:
    """The images of one split of TFDS in the originals, before any is chosen.

    `keys` are TFDS' own, `names` how else a list may write them. `take` reads chosen ones, in ascending order.
    """

    keys: Sequence[str]
    names: Sequence[str]
    take: Callable[[Indices], Images]


class Originals(NamedTuple):
    """What was found in the original archives: a pool for each split of TFDS.

    `random_split` tells what TFDS split at random, where the images are split by a rule of ours.
    """

    classes: list[str]
    pools: dict[str, Pool]
    random_split: str = ""
