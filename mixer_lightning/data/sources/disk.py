"""Image files on a disk: which files of a folder are images, and reading one without waiting for a pipe."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from typing import BinaryIO

from mixer_lightning.data.sources import StorageError
from mixer_lightning.data.sources.names import is_hidden, suffix_of


def image_files(folder: str, inside: str = "", others: list[str] | None = None) -> Iterator[str]:
    """Paths, relative to `folder`, of the images anywhere under `folder/inside`, in no order.

    Hidden files and folders are passed over. What is left out because its name has no ending of an image, or because it
    is a pipe, device or socket, is added to `others`. Links are followed, but not around in circles.
    """
    here = os.stat(folder)  # noqa: PTH116
    above = ((here.st_dev, here.st_ino),) if inside else ()
    yield from _walk(folder, inside, [] if others is None else others, above)


def _walk(folder: str, inside: str, others: list[str], above: tuple[tuple[int, int], ...]) -> Iterator[str]:
    here = os.stat(os.path.join(folder, inside))  # noqa: PTH116, PTH118  (as fast as can be)
    place = (here.st_dev, here.st_ino)
    if place in above:
        return
    with os.scandir(os.path.join(folder, inside)) as entries:  # noqa: PTH118
        for entry in entries:
            if is_hidden(entry.name):
                continue
            path = f"{inside}/{entry.name}" if inside else entry.name
            if entry.is_dir():
                yield from _walk(folder, path, others, (*above, place))
            elif suffix_of(entry.name) and (entry.is_file() or not os.path.exists(entry.path)):  # noqa: PTH110
                yield path  # a link to nothing is a bad image, whose name is told
            else:
                others.append(path)


def open_regular(path: str) -> BinaryIO:
    """A file to read.

    Raises:
        OSError: it cannot be opened.
        ValueError: it is a pipe, a device or a socket, whose reader might wait for ever.
    """
    descriptor = os.open(
        path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC
    )  # else opening a pipe waits for its writer
    file = os.fdopen(descriptor, "rb")
    try:
        refuse_special(os.fstat(descriptor))
    except ValueError:
        file.close()
        raise
    return file


def read_regular(path: str) -> bytes:
    """The bytes of a file; raises as `open_regular` does."""
    with open_regular(path) as file:
        return file.read()


#: What a file system of another machine says when that is gone.
_GONE = {errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH}

#: What this machine says when it has no more to give.
_USED_UP = {errno.EMFILE, errno.ENFILE, errno.ENOMEM}


@contextlib.contextmanager
def reading_below(root: str) -> Iterator[None]:
    """Tell a file that cannot be read from a folder that is gone, and from a machine that opens no more files.

    Raises:
        StorageError: it is one of these.
    """
    try:
        yield
    except OSError as error:
        if error.errno in _USED_UP:
            raise StorageError(
                f"cannot read below {root}: {error.strerror}. It is no fault of the images: raise the limit (ulimit -n "
                "for open files), or let fewer programs run beside this one"
            ) from error
        if error.errno in _GONE or not os.path.exists(root):  # noqa: PTH110
            why = error.strerror or str(error)
            raise StorageError(
                f"{root} can be read no more: {why}. Mount it again, or put it back"
            ) from error
        raise


def refuse_special(about: os.stat_result) -> None:
    """ValueError for what is neither a regular file nor a folder."""
    for is_kind, kind in _SPECIAL.items():
        if is_kind(about.st_mode):
            raise ValueError(f"it is {kind}, not a file")


_SPECIAL = {
    stat.S_ISFIFO: "a named pipe",
    stat.S_ISCHR: "a device",
    stat.S_ISBLK: "a device",
    stat.S_ISSOCK: "a socket",
}
