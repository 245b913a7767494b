"""Dashboards of W&B as code: a workspace and a report for each kind of work, with the names that runs log.

Legend: a chart shows metrics over steps, or finished runs beside one another; a section is some charts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from mixer_lightning import results
from mixer_lightning.loggers import PRETRAINING, TRANSFER

if TYPE_CHECKING:
    from wandb_workspaces.reports.v2 import Report
    from wandb_workspaces.workspaces import Workspace

SWEEP = "sweep"
#: The kinds of dashboards, and what each is for.
KINDS = {
    PRETRAINING: "runs from scratch: accuracy, loss, optimisation, the machine",
    TRANSFER: "transfers of a checkpoint: accuracy, loss, which classes are mistaken",
    SWEEP: "settings beside one another: which of them matters, and how much",
}
X_AXIS = "Step"  # the optimiser steps of the run
MOST_RUNS = 20  # in a chart
COLUMNS, ROWS = 3, 2  # of a workspace's section
WIDTH, HEIGHT = 8, 6  # of a chart in a report, whose grid is 24 wide


class Lines(NamedTuple):
    """Metrics over steps, a line for each run."""

    title: str
    metrics: tuple[str, ...]
    log_y: bool = False


class Bars(NamedTuple):
    """The last value of metrics, a bar for each run."""

    title: str
    metrics: tuple[str, ...]


class Pictures(NamedTuple):
    """Pictures and tables that a run leaves at its end."""

    title: str
    names: tuple[str, ...]


class Settings(NamedTuple):
    """Keys of the recipe and a metric, a line through them for each run."""

    title: str
    keys: tuple[str, ...]
    metric: str


class Scatter(NamedTuple):
    """A key of the recipe against a metric, a point for each run."""

    title: str
    key: str
    metric: str
    log_x: bool = False


class Importance(NamedTuple):
    """How much each key of the recipe says about a metric."""

    title: str
    metric: str


Chart = Lines | Bars | Pictures | Settings | Scatter | Importance


class Section(NamedTuple):
    """Charts under one heading, and what they are for."""

    name: str
    about: str
    charts: tuple[Chart, ...]


ACCURACY = Lines("top-1", ("val/top1", "test/top1"))
LOSS = Section(
    "Loss",
    "The loss of training is that of augmented and mixed images; val and test have neither.",
    (
        Lines("training", (results.TRAIN_LOSS,)),
        Lines("val and test", ("val/loss", "test/loss")),
    ),
)
OPTIMISATION = Section(
    "Optimisation",
    "The gradient's norm is that before clipping.",
    (
        Lines("learning rate", (results.LEARNING_RATE,)),
        Lines("gradient norm", (results.GRAD_NORM,), log_y=True),
    ),
)
MACHINE = Section(
    "Machine",
    "Images per second are of all devices together; the wait is the share of the time in which no image was there.",
    (
        Lines("images/s", (results.IMAGES_PER_SECOND,)),
        Lines("share of the time waiting for images", (results.DATA_WAIT,)),
        Lines("model FLOPs utilisation", (results.MFU,)),
        Lines("memory, GB", (results.MEMORY_GB,)),
        Lines("device days", (results.DEVICE_DAYS,)),
    ),
)
#: Keys of the recipe that a sweep varies, unless the user names others.
VARIED = ("optimizer.lr", "optimizer.weight_decay", "batch_size", "seed")


def sections(kind: str, metric: str = "val/top1", keys: Sequence[str] = VARIED) -> tuple[Section, ...]:
    """What a dashboard shows; a sweep is judged by `metric` and varies `keys`."""
    if kind == PRETRAINING:
        found = Section(
            "Accuracy",
            "Fractions. Of val the best weights are chosen, of test nothing is.",
            (
                ACCURACY,
                Lines("top-5", ("val/top5", "test/top5")),
                Lines("top-1 of augmented training images", (results.TRAIN_TOP1,)),
            ),
        )
        pictures = Pictures("at the end of a run", ("pictures/curves", "pictures/first_batch"))
        weights = Pictures(
            "weights that mix places; stem", ("pictures/weights_mixing", "pictures/weights_stem")
        )
        return found, LOSS, OPTIMISATION, MACHINE, Section("Pictures", "", (pictures, weights))
    if kind == TRANSFER:
        found = Section(
            "Accuracy",
            "Fractions, after fine-tuning.",
            (ACCURACY, Bars("last top-1 of each run", ("test/top1", "val/top1"))),
        )
        mistakes = Section(
            "Mistakes",
            "Which class is taken for which, and the surest mistakes.",
            (
                Pictures("confusion", ("pictures/confusion",)),
                Pictures("surest mistakes", ("pictures/misclassified", "examples/misclassified")),
            ),
        )
        return found, LOSS, OPTIMISATION, mistakes, MACHINE
    settings = Section(
        "Settings",
        "Each line and each point is a run.",
        (
            Settings("settings", tuple(keys), metric),
            Importance("what matters", metric),
            *(Scatter(key, key, metric, log_x=key == "optimizer.lr") for key in keys),
        ),
    )
    curves = Section(
        "Curves",
        "",
        (
            Lines(metric, (metric,)),
            Lines("training loss", (results.TRAIN_LOSS,)),
            Lines("learning rate", (results.LEARNING_RATE,)),
        ),
    )
    return settings, curves, MACHINE


class Dashboard(NamedTuple):
    """A workspace and a report: of which runs, and what they show.

    Args:
        kind: of `KINDS`.
        project, entity: whose runs; an entity of "" is the key's own.
        group: only runs of this name; "" for all of the kind.
        metric, keys: what a sweep is judged by, and which keys of the recipe it varies.
    """

    kind: str
    project: str
    entity: str = ""
    group: str = ""
    metric: str = "val/top1"
    keys: Sequence[str] = VARIED

    @property
    def title(self) -> str:
        """What both are called."""
        return " ".join(filter(None, ("Mixer and ConvMixer:", self.kind, self.group)))

    def filters(self) -> list[Any]:
        """Which runs are shown."""
        from wandb_workspaces import expr

        found = [] if self.kind == SWEEP else [expr.Metric("JobType") == self.kind]
        return [*found, *([expr.Metric("Group") == self.group] if self.group else [])]

    def workspace(self) -> Workspace:
        """The workspace, not yet saved."""
        from wandb_workspaces import workspaces as ws

        return ws.Workspace(
            entity=self.entity,
            project=self.project,
            name=self.title,
            sections=[
                ws.Section(
                    name=section.name,
                    panels=[_panel(chart, i) for i, chart in enumerate(section.charts)],
                    is_open=True,
                    layout_settings=ws.SectionLayoutSettings(columns=COLUMNS, rows=ROWS),
                )
                for section in sections(self.kind, self.metric, self.keys)
            ],
            settings=ws.WorkspaceSettings(x_axis=X_AXIS, max_runs=MOST_RUNS),
            runset_settings=ws.RunsetSettings(filters=self.filters()),
        )

    def report(self) -> Report:
        """The report, not yet saved: a heading, a line and the charts of every section."""
        import wandb_workspaces.reports.v2 as wr

        blocks: list[Any] = [wr.TableOfContents()]
        for section in sections(self.kind, self.metric, self.keys):
            # a run set without a project is of the report's, and needs no server to be written
            runs = wr.Runset(name=self.group or self.kind, filters=self.filters())
            panels = [_panel(chart, i) for i, chart in enumerate(section.charts)]
            blocks.append(wr.H2(text=section.name))
            if section.about:
                blocks.append(wr.P(text=section.about))
            blocks.append(wr.PanelGrid(runsets=[runs], panels=panels))
        return wr.Report(
            project=self.project,
            entity=self.entity,
            title=self.title,
            description=KINDS[self.kind],
            blocks=blocks,
            width="fluid",
        )

    def to_json(self) -> str:
        """Both, as W&B's server takes them."""
        parts = {"workspace": self.workspace(), "report": self.report()}
        found = {
            name: part._to_model().model_dump(mode="json", by_alias=True, exclude_none=True)
            for name, part in parts.items()
        }
        return json.dumps({"kind": self.kind, **found}, indent=2) + "\n"

    def save(self) -> list[str]:
        """Save both on the server; their addresses. W&B must have a key."""
        import wandb as client

        owner = self.entity or client.Api().default_entity
        if not owner:
            raise ValueError("the key belongs to no user: name one with entity=<user or team>")
        mine = self._replace(entity=owner)
        report = mine.report()  # first: it makes the project where there is none
        report.save()
        workspace = mine.workspace()
        workspace.save()
        return [f"workspace  {workspace.url}", f"report     {report.url}"]


