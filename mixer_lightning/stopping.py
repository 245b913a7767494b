"""Being asked to stop by a signal: exit codes, and what a second request does. Standard library only."""

from __future__ import annotations

import atexit
import contextlib
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any, NoReturn

#: With these a scheduler, a user or Ctrl-C asks a program to stop.
SIGNALS = (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT)
#: A launcher passes on what its processes have got as well: so close together, two are one.
SAME_REQUEST_SECONDS = 0.5
#: What to do before a process is ended that hangs: its other processes, if there are any, want to know.
last_words: Callable[[int], None] | None = None
#: What to do, given the signal, before this process ends itself where it cannot end in order.
before_quit: Callable[[int], None] | None = None
#: The signal that this process has stopped for, or its run, whose processes agree; 0 while it goes on.
stopped_by = 0
PARENT_SECONDS = 1.0  # between two looks whether who started this process is there
#: That a program which has nothing to save takes to end; what it still waits for may never come.
ENDING_SECONDS = 5.0
HANGING_SECONDS = 30.0  # that a stopping run waits for a read which may never come back
CLOSING_SECONDS = 60.0  # that one which has saved takes to close its dashboards


class Stopped(SystemExit):
    """A signal asked to stop; the program's exit code is 130 after Ctrl-C, else 143. `saved` says whether it has."""

    def __init__(self, number: int, *, where: str = "", saved: bool = False) -> None:
        global stopped_by
        stopped_by = number
        super().__init__(exit_code(number))
        self.number, self.where, self.saved = number, where, saved

    def __str__(self) -> str:
        return f"{signal.Signals(self.number).name}{self.where}"


def exit_code(number: int) -> int:
    """130 for Ctrl-C, 143 for the others."""
    return 130 if number == signal.SIGINT else 143


class _Leave:
    """The handler of a program that has nothing to save: raises `Stopped`, and ends it when it is asked again."""

    def __init__(self) -> None:
        self.asked = 0  # the first signal's number; what is raised for it may be swallowed, in a destructor for example
        self._last = -SAME_REQUEST_SECONDS

    def __call__(self, number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if now - self._last < SAME_REQUEST_SECONDS:
            return
        self._last = now
        if not self.asked:
            self.asked = number
            if not stopped_by:  # else a run that has saved is being closed
                raise Stopped(number)
        elif last_words is None:
            _quit(number)
        else:  # by a thread: this may have interrupted what they are said with
            threading.Thread(target=_say_and_quit, args=(number,), name="ending", daemon=True).start()


def install() -> None:
    """From here on a signal of `SIGNALS` raises `Stopped`, a second one ends the process wherever it hangs.

    So does its end not coming within ENDING_SECONDS of the first: threads may wait for reads that never come back. A
    lost terminal (SIGHUP) is no request: what runs goes on, and says no more.
    """
    global stopped_by
    stopped_by, leave = 0, _Leave()
    heard, told = socket.socketpair()  # by Python's C code, also while the main thread waits within a library
    told.setblocking(False)

    def see_to_the_end() -> None:
        while True:
            number = heard.recv(1)[0]
            if number in SIGNALS:
                _quit_late(number, unless=lambda number=number: signal.getsignal(number) != leave)  # type: ignore[misc]

    threading.Thread(target=see_to_the_end, name="ending", daemon=True).start()
    signal.set_wakeup_fd(told.fileno(), warn_on_full_buffer=False)
    _kept.append(told)  # not to be closed
    for number in SIGNALS:
        signal.signal(number, leave)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda number, frame: None)


_kept: list[socket.socket] = []


def stop_with_parent() -> None:
    """Ask this process to stop where the one that started it has gone: so torchrun ends by signals it does not take."""
    parent = os.getppid()

    def look() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=look, name="parent", daemon=True).start()


def end_soon(code: int) -> None:
    """See that a process which was asked to stop ends with its exit code, whatever comes or is waited for."""
    for each in SIGNALS:
        signal.signal(each, signal.SIG_IGN)  # while Python ends, another one would kill it
    number = signal.SIGINT if code == exit_code(signal.SIGINT) else signal.SIGTERM
    threading.Thread(target=_quit_late, args=(number,), name="ending", daemon=True).start()


@contextlib.contextmanager
def undisturbed(code: int) -> Iterator[None]:
    """Close things in peace after a stop, which schedulers and agents ask for more than once; Ctrl-C still breaks off.

    Args:
        code: the exit code to be; of another than a stop's nothing is different.
    """
    if code not in map(exit_code, SIGNALS):
        yield
        return
    asking = [number for number in SIGNALS if number != signal.SIGINT]
    before = {number: signal.signal(number, signal.SIG_IGN) for number in asking}
    closed = threading.Event()

    def see_to_the_end() -> None:
        if not closed.wait(CLOSING_SECONDS):
            _quit(signal.SIGINT if code == exit_code(signal.SIGINT) else signal.SIGTERM)

    threading.Thread(target=see_to_the_end, name="closing", daemon=True).start()
    try:
        yield
    finally:
        closed.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def end_by_signal_if_stopped() -> Callable[[int], int]:
    """Give what is to be told the exit code; a process that was asked to stop then ends by the signal itself.

    To a shell that is the same, 143 or 130. To an agent of sweeps, which counts exit codes above 0 as failures and
    gives up after some, it is a process that has been stopped. To be said before anything else registers with atexit:
    what has is done first.
    """
    told = 0

    def tell(code: int) -> int:
        nonlocal told
        told = code
        return code

    def end() -> None:
        for number in SIGNALS:
            if number != signal.SIGUSR1 and told == exit_code(number):
                with contextlib.suppress(OSError, ValueError):
                    sys.stdout.flush()
                    sys.stderr.flush()
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)

    atexit.register(end)
    return tell


