"""The original archives of the tasks, unpacked: where they lie, and what they hold."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mixer_lightning.data.sources.folder import FolderImages
from mixer_lightning.data.sources.torchvision import obtain, wait_for_others
from mixer_lightning.data.sources.vtab.task import Pool, Request, Task

if TYPE_CHECKING:
    import numpy.typing as npt

    from mixer_lightning.data.sources import Images, Indices

UNREADABLE = (
    ValueError,  # of JSON and UTF-8 too
    LookupError,
    EOFError,
    struct.error,
    zlib.error,
    gzip.BadGzipFile,
    zipfile.BadZipFile,
    pickle.UnpicklingError,
)


# ---- where they lie


def find(places: Sequence[Path], inside: Sequence[str], marker: str) -> Path | None:
    """The first folder `place/inside` that holds a file or folder `marker`."""
    folders = (place / folder for place in places for folder in inside)
    return next((folder for folder in folders if (folder / marker).exists()), None)


def need(task: Task, places: Sequence[Path], inside: Sequence[str], marker: str, *, how: str) -> Path:
    """What `find` finds; FileNotFoundError that says `how` to get it."""
    found = find(places, inside, marker)
    if found is None:
        raise FileNotFoundError(
            f"vtab_{task.name}: found no {Path(inside[0], marker)} under {places[-1]}. {how}, so that "
            f"{places[0] / inside[0] / marker} exists."
        )
    return found


def need_file(request: Request, file: str, *, page: str) -> Path:
    """A single file, such as `page` offers."""
    return need(request.task, request.folders, ["."], file, how=f"Put it there, from {page}") / file


def unpacked(
    request: Request,
    inside: Sequence[str],
    marker: str,
    archives: dict[str, str],
    source: Callable[..., Any],
) -> Path:
    """The folder of the originals; where there is none, torchvision's `source` unpacks or downloads `archives`."""
    task, places = request.task, request.folders
    for place in places:
        wait_for_others(place)
    found = find(places, inside, marker)
    if found is None:
        with_archive = [place for place in places if any((place / file).is_file() for file in archives)]
        base = with_archive[0] if with_archive else places[0]
        obtain(f"vtab_{task.name}", base, archives, request.download, partial(source, base))
        found = need(task, [base], inside, marker, how="Unpack its archive")
    return found


# ---- what they hold


@contextmanager
def reading(path: Path) -> Iterator[None]:
    """Names the file, whatever goes wrong in reading it."""
    try:
        yield
    except UNREADABLE as error:
        raise ValueError(f"cannot read {path} ({type(error).__name__}: {error}). Obtain it again.") from error


def matlab(path: Path, variable: str) -> npt.NDArray[Any]:
    """One array of a MATLAB file."""
    from scipy.io import loadmat
    from scipy.io.matlab import MatReadError

    with reading(path):
        try:
            found: npt.NDArray[Any] = loadmat(path, variable_names=[variable])[variable]
        except MatReadError as error:
            raise ValueError(error) from error
    return found


def files_pool(base: Path, files: list[str], labels: Sequence[int], *, keys: list[str]) -> Pool:
    """Image files under `base`."""

    def take(indices: Indices) -> Images:
        chosen = [files[i] for i in indices]
        refuse_missing(base, chosen)
        return FolderImages(base, chosen, [labels[i] for i in indices])

    return Pool(keys, files, take)


def by_folder(names: Sequence[str], names_of_classes: Sequence[str]) -> list[int]:
    """Labels of files in class folders, whose case does not matter."""
    label_of = {each.lower(): label for label, each in enumerate(names_of_classes)}
    return [label_of[name.partition("/")[0].lower()] for name in names]


def refuse_missing(base: Path, files: Sequence[str]) -> None:
    """ValueError if some files, relative to `base`, are not there."""
    missing = []
    for folder, inside in groupby(sorted(map(os.path.split, files)), key=lambda path: path[0]):
        present = set(os.listdir(base / folder)) if (base / folder).is_dir() else set()  # noqa: PTH208
        missing += [os.path.join(folder, name) for _, name in inside if name not in present]  # noqa: PTH118
    if missing:
        raise ValueError(
            f"{base} lacks {len(missing):,} of {len(files):,} images, such as {missing[0]}. Unpack its archive again."
        )
