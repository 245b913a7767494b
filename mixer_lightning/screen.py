"""What a run says: on the terminal, and the same lines with the time in log.txt."""

from __future__ import annotations

import contextlib
import difflib
import io
import logging
import sys
import time
import traceback
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.table import Table
from rich.text import Text

from mixer_lightning import launcher, results
from mixer_lightning.stdio import printable


class Screen:
    """Prints on the terminal and into log.txt; silent on all processes but the first.

    What is printed is text: brackets, colons and control characters of a name are shown, not obeyed. What cannot be
    written is lost, and ends nothing.
    """

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        self.console = plain_console(quiet=silent)
        self.log: LogFile | None = None
        self.on_close: list[Callable[[], None]] = []  # bars to be taken away
        self._said: list[str] = []  # before there was a log

    def open_log(self, path: Path) -> None:
        """From here on everything is also appended to a file."""
        if not self.silent:
            self.log = LogFile(path, complain=self._complain)
            for text in self._said:
                self.log.write(text)
            self._said.clear()

    def close(self) -> None:
        """Take the bar away and close the log."""
        self.stop_bars()
        log, self.log = self.log, None
        if log is not None:
            log.close()

    def stop_bars(self) -> None:
        """Take away what is shown in the last line."""
        for stop in list(self.on_close):
            stop()

    def say(self, text: str) -> None:
        """One line, or several."""
        LAST_SAID.extend(text.splitlines())
        self._print(Text(printable(text)))

    def alarm(self, text: str) -> None:
        """One line, from whatever process: those that are silent otherwise say it on stderr, with their number."""
        if self.silent:
            print(printable(f"process {launcher.rank()}: {text}"), file=sys.stderr, flush=True)
        else:
            self.say(text)

    def note(self, text: str) -> None:
        """Into the log alone: a traceback."""
        self._write(f"{printable(text)}\n")

    def table(self, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """A table; the first column is left-aligned, numbers speak for themselves."""
        table = Table(
            title=Text(printable(title)) if title else None,
            title_justify="left",
            box=None,
            pad_edge=False,
            padding=(0, 3, 0, 0),
        )
        for column in columns:
            table.add_column(Text(printable(column)), header_style="bold", overflow="fold")
        for row in rows:
            table.add_row(*(Text(printable(cell)) for cell in row))
        self._print(table)

    def _print(self, what: Text | Table) -> None:
        soft_wrap = isinstance(what, Text)
        self.console.print(what, soft_wrap=soft_wrap)
        file = io.StringIO()
        plain_console(file=file).print(what, soft_wrap=soft_wrap)
        self._write(file.getvalue())

    def _write(self, text: str) -> None:
        now = time.strftime("%Y-%m-%d %H:%M:%S")  # before each line, so that tables stay tables
        text = "".join(f"{now}  {line}\n" for line in text.splitlines())
        if self.log is not None:
            self.log.write(text)
        elif not self.silent:  # a silent process never opens a log
            self._said.append(text)

    def _complain(self, error: OSError) -> None:
        self.console.print(Text(f"cannot write the log: {error}; the work goes on without"), soft_wrap=True)


class LogFile:
    """log.txt: lines are appended as they come. What cannot be written is lost, which is said once."""

    def __init__(self, path: Path, *, complain: Callable[[OSError], None]) -> None:
        self.complain = complain
        self._has_complained = False
        self._file: io.FileIO | None = None
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            complain(error)

    def write(self, text: str) -> None:
        """Append lines."""
        if self._file is None:
            return
        left = memoryview(text.encode("utf-8", "backslashreplace"))
        try:
            while left:
                left = left[self._file.write(left) :]
        except OSError as error:  # the next line is tried again: a full disk may have room by then
            if not self._has_complained:
                self._has_complained = True
                self.complain(error)

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()


def plain_console(*, quiet: bool = False, file: io.StringIO | None = None) -> Console:
    """A console that takes text for text, as wide as the terminal; where there is none, 120 columns.

    Args:
        quiet: prints nothing.
        file: instead of standard output.
    """
    width = None if file is None and sys.stdout.isatty() else 120
    is_terminal = False if file is not None else None  # None: as it is
    return Console(
        quiet=quiet,
        file=file,
        highlight=False,
        markup=False,
        emoji=False,
        width=width,
        force_terminal=is_terminal,
    )


def format_metric(metric: str, value: float) -> str:
    """A value as a table shows it: accuracies in percent."""
    is_fraction = "/top" in metric or metric.startswith("fewshot/")
    return f"{100 * value:.2f} %" if is_fraction else f"{value:.4g}"


def closing_table(screen: Screen, result: Mapping[str, Any], run_dir: Path) -> None:
    """The closing table of a run: metric and value, and where everything is."""
    rows = [(name, format_metric(name, value)) for name, value in sorted(result["metrics"].items())]
    if result["best"]:
        best = result["best"]
        metric = best.get("metric", "val/top1")
        rows.append((f"best {metric}", f"{format_metric(metric, best['value'])} at step {best['step']:,}"))
    rows += [
        ("images/s", f"{result['images_per_second']:,.0f}"),
        ("seconds", f"{result['wall_seconds']:,.0f}"),
    ]
    if "device_days" in result:  # results of earlier versions lack it
        rows.append(("device_days", f"{result['device_days']:.3g}"))
    rows += [
        ("checkpoint", str(run_dir / results.BEST)),
        ("curves", str(run_dir / results.CURVES)),
        ("result", str(run_dir / results.RESULT)),
    ]
    screen.table("", ("metric", "value"), rows)


def did_you_mean(word: str, choices: Mapping[str, Any] | Sequence[str], prefix: str = "") -> str:
    """': did you mean ...?', to be put behind a message; empty where nothing is near."""
    names = {choice.casefold(): choice for choice in choices}
    close = difflib.get_close_matches(word.casefold(), names, n=1, cutoff=0.55)
    return f": did you mean '{prefix}{names[close[0]]}'?" if close else ""


def refuse(messages: Sequence[str]) -> NoReturn:
    """Say what is wrong, once however many processes there are, and exit 2."""
    if launcher.is_first():
        for message in messages:
            print(printable(message), file=sys.stderr)
    raise SystemExit(2)


# ------------------------------------------------------------------------------------------- errors and logging


def last_line(error: BaseException) -> str:
    """The message of an error without the traceback that some libraries put before it."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1].strip() if "Traceback" in str(error) else lines[0].strip()
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    return line.removeprefix(name).rstrip(".")


#: What screens of this process have said last: what a job of a sweep ended with.
LAST_SAID: deque[str] = deque(maxlen=50)
_CLOSING = ("Nothing had been saved yet", "The last good checkpoint", "The last checkpoint")


def error_in(lines: Iterable[str]) -> str:
    """The line in which a program that failed says why: its last, but for one that says what is left."""
    said = [line.strip() for line in lines]
    return next((line for line in reversed(said) if line and not line.startswith(_CLOSING)), "")


def say_what_broke(screen: Screen, error: Exception, log: Path) -> None:
    """One line on the screen, the traceback of the error being handled in the log."""
    if screen.log is not None:
        screen.note(traceback.format_exc().rstrip())
    screen.alarm(f"{type(error).__name__}: {last_line(error)}. The traceback is in {log}")


class _OnScreen(logging.Handler):
    """Shows what the data sources log while they work."""

    def __init__(self, screen: Screen) -> None:
        super().__init__()
        self.screen = screen

    def emit(self, record: logging.LogRecord) -> None:
        of_one_process = record.name.endswith(".loader")  # each process meets its own bad images
        (self.screen.alarm if of_one_process else self.screen.say)(record.getMessage())


def show_logging(screen: Screen) -> None:
    """Put what this package logs on the screen, and keep Lightning's tips and notices off it; its errors stay."""
    ours = logging.getLogger("mixer_lightning")
    ours.handlers = [_OnScreen(screen)]
    ours.setLevel(logging.INFO)
    ours.propagate = False
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", module="lightning")
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