def _panel(chart: Chart, place: int) -> Any:
    """A chart as W&B has it, at its place in the grid of a report."""
    import wandb_workspaces.reports.v2 as wr

    across = 24 // WIDTH
    layout = wr.Layout(x=place % across * WIDTH, y=place // across * HEIGHT, w=WIDTH, h=HEIGHT)
    if isinstance(chart, Lines):
        return wr.LinePlot(
            title=chart.title,
            x=X_AXIS,
            y=list(chart.metrics),
            log_y=chart.log_y,
            max_runs_to_show=MOST_RUNS,
            layout=layout,
        )
    if isinstance(chart, Bars):
        return wr.BarPlot(title=chart.title, metrics=list(chart.metrics), layout=layout)
    if isinstance(chart, Pictures):
        return wr.MediaBrowser(title=chart.title, media_keys=list(chart.names), layout=layout)
    if isinstance(chart, Importance):
        return wr.ParameterImportancePlot(with_respect_to=chart.metric, layout=layout)
    metric = wr.SummaryMetric(chart.metric)
    if isinstance(chart, Scatter):
        return wr.ScatterPlot(
            title=chart.title, x=wr.Config(chart.key), y=metric, log_x=chart.log_x, layout=layout
        )
    columns: Sequence[Any] = [*map(wr.Config, chart.keys), metric]
    return wr.ParallelCoordinatesPlot(
        title=chart.title,
        columns=[wr.ParallelCoordinatesPlotColumn(metric=each) for each in columns],
        layout=layout,
    )
