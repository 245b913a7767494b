"""Tables whose numbers know where they stand: a file, a row of it and a key. As CSV and Markdown."""

from __future__ import annotations

import io
import re
from collections.abc import Iterable, Sequence
from csv import writer
from dataclasses import dataclass, field
from pathlib import Path

from mixer_lightning.files import write_text
from mixer_lightning.reports import markdown

PUBLISHED, MEASURED = "published", "measured"


@dataclass(frozen=True)
class Source:
    """Where a value stands.

    `row` counts the rows of a CSV file from 1 below its header, and `key` is the column. In a JSON file `row` is 0 and
    `key` a JSON pointer (RFC 6901); in a Markdown page `row` is the line and `key` the number of the cell, from 1.
    `value` is what stands there, as text.
    """

    file: str
    row: int
    key: str
    value: str


@dataclass(frozen=True)
class Cell:
    """What is shown, and for a number where it comes from."""

    text: str
    source: Source | None = None

    @property
    def is_number(self) -> bool:
        """Whether it reads as one, with or without a percent sign."""
        return re.fullmatch(r"[+-]?[\d,]*\.?\d+(e[+-]?\d+)?( %)?", self.text) is not None


@dataclass(frozen=True)
class Row:
    """A row of a table: published or measured, with the file behind it."""

    kind: str
    file: str
    cells: tuple[Cell, ...]


@dataclass(frozen=True)
class Provenance:
    """How the numbers of a file were made; empty where it does not say."""

    command: str = ""
    machine: str = ""
    versions: str = ""
    commit: str = ""

    def lines(self) -> list[tuple[str, str]]:
        """What is known, by name."""
        named = (
            ("Command", self.command),
            ("Machine", self.machine),
            ("Versions", self.versions),
            ("Commit", self.commit),
        )
        return [(name, text) for name, text in named if text]


@dataclass(frozen=True)
class Table:
    """A table of a report. `made` says of each file with measured rows how they were made."""

    name: str
    title: str
    columns: tuple[str, ...]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()
    made: dict[str, Provenance] = field(default_factory=dict)

    def files(self) -> list[str]:
        """The files behind the measured rows, in their order."""
        return list(dict.fromkeys(row.file for row in self.rows if row.kind == MEASURED))


def write(folder: Path, table: Table) -> None:
    """<name>.csv and <name>.md in `folder`: the first column says whether a row is published or measured."""
    columns = ("", *table.columns, "from")
    lines = [(row.kind, *(cell.text for cell in row.cells), row.file) for row in table.rows]
    text = io.StringIO()
    rows = writer(text, lineterminator="\n")
    rows.writerow(("kind", *columns[1:]))
    rows.writerows(lines)
    write_text(folder / f"{table.name}.csv", text.getvalue())
    write_text(folder / f"{table.name}.md", "\n".join(_page(table, columns, lines)) + "\n")


def _page(table: Table, columns: Sequence[str], lines: Iterable[Sequence[str]]) -> list[str]:
    page = [f"# {markdown.escape(table.title)}", ""]
    for note in table.notes:
        page += [markdown.escape(note), ""]
    shown = [_emphasised(line) for line in lines]
    page += markdown.table(columns, shown)
    for file in table.files():
        page += ["", f"From {markdown.code(file)}:", ""]
        known = table.made.get(file, Provenance()).lines()
        page += [f"* {name}: {markdown.code(text) if name == 'Command' else text}" for name, text in known]
        page += [] if known else ["* the file does not say how it was made"]
    return page


def _emphasised(line: Sequence[str]) -> list[str]:
    """A measured row is told apart by its first cell."""
    return [line[0].upper() if line[0] == MEASURED else line[0], *line[1:]]
