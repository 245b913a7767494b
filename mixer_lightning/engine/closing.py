"""The end of a run: its pictures, and what the dashboards are given of them and of its tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mixer_lightning import results
from mixer_lightning.loggers.dashboards import Dashboards
from mixer_lightning.models.presets import PUBLISHED
from mixer_lightning.screen import Screen


def draw_pictures(run_dir: Path, screen: Screen) -> None:
    """Curves, and with an evaluation of confusions its two pictures."""
    from mixer_lightning.reports import confusion, curves

    for report, name in ((curves, results.CURVES), (confusion, confusion.CONFUSION_PNG)):
        try:
            report.draw(run_dir)
        except Exception as error:  # the result of weeks must not hang on a picture
            screen.say(f"no {name}: {error}")


def draw_weights(run_dir: Path, screen: Screen) -> None:
    """Pictures of the weights that mix places, and of the stem's: what `mixer study token_mixing` draws of the run."""
    from mixer_lightning.engine.weight_images import weights_of
    from mixer_lightning.reports import weights
    from mixer_lightning.reports.one_run import WEIGHTS_MIXING, WEIGHTS_STEM

    try:
        found = weights_of(run_dir, run_dir.name)
        for kind in list(found.layers)[:1]:
            weights.draw_units(run_dir / WEIGHTS_MIXING, [found], kind)
        if found.stem is not None:
            weights.draw_stems(run_dir / WEIGHTS_STEM, [found])
    except Exception as error:  # as above
        screen.say(f"no pictures of the weights: {error}")


def show_on_dashboards(run_dir: Path, dashboards: Dashboards, screen: Screen) -> None:
    """The tables and pictures that a report has of this run, once its result is written."""
    if not dashboards.loggers:
        return
    from mixer_lightning.reports.one_run import pictures, tables

    draw_weights(run_dir, screen)
    try:
        found: dict[str, list[Sequence[str]]] = {
            table.name: [table.columns, *([cell.text for cell in row.cells] for row in table.rows)]
            for table in tables(run_dir, PUBLISHED)
        }
    except Exception as error:  # as above
        screen.say(f"no tables for the dashboards: {error}")
        found = {}
    dashboards.log_report(found, pictures(run_dir))
    if (run_dir / results.CONFUSION).exists():
        dashboards.log_confusion(run_dir / results.CONFUSION)
