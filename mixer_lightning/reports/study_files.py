"""Tables of studies: CSV files with what the page beside them says, and Markdown pages that alone have their tables."""

from __future__ import annotations

import csv
import math
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mixer_lightning.reports import markdown
from mixer_lightning.reports.tables import Provenance


@dataclass(frozen=True)
class StudyTable:
    """A table of a study. `lines` are those of a Markdown page that its rows stand in; none of a CSV file.

    `notes` are what the page says of it: the first paragraph, what was found, notes.
    """

    path: Path
    title: str
    columns: list[str]
    rows: list[dict[str, str]]
    made: Provenance
    notes: tuple[str, ...] = ()
    lines: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """What tables and figures of it are called."""
        return "_".join(part for part in self.path.with_suffix("").parts if part not in ("/", "..", "."))

    def has(self, columns: Collection[str], *, numbers: Collection[str]) -> bool:
        """Whether it has the columns of a study, and these `numbers`.

        Raises:
            ValueError: it has, and a cell among the numbers is none; the message names the file.
        """
        if not {*columns, *numbers} <= set(self.columns):
            return False
        for number, row in enumerate(self.rows, start=2):
            for column in numbers:
                if not _is_finite(row[column]):
                    raise ValueError(
                        f"{self.path}: row {number} has {row[column]!r} as {column}, which is no number. Mend it, or "
                        "leave it out"
                    )
        return True


def read(path: Path) -> list[StudyTable]:
    """The tables of a .csv or .md file: of a page those that no CSV file of its name has; none without rows.

    Raises:
        ValueError: it is damaged; the message names it.
    """
    if path.suffix == ".csv":
        return _csv(path)
    return [] if path.with_suffix(".csv").is_file() else _markdown(path)


def _is_finite(cell: str) -> bool:
    try:
        return math.isfinite(float(cell))
    except ValueError:
        return False


def _csv(path: Path) -> list[StudyTable]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file, restkey="", restval="", strict=True)
            rows, columns = list(reader), list(reader.fieldnames or [])
    except (ValueError, csv.Error) as error:
        raise ValueError(
            f"{path} is no readable CSV file ({error}). Write it as UTF-8, or leave it out"
        ) from error
    bad = next((i for i, row in enumerate(rows, start=2) if "" in row and "" not in columns), None)
    if bad is not None or len(set(columns)) < len(columns):
        what = (
            "two columns have the same name" if bad is None else f"row {bad} has more cells than the header"
        )
        raise ValueError(f"{path}: {what}. Mend it, or leave it out")
    page = beside(path)
    return (
        [StudyTable(path, title(page) or path.stem, columns, rows, made_by(page), _said(page))]
        if rows
        else []
    )


def told_apart(studies: Sequence[StudyTable]) -> list[StudyTable]:
    """The same, titles that stand in several files with the ends of these files' paths, as long as need be."""
    found = []
    for study in studies:
        others = {each.path for each in studies if each.title == study.title} - {study.path}
        end = _shortest_end(study.path, others)
        found.append(replace(study, title=f"{study.title} ({end})") if others else study)
    return found


def _shortest_end(path: Path, others: Collection[Path]) -> str:
    """The last parts of a path that no other path has: 'speed', else 'old/speed'."""
    parts = path.with_suffix("").parts
    ends = {other.with_suffix("").parts for other in others}
    length = next(
        (n for n in range(1, len(parts)) if all(end[-n:] != parts[-n:] for end in ends)), len(parts)
    )
    return "/".join(parts[-length:])


def beside(path: Path) -> str:
    """The Markdown page of the same name; "" without one."""
    page = path.with_suffix(".md")
    return page.read_text(encoding="utf-8", errors="replace") if page.is_file() else ""


def title(page: str) -> str:
    """The first heading."""
    found = re.search(r"^# +(.+)$", page, re.MULTILINE)
    return found[1].strip() if found else ""


def made_by(page: str) -> Provenance:
    """What `markdown.provenance` wrote into a page, or a list of commands."""

    def said(name: str) -> str:
        found = re.search(rf"^\* {name}: (.+(?:\n  .+)*)$", page, re.MULTILINE)
        return " ".join(found[1].split()).strip("` ") if found else ""

    listed = re.search(r"^\* Commands?[^\n]*:\n+```\w*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    commands = "; ".join(listed[1].replace("\\\n", " ").splitlines()) if listed else ""
    return Provenance(
        said("Commands?") or " ".join(commands.split()), said("Machine"), said("Versions"), said("Commit")
    )


# ------------------------------------------------------------------------------------------------- text


def _said(page: str) -> tuple[str, ...]:
    """The first paragraph below the title, what was found, and the notes."""
    _, _, below = page.partition(f"# {title(page)}\n")
    _, _, found = page.partition(f"\n{markdown.FINDING}\n")
    _, _, notes = page.partition(f"\n{markdown.NOTES}\n")
    notes = notes.partition(markdown.END_OF_NOTES)[0]
    parts = [*_paragraphs(below)[:1], *_paragraphs(found), *_paragraphs(notes)]
    return tuple(dict.fromkeys(map(markdown.plain, parts)))


def _paragraphs(text: str) -> list[str]:
    """Paragraphs up to the next heading, without tables, lists, pictures and code."""
    text = re.split(
        r"^#", re.sub(r"^```.*?^```", "", text, flags=re.MULTILINE | re.DOTALL), flags=re.MULTILINE
    )[0]
    blocks = (block.strip() for block in re.split(r"\n\s*\n", text))
    return [block for block in blocks if block and not block.startswith(("|", "* ", "- ", "![", "<!--"))]


def _markdown(path: Path) -> list[StudyTable]:
    """The tables of a page that says how its numbers were made; of another page none."""
    page = path.read_text(encoding="utf-8", errors="replace")
    made, name = made_by(page), title(page) or path.stem
    if made == Provenance():
        return []
    tables: list[StudyTable] = []
    titles: Counter[str] = Counter()
    for heading, columns, rows in _tables(page):
        named = f"{name}: {heading}" if heading not in ("", name) else name
        titles[named] += 1
        tables.append(
            StudyTable(
                path,
                f"{named} ({titles[named]})" if titles[named] > 1 else named,
                columns,
                [dict(zip(columns, [*cells, *[""] * len(columns)], strict=False)) for _, cells in rows],
                made,
                () if tables else _said(page),
                tuple(line for line, _ in rows),
            )
        )
    return tables


def _tables(page: str) -> Iterator[tuple[str, list[str], list[tuple[int, list[str]]]]]:
    """(heading above it, columns, rows) of every table; a row is (line from 1, cells)."""
    heading, in_code, lines = "", False, page.splitlines()
    number = 0
    while number < len(lines):
        line = lines[number]
        in_code ^= line.startswith("```")
        if not in_code and line.startswith("#"):
            heading = line.lstrip("# ").strip()
        below = lines[number + 1] if number + 1 < len(lines) else ""
        if in_code or not line.startswith("|") or not re.fullmatch(r"\|(\s*:?-+:?\s*\|)+\s*", below):
            number += 1
            continue
        names = cells_of(line)
        columns = [
            name if names.count(name) == 1 else f"{name} {i}".strip() for i, name in enumerate(names, 1)
        ]
        rows = []
        number += 2
        while number < len(lines) and lines[number].startswith("|"):
            rows.append((number + 1, cells_of(lines[number])))
            number += 1
        yield heading, columns, rows


def cells_of(line: str) -> list[str]:
    """The cells of a line of a table, as they read."""
    return [markdown.plain(cell) for cell in re.split(r"(?<!\\)\|", line.strip())[1:-1]]
