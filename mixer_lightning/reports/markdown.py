"""Pieces of a Markdown page with measured numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from mixer_lightning import results
from mixer_lightning.files import write_text

#: What somebody writes between these two lines of a page stays when the page is written again.
NOTES, END_OF_NOTES = "<!-- notes -->", "<!-- end of notes -->"
#: Below this heading a page says what the numbers show.
FINDING = "## Finding"


def write_page(path: Path, text: str) -> None:
    """Write a page, and at its end the notes of the one that stands there (NOTES); all else is that of `text`.

    Notes that do not end reach to the end of the page.
    """
    before = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    _, begins, rest = before.partition(f"{NOTES}\n")
    notes = rest.partition(END_OF_NOTES)[0].rstrip("\n")
    kept = f"\n{NOTES}\n{notes}\n{END_OF_NOTES}\n" if begins else ""
    write_text(path, text.rstrip("\n") + "\n" + kept)


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table: header, rule, a line for each row. Cells are text, whatever signs of Markdown are in it."""
    lines = [[escape(cell) for cell in cells] for cells in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return [f"| {' | '.join(cells)} |" for cells in lines]


def escape(text: str) -> str:
    """Text as a cell shows it: in one line, without columns, formulas, emphasis, links or HTML of its own."""
    return re.sub(r"([\\`*$|<\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def provenance(
    *, machine: str, versions: Mapping[str, str], command: Sequence[str], commit: str | None = None
) -> list[str]:
    """Lines that say where the numbers of a page come from: `command` in words, `commit` as far as it is known."""
    return [
        f"* Machine: {machine}",
        f"* Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"* Command: {code(results.typed(command))}",
        *([f"* Commit: {commit}"] if commit else []),
    ]


def plain(text: str) -> str:
    """Text of a page as it reads, in one line: without the signs that `escape` adds, and of a link its words alone."""
    text = re.sub(r"(?<!\\)!?\[([^\]]*)\]\([^)]*\)", r"\1", " ".join(text.split()))
    return re.sub(r"\\([\\`*$|<\[\]_])", r"\1", text).replace("`", "")


def code(text: str) -> str:
    """Text as code, between more backticks than it holds in a row."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{' '.join(text.split())}{pad}{ticks}"
