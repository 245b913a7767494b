"""The study of ConvMixer's parts: accuracy over patch and kernel, and what each exchanged part changes, from its rows.

Beside the numbers of arXiv 2201.09792, table 3, as far as they are known (convmixer_ablation.csv).
"""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mixer_lightning.reports import markdown, published
from mixer_lightning.reports.charts import Chart, HeatMap
from mixer_lightning.reports.study_files import StudyTable
from mixer_lightning.reports.tables import MEASURED, PUBLISHED, Cell, Row, Source, Table

NOISE = 2.0  # points between two seeds of a short run, of which a difference is no finding
NOTHING = 0.1  # points of a published difference that stands for none
#: Of a user's run that came within .14 points of the paper (locuslab/convmixer, issue 15).
REPRODUCTION_EPOCHS = 200
#: Columns by which a CSV file is known to be of this study.
COLUMNS = ("change", "what", "seed", "metric", "difference")
NUMBERS = ("patch_size", "kernel_size", "accuracy")
BASELINE = "baseline"
#: The published rows of patches are of this kernel, the knee of the paper's table, as far as is known.
PUBLISHED_KERNEL = 9
PATCH_KEYS = {1: BASELINE, 2: "patch_2", 4: "patch_4"}
#: Parts of training, not of the network: a short training can do without what a long one needs.
REGULARISATION = ("no_mixing", "no_erasing", "no_rand_augment", "no_crop", "no_flip", "no_jitter")

Line = Mapping[str, Any]


class Mean(NamedTuple):
    """Accuracy over seeds, in percent; `deviation` None for one."""

    accuracy: float
    deviation: float | None
    seeds: int

    def __str__(self) -> str:
        return f"{self.accuracy:.1f}" + ("" if self.deviation is None else f" ± {self.deviation:.1f}")


class Change(NamedTuple):
    """An exchanged part, and its difference to the network as it is, in points; None where there is no such number."""

    key: str
    what: str
    measured: Mean | None
    difference: float | None
    published: str
    published_difference: str


def grid(rows: Iterable[Line]) -> dict[tuple[int, int], Mean]:
    """Accuracy by (patch, kernel) of the network whose other parts are as they are."""
    groups: dict[tuple[int, int], list[Line]] = {}
    for row in rows:
        if row["change"] in ("", BASELINE):
            groups.setdefault((int(row["patch_size"]), int(row["kernel_size"])), []).append(row)
    return {place: _mean(members) for place, members in sorted(groups.items())}


def changes(rows: Sequence[Line]) -> list[Change]:
    """The network as it is, then every change, measured or published; in the order of rows, then of the paper."""
    by_key: dict[str, list[Line]] = {}
    for row in rows:
        if row["change"]:
            by_key.setdefault(row["change"], []).append(row)
    cells = grid(rows)
    known = {row["key"]: row for row in published.rows(published.CONVMIXER_ABLATION)}
    found = []
    for key in dict.fromkeys([*by_key, *known]):
        printed, members = known.get(key), by_key.get(key, [])
        what = str(members[0]["what"]) if members else printed["what"] if printed else ""
        measured = _mean(members) if members else None
        difference = None
        if members and key != BASELINE:
            difference = statistics.fmean(float(row["difference"]) for row in members)
        for patch in (patch for patch, name in PATCH_KEYS.items() if name == key != BASELINE):
            pair = [cells.get((each, PUBLISHED_KERNEL)) for each in (patch, 1)]
            if pair[0] and pair[1]:
                measured, difference = pair[0], pair[0].accuracy - pair[1].accuracy
        found.append(
            Change(
                key,
                what,
                measured,
                difference,
                printed["top-1"] if printed else "",
                printed["difference"] if printed else "",
            )
        )
    return found


def _mean(rows: Sequence[Line]) -> Mean:
    values = [100 * float(row["accuracy"]) for row in rows]
    return Mean(statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None, len(values))


