"""Units that mix tokens as figures and a page, from the rows of `mixer study token_mixing`: a row for each unit."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from mixer_lightning.reports import markdown

Line = Mapping[str, Any]  # of the study, or of its CSV file

TOKEN_MIXING, DEPTHWISE = "token_mixing", "depthwise"  # kinds of layers, as rows name them
FIRST = 3  # blocks of the paper's Figure 5
COLUMNS = ("checkpoint", "layer", "units", "neighbours alike", "frequency, 1/patch", "cosine to the opposite")
ALIKE = 0.2  # cosine between neighbours from which the finding counts a unit
ERRORS = 2  # standard errors of a difference from which it is one


def summary(rows: Sequence[Line]) -> list[list[str]]:
    """A line for each layer: means over its units, trained and before training."""
    lines = []
    for checkpoint, layer in dict.fromkeys((row["checkpoint"], row["layer"]) for row in rows):
        units = [row for row in rows if (row["checkpoint"], row["layer"]) == (checkpoint, layer)]
        count = sum(row["weights"] == "trained" for row in units)
        cells = [_both(units, key) for key in ("neighbour_cosine", "spectral_centroid", "cosine")]
        lines.append([checkpoint, layer, f"{count:,}", *cells])
    return lines


def _both(units: Sequence[Line], key: str) -> str:
    """'0.41 (initial -0.00)': means of the trained and of the new units that have a value."""
    means = []
    for weights in ("trained", "initial"):
        values = _values(units, weights, key)
        means.append(f"{statistics.fmean(values):.3f}" if values else "none")
    return f"{means[0]} (initial {means[1]})"


def _values(units: Sequence[Line], weights: str, key: str) -> list[float]:
    return [float(row[key]) for row in units if row["weights"] == weights and row[key] != ""]


# ---------------------------------------------------------------------------------------------- finding


def finding(rows: Sequence[Line]) -> str:
    """Whether two claims of arXiv 2105.01601 (section 4.2, figures 5 and 6) show; "" without layers that mix tokens."""
    sentences = []
    mixing = [row for row in rows if row["kind"] == TOKEN_MIXING]
    for checkpoint in dict.fromkeys(row["checkpoint"] for row in mixing):
        mine = [row for row in mixing if row["checkpoint"] == checkpoint]
        layers = [
            [row for row in mine if row["layer"] == layer]
            for layer in dict.fromkeys(r["layer"] for r in mine)
        ]
        alike = [_compared(units, "neighbour_cosine") for units in layers]
        above = [
            ", ".join(f"{100 * _share_above(units, weights):.0f}" for units in layers)
            for weights in ("trained", "initial")
        ]
        sentences.append(
            f"{checkpoint}: the claim that training makes neighbouring weights alike "
            f"{_verdict([after - before > error for after, before, error in alike])}: mean cosine between neighbours "
            f"{_listed(alike)}; {above[0]} % of the units lie above {ALIKE}, before training {above[1]} %."
        )
        paired = [_compared(units, "cosine") for units in layers if _values(units, "trained", "cosine")]
        if paired:
            sentences.append(
                "The claim that units come in pairs of opposite phase "
                f"{_verdict([before - after > error for after, before, error in paired])}: mean cosine to the closest "
                f"opposite {_listed(paired)}."
            )
    if sentences:
        sentences.append(f"A difference counts from {ERRORS} standard errors on.")
    return " ".join(sentences)


def _compared(units: Sequence[Line], key: str) -> tuple[float, float, float]:
    """Mean after training, before it, and the difference that is one."""
    after, before = (_values(units, weights, key) for weights in ("trained", "initial"))
    variances = [
        statistics.variance(each) / len(each) if len(each) > 1 else math.inf for each in (after, before)
    ]
    return (
        statistics.fmean(after),
        statistics.fmean(before) if before else math.nan,
        ERRORS * math.sqrt(sum(variances)),
    )


def _share_above(units: Sequence[Line], weights: str) -> float:
    values = _values(units, weights, "neighbour_cosine")
    return sum(value > ALIKE for value in values) / max(len(values), 1)


def _listed(means: Sequence[tuple[float, float, float]]) -> str:
    after, before = (", ".join(f"{each[i]:.2f}".replace("-0.00", "0.00") for each in means) for i in (0, 1))
    return f"{after} after training, {before} before it"


def _verdict(shows: Sequence[bool]) -> str:
    if all(shows):
        return "shows"
    return f"shows in {sum(shows)} of {len(shows)} layers" if any(shows) else "does not show"


# ------------------------------------------------------------------------------------------------- page


def page(
    rows: Sequence[Line],
    *,
    remarks: Sequence[str],
    runs: Mapping[str, tuple[str, str]],
    pictures: Sequence[str],
    machine: str,
    versions: Mapping[str, str],
    command: Sequence[str],
    commit: str | None = None,
) -> str:
    """The page of a study.

    Args:
        rows: of all checkpoints; none where stems alone were drawn.
        remarks: what else there is to say of a checkpoint, a sentence each.
        runs: description and command of the run behind each checkpoint, as far as they are known.
        pictures: files beside the page.
        machine: where the study ran.
        versions: of what it ran with.
        command: that of the study.
        commit: of the program, as far as it is known.
    """
    found = finding(rows)
    lines = [
        "# Weights that mix tokens",
        "",
        "Means over the units of a layer; in brackets those of new weights of the same model, to compare with.",
        "",
        "* Neighbours alike: cosine between the weights of a unit and those of their 4-neighbours on the grid; 1 for",
        "  equal weights, -1 for a chessboard, 0 for independent ones.",
        "* Frequency: spectral centroid of the 2-D power spectrum without its constant part, in cycles per position.",
        "  Independent weights have the mean of all frequencies.",
        "* Cosine to the opposite: each unit's to the one shown beside it. The most negative of many is below 0 by",
        "  chance: new weights say how far.",
        "",
        "Order and pairs are choices of this program: arXiv 2105.01601 says neither how it sorted nor how it paired.",
        "",
        *([markdown.FINDING, "", markdown.escape(found), ""] if found else []),
        "## The figures",
        "",
        *markdown.provenance(machine=machine, versions=versions, command=command, commit=commit),
    ]
    for name, (about, trained_by) in runs.items():
        lines += [f"* {markdown.escape(name)}: {markdown.escape(about)}"] if about else []
        lines += [f"* Trained by: {markdown.code(trained_by)}"] if trained_by else []
    lines.append("")
    if rows:
        lines += [*markdown.table(COLUMNS, summary(rows)), ""]
    for remark in remarks:
        lines += [markdown.escape(remark), ""]
    for name in pictures:
        lines += [f"![{name.rpartition('.')[0]}]({name})", ""]
    return "\n".join(lines)
