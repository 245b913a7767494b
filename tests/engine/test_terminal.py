"""A training on a real terminal: what its user sees, presses, and loses."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT, TINY

COLUMNS = 80


class Terminal:
    """A terminal of 80 columns in which a training runs."""

    def __init__(self, folder: Path, *words: str) -> None:
        self.master, slave = pty.openpty()
        fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, COLUMNS, 0, 0))
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-c", TAKE_TERMINAL, str(ROOT / "train.py")),
                *(*TINY, "hydra.run.dir=run", *words),
            ],
            cwd=folder,
            env={k: v for k, v in os.environ.items() if k != "COLUMNS"}
            | {"PYTHONIOENCODING": "latin-1", "TERM": "xterm", "PYTHONPATH": str(ROOT)},
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
        )
        os.close(slave)
        self.said = ""

    def read_until(self, is_there: Callable[[str], bool]) -> None:
        """Read what appears until something has."""
        deadline = time.monotonic() + 300
        while not is_there(self.said):
            assert time.monotonic() < deadline, self.said
            if select.select([self.master], [], [], 1)[0]:
                try:
                    self.said += os.read(self.master, 65536).decode("latin-1")
                except OSError:  # nobody has it open any more
                    assert is_there(self.said), self.said
                    return

    def rows(self) -> list[str]:
        """What was written into one row after the other, without colours."""
        return re.split(r"[\r\n]+", re.sub(r"\x1b\[[?0-9;]*[a-zA-Z]", "", self.said))


#: The terminal becomes the one of the new session, so that Ctrl-C and its loss reach the training.
# Whoever runs the tests may have been started by nohup, which children inherit.
TAKE_TERMINAL = (
    "import fcntl, os, signal, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
    "signal.signal(signal.SIGHUP, signal.SIG_DFL); "
    "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])"
)


@pytest.fixture
def terminal(tmp_path):
    opened = []

    def start(*words: str) -> Terminal:
        opened.append(Terminal(tmp_path, *words))
        return opened[-1]

    yield start
    for each in opened:
        each.process.kill()
        each.process.wait()


def test_ctrl_c_is_answered_and_evaluations_stay(terminal, tmp_path):
    screen = terminal("duration.steps=40000")
    evaluation = r"epoch [\d.]+/1,670.1  loss \S+  test/top1 \S+ %  train/top1"
    screen.read_until(lambda said: len(re.findall(evaluation, said)) > 1)
    os.write(screen.master, b"\x03")
    screen.read_until(lambda said: "the same command goes on from there" in said)
    assert screen.process.wait(300) == 130
    rows = screen.rows()
    assert any(row.startswith("saving after this step; press again to quit without") for row in rows)
    bars = [row for row in rows if re.search(r"^(epoch|step) .* \d+:\d\d:\d\d *(\^C)*$", row)]
    assert bars
    assert all(len(bar.rstrip()) <= COLUMNS for bar in bars)
    assert "Traceback" not in screen.said
    assert "\\u2026" not in screen.said


def test_a_lost_terminal_ends_nothing(terminal, tmp_path):
    screen = terminal("duration.steps=150", "eval_every.steps=75", "checkpoint_every.steps=75")
    screen.read_until(lambda said: "loss" in said)
    os.close(screen.master)  # the kernel sends SIGHUP
    assert screen.process.wait(300) == 0
    assert (tmp_path / "run" / "result.json").exists()
    assert f"stopped by: kill {screen.process.pid}" in (tmp_path / "run" / "log.txt").read_text()
