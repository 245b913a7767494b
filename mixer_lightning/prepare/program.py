"""The program, top to bottom: check, open the source, one pass, finish, report."""

from __future__ import annotations

import contextlib
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from importlib import metadata
from typing import TYPE_CHECKING, Any

from mixer_lightning.files import lock_run_dir, write_text
from mixer_lightning.prepare.options import Options, parse
from mixer_lightning.screen import Screen

if TYPE_CHECKING:
    from mixer_lightning.prepare.feeds import Feed
    from mixer_lightning.prepare.mending import Rules
    from mixer_lightning.prepare.work import Plan, Preparation
    from mixer_lightning.prepare.writing import Written

LINE_SECONDS = 30.0  # between two lines, where there is no terminal for a bar


def main(argv: Sequence[str]) -> int:
    """Run a command line; the exit code: 0 done, 1 failed on the way, 2 nothing was started, 130 or 143 stopped."""
    options = parse(argv)
    try:
        return prepare(options, Screen())
    except KeyboardInterrupt:  # before there was anything to save
        return 130


def prepare(
    options: Options, screen: Screen, *, buffer_bytes: int = 2**28, commit_seconds: float = 30.0
) -> int:
    """Write the shards of a source, or go on with them; the exit code.

    Up to `buffer_bytes` of samples wait in memory; after a kill at most `commit_seconds` of work are done again.
    """
    from mixer_lightning.prepare import work
    from mixer_lightning.prepare.report import show

    warnings.filterwarnings("ignore", module="PIL")  # about odd metadata of single images
    with contextlib.ExitStack() as stack:
        try:
            if (finished := _finished(options)) is not None:
                screen.say(
                    f"{options.output} is finished; to make it anew, choose another output or delete it"
                )
                show(screen, finished, options.output)
                return 0
            feed, rules, chosen = _check(options, screen)
            options.output.mkdir(parents=True, exist_ok=True)
            _lock(stack, options)
            state = work.Preparation(feed, options, chosen)
            pool = stack.enter_context(ThreadPoolExecutor(options.threads))
            if state.resumed:
                screen.say(f"going on after {state.consumed:,} images")
                state.restore(pool)
        except (ValueError, OSError) as error:
            screen.say(str(error))
            return 2
        flag = stack.enter_context(work.stop_flag())
        try:
            with _progress(screen, state) as tick:
                if not state.read_all:
                    work.read_all(
                        state,
                        rules,
                        pool,
                        flag,
                        tick,
                        buffer_bytes=buffer_bytes,
                        commit_seconds=commit_seconds,
                    )
            what = _finish(state, pool, screen)
        except work.Stopped as stop:
            screen.say(
                f"stopped by {stop} after {state.consumed:,} images; the same command goes on from there"
            )
            return stop.exit_code
        except (ValueError, OSError) as error:
            screen.say(f"{error}")
            screen.say(f"What was committed stands in {state.folder}; the same command goes on from there.")
            return 1
        show(screen, what, options.output)
    return 0


def _check(options: Options, screen: Screen) -> tuple[Feed, Rules, Plan]:
    """The opened source, what to do with its images, and into which shards; all checked before anything is written."""
    from mixer_lightning.prepare import work
    from mixer_lightning.prepare.feeds import open_feed
    from mixer_lightning.prepare.mending import Rules, read_hashes

    feed = open_feed(options)
    rules = Rules(
        verify=options.verify,
        short_side=options.short_side,
        quality=options.quality or 90,
        near=None if options.hashes is None else read_hashes(options.hashes),
        max_distance=options.max_distance,
        write_hashes=options.write_hashes is not None,
    )
    chosen = work.plan(feed, options)
    room = work.check_disk(chosen, options)
    counts = "  ".join(
        f"{extent.num_samples:,} {split}" if extent.num_samples is not None else split
        for split, extent in feed.splits.items()
    )
    shards = ", ".join(f"{number:,} {split}" for split, number in chosen.num_shards.items())
    if chosen.val_share:
        counts += f"  of which about {100 * chosen.val_share:.3g} % become val"
    screen.say(f"{feed.name}  {counts}  {len(feed.classes):,} classes     shards: up to {shards}, {room}")
    if feed.left_out:
        screen.say(
            f"{len(feed.left_out):,} classes of the source are not in the list and are left out: "
            f"{', '.join(sorted(feed.left_out)[:5])} ..."
        )
    if not {"val", "test"} & chosen.num_shards.keys() and options.splits is None:
        screen.say(
            "There is no val and no test split, and training needs one: val_share=0.01 holds images out."
        )
    return feed, rules, chosen


