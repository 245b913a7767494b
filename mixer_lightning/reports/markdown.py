"""Pieces of a Markdown page with measured numbers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence


def table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of a table: header, rule, a line for each row."""
    lines = [columns, ["---"] * len(columns), *rows]
    return [f"| {' | '.join(cells)} |" for cells in lines]


def provenance(*, machine: str, versions: Mapping[str, str], command: Sequence[str]) -> list[str]:
    """Lines that say where the numbers of a page come from."""
    return [
        f"* Machine: {machine}",
        f"* Versions: {', '.join(f'{name} {version}' for name, version in versions.items())}",
        f"* Command: `{' '.join(command)}`",
    ]
