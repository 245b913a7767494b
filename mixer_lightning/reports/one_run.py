"""What a report has of a single run: for a dashboard."""

from __future__ import annotations

from pathlib import Path

from mixer_lightning import results
from mixer_lightning.reports import published, study_files
from mixer_lightning.reports.comparison import paper_table, runs_table, study_table
from mixer_lightning.reports.confusion import CONFUSION_PNG, MISCLASSIFIED_PNG
from mixer_lightning.reports.sources import collect
from mixer_lightning.reports.tables import MEASURED, Table

#: What mixes places, of Mixer hidden units and of ConvMixer depthwise kernels; and the stem.
WEIGHTS_MIXING, WEIGHTS_STEM = "weights_mixing.png", "weights_stem.png"
PICTURES = (
    results.CURVES,
    results.FIRST_BATCH,
    CONFUSION_PNG,
    MISCLASSIFIED_PNG,
    WEIGHTS_MIXING,
    WEIGHTS_STEM,
)


def tables(run_dir: Path, results_of_models: Path) -> list[Table]:
    """The run beside published results, the papers' tables that it stands in, and those of its evaluations.

    Args:
        run_dir: with result.json.
        results_of_models: the CSV file of published results that runs are compared with.

    Raises:
        ValueError: a file is damaged; the message names it.
    """
    measured = collect([run_dir / results.RESULT], without=run_dir / "none").measured
    papers = [paper_table(each, measured) for each in published.TABLES]
    found = [runs_table(measured, results_of_models)]
    found += [table for table in papers if any(row.kind == MEASURED for row in table.rows)]
    own = (path for path in sorted(run_dir.glob("*.csv")) if path.name != results.METRICS_CSV)
    return found + [study_table(each, path.stem) for path in own for each in study_files.read(path)]


def pictures(run_dir: Path) -> dict[str, Path]:
    """The pictures that are there, by name."""
    paths = (run_dir / name for name in PICTURES)
    return {path.stem: path for path in paths if path.is_file()}
