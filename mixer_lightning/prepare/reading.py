"""The one pass over a source: images are cleaned by threads, taken in the order of the source, and committed."""

from __future__ import annotations

import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from types import FrameType

from mixer_lightning import stopping
from mixer_lightning.prepare.cleaning import CleaningOptions, Outcome, clean_image
from mixer_lightning.prepare.readers import Sample
from mixer_lightning.prepare.state import State
from mixer_lightning.stopping import Stopped

SAMPLES_PER_THREAD = 4  # submitted and not yet taken


class Hanging(Stopped):
    """A signal asked to stop while a read does not come back; what was taken is committed, a thread is stuck."""


class StopFlag:
    """Set by a signal handler, read between two images."""

    number: int | None = None

    def set(self, number: int, frame: FrameType | None) -> None:
        """A signal handler."""
        self.number = number


@contextmanager
def stop_flag() -> Iterator[StopFlag]:
    """SIGTERM, SIGUSR1 and Ctrl-C set a flag instead of ending the process."""
    flag = StopFlag()
    before = {number: signal.signal(number, flag.set) for number in stopping.SIGNALS}
    try:
        yield flag
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def read_source(
    state: State,
    cleaning: CleaningOptions,
    pool: ThreadPoolExecutor,
    flag: StopFlag,
    on_sample: Callable[[State], None],
    *,
    buffer_bytes: int,
    commit_seconds: float,
) -> None:
    """Read the source from where the journal stands to its end; results are taken in the order of the source.

    Up to `buffer_bytes` of samples wait for their shards; at most `commit_seconds` of work are done again.

    Raises:
        Stopped: a signal came; everything taken is committed. Hanging: and an image does not come.
        ValueError, OSError: the source is damaged or unreachable, or a disk is full; the last commit stands.
    """
    submitted: deque[tuple[Sample, Future[Outcome]]] = deque()
    state.commit(pool)
    committed = time.perf_counter()

    def take() -> None:
        nonlocal committed
        sample, future = submitted.popleft()
        try:
            outcome = _outcome(future, flag)
        except Hanging:
            submitted.appendleft((sample, future))
            with ThreadPoolExecutor(1) as fresh:
                state.commit(fresh)
            raise
        state.take(sample, outcome)
        if flag.number is not None:
            state.commit(pool)
            raise Stopped(flag.number, saved=True)
        if time.perf_counter() - committed >= commit_seconds:
            state.commit(pool)
            committed = time.perf_counter()
        elif state.waiting_bytes >= buffer_bytes:
            state.write(pool)
        on_sample(state)

    try:
        for sample in state.source.samples(state.cursor):
            submitted.append((sample, pool.submit(clean_image, sample.read, sample.suffix, cleaning)))
            if len(submitted) >= SAMPLES_PER_THREAD * state.options.threads:
                take()
        while submitted:
            take()
    except Stopped as stop:
        begun = [future for _, future in submitted if not future.cancel()]
        if wait(begun, timeout=stopping.HANGING_SECONDS).not_done:
            raise Hanging(stop.number) from stop
        raise
    finally:
        for _, future in submitted:
            future.cancel()
    state.note_left_out()
    state.read_all = True
    state.commit(pool)


def _outcome(future: Future[Outcome], flag: StopFlag) -> Outcome:
    """What became of an image; Hanging where it does not come while the program is asked to stop."""
    asked: float | None = None
    while True:
        wait([future], timeout=1)
        if future.done():
            return future.result()
        if flag.number is not None:
            asked = asked or time.monotonic()
            if time.monotonic() - asked > stopping.HANGING_SECONDS:
                raise Hanging(flag.number)
