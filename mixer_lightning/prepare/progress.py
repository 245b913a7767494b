"""How far the pass over a source is: a bar on a terminal, else a line every half minute."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator

from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from mixer_lightning.prepare.state import State
from mixer_lightning.screen import Screen

SECONDS_PER_LINE = 30.0  # where there is no terminal for a bar
SECONDS_PER_BAR_UPDATE = 0.2


@contextlib.contextmanager
def progress(screen: Screen, state: State) -> Iterator[Callable[[State], None]]:
    """Show progress while inside; yields the function to call after each sample."""
    rate = Rate(state)
    if not screen.console.is_terminal:
        yield _lines(screen, rate)
        return
    columns = (BarColumn(bar_width=None), TextColumn("{task.description}"), TimeRemainingColumn())
    with Progress(*columns, console=screen.console, transient=True, refresh_per_second=4) as bar:
        task = bar.add_task("", total=state.source.total, completed=state.done)

        def update(state: State) -> None:
            if rate.is_due(SECONDS_PER_BAR_UPDATE):
                bar.update(task, completed=state.done, description=rate.text(state))

        yield update


def _lines(screen: Screen, rate: Rate) -> Callable[[State], None]:
    def say(state: State) -> None:
        if rate.is_due(SECONDS_PER_LINE):
            hours, minutes = divmod(round(rate.seconds_left(state) / 60), 60)
            percent = 100 * state.done / max(state.source.total, 1)
            screen.say(f"{percent:.1f} %  {rate.text(state)}  {hours}:{minutes:02d} h left")

    return say


class Rate:
    """How fast this session reads, from what was done when it began."""

    def __init__(self, state: State) -> None:
        self._images, self._bytes, self._done = state.consumed, state.bytes_read, state.done
        self._begin = self._shown = time.perf_counter()

    def is_due(self, seconds: float) -> bool:
        """Whether so many seconds have passed since this last said yes."""
        now = time.perf_counter()
        if now - self._shown <= seconds:
            return False
        self._shown = now
        return True

    def text(self, state: State) -> str:
        """Images so far, and speed."""
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        return (
            f"{state.consumed:,} images  {(state.consumed - self._images) / seconds:,.0f} images/s  "
            f"{(state.bytes_read - self._bytes) / 1e6 / seconds:,.0f} MB/s"
        )

    def seconds_left(self, state: State) -> float:
        """Time for the rest of the source at this speed."""
        seconds = time.perf_counter() - self._begin
        return seconds * (state.source.total - state.done) / max(state.done - self._done, 1)
