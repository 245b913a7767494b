"""The figures of a report as data, drawn twice from it: into files (chart_files.py) and into the page (page.py)."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from mixer_lightning import results
from mixer_lightning.reports import published
from mixer_lightning.reports.sources import Found, Measured
from mixer_lightning.reports.study_files import StudyTable
from mixer_lightning.reports.tables import MEASURED, PUBLISHED

#: So many runs are drawn over one another, and so many bars into one figure.
MAX_CURVES = 12
MAX_BARS = 100
#: From so many times the slowest on, bars of rates have a logarithmic axis.
DECADES = 1000
#: Up to so many points of a curve are marked.
FEW_POINTS = 30
RATE = "images_per_second"


@dataclass(frozen=True)
class Series:
    """Points of one name: `x` and `y` of equal length, with the name of each point."""

    name: str
    x: tuple[float, ...] | tuple[str, ...]
    y: tuple[float, ...]
    names: tuple[str, ...]
    style: str = "points"  # points, line, frontier (dashed steps) or bars
    kind: str = PUBLISHED


@dataclass(frozen=True)
class Panel:
    """Two axes and what is drawn between them. Bars lie: their names are `x`, their lengths `y`."""

    x: str
    y: str
    series: tuple[Series, ...]
    log_x: bool = False


@dataclass(frozen=True)
class HeatMap:
    """A grid of numbers: `values` [rows][columns], None where there is none; `what` they are, with their unit."""

    title: str
    x: str
    y: str
    columns: tuple[str, ...]
    rows: tuple[str, ...]
    values: tuple[tuple[float | None, ...], ...]
    what: str

    def text(self, value: float | None) -> str:
        """A cell as it is written."""
        return "" if value is None else f"{value:.2f}" if self.what.endswith("%") else f"{value:.4g}"


@dataclass(frozen=True)
class Chart:
    """A figure of panels, or of heat maps."""

    name: str
    title: str
    caption: str
    panels: tuple[Panel, ...] = ()
    heat_maps: tuple[HeatMap, ...] = ()

    def number_of(self, series: Series) -> int:
        """The number of a series by its name, which has one colour in all panels."""
        names = dict.fromkeys(each.name for panel in self.panels for each in panel.series)
        return list(names).index(series.name)


def charts(found: Found) -> list[Chart]:
    """Every figure of a report, in its order."""
    figures = [pareto(), model_scale(), convmixer(found.measured)]
    figures += [chart for study in found.studies if (chart := throughput(study)) is not None]
    return figures + ([curves(found.curves)] if any(map(_evaluated, found.curves.values())) else [])


# ------------------------------------------------------------------------------------------- the papers


def pareto() -> Chart:
    """Accuracy against the cost of pre-training, and the frontier (MLP-Mixer, figure 2, left)."""
    rows = published.rows(published.MIXER_TABLE_2)
    # the smaller systems of that figure stand in table 3
    rows += [
        row
        for row in published.rows(published.MIXER_TABLE_3)
        if row["data"] == "jft300m"
        and (
            row["model"] == "BiT-R200x3"
            or (row["model"] in ("ViT-L/16", "Mixer-L/16") and row["image_size"] != "224")
        )
    ]
    panel = _panel(rows, "core-days (k)", "ImNet", _family, _system)
    best = frontier([(float(row["core-days (k)"]), float(row["ImNet"])) for row in rows])
    dashed = Series(
        "frontier",
        tuple(x for x, _ in best),
        tuple(y for _, y in best),
        ("frontier",) * len(best),
        "frontier",
    )
    return Chart(
        "pareto",
        "Accuracy and cost of pre-training",
        "ImageNet top-1 after fine-tuning against thousands of TPUv3 core-days of pre-training. MLP-Mixer, table 2, "
        "with BiT-R200x3 and the L/16 models of table 3; dashed: no cheaper system is as accurate.",
        (Panel("core-days of pre-training, thousands", "ImageNet top-1, %", (*panel, dashed), log_x=True),),
    )


def frontier(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """Those points that no other beats in y at the same or a smaller x, by x."""
    best: list[tuple[float, float]] = []
    for x, y in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or y > best[-1][1]:
            best.append((x, y))
    return best


def model_scale() -> Chart:
    """Accuracy against pre-training cost and against throughput (MLP-Mixer, figure 3)."""
    rows = [
        row
        for row in published.rows(published.MIXER_TABLE_3)
        if row["data"] == "jft300m" and row["image_size"] == "224"
    ]
    panels = tuple(
        Panel(label, "ImageNet top-1, %", _panel(rows, column, "ImNet", _family, _system), log_x=True)
        for column, label in (
            ("core-days (k)", "core-days of pre-training, thousands"),
            ("img/s/core", "images/s on a TPUv3 core"),
        )
    )
    caption = "ImageNet top-1 after pre-training on JFT-300M at 224 px: MLP-Mixer, table 3."
    return Chart("model_scale", "Model scale", caption, panels)


def convmixer(measured: Sequence[Measured]) -> Chart:
    """Accuracy against parameters and throughput: the networks of ConvMixer's ImageNet table."""
    rows = [row for row in published.rows(published.CONVMIXER) if row["top-1"]]
    panels = []
    for column, label, log_x in (
        ("params (M)", "parameters, millions", False),
        ("img/s", "images/s of the authors", True),
    ):
        series = _panel([row for row in rows if row[column]], column, "top-1", _network, _size)
        if column == "params (M)":
            series += _measured_networks(rows, measured)
        panels.append(Panel(label, "ImageNet top-1, %", series, log_x=log_x))
    return Chart(
        "convmixer",
        "ConvMixer beside others",
        "The networks of ConvMixer's ImageNet table. star: regularisation after A1. Stated once more: ViT-B/16 was "
        "fine-tuned at 384 px, and the 59 M of Mixer-B/16 leave out its head.",
        tuple(panels),
    )


