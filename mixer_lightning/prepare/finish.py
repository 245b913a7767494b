"""The end of a set of shards: their names, index, report and, as the mark that all is there, dataset.json."""

from __future__ import annotations

import contextlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from mixer_lightning.data.sources.index import array_paths
from mixer_lightning.data.sources.remote import sha256_of
from mixer_lightning.files import lock_run_dir, write_text
from mixer_lightning.prepare.journal import refuse_differences, versions
from mixer_lightning.prepare.open import open_source
from mixer_lightning.prepare.options import Options
from mixer_lightning.prepare.report import HISTOGRAM, REPORT, make_report
from mixer_lightning.prepare.state import PARTIAL, State
from mixer_lightning.prepare.writing import Written
from mixer_lightning.screen import Screen

DATASET = "dataset.json"


def finished_report(options: Options) -> dict[str, Any] | None:
    """The report of a finished set of the same options, None if there is work to do.

    Raises:
        ValueError: the output holds another set, or one that was not written here.
    """
    path = options.output / DATASET
    if not path.exists():
        return None
    try:
        dataset = json.loads(path.read_text(encoding="utf-8"))
        report = dict(json.loads((options.output / REPORT).read_text(encoding="utf-8")))
        recorded, fingerprint = dict(dataset["options"]), list(dataset["source"])
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"output: {options.output} holds a data set that was not written here. Choose another output."
        ) from None
    is_there = options.source is not None and options.source.exists()
    source = open_source(options) if is_there else None
    refuse_differences(recorded, fingerprint, options, source, f"{options.output} holds another finished set")
    with contextlib.suppress(ValueError, OSError), lock_run_dir(options.output):  # it may be read-only
        shutil.rmtree(options.output / PARTIAL, ignore_errors=True)  # of a process killed at the very end
    return report


def finish(state: State, pool: ThreadPoolExecutor, screen: Screen) -> dict[str, Any]:
    """Name the shards, write index, report and, as the mark that all is there, dataset.json."""
    finished = state.finish(pool)
    if not finished:
        raise ValueError("no image was fit to be kept")
    output = state.options.output
    report = make_report(state, finished)
    write_text(output / REPORT, json.dumps(report) + "\n")
    try:
        from mixer_lightning.reports import prepare as pictures  # late, as it may fail

        pictures.plot_class_counts(output / REPORT, output / HISTOGRAM)
    except Exception as error:  # days of work must not hang on a picture
        screen.say(f"no {HISTOGRAM}: {error}")
    write_text(output / DATASET, json.dumps(_dataset(state, finished), indent=1) + "\n")
    shutil.rmtree(output / PARTIAL, ignore_errors=True)
    return report


def _dataset(state: State, finished: dict[str, list[Written]]) -> dict[str, Any]:
    """The content of dataset.json; nothing in it depends on when or how often the program ran."""
    source = state.source
    return {
        "name": source.name,
        "classes": source.classes,
        **({"wnids": source.wnids} if source.wnids is not None else {}),
        **({"label_changes_with": source.label_changes_with} if source.label_changes_with else {}),
        "splits": {
            split: {
                "samples": sum(shard.samples for shard in shards),
                "labels_per_image": source.labels_per_image,
                "shards": [shard._asdict() for shard in shards],
                "arrays": [
                    {"name": path.name, "sha256": sha256_of(path)}
                    for path in array_paths(state.options.output, split)
                    if path.exists()
                ],
            }
            for split, shards in finished.items()
        },
        "options": state.options.record(),
        "val_share": state.val_share,
        "source": source.fingerprint,
        "versions": versions(),
    }
