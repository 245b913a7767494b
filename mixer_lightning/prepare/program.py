"""A source to shards, from top to bottom: check, open the source, one pass, finish, report."""

from __future__ import annotations

import contextlib
import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import Any

from mixer_lightning.data.sources.folder import LAYOUT
from mixer_lightning.data.sources.index import array_paths
from mixer_lightning.data.sources.remote import sha256_of
from mixer_lightning.files import lock_run_dir, write_text
from mixer_lightning.prepare.cleaning import CleaningOptions
from mixer_lightning.prepare.journal import refuse_differences
from mixer_lightning.prepare.open import open_source
from mixer_lightning.prepare.options import Options
from mixer_lightning.prepare.plan import Plan, check_disk, plan_shards
from mixer_lightning.prepare.progress import progress
from mixer_lightning.prepare.readers import Source
from mixer_lightning.prepare.reading import Waiting, read_source
from mixer_lightning.prepare.report import HISTOGRAM, REPORT, make_report, show_report
from mixer_lightning.prepare.state import PARTIAL, State
from mixer_lightning.prepare.writing import Written
from mixer_lightning.screen import Screen
from mixer_lightning.stopping import Stopped, StopRequests, exit_code

DATASET = "dataset.json"
BUFFER_BYTES = 2**28
COMMIT_SECONDS = 30.0


def write_shards(
    options: Options,
    screen: Screen,
    *,
    buffer_bytes: int = BUFFER_BYTES,
    commit_seconds: float = COMMIT_SECONDS,
) -> int:
    """Write the shards of a source, or go on with them; the exit code.

    Up to `buffer_bytes` of samples wait in memory; after a kill at most `commit_seconds` of work are done again.
    """
    with contextlib.ExitStack() as stack:
        try:
            if (finished := _finished_report(options)) is not None:
                screen.say(
                    f"{options.output} is finished; to make it anew, choose another output or delete it"
                )
                show_report(screen, finished, options.output)
                return 0
            source, cleaning, plan = _check(options, screen)
            options.output.mkdir(parents=True, exist_ok=True)
            _lock(stack, options)
            state = State(source, options, plan.num_shards, plan.val_share)
            pool = ThreadPoolExecutor(options.threads)
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # a read may never come back
            if state.resumed:
                screen.say(f"going on after {state.consumed:,} images")
                state.restore(pool)
        except (ValueError, OSError) as error:
            screen.say(str(error))
            return 2
        try:
            if not state.read_all:
                _read(state, cleaning, pool, screen, buffer_bytes=buffer_bytes, commit_seconds=commit_seconds)
            report = _finish(state, pool, screen)
        except Stopped as stop:
            kept = "; the same command goes on from there" if stop.saved else f". {_where_to_go_on(state)}"
            screen.say(f"stopped by {stop}{kept}")
            return exit_code(stop.number)
        except (ValueError, OSError) as error:
            screen.say(str(error))
            screen.say(_where_to_go_on(state))
            return 1
        show_report(screen, report, options.output)
    return 0


def _read(
    state: State,
    cleaning: CleaningOptions,
    pool: ThreadPoolExecutor,
    screen: Screen,
    *,
    buffer_bytes: int,
    commit_seconds: float,
) -> None:
    """The pass over the source, with its bar; asked to stop, it commits first."""
    waiting = Waiting()

    def quitting() -> str:
        screen.stop_bars()  # leave the terminal as it was found
        return _where_to_go_on(state)

    first = "saving the images read so far, after which the same command goes on"
    with (
        StopRequests(screen.say, first=first, quitting=quitting, waiting=waiting.seconds) as requests,
        progress(screen, state) as on_sample,
    ):
        requests.catch()
        read_source(
            state,
            cleaning,
            pool,
            requests,
            waiting,
            on_sample,
            buffer_bytes=buffer_bytes,
            commit_seconds=commit_seconds,
        )


def _where_to_go_on(state: State) -> str:
    return f"What was committed is in {state.folder}; the same command goes on from there"


def _check(options: Options, screen: Screen) -> tuple[Source, CleaningOptions, Plan]:
    """The opened source, what to do with its images, and into which shards; all checked before anything is written."""
    source = open_source(options)
    if len(source.classes) < 2 and "train" in source.splits:
        raise ValueError(
            f"source: {options.data} has one class, {', '.join(map(repr, source.classes))}: there would be nothing to "
            f"tell apart. Expected images of two classes or more; in folders, {LAYOUT}"
        )
    cleaning = CleaningOptions.of(options)
    plan = plan_shards(source, options)
    space = check_disk(plan, options)
    counts = "  ".join(
        f"{extent.num_samples:,} {split}" if extent.num_samples is not None else split
        for split, extent in source.splits.items()
    )
    shards = ", ".join(f"{number:,} {split}" for split, number in plan.num_shards.items())
    if plan.val_share:
        counts += f"  of which about {100 * plan.val_share:.3g} % become val"
    num_classes = len(source.classes)
    screen.say(f"{source.name}  {counts}  {num_classes:,} classes     shards: up to {shards}, {space}")
    if source.unknown_classes:
        screen.say(
            f"{len(source.unknown_classes):,} classes of the source are not in the list and are left out: "
            f"{', '.join(sorted(source.unknown_classes)[:5])} ..."
        )
    if not {"val", "test"} & plan.num_shards.keys() and options.splits is None:
        screen.say(
            "There is no val and no test split, and training needs one: val_share=0.01 holds images out."
        )
    return source, cleaning, plan


def _lock(stack: contextlib.ExitStack, options: Options) -> None:
    try:
        stack.enter_context(lock_run_dir(options.output))
    except ValueError:
        raise ValueError(
            f"output: another process is writing into {options.output}: wait for it, or choose another output"
        ) from None


def _finished_report(options: Options) -> dict[str, Any] | None:
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
    with contextlib.suppress(ValueError), lock_run_dir(options.output):
        shutil.rmtree(options.output / PARTIAL, ignore_errors=True)  # of a process killed at the very end
    return report


def _finish(state: State, pool: ThreadPoolExecutor, screen: Screen) -> dict[str, Any]:
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
    shutil.rmtree(state.folder, ignore_errors=True)
    return report


def _dataset(state: State, finished: dict[str, list[Written]]) -> dict[str, Any]:
    """The content of dataset.json; nothing in it depends on when or how often the program ran."""
    source = state.source
    return {
        "name": source.name,
        "classes": source.classes,
        **({"wnids": source.wnids} if source.wnids is not None else {}),
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
        "versions": {name: metadata.version(name) for name in ("mixer-lightning", "pillow")},
    }