def _measured_networks(rows: Sequence[Mapping[str, str]], measured: Sequence[Measured]) -> tuple[Series, ...]:
    known = {(row["conf_model"], row["data"], row["image_size"]) for row in rows}
    points = [
        (float(each.others["num_parameters"].value) / 1e6, 100 * float(each.top1.value), each)
        for each in measured
        if each.top1 is not None
        and "num_parameters" in each.others
        and each.trained_on == each.tested_on
        and (each.model, each.trained_on, each.image_size.value if each.image_size else "") in known
    ]
    if not points:
        return ()
    xs, ys, found = zip(*points, strict=True)
    return (Series(MEASURED, xs, ys, tuple(f"{each.model}: {each.label}" for each in found), kind=MEASURED),)


Name = Callable[[Mapping[str, str]], str]


def _panel(rows: Sequence[Mapping[str, str]], x: str, y: str, group: Name, name: Name) -> tuple[Series, ...]:
    """Points of rows, a series for each group."""
    groups: dict[str, list[Mapping[str, str]]] = {}
    for row in rows:
        if row[x] and row[y]:
            groups.setdefault(group(row), []).append(row)
    return tuple(
        Series(
            each,
            tuple(float(row[x]) for row in members),
            tuple(float(row[y]) for row in members),
            tuple(map(name, members)),
        )
        for each, members in groups.items()
    )


def _family(row: Mapping[str, str]) -> str:
    return re.split(r"[-/ ]", row["model"])[0]


def _system(row: Mapping[str, str]) -> str:
    return f"{row['model'].split(' (')[0]} {row['image_size']} px, {row['pretraining']}"


def _network(row: Mapping[str, str]) -> str:
    family = re.split(r"-\d|-[A-Z]|/", row["network"])[0]
    if family == "ConvMixer":
        return f"{family} {row['activation']}{', star' if row['star'] else ''}"
    return family


def _size(row: Mapping[str, str]) -> str:
    shape = [f"{sign}{row[key]}" for sign, key in (("p", "patch_size"), ("k", "kernel_size")) if row[key]]
    return " ".join([row["network"], *shape])


# ----------------------------------------------------------------------------------------- measurements


def throughput(study: StudyTable) -> Chart | None:
    """Bars of a study's rates, a panel for each mode that it names, fastest first; None where it has no rates.

    Nor where rows tell what trainings have reached, beside which other work may have gone on.
    """
    if "accuracy" in study.columns:
        return None
    rates = [name for name in study.columns if name == RATE or name.endswith(f"_{RATE}")]
    modes: dict[str, list[dict[str, str]]] = {}
    for row in study.rows:
        if row.get("is_best", "True") == "True" and any(is_number(row[rate]) for rate in rates):
            modes.setdefault(row.get("mode") or "", []).append(row)
    panels = [
        Panel(f"images/s, {mode}" if mode else "images/s", "", series, log_x=_over_decades(series))
        for mode, rows in modes.items()
        if (series := _rate_bars(_fastest_first(rows, rates[0]) if mode else rows, study.columns, rates))
    ]
    if not panels:
        return None
    longest = max(map(len, modes.values()))
    more = f" The fastest {MAX_BARS} of {longest}." if longest > MAX_BARS else ""
    caption = f"Measured images per second, from {study.path.as_posix()}.{more}"
    return Chart(f"throughput_{study.name}", study.title, caption, tuple(panels))


def _fastest_first(rows: Sequence[dict[str, str]], rate: str) -> list[dict[str, str]]:
    return sorted(rows, key=lambda row: -float(row[rate]) if is_number(row[rate]) else 0)


def _over_decades(series: Sequence[Series]) -> bool:
    rates = [rate for each in series for rate in each.y]
    return min(rates) > 0 and max(rates) > DECADES * min(rates)


