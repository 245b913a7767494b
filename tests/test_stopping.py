"""Being asked to stop is answered at once, and asking again does something."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
from PIL import Image

from conftest import ROOT
from mixer_lightning import stopping
from mixer_lightning.stopping import Stopped, StopRequests


@pytest.fixture
def ask(monkeypatch):
    """ask(numbers): what is said to signals, one after the other, with how the process would have ended."""
    monkeypatch.setattr(stopping, "SAME_REQUEST_SECONDS", 0.0)

    def ask(*numbers: int, saving: bool = False) -> list[str]:
        said: list[str] = []
        heard = threading.Semaphore(0)

        def say(text: str) -> None:
            said.append(text)
            heard.release()

        def end(code: int) -> None:
            said.append(f"exit {code}")

        monkeypatch.setattr(stopping.os, "_exit", end)
        with StopRequests(say, first="saving after this step", quitting=lambda: "It is gone") as requests:
            requests.catch()
            if saving:
                requests.keep_on.set()
            for number in numbers:
                signal.raise_signal(number)
                assert requests.received == number
                assert heard.acquire(timeout=120)
        return said

    before = [signal.getsignal(number) for number in stopping.SIGNALS]
    yield ask
    assert [signal.getsignal(number) for number in stopping.SIGNALS] == before


def test_ctrl_c_twice(ask):
    first, *rest = ask(signal.SIGINT, signal.SIGINT)
    assert first == "saving after this step; press again to quit without"
    assert rest == ["quit by SIGINT without saving. It is gone", "exit 130"]


def test_schedulers_may_ask_twice_but_not_for_ever(ask):
    assert ask(signal.SIGTERM, signal.SIGTERM, signal.SIGUSR1) == [
        "SIGTERM: saving after this step",
        "SIGTERM again: still saving after this step; the next one quits without",
        "quit by SIGUSR1 without saving. It is gone",
        "exit 143",
    ]


def test_a_save_that_is_being_written_is_kept(ask):
    said = ask(signal.SIGTERM, signal.SIGINT, signal.SIGTERM, saving=True)
    assert said[1:] == 2 * ["the save is being written; this ends after it"]


def test_what_a_launcher_sends_a_second_time_is_one_request():
    said: list[str] = []
    with StopRequests(said.append, first="saving", quitting=lambda: "") as requests:
        requests.catch()
        for _ in range(3):  # the end of `with` waits until all are heard
            signal.raise_signal(signal.SIGINT)
    assert said == ["saving; press again to quit without"]


def test_it_is_said_while_the_main_thread_is_busy():
    """Python's own handlers wait for the end of what the main thread does in C."""
    events: list[str] = []
    with StopRequests(events.append, first="saving", quitting=lambda: "") as requests:
        requests.catch()
        killer = threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM))
        killer.start()
        hashlib.pbkdf2_hmac("sha256", b"", b"", 2_000_000)  # one call, which signals do not end
        events.append("done")
        killer.join()
    assert events == ["SIGTERM: saving", "done"]