def noise(rows: Sequence[Line]) -> float:
    """Points below which a difference is no finding: two deviations over seeds, where there are several."""
    deviations = [each.deviation for each in grid(rows).values() if each.deviation is not None]
    return 2 * statistics.fmean(deviations) if deviations else NOISE


# ---------------------------------------------------------------------------------------------- the report


def charts(studies: Sequence[StudyTable]) -> list[Chart]:
    """Accuracy over patch and kernel, of those CSV files that are of this study."""
    found = []
    for study in studies:
        cells = grid(study.rows) if study.has(COLUMNS, numbers=NUMBERS) else {}
        if len(cells) > 1:
            patches, kernels = (sorted({place[i] for place in cells}) for i in (0, 1))
            values = tuple(
                tuple(cells[p, k].accuracy if (p, k) in cells else None for k in kernels) for p in patches
            )
            names = (tuple(map(str, kernels)), tuple(map(str, patches)))
            heat_map = HeatMap("", "kernel", "patch", *names, values, f"{study.rows[0]['metric']}, %")
            caption = f"Measured, from {study.path.as_posix()}."
            title = f"{study.title}: patch and kernel"
            found.append(Chart(study.name, title, caption, heat_maps=(heat_map,)))
    return found


def tables(studies: Sequence[StudyTable]) -> list[Table]:
    """The paper's table, and below each of its rows what was measured; changes that it lacks come last."""
    rows = [
        (study, number, row)
        for study in studies
        if study.has(COLUMNS, numbers=NUMBERS)
        for number, row in enumerate(study.rows, start=1)
    ]
    if not rows:
        return []
    paper = published.CONVMIXER_ABLATION
    printed, file = published.rows(paper), published.cited(paper)
    lines: list[Row] = []
    for number, row in enumerate(printed, start=1):
        cells = [
            Cell(row[key], Source(file, number, key, row[key]) if row[key] else None)
            for key in ("what", "top-1", "difference")
        ]
        lines.append(
            Row(
                PUBLISHED, file, (*cells, Cell(""), Cell(f"{row['source']}; unverified: {row['unverified']}"))
            )
        )
        lines += [_measured(*each) for each in rows if row["key"] in (each[2]["change"], _patch_key(each[2]))]
    others = {"", *(row["key"] for row in printed)}
    lines += [_measured(*each) for each in rows if each[2]["change"] not in others]
    made = {study.path.as_posix(): study.made for study, _, _ in rows}
    columns = ("change", "top-1", "difference", "seed", "source")
    return [Table(paper.name, paper.title, columns, tuple(lines), paper.notes, made)]


def _patch_key(row: Line) -> str:
    """The key of the published row that a cell of the grid is compared with; "" for another."""
    is_cell = row["change"] in ("", BASELINE) and int(row["kernel_size"]) == PUBLISHED_KERNEL
    return PATCH_KEYS.get(int(row["patch_size"]), "") if is_cell else ""


def _measured(study: StudyTable, number: int, row: Mapping[str, str]) -> Row:
    file = study.path.as_posix()

    def source(key: str) -> Source | None:
        return Source(file, number, key, row[key]) if row[key] else None

    return Row(
        MEASURED,
        file,
        (
            Cell(row["what"]),
            Cell(f"{100 * float(row['accuracy']):.2f}", source("accuracy")),
            Cell(row["difference"], source("difference")),
            Cell(row["seed"], source("seed")),
            Cell(study.title),
        ),
    )


# --------------------------------------------------------------------------------------------------- page


def grid_cells(rows: Sequence[Line]) -> tuple[list[str], list[list[str]]]:
    """Columns and cells of the table of patch and kernel."""
    cells = grid(rows)
    patches, kernels = (sorted({place[i] for place in cells}) for i in (0, 1))
    return ["patch", *(f"kernel {kernel}" for kernel in kernels)], [
        [str(patch), *(str(cells.get((patch, kernel), "")) for kernel in kernels)] for patch in patches
    ]


CHANGE_TABLE = ("change", "top-1, %", "difference", "published top-1, %", "published difference")


