"""The one pass over a source: images are cleaned by threads, taken in the order of the source, and committed."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait

from mixer_lightning.prepare.cleaning import CleaningOptions, Outcome, clean_image
from mixer_lightning.prepare.readers import Sample
from mixer_lightning.prepare.state import State
from mixer_lightning.stopping import Stopped, StopRequests

SAMPLES_PER_THREAD = 4  # submitted and not yet taken
SECONDS_PER_LOOK = 0.2  # at whether the program is asked to stop, while an image is waited for


class Waiting:
    """For how long the source has been waited for."""

    def __init__(self) -> None:
        self._since: float | None = None

    def timed(self, samples: Iterator[Sample]) -> Iterator[Sample]:
        """The samples; until each has come, the time counts."""
        while True:
            self._since = time.monotonic()
            sample = next(samples, None)
            self._since = None
            if sample is None:
                return
            yield sample

    def seconds(self) -> float:
        """0 where it is not waited for."""
        since = self._since
        return 0.0 if since is None else time.monotonic() - since


def read_source(
    state: State,
    cleaning: CleaningOptions,
    pool: ThreadPoolExecutor,
    requests: StopRequests,
    waiting: Waiting,
    on_sample: Callable[[State], None],
    *,
    buffer_bytes: int,
    commit_seconds: float,
) -> None:
    """Read the source from where the journal stands to its end; results are taken in the order of the source.

    Up to `buffer_bytes` of samples wait for their shards; at most `commit_seconds` of work are done again.

    Raises:
        Stopped: a signal came; everything taken is committed, what the threads still work on is not waited for.
        ValueError, OSError: the source is damaged or unreachable, or a disk is full; the last commit stands.
    """
    submitted: deque[tuple[Sample, Future[Outcome]]] = deque()
    state.commit(pool)
    committed = time.perf_counter()

    def stop_if_asked() -> None:
        if number := requests.received:
            with ThreadPoolExecutor(1) as fresh:  # all of the pool's may wait for reads that do not come back
                state.commit(fresh)
            raise Stopped(number, where=f" after {state.consumed:,} images", saved=True)

    def take() -> None:
        nonlocal committed
        sample, future = submitted[0]
        while wait([future], timeout=SECONDS_PER_LOOK).not_done:
            stop_if_asked()
        state.take(sample, future.result())
        submitted.popleft()
        stop_if_asked()
        if time.perf_counter() - committed >= commit_seconds:
            state.commit(pool)
            committed = time.perf_counter()
        elif state.waiting_bytes >= buffer_bytes:
            state.write(pool)
        on_sample(state)

    try:
        for sample in waiting.timed(state.source.samples(state.cursor)):
            submitted.append((sample, pool.submit(clean_image, sample.read, sample.suffix, cleaning)))
            if len(submitted) >= SAMPLES_PER_THREAD * state.options.threads:
                take()
        while submitted:
            take()
    finally:
        for _, future in submitted:
            future.cancel()
    state.note_left_out()
    state.read_all = True
    state.commit(pool)
