"""What a run says: on the terminal, and the same lines in log.txt."""

from __future__ import annotations

import contextlib
import difflib
import logging
import sys
import traceback
import warnings
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from mixer_lightning import launcher, results


class Screen:
    """Prints on the terminal and into log.txt; silent on all processes but the first."""

    def __init__(self, *, silent: bool = False) -> None:
        self.silent = silent
        width = None if sys.stdout.isatty() else 120
        self.console = Console(quiet=silent, highlight=False, markup=False, width=width)
        self.log: Console | None = None
        self.silent_log = False  # the log broke off
        self._said: list[Text | Table] = []  # before there was a log
        self._progress: Progress | None = None
        self._task = TaskID(0)
        self._total_steps, self._steps_per_epoch = 1, 1.0

    def open_log(self, path: Path) -> None:
        """From here on everything is also appended to a file."""
        if not self.silent:
            self.log = Console(file=path.open("a"), width=120, highlight=False, markup=False, no_color=True)
            for what in self._said:
                self._write(what)
            self._said.clear()

    def close(self) -> None:
        """Take the bar away and close the log."""
        self.stop_bar()
        log, self.log = self.log, None
        if log is not None:
            with contextlib.suppress(OSError):  # a full disk
                log.file.close()

    def say(self, text: str) -> None:
        """One line."""
        self._print(Text(text))

    def alarm(self, text: str) -> None:
        """One line, from whatever process: those that are silent otherwise say it on stderr, with their number."""
        if self.silent:
            print(f"process {launcher.rank()}: {text}", file=sys.stderr, flush=True)
        else:
            self.say(text)

    def table(self, title: str, columns: Iterable[str], rows: Iterable[Iterable[str]]) -> None:
        """A table; the first column is left-aligned, numbers speak for themselves."""
        table = Table(
            title=title or None, title_justify="left", box=None, pad_edge=False, padding=(0, 3, 0, 0)
        )
        for column in columns:
            table.add_column(column, header_style="bold", overflow="fold")
        for row in rows:
            table.add_row(*row)
        self._print(table)

    def _print(self, what: Text | Table) -> None:
        self.console.print(what, soft_wrap=isinstance(what, Text))
        self._write(what)

    def _write(self, what: Text | Table) -> None:
        if self.log is None:
            if not (self.silent or self.silent_log):  # a silent process never opens a log
                self._said.append(what)
        else:
            try:
                self.log.print(what, soft_wrap=isinstance(what, Text))
                self.log.file.flush()
            except OSError as error:  # training goes on without
                log, self.log = self.log, None
                self.silent_log = True
                with contextlib.suppress(OSError):
                    log.file.close()
                self.console.print(Text(f"cannot write the log: {error}; it ends here"), soft_wrap=True)

    # ---------------------------------------------------------------------------------------------- bar

    def start_bar(self, total_steps: int, steps_per_epoch: float, step: int) -> None:
        """Show the progress bar, if this is a terminal."""
        self._total_steps, self._steps_per_epoch = total_steps, steps_per_epoch
        if self.console.is_terminal and not self.silent:
            self._progress = Progress(
                TextColumn("{task.fields[epoch]}"),
                BarColumn(bar_width=None),
                TextColumn("{task.fields[numbers]}"),
                TimeRemainingColumn(),
                console=self.console,
                transient=True,
                refresh_per_second=4,
            )
            self._task = self._progress.add_task(
                "", total=total_steps, completed=step, epoch=self._position(step), numbers=""
            )
            self._progress.start()

    def move_bar(self, step: int, metrics: Mapping[str, float]) -> None:
        """`step` steps are done."""
        if self._progress is not None:
            self._progress.update(
                self._task, completed=step, epoch=self._position(step), numbers=_numbers(metrics)
            )

    def report(self, step: int, metrics: Mapping[str, float]) -> None:
        """A line with an evaluation: on a terminal it goes to the log only, the bar shows the rest."""
        line = Text(f"{self._position(step)}  {_numbers(metrics)}")
        if self._progress is None:
            self._print(line)
        else:
            self._write(line)

    def stop_bar(self) -> None:
        """Take the bar away."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _position(self, step: int) -> str:
        epochs = self._total_steps / self._steps_per_epoch
        if epochs >= 2:
            return f"epoch {step / self._steps_per_epoch:.1f}/{epochs:.3g}"
        return f"step {step:,}/{self._total_steps:,}"


def _numbers(metrics: Mapping[str, float]) -> str:
    """'loss 0.61  train/top1 97.1  test/top1 98.3  3,100 images/s'."""
    parts = []
    for name, value in metrics.items():
        if name == "train/loss":
            parts.append(f"loss {value:.4g}")
        elif name.endswith("/top1"):
            parts.append(f"{name} {100 * value:.1f} %")
    if "train/images_per_second" in metrics:
        parts.append(f"{metrics['train/images_per_second']:,.0f} images/s")
    return "  ".join(parts)


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
        ("checkpoint", str(run_dir / results.LAST)),
        ("curves", str(run_dir / results.CURVES)),
        ("result", str(run_dir / results.RESULT)),
    ]
    screen.table("", ("metric", "value"), rows)


def did_you_mean(word: str, choices: Mapping[str, Any] | Sequence[str], prefix: str = "") -> str:
    """': did you mean ...?', to be put behind a message; empty where nothing is near."""
    close = difflib.get_close_matches(word, list(choices), n=1, cutoff=0.55)
    return f": did you mean '{prefix}{close[0]}'?" if close else ""


def refuse(messages: Sequence[str]) -> NoReturn:
    """Say what is wrong, once however many processes there are, and exit 2."""
    if launcher.is_first():
        for message in messages:
            print(message, file=sys.stderr)
    raise SystemExit(2)


# ------------------------------------------------------------------------------------------- errors and logging


def last_line(error: BaseException) -> str:
    """The message of an error without the traceback that some libraries put before it."""
    lines = [line for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    line = lines[-1].strip() if "Traceback" in str(error) else lines[0].strip()
    name = f"{type(error).__module__}.{type(error).__qualname__}: "
    return line.removeprefix(name).rstrip(".")


def say_what_broke(screen: Screen, error: Exception, log: Path) -> None:
    """One line on the screen, the traceback of the error being handled in the log."""
    if screen.log is not None:
        screen.log.print(traceback.format_exc(), soft_wrap=True)
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
