"""The study of scale: accuracy over the cost of training, speed and the number of training images, from its rows.

As figures 2 (right) and 3 of the Mixer paper (arXiv 2105.01601): one point a network, one curve a network.
"""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from mixer_lightning.reports import markdown
from mixer_lightning.reports.charts import Chart, Panel, Series
from mixer_lightning.reports.study_files import StudyTable
from mixer_lightning.reports.tables import MEASURED

NOISE = 2.0  # points between two seeds of a short run, of which a difference is no finding
#: Columns by which a CSV file is known to be of this study.
COLUMNS = ("model", "seed")
#: Figures 2 and 3 of the paper, as far as its text says what they show.
PUBLISHED = (
    "In the paper (figure 2, right) Mixer-B/32, L/32 and L/16 see 3, 10, 30 and 100 % of JFT-300M for 233, 70, 23 and "
    "7 epochs, so that the steps are the same, and accuracy is linear 5-shot on ImageNet; its points stand in the "
    "figure alone. Figure 3 is ImageNet top-1 after pre-training on all of JFT-300M at 224 px, over TPUv3 core-days "
    "and over images/s: rows of table 3, which stand in the report. The text calls it few-shot in one place, its "
    "caption top-1 after fine-tuning; the caption fits the table."
)


class Point(NamedTuple):
    """A network, at one image size and on one part of the training set: the mean over seeds. Accuracy in percent."""

    model: str
    image_size: int
    percent: float
    seeds: int
    accuracy: float
    deviation: float | None  # over seeds; None for one
    parameters: float
    gmacs: float
    train_images: float
    images_seen: float
    images_per_second: float
    device_seconds: float

    @property
    def training_macs(self) -> float:
        """Multiply-accumulates of the training: a forward pass for every image seen, and twice that backwards."""
        return 3 * 1e9 * self.gmacs * self.images_seen

    @property
    def epochs(self) -> float:
        """Passes over its training images."""
        return self.images_seen / self.train_images

    @property
    def size(self) -> str:
        """The network in a few words."""
        return f"{self.model}, {_millions(self.parameters)} M parameters, {self.gmacs:.3g} GMACs"


NUMBERS = ("image_size", "percent", "accuracy", *Point._fields[6:])


def points(rows: Iterable[Mapping[str, Any]]) -> list[Point]:
    """Rows of the study, by network from the cheapest on, then by image size and part of the training set."""
    groups: dict[tuple[str, int, float], list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["model"], int(row["image_size"]), float(row["percent"])), []).append(row)
    found = []
    for (model, size, percent), members in groups.items():
        accuracies = [100 * float(row["accuracy"]) for row in members]

        def mean(key: str, members: Sequence[Mapping[str, Any]] = members) -> float:
            return statistics.fmean(float(row[key]) for row in members)

        found.append(
            Point(
                model,
                size,
                percent,
                len(members),
                statistics.fmean(accuracies),
                statistics.stdev(accuracies) if len(accuracies) > 1 else None,
                *map(mean, NUMBERS[3:]),
            )
        )
    order = {model: min(p.gmacs for p in found if p.model == model) for model, _, _ in groups}
    return sorted(found, key=lambda p: (order[p.model], p.model, p.image_size, p.percent))


def noise(found: Sequence[Point]) -> float:
    """Points of accuracy below which a difference is no finding: two deviations over seeds, where there are several."""
    deviations = [each.deviation for each in found if each.deviation is not None]
    return 2 * statistics.fmean(deviations) if deviations else NOISE


# ---------------------------------------------------------------------------------------------- figures


def model_scale(found: Sequence[Point], name: str, *, data: str) -> Chart | None:
    """Accuracy over the cost of training, and over speed, on the largest part of the training set."""
    whole = [each for each in found if each.percent == max(p.percent for p in found)]
    if len({(each.model, each.image_size) for each in whole}) < 2:
        return None
    sizes = sorted({each.image_size for each in whole})
    accuracy = f"accuracy on {data}, %"

    def series(value: str, factor: float) -> tuple[Series, ...]:
        return tuple(
            Series(
                f"{size} px",
                tuple(factor * float(getattr(each, value)) for each in whole if each.image_size == size),
                tuple(each.accuracy for each in whole if each.image_size == size),
                tuple(each.size for each in whole if each.image_size == size),
                "line",
                MEASURED,
            )
            for size in sizes
        )

    panels = (
        Panel("training, 10¹² multiply-accumulates", accuracy, series("training_macs", 1e-12), log_x=True),
        Panel("images/s in training", accuracy, series("images_per_second", 1), log_x=True),
    )
    return Chart(f"{name}_models", f"Model scale on {data}", _caption(whole), panels)


def data_scale(found: Sequence[Point], name: str, *, data: str) -> Chart | None:
    """Accuracy over the number of training images, a curve for each network; None for one part alone."""
    if len({each.percent for each in found}) < 2:
        return None
    several = len({each.image_size for each in found}) > 1
    curves = []
    for model, size in dict.fromkeys((each.model, each.image_size) for each in found):
        mine = [each for each in found if (each.model, each.image_size) == (model, size)]
        curves.append(
            Series(
                f"{model} {size} px" if several else model,
                tuple(each.train_images for each in mine),
                tuple(each.accuracy for each in mine),
                tuple(f"{each.size}, {each.percent:g} % of the training set" for each in mine),
                "line",
                MEASURED,
            )
        )
    panel = Panel("training images", f"accuracy on {data}, %", tuple(curves), log_x=True)
    return Chart(f"{name}_data", f"Data scale on {data}", _caption(found), (panel,))


