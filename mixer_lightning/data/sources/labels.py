"""Which classes the labels of a list stand for: names, or positions in a list of names."""

from __future__ import annotations

import re
from pathlib import Path

from mixer_lightning.data.sources.names import too_sparse
from mixer_lightning.files import read_lines

SHOWN_LABELS = 5  # that are unknown


class NegativeLabel(ValueError):
    """A number below 0 stands where a class should."""


def refuse_negative(path: str, label: str) -> None:
    """NegativeLabel where the label of an image in a list is a number below 0, the customary one of no class."""
    if re.fullmatch(r"-[0-9]+", label):
        raise NegativeLabel(
            f"{path!r} has label {label}. Labels are class names, or positions in the list of classes from 0 on; "
            "leave out images without a class."
        )


def named_classes(
    found: set[str], num_images: int, file: str | None, *, what: str, key: str
) -> tuple[list[str], dict[str, int]]:
    """Class names in the order of labels, and the label that each text in a list stands for.

    Numbers are positions in the list of classes, which `file` names one a line; other texts are names, in sorted order
    without a file. `what` and `key` name the list and the file in messages.

    Raises:
        ValueError: numbers are too large for labels, or texts are none of the classes in the file.
    """
    are_numbers = all(text.isascii() and text.isdecimal() for text in found)
    if file is None:
        if are_numbers:
            largest = max(found, key=lambda text: (len(text.lstrip("0")), text.lstrip("0")))
            if len(largest) > 18 or too_sparse(int(largest), num_images):
                raise ValueError(
                    f"{what}: labels go up to {largest}, but the list has {num_images:,} images: they look like ids, "
                    "and each number up to there would be a class. Write class indices or names, or use "
                    f"{key}=<file> with one name (such as an id) per line."
                )
            names = [str(label) for label in range(int(largest) + 1)]
            return names, {text: int(text) for text in found}
        names = sorted(found)
        return names, {name: label for label, name in enumerate(names)}
    path, names = Path(file).expanduser(), read_names(file, key=key)
    label_of = {name: label for label, name in enumerate(names)}
    if not found <= label_of.keys() and are_numbers:
        label_of = {text: int(text) for text in found}
        if max(label_of.values()) >= len(names):
            raise ValueError(
                f"{key}: labels go up to {max(label_of.values()):,}, but {path} names {len(names):,} classes"
            )
    unknown = sorted(found - label_of.keys())
    if unknown:
        shown = ", ".join(map(repr, unknown[:SHOWN_LABELS]))
        raise ValueError(f"{key}: {len(unknown):,} labels of the list are not in {path}: {shown}")
    return names, label_of


def read_names(file: str, *, key: str) -> list[str]:
    """The names of a file with one a line, in its order; `key` names it in messages.

    Raises:
        ValueError: it is not there, holds none, or one twice.
    """
    path = Path(file).expanduser()
    if not path.is_file():
        raise ValueError(f"{key}: there is no file {path.absolute()}")
    names = [line for line in read_lines(path) if line]
    if not names or len(set(names)) < len(names):
        raise ValueError(f"{key}: {'a name stands twice in' if names else 'there is no name in'} {path}")
    return names