def _lock(stack: contextlib.ExitStack, options: Options) -> None:
    try:
        stack.enter_context(lock_run_dir(options.output))
    except ValueError:
        raise ValueError(
            f"output: another process is writing into {options.output}: wait for it, or choose another output"
        ) from None


def _finished(options: Options) -> dict[str, Any] | None:
    """The report of a finished set of the same options, None if there is work to do.

    Raises:
        ValueError: the output holds another set, or one that was not written here.
    """
    from mixer_lightning.prepare import work
    from mixer_lightning.prepare.feeds import open_feed
    from mixer_lightning.prepare.report import REPORT

    path = options.output / work.DATASET
    if not path.exists():
        return None
    try:
        before = json.loads(path.read_text(encoding="utf-8"))
        found = dict(json.loads((options.output / REPORT).read_text(encoding="utf-8")))
        before = {"options": dict(before["options"]), "source": list(before["source"])}
    except (OSError, ValueError, KeyError, TypeError):
        raise ValueError(
            f"output: {options.output} holds a data set that was not written here. Choose another output."
        ) from None
    is_there = options.source is not None and options.source.exists()
    work.refuse_differences(
        before,
        options,
        open_feed(options) if is_there else None,
        f"{options.output} holds another finished set",
    )
    shutil.rmtree(options.output / work.PARTIAL, ignore_errors=True)  # of a process killed at the very end
    (options.output / ".lock").unlink(missing_ok=True)
    return found


def _finish(state: Preparation, pool: ThreadPoolExecutor, screen: Screen) -> dict[str, Any]:
    """Name the shards, write index, report and, as the mark that all is there, dataset.json."""
    from mixer_lightning.prepare import work
    from mixer_lightning.prepare.report import HISTOGRAM, REPORT, report

    finished = state.finish(pool)
    if not finished:
        raise ValueError("no image was fit to be kept")
    output = state.options.output
    what = report(state, finished)
    write_text(output / REPORT, json.dumps(what) + "\n")
    try:
        from mixer_lightning.reports import prepare as picture

        picture.draw(output / REPORT, output / HISTOGRAM)
    except Exception as error:  # days of work must not hang on a picture
        screen.say(f"no {HISTOGRAM}: {error}")
    write_text(output / work.DATASET, json.dumps(_dataset(state, finished), indent=1) + "\n")
    shutil.rmtree(state.folder, ignore_errors=True)
    return what


def _dataset(state: Preparation, finished: dict[str, list[Written]]) -> dict[str, Any]:
    """The content of dataset.json; nothing in it depends on when or how often the program ran."""
    feed = state.feed
    return {
        "name": feed.name,
        "classes": feed.classes,
        **({"wnids": feed.wnids} if feed.wnids is not None else {}),
        "splits": {
            split: {
                "samples": sum(shard.samples for shard in shards),
                "labels_per_image": feed.labels_per_image,
                "shards": [shard._asdict() for shard in shards],
            }
            for split, shards in finished.items()
        },
        "options": state.options.record(),
        "val_share": state.plan.val_share,
        "source": feed.fingerprint,
        "versions": {name: metadata.version(name) for name in ("mixer-lightning", "pillow")},
    }


@contextlib.contextmanager
def _progress(screen: Screen, state: Preparation) -> Iterator[Callable[[Preparation], None]]:
    """A bar on a terminal, else a line every half minute; the function that moves it."""
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    begin, images_before, bytes_before, done_before = (
        time.perf_counter(),
        state.consumed,
        state.bytes_read,
        state.done,
    )
    total = state.feed.total

    def numbers() -> str:
        seconds = max(time.perf_counter() - begin, 1e-9)
        return (
            f"{state.consumed:,} images  {(state.consumed - images_before) / seconds:,.0f} images/s  "
            f"{(state.bytes_read - bytes_before) / 1e6 / seconds:,.0f} MB/s"
        )

    if screen.console.is_terminal:
        columns = (BarColumn(bar_width=None), TextColumn("{task.description}"), TimeRemainingColumn())
        with Progress(*columns, console=screen.console, transient=True, refresh_per_second=4) as bar:
            task = bar.add_task("", total=total, completed=state.done)
            last = 0.0

            def move(state: Preparation) -> None:
                nonlocal last
                if time.perf_counter() - last > 0.2:
                    last = time.perf_counter()
                    bar.update(task, completed=state.done, description=numbers())

            yield move
        return
    last = begin

    def say(state: Preparation) -> None:
        nonlocal last
        now = time.perf_counter()
        if now - last > LINE_SECONDS:
            last = now
            left = (now - begin) * (total - state.done) / max(state.done - done_before, 1)
            hours, minutes = divmod(round(left / 60), 60)
            screen.say(f"{100 * state.done / max(total, 1):.1f} %  {numbers()}  {hours}:{minutes:02d} h left")

    yield say