def _quit_late(number: int, *, unless: Callable[[], bool] = lambda: False) -> None:
    """End the process after ENDING_SECONDS, `unless` by then somebody else has the signals and so goes on."""
    time.sleep(ENDING_SECONDS)
    if unless():
        return
    with contextlib.suppress(OSError):
        print(
            f"not all had ended after {ENDING_SECONDS:g} s: quit without waiting", file=sys.stderr, flush=True
        )
    _say_and_quit(number)


def _say_and_quit(number: int) -> NoReturn:
    if last_words is not None:
        last_words(number)
    _quit(number)


def _quit(number: int) -> NoReturn:
    """End the process at once, and leave a terminal without a part of a bar and with its cursor."""
    if before_quit is not None:
        with contextlib.suppress(Exception, SystemExit):
            before_quit(number)
    with contextlib.suppress(OSError, ValueError):
        if sys.stdout.isatty():
            os.write(sys.stdout.fileno(), b"\r\x1b[K\x1b[?25h")
    os._exit(exit_code(number))


class StopRequests:
    """While entered and after `catch`, signals only set `received`, and it is said at once what comes of them.

    A thread says it, which hears of a signal while the main thread is in the middle of a long operation: Python's own
    handlers wait for its end. The work asks `received` where it can be broken off, and saves. Where that does not
    come, a second Ctrl-C, or a third of the other signals (schedulers send several), ends the process without.

    Args:
        say: prints a line; called from the thread.
        first: what is said to the first request: "saving after this step".
        quitting: prepares for the end, and gives its last words; called from the thread.
        waiting: for how many seconds the work has waited for something from outside, 0 where it does not; called from
            the thread. Who was asked to stop and waits HANGING_SECONDS ends without a save: it could wait for ever.
    """

    def __init__(
        self,
        say: Callable[[str], None],
        *,
        first: str,
        quitting: Callable[[], str],
        waiting: Callable[[], float] = lambda: 0.0,
    ) -> None:
        self.received, self.waiting = 0, waiting
        self.say, self.first, self.quitting = say, first, quitting
        self.keep_on = threading.Event()  # set where ending at once would lose what is being saved
        self._count, self._last = 0, -SAME_REQUEST_SECONDS
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopRequests:
        self._read, self._write = socket.socketpair()
        self._write.setblocking(False)
        self._fd_before = signal.set_wakeup_fd(self._write.fileno(), warn_on_full_buffer=False)
        self._thread = threading.Thread(target=self._listen, name="signals", daemon=True)
        self._thread.start()
        return self

    def catch(self) -> None:
        """Take over the signals; whoever has them gets them back at the end.

        With them a request is taken over of which `Stopped` was swallowed where it was raised.
        """
        self._before = {number: signal.getsignal(number) for number in SIGNALS}
        for number in SIGNALS:
            signal.signal(number, self._receive)
        for handler in self._before.values():
            self.received = self.received or getattr(handler, "asked", 0)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        signal.set_wakeup_fd(self._fd_before)
        for number, handler in self._before.items():
            if signal.getsignal(number) == self._receive:
                signal.signal(number, handler)
        with contextlib.suppress(OSError):
            self._write.setblocking(True)
            self._write.send(b"\0")
        self._thread.join()
        self._before = {}
        self._read.close()
        self._write.close()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = number

    def _listen(self) -> None:
        while number := self._next():
            if number == signal.SIGHUP:
                self.say(f"the terminal is gone; this goes on, and is stopped by: kill {os.getpid()}")
            elif number in self._before:
                self._answer(number)
            elif self._fd_before >= 0:  # whoever had the signals before still has them
                os.write(self._fd_before, bytes([number]))

    def _next(self) -> int:
        """The number of the next signal; 0 at the end."""
        while True:
            self._read.settimeout(1.0 if self._count else None)
            with contextlib.suppress(TimeoutError):
                return self._read.recv(1)[0]
            seconds = self.waiting()
            if min(seconds, time.monotonic() - self._last) > HANGING_SECONDS and not self.keep_on.is_set():
                self.say(f"no image has come for {seconds:.0f} s: quit without saving. {self.quitting()}")
                _say_and_quit(self.received)

    def _answer(self, number: int) -> None:
        now = time.monotonic()
        if now - self._last < SAME_REQUEST_SECONDS:
            return
        self.received, self._last = number, now
        self._count += 1
        name = signal.Signals(number).name
        is_key = number == signal.SIGINT
        if self._count == 1:
            self.say(f"{self.first}; press again to quit without" if is_key else f"{name}: {self.first}")
        elif self.keep_on.is_set():
            self.say("the save is being written; this ends after it")
        elif self._count == 2 and not is_key:
            self.say(f"{name} again: still {self.first}; the next one quits without")
        else:
            self.say(f"quit by {name} without saving. {self.quitting()}")
            _say_and_quit(number)