def _caption(found: Sequence[Point]) -> str:
    seeds = max(each.seeds for each in found)
    images = sorted({round(each.images_seen) for each in found})
    seen = f"{images[0]:,}" if images[0] == images[-1] else f"{images[0]:,} to {images[-1]:,}"
    told = "one seed" if seeds == 1 else f"mean of {seeds} seeds"
    return f"Measured at the end of trainings on {seen} images; {told}."


def charts(studies: Sequence[StudyTable]) -> list[Chart]:
    """The figures of those CSV files that are of this study."""
    found: list[Chart | None] = []
    for study in studies:
        if study.has(COLUMNS, numbers=NUMBERS):
            name, data = study.name, study.path.stem.removeprefix("scale_")
            measured = points(study.rows)
            found += [model_scale(measured, name, data=data), data_scale(measured, name, data=data)]
    return [chart for chart in found if chart is not None]


# ------------------------------------------------------------------------------------------------- page

TABLE = (
    "model",
    "px",
    "of the training set, %",
    "training images",
    "parameters, M",
    "GMACs",
    "images seen",
    "epochs",
    "accuracy, %",
    "std",
    "seeds",
    "images/s",
    "device seconds",
)


def cells(found: Sequence[Point]) -> list[list[str]]:
    """Rows of the table."""
    return [
        [
            each.model,
            str(each.image_size),
            f"{each.percent:g}",
            f"{each.train_images:,.0f}",
            _millions(each.parameters),
            f"{each.gmacs:.3g}",
            f"{each.images_seen:,.0f}",
            f"{each.epochs:.3g}",
            f"{each.accuracy:.1f}",
            "" if each.deviation is None else f"{each.deviation:.1f}",
            str(each.seeds),
            f"{each.images_per_second:,.0f}",
            f"{each.device_seconds:,.0f}",
        ]
        for each in found
    ]


def _millions(parameters: float) -> str:
    return f"{parameters / 1e6:.3g}"


def verdict(found: Sequence[Point]) -> str:
    """Whether size, data and resolution help, and whether a larger network makes more of more data."""
    limit = noise(found)
    largest = max(each.percent for each in found)
    by_place = {(each.model, each.image_size, each.percent): each for each in found}
    sentences = []
    models = list(dict.fromkeys(each.model for each in found))
    sizes = sorted({each.image_size for each in found})
    small, large = models[0], models[-1]
    ends = [by_place.get((model, sizes[0], largest)) for model in (small, large)]
    if len(models) > 1 and ends[0] and ends[1]:
        gain = ends[1].accuracy - ends[0].accuracy
        claim = "That a larger network is the more accurate on the whole set"
        sentences.append(
            f"{claim} {_shows(gain, limit)}: {large} {ends[1].accuracy:.1f} %, {small} {ends[0].accuracy:.1f} %."
        )
    gains, falls = {}, []
    for model in models:
        curve = [each for each in found if each.model == model and each.image_size == sizes[0]]
        if len(curve) > 1:
            gains[model] = curve[-1].accuracy - curve[0].accuracy
        falls += [
            f"{model} {after.accuracy - before.accuracy:+.1f} from {before.percent:g} to {after.percent:g} %"
            for before, after in itertools.pairwise(curve)
            if before.accuracy - after.accuracy > limit
        ]
    if gains:
        told = ", ".join(f"{model} {gain:+.1f}" for model, gain in gains.items())
        claim = "That more training images make it more accurate"
        sentences.append(
            f"{claim} {_shows(min(gains.values()), limit)} for every network between the smallest part and the "
            f"largest: {told} points."
        )
    if falls:
        epochs = [each.epochs for each in found if each.percent == largest]
        sentences.append(
            f"On the way it falls: {', '.join(falls)}; the trainings go {min(epochs):.1f} times through the "
            "largest part, and more often through a smaller one."
        )
    if len(gains) > 1:
        more = gains[large] - gains[small]
        claim = "That a larger network makes more of more images"
        sentences.append(f"{claim} {_shows(more, limit)}: {more:+.1f} points between {large} and {small}.")
    if len(sizes) > 1:
        pairs = [[by_place.get((model, size, largest)) for size in (sizes[0], sizes[-1])] for model in models]
        gained = [pair[1].accuracy - pair[0].accuracy for pair in pairs if pair[0] and pair[1]]
        if gained:
            claim = f"That {sizes[-1]} px are better than {sizes[0]} px"
            told = ", ".join(f"{gain:+.1f}" for gain in gained)
            sentences.append(f"{claim} {_shows(min(gained), limit)} for every network: {told} points.")
    several = any(each.deviation is not None for each in found)
    why = "two deviations over seeds" if several else "one run each: a second seed may differ by as much"
    sentences.append(f"Differences within {limit:.1f} points are no finding ({why}).")
    return " ".join(sentences)


def _shows(difference: float, limit: float) -> str:
    return (
        "shows here"
        if difference > limit
        else "does not show here"
        if difference >= -limit
        else "is reversed here"
    )


def page(
    found: Sequence[Point],
    *,
    title: str,
    introduction: str,
    pictures: Mapping[str, str],
    networks: Sequence[str],
    provenance: Sequence[str],
) -> str:
    """The Markdown page. `pictures` are files beside it and their captions, `networks` says what each network is."""
    lines = [f"# {title}", "", introduction, "", *markdown.table(TABLE, cells(found)), ""]
    for file, caption in pictures.items():
        lines += [f"![{caption}]({file})", ""]
    lines += [
        markdown.FINDING,
        "",
        markdown.escape(verdict(found)),
        "",
        PUBLISHED,
        "",
        "## Where the numbers come from",
        "",
    ]
    lines += [f"* {markdown.escape(each)}" for each in networks]
    return "\n".join([*lines, *provenance]) + "\n"