def change_cells(rows: Sequence[Line]) -> list[list[str]]:
    """Cells of the table of changes."""
    return [
        [
            each.what,
            str(each.measured or ""),
            "" if each.difference is None else f"{each.difference:+.1f}",
            each.published,
            each.published_difference,
        ]
        for each in changes(rows)
    ]


def verdict(rows: Sequence[Line], *, epochs: float) -> str:
    """Whether patch, kernel and parts do what the paper says; `epochs` is how long the runs were."""
    limit, cells, sentences = noise(rows), grid(rows), []
    patches, kernels = (sorted({place[i] for place in cells}) for i in (0, 1))
    for name, ends, sign, claim in (
        ("patch", (patches[0], patches[-1]), -1, "That smaller patches are better"),
        ("kernel", (kernels[0], kernels[-1]), 1, "That larger kernels are better"),
    ):
        other = "kernel" if name == "patch" else "patch"
        gains = {}
        for number in kernels if name == "patch" else patches:
            low, high = (cells.get((end, number) if name == "patch" else (number, end)) for end in ends)
            if low and high and ends[0] != ends[1]:
                gains[number] = sign * (high.accuracy - low.accuracy)
        if gains:
            least, most = min(gains.values()), max(gains.values())
            shows = (
                "shows here"
                if least > limit
                else "shows here in part"
                if most > limit
                else "does not show here"
                if least >= -limit
                else "is reversed here"
            )
            first, last = (ends[1], ends[0]) if name == "patch" else ends
            told = ", ".join(f"{gain:+.1f} at {other} {number}" for number, gain in gains.items())
            sentences.append(f"{claim} {shows}; from {name} {first} to {last}, in points: {told}.")
    agree: list[str] = []
    within: list[str] = []
    other_way: list[str] = []
    for each in changes(rows):
        if each.difference is None or not each.published_difference:
            continue
        expected = float(each.published_difference)
        told = f"{each.what} {each.difference:+.1f} ({expected:+.2f})"
        if abs(each.difference) <= limit:
            within.append(told)
        elif each.difference * expected > 0 and abs(expected) >= NOTHING:
            agree.append(told)
        else:
            other_way.append(told)
    for kind, said in (
        (agree, "As published (in brackets), beyond noise"),
        (within, "Within noise, where the paper's differences may lie as well"),
        (other_way, "Other than published"),
    ):
        if kind:
            sentences.append(f"{said}: {'; '.join(kind)}.")
    free = [
        each.what
        for each in changes(rows)
        if each.key in REGULARISATION and each.difference is not None and each.difference > limit
    ]
    if free:
        sentences.append(
            f"After {epochs:.2g} epochs the training is still far from overfitting, so that less augmentation helps: "
            f"{', '.join(free)}."
        )
    if epochs < REPRODUCTION_EPOCHS / 10:
        sentences.append(
            f"A reproduction of the paper takes {REPRODUCTION_EPOCHS} epochs: runs of {epochs:.2g} say how fast a "
            "network learns at first, not what it reaches."
        )
    several = any(each.deviation is not None for each in cells.values())
    why = "two deviations over seeds" if several else "one run each: a second seed may differ by as much"
    sentences.append(f"Differences within {limit:.1f} points are no finding ({why}).")
    return " ".join(sentences)


def page(
    rows: Sequence[Line],
    *,
    title: str,
    introduction: str,
    picture: str,
    epochs: float,
    provenance: Sequence[str],
) -> str:
    """The Markdown page of some rows; `picture` is a file beside it."""
    lines = [
        f"# {title}",
        "",
        introduction,
        "",
        *markdown.table(*grid_cells(rows)),
        "",
        f"![accuracy over patch and kernel, and what each part changes]({picture})",
        "",
        markdown.FINDING,
        "",
        markdown.escape(verdict(rows, epochs=epochs)),
        "",
        *markdown.table(CHANGE_TABLE, change_cells(rows)),
        "",
        *(f"{note}\n" for note in published.CONVMIXER_ABLATION.notes[1:]),
        "## Where the numbers come from",
        "",
        *provenance,
    ]
    return "\n".join(lines) + "\n"
