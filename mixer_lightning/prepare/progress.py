"""What the bar says of the pass over a source."""

from __future__ import annotations

import time

from mixer_lightning.prepare.state import State
from mixer_lightning.progress import Bar
from mixer_lightning.screen import Screen


class Progress:
    """A bar of what is done of the source, while entered; call it after each sample."""

    def __init__(self, screen: Screen, state: State) -> None:
        self._images, self._bytes = state.consumed, state.bytes_read  # of earlier sessions
        self._begin = time.perf_counter()
        self._bar = Bar(screen, total=state.source.total, done=state.done, label=_position(state))

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def __call__(self, state: State) -> None:
        """Show where the state is, and how fast this session reads."""
        seconds = max(time.perf_counter() - self._begin, 1e-9)
        images, num_bytes = state.consumed - self._images, state.bytes_read - self._bytes
        self._bar.move(
            state.done,
            label=_position(state),
            parts=(f"{images / seconds:,.0f} images/s", f"{num_bytes / 1e6 / seconds:,.1f} MB/s"),
        )


def _position(state: State) -> str:
    return f"{100 * state.done / max(state.source.total, 1):.1f} %  {state.consumed:,} images"
