"""Pieces of a Markdown page with measured numbers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table: header, rule, a line for each row. Cells are text, whatever signs of Markdown are in it."""
    lines = [[escape(cell) for cell in cells] for cells in (columns, *rows)]
    lines.insert(1, ["---"] * len(columns))
    return [f"| {' | '.join(cells)} |" for cells in lines]


def escape(text: str) -> str:
    """Text as a cell shows it: in one line, without columns, formulas, emphasis, links or HTML of its own."""
    return re.sub(r"([\\`*$|<\[\]]|(?<!\w)_|_(?!\w))", r"\\\1", " ".join(text.split()))


def provenance(*, machine: str, versions: Mapping[str, str], command: Sequence[str]) -> list[str]:
    """Lines that say where the numbers of a page come from."""
    return [
        f"* Machine: {machine}",
        f"* Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"* Command: {code(' '.join(command))}",
    ]


def code(text: str) -> str:
    """Text as code, between more backticks than it holds in a row."""
    ticks = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    pad = " " if "`" in text else ""
    return f"{ticks}{pad}{' '.join(text.split())}{pad}{ticks}"
