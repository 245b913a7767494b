"""What was measured beside what is published, from result files alone.

    mixer report                                          # results/ and runs/ of this folder into report/
    mixer report runs/mine results/loader_cpu.csv to=page

Reads run directories, evaluations, transfer rows and CSV files of studies, with the pages and pictures beside them;
trains and measures nothing. The same files make the same report.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from mixer_lightning.config.arguments import Parser, is_path
from mixer_lightning.models.presets import PUBLISHED
from mixer_lightning.screen import Screen, refuse

#: What is read where nothing is named, as far as it is there.
DEFAULTS = ("results", "runs")


def main(argv: Sequence[str]) -> int:
    """Write the report; the exit code."""
    chosen, paths = settings(argv)
    began = time.perf_counter()
    from mixer_lightning.reports.report import write_report  # matplotlib and Plotly: a second

    screen = Screen()
    try:
        written = write_report(paths, chosen.to, results_of_models=PUBLISHED)
    except (ValueError, OSError) as error:
        refuse([str(error)])
    screen.say(f"{written.summary}; {time.perf_counter() - began:.1f} s; written to {written.path}")
    return 0


def settings(argv: Sequence[str]) -> tuple[argparse.Namespace, list[Path]]:
    """The options of a command line and the files and folders to read. A wrong one ends the program with a message."""
    words = [word for word in argv if is_path(word, ["to"])]
    parser = Parser(
        "report",
        usage="[file or folder ...] [to=report]",
        description="Sets what was measured beside what the papers print, as tables (CSV, Markdown),\n"
        "figures (PNG, SVG) and one page, index.html, that needs no server and loads nothing.\n"
        "Reads run directories, evaluation.json, transfer.json and the CSV files of studies; without a name\n"
        f"{' and '.join(f'{each}/' for each in DEFAULTS)} of this folder.",
    )
    parser.add_argument(
        "--to", type=Path, default=Path("report"), metavar="FOLDER", help="default: %(default)s"
    )
    chosen = parser.read([word for word in argv if word not in words])
    chosen.to = chosen.to.expanduser()
    if chosen.to.exists() and not chosen.to.is_dir():
        refuse([f"to={chosen.to} is a file: name a folder, which is made where there is none"])
    paths = [Path(word).expanduser() for word in words]
    missing = [path for path in paths if not path.exists()]
    if missing:
        refuse([f"there is no file and no folder {path}" for path in missing])
    return chosen, paths or [Path(name) for name in DEFAULTS if Path(name).is_dir()]
