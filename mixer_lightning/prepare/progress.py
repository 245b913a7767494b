"""How far the pass over a source is, and how fast this session reads."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from mixer_lightning.prepare.state import State
from mixer_lightning.progress import Bar
from mixer_lightning.screen import Screen


@contextlib.contextmanager
def progress(screen: Screen, state: State) -> Iterator[Callable[[State], None]]:
    """Show progress while inside; yields the function to call after each sample."""
    images, num_bytes, began = state.consumed, state.bytes_read, time.perf_counter()
    first, total = state.places.start, max(len(state.places), 1)
    with Bar(screen, total=total, done=state.done - first) as bar:

        def update(state: State) -> None:
            seconds = max(time.perf_counter() - began, 1e-9)
            done = min(state.done - first, total)
            percent = 100 * done / total
            bar.move(
                done,
                label=f"{percent:.1f} %  {state.consumed:,} images",
                parts=[
                    f"{(state.consumed - images) / seconds:,.0f} images/s",
                    f"{(state.bytes_read - num_bytes) / 1e6 / seconds:,.0f} MB/s",
                ],
            )

        yield update