def _rate_bars(
    rows: Sequence[Mapping[str, str]], columns: Sequence[str], rates: Sequence[str]
) -> tuple[Series, ...]:
    """A series for each rate; a bar is named by as many of the columns with texts as tell the rows apart."""
    rows = rows[:MAX_BARS]
    texts = [name for name in columns if _tells_apart([row[name] for row in rows])]
    labels: list[str] = []
    for number in range(1, len(texts) + 1):
        labels = [", ".join(row[name] for name in texts[:number] if row[name]) for row in rows]
        if len(set(labels)) == len(rows):
            break
    if not labels:
        return ()
    if len(set(labels)) < len(rows):
        labels = [f"{i}: {label}" for i, label in enumerate(labels, start=1)]
    series = []
    for rate in rates:
        there = [
            (name, float(row[rate])) for name, row in zip(labels, rows, strict=True) if is_number(row[rate])
        ]
        if there:
            names, values = zip(*there, strict=True)
            name = rate.removesuffix(RATE).strip("_").replace("_", " ") or "images/s"
            series.append(Series(name, names, values, names, "bars", MEASURED))
    return tuple(series)


def format_rate(value: float) -> str:
    """Four digits, or all before the point."""
    return f"{value:,.0f}" if value >= 1000 else f"{value:.4g}"


def _tells_apart(cells: Sequence[str]) -> bool:
    """Whether a column names the rows of a study: short texts, not numbers, and not the same in all."""
    is_text = not all(re.fullmatch(r"[-+.\de ]*|True|False", cell) for cell in cells)
    return is_text and len(set(cells)) > 1 and max(map(len, cells)) <= 48


def curves(runs: Mapping[str, Sequence[Mapping[str, float]]]) -> Chart:
    """The runs over one another: the accuracy by which they are compared, and the loss of training."""
    shown = {name: rows for name, rows in runs.items() if _evaluated(rows)}
    more = f" The first {MAX_CURVES} of {len(shown)} runs." if len(shown) > MAX_CURVES else ""
    shown = dict(list(shown.items())[:MAX_CURVES])
    parts = [tuple(name.split("/")) for name in shown]
    shared = 0
    while len(parts) > 1 and all(
        len(each) > shared + 1 and each[shared] == parts[0][shared] for each in parts
    ):
        shared += 1
    names = _without_beginning(
        {
            name: "/".join(part[shared:] if len(parts) > 1 else part[-2:])
            for name, part in zip(shown, parts, strict=True)
        }
    )
    metrics = dict.fromkeys(_evaluated(rows) for rows in shown.values())
    accuracy, loss = [], []
    for name, rows in shown.items():
        metric = _evaluated(rows)
        scale = 1 if results.is_better_lower(metric) else 100
        named = names[name] if len(metrics) == 1 else f"{names[name]}: {metric}"
        accuracy.append(_curve(named, rows, metric, scale))
        loss.append(_curve(names[name], rows, results.TRAIN_LOSS, 1))
    unit = "" if all(map(results.is_better_lower, metrics)) else ", %"
    panels = (
        Panel("epoch", f"{next(iter(metrics)) if len(metrics) == 1 else 'accuracy'}{unit}", tuple(accuracy)),
        Panel("epoch", "loss of training", tuple(each for each in loss if each.x)),
    )
    return Chart("curves", "Runs over one another", f"From metrics.jsonl of each run.{more}", panels)


def _without_beginning(names: Mapping[str, str]) -> dict[str, str]:
    """Names without the words that all of them begin with, if each has another."""
    words = [re.split(r"-(?=[A-Za-z_])", name) for name in names.values()]  # not within 1e-05
    shared = 0
    while len(words) > 1 and all(each[shared + 1 :] and each[shared] == words[0][shared] for each in words):
        shared += 1
    return {key: "-".join(each[shared:]) for key, each in zip(names, words, strict=True)}


def _evaluated(rows: Sequence[Mapping[str, float]]) -> str:
    """The metric that runs are compared by; "" where only training has metrics."""
    return (
        results.main_metric(dict.fromkeys(n for row in rows for n in row if n not in ("step", "epoch"))) or ""
    )


def _curve(name: str, rows: Sequence[Mapping[str, float]], metric: str, scale: float) -> Series:
    points = [
        (row["epoch"], scale * row[metric])
        for row in rows
        if math.isfinite(row.get(metric, math.nan)) and "epoch" in row
    ]
    xs, ys = zip(*points, strict=True) if points else ((), ())
    return Series(name, xs, ys, (name,) * len(xs), "line", MEASURED)


def is_number(text: str | None) -> bool:
    """Whether a cell of a file can be drawn: a number, and finite, as JSON has no other."""
    try:
        return math.isfinite(float(text or ""))
    except ValueError:
        return False
