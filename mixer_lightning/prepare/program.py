"""A source to shards, from top to bottom: check, open the source, one pass, finish, report."""

from __future__ import annotations

import contextlib
from concurrent.futures import ThreadPoolExecutor

from mixer_lightning.data.sources.folder import LAYOUT
from mixer_lightning.files import lock_run_dir
from mixer_lightning.prepare.cleaning import CleaningOptions
from mixer_lightning.prepare.finish import finish, finished_report
from mixer_lightning.prepare.merging import merge_parts, refuse_cut
from mixer_lightning.prepare.open import open_source
from mixer_lightning.prepare.options import Options, Part
from mixer_lightning.prepare.parts import (
    finished_parts,
    is_being_merged,
    progress_of_parts,
    refuse_other_work,
)
from mixer_lightning.prepare.plan import Plan, check_disk, plan_shards
from mixer_lightning.prepare.progress import progress
from mixer_lightning.prepare.readers import Source, only
from mixer_lightning.prepare.reading import Waiting, read_source
from mixer_lightning.prepare.report import show_report
from mixer_lightning.prepare.state import State, working_folder
from mixer_lightning.screen import Screen
from mixer_lightning.stopping import Stopped, StopRequests, exit_code

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

    Of several jobs each writes its part, and a last one merges them: see `parts`. Up to `buffer_bytes` of samples
    wait in memory; after a kill at most `commit_seconds` of work are done again.
    """
    with contextlib.ExitStack() as stack:
        try:
            if (finished := finished_report(options)) is not None:
                screen.say(
                    f"{options.output} is finished; to make it anew, choose another output or delete it"
                )
                show_report(screen, finished, options.output)
                return 0
            source, cleaning, plan = _check(options, screen)
            _lock(stack, options)
            refuse_other_work(options, source, plan.num_shards)
            parts = finished_parts(options, source, plan.num_shards) if options.merge else []
            if options.part is not None:
                source = only(source, *options.part)
            state = State(source, options, plan.num_shards, plan.val_share)
            refuse_cut(state, parts)
            pool = ThreadPoolExecutor(options.threads)
            stack.callback(pool.shutdown, wait=False, cancel_futures=True)  # a read may never come back
            if state.resumed and not options.merge and not is_being_merged(options.output):
                screen.say(f"going on after {state.consumed:,} images")
                state.restore(pool)
        except (ValueError, OSError) as error:
            screen.say(str(error))
            return 2
        try:
            if options.merge:
                merge_parts(state, parts, pool, screen)
            elif not state.read_all:
                _read(state, cleaning, pool, screen, buffer_bytes=buffer_bytes, commit_seconds=commit_seconds)
            if options.part is not None:
                _say_part(state, options.part, screen)
                return 0
            report = finish(state, pool, screen)
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


def _say_part(state: State, part: Part, screen: Screen) -> None:
    screen.say(f"{part} is finished: {state.consumed:,} images read, {state.num_bad:,} of them bad")
    screen.say(progress_of_parts(state.options, part))


def _where_to_go_on(state: State) -> str:
    if state.options.merge:
        return "The shards that are finished stay, and the parts of all others; the same command goes on from there"
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
    """Hold the output for this process alone or, for a part, beside those that write other parts."""
    options.output.mkdir(parents=True, exist_ok=True)
    try:
        stack.enter_context(lock_run_dir(options.output, shared=options.part is not None))
    except ValueError:
        raise ValueError(
            f"output: another process is writing into {options.output}: wait for it, or choose another output"
        ) from None
    if options.part is not None:
        folder = working_folder(options)
        folder.mkdir(parents=True, exist_ok=True)
        try:
            stack.enter_context(lock_run_dir(folder))
        except ValueError:
            raise ValueError(
                f"part: another process is writing {options.part} into {options.output}: wait for it, "
                "or take another part"
            ) from None
