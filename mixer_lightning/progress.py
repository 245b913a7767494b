"""How far a piece of work is: a bar in the last line of a terminal, elsewhere a line every minute."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from types import TracebackType

from rich.console import Console, ConsoleOptions, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from mixer_lightning.screen import Screen

SECONDS_PER_LINE = 60.0  # where there is no terminal
MIN_BAR_WIDTH = 8
#: Columns that stay free at the end of the line: a terminal writes ^C there at each press, and must not break the line.
MARGIN = 6


class Bar:
    """Shows `label`, a bar, what else is worth knowing, and the time left, in one line of whatever width.

    The time left is that of the rest at the mean speed so far; the first unit of work, in which things are compiled
    and caches filled, counts only until there is a second.

    Args:
        total: units of work; `done` of them were done before.
    """

    def __init__(self, screen: Screen, *, total: float, done: float = 0.0, label: str = "") -> None:
        self.screen, self.total, self.done, self.label = screen, total, done, label
        self.parts: Sequence[str] = ()
        self._first, self._since = done, time.perf_counter()
        self._moved = self._since
        self._is_warm = False
        self._said = self._since
        self._live: Live | None = None
        if screen.console.is_terminal and not screen.silent:
            self._live = Live(
                get_renderable=lambda: self, console=screen.console, transient=True, refresh_per_second=4
            )
            self._live.start()
            screen.on_close.append(self.stop)

    def __enter__(self) -> Bar:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def move(self, done: float, *, label: str | None = None, parts: Iterable[str] | None = None) -> None:
        """`done` units are done. Of `parts`, the most important first, those are shown for which there is room."""
        now = time.perf_counter()
        if not self._is_warm and self._first + 1 <= self.done and done > self.done:
            self._is_warm, self._first, self._since = True, self.done, self._moved
        self.done, self._moved = done, now
        self.label = self.label if label is None else label
        self.parts = self.parts if parts is None else [part for part in parts if part]
        if self._live is None and now - self._said >= SECONDS_PER_LINE:
            self._said = now
            left = self.time_left()
            self.screen.say("  ".join([self.label, *self.parts, *([f"{left} left"] if left else [])]))

    def said(self) -> None:
        """Something else has told how far it is: the next line is due a minute later."""
        self._said = time.perf_counter()

    def stop(self) -> None:
        """Take the bar away."""
        live, self._live = self._live, None
        if live is not None:
            live.stop()
            self.screen.on_close.remove(self.stop)

    def time_left(self) -> str:
        """0:03:20, or nothing while that is not known."""
        if self.done <= self._first:
            return ""
        rate = (self.done - self._first) / max(self._moved - self._since, 1e-9)
        return hours(max(0.0, (self.total - self.done) / rate - (time.perf_counter() - self._moved)))

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        left = self.time_left() or "-:--:--"
        room = options.max_width - MARGIN - len(self.label) - len(left) - MIN_BAR_WIDTH - 4
        shown = []
        for part in self.parts:
            room -= len(part) + 2
            if room < 0:
                break
            shown.append(part)
        numbers = "  ".join(shown)
        width = MIN_BAR_WIDTH + max(0, min(room, 32))
        line = Table.grid(padding=(0, 2, 0, 0))
        line.add_row(
            Text(self.label, no_wrap=True, overflow="crop"),
            ProgressBar(total=max(self.total, 1e-9), completed=self.done, width=width),
            *([Text(numbers, no_wrap=True, overflow="crop")] if numbers else []),
            Text(left, no_wrap=True, overflow="crop"),
        )
        yield from console.render(line, options.update(width=options.max_width - MARGIN, no_wrap=True))


class PassBars:
    """One bar after the other, each for a pass over images: call it with what is done of how much of what."""

    def __init__(self, screen: Screen) -> None:
        self.screen = screen
        self._bar: Bar | None = None

    def __call__(self, what: str, done: int, total: int) -> None:
        """`done` batches of `total` are done; 0 begins a pass."""
        label = f"{what} {done:,}/{total:,}"
        if self._bar is None or done == 0:
            self.stop()
            self._bar = Bar(self.screen, total=total, label=label)
        self._bar.move(done, label=label)
        if done >= total:
            self.stop()

    def stop(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def hours(seconds: float) -> str:
    """0:03:20."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes // 60:,}:{minutes % 60:02d}:{rest:02d}"