START = """
import signal, sys, time
from mixer_lightning.cli import console, start
def main(argv):
    print("begun", flush=True)
    time.sleep(60)
console.main = main
sys.exit(start.start("train"))
"""


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 143), (signal.SIGHUP, None)],
)
def test_a_signal_while_a_program_starts(number, code):
    """An exit code and a line, no traceback; a lost terminal ends nothing."""
    process = subprocess.Popen(
        [sys.executable, "-c", START], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "begun\n"
    process.send_signal(number)
    if code is None:
        time.sleep(0.2)
        assert process.poll() is None
        process.send_signal(signal.SIGTERM)
        code, number = 143, signal.SIGTERM
    _, errors = process.communicate(timeout=300)
    assert process.returncode == code
    assert errors == f"stopped by {number.name}\n"


STUCK = """
import os, signal, sys, time
from concurrent.futures import ThreadPoolExecutor
from mixer_lightning import stopping
from mixer_lightning.cli import console, start
stopping.ENDING_SECONDS = 0.3
def main(argv):
    if argv[1] == "caught":  # and answered: the program has said all that it has to say
        ThreadPoolExecutor(1).submit(time.sleep, 600)
        return stopping.exit_code(signal.SIGINT)
    with ThreadPoolExecutor(1) as pool:
        pool.submit(time.sleep, 600)  # a read that does not come back
        signal.raise_signal(signal.SIGTERM)
console.main = main
sys.exit(start.start("train"))
"""


@pytest.mark.parametrize(("way", "code"), [("raised", 143), ("caught", 130)])
def test_a_program_that_is_asked_to_stop_waits_for_no_thread(way, code):
    done = subprocess.run(
        [sys.executable, "-c", STUCK, way],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == code
    assert "Traceback" not in done.stderr
    assert "not all had ended after 0.3 s: quit without waiting" in done.stderr


def test_stopped_is_an_exit_with_a_code():
    assert Stopped(signal.SIGUSR1).code == 143
    assert Stopped(signal.SIGINT).code == 130
    assert not isinstance(Stopped(signal.SIGINT), Exception)  # which somebody may catch on the way


HANGING = """
import os, signal, sys, threading, time
from mixer_lightning import stopping
from mixer_lightning.config.compose import compose_one
from mixer_lightning.data.sources.folder import FolderImages
from mixer_lightning.engine import run
from pathlib import Path

read, count = FolderImages.read, 0

def hangs(self, index):
    global count
    count += "train" in self.name(index)
    if count > 20:
        threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGTERM)).start()
        time.sleep(600)
    return read(self, index)

FolderImages.read = hangs
stopping.HANGING_SECONDS = 1.0
sys.exit(run.train(compose_one("train", sys.argv[2:]), Path(sys.argv[1])))
"""


def test_a_read_that_never_comes_back_does_not_keep_a_run_that_is_asked_to_stop(tmp_path):
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cats", "dogs"):
            (tmp_path / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = noise.integers(0, 256, (9, 9 + i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / name / f"{i}.png")
    words = ["model=mixer_digits", "data=folder", f"data.root={tmp_path}", "image_size=8", "batch_size=4"]
    words += ["duration.steps=100", "checkpoint_every.epochs=null", "checkpoint_every.steps=1", "trainer=cpu"]
    done = subprocess.run(
        [sys.executable, "-c", HANGING, str(tmp_path / "run"), *words],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 143, done.stdout + done.stderr
    assert "SIGTERM: saving after this step" in done.stdout
    assert "no image has come for" in done.stdout
    assert "The last good checkpoint, step " in done.stdout
    assert (tmp_path / "run/last.ckpt").exists()


def said_by(program: str) -> tuple[str, int]:
    """What a program of its own says, and its exit code."""
    words = "import os, signal, sys, time\nfrom mixer_lightning import stopping\nstopping.install()\n"
    done = subprocess.run(
        [sys.executable, "-c", words + program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
        timeout=300,
    )
    return done.stdout, done.returncode


def test_two_signals_at_once_are_one_request():
    """As a launcher sends its own besides the terminal's: what ends in order is not broken off."""
    program = """
try:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(30)
finally:
    os.kill(os.getpid(), signal.SIGTERM)
    print("ended in order")
"""
    assert said_by(program) == ("ended in order\n", 143)


def test_a_request_that_was_swallowed_is_heard_by_who_takes_over():
    program = """
class Swallows:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(0.1)
Swallows()
requests = stopping.StopRequests(print, first="", quitting=str)
with requests:
    requests.catch()
    print(requests.received == signal.SIGTERM)
"""
    assert said_by(program) == ("True\n", 0)


def test_closing_after_a_save_is_not_waited_for_for_ever():
    program = """
stopping.CLOSING_SECONDS = 0.3
with stopping.undisturbed(143):
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(50)
"""
    assert said_by(program) == ("", 143)


def test_what_is_to_be_done_before_the_end_is_done_where_it_does_not_end_in_order():
    program = """
stopping.ENDING_SECONDS = 0.3
stopping.before_quit = lambda number: print("queued again after", number, flush=True)
while True:
    try:
        os.kill(os.getpid(), signal.SIGUSR1)
        time.sleep(50)
    except SystemExit:
        pass
    time.sleep(50)
"""
    assert said_by(program) == (f"queued again after {signal.SIGUSR1.value}\n", 143)
