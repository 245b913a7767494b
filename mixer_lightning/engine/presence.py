"""Processes of a launch know of each other from their first lines on: who has come, who ended, and why.

A process group tells of a lost process only in the midst of a collective operation, NCCL after many minutes, and before
it stands nobody tells at all. So each process says at a store of torch's own (the agent's under torchrun, else one in
process 0) that it has come and, twice a second, that it is there. A thread of each watches: process 0 watches all, the
others process 0 and those of their own machine, whose end they see at once. What ends one ends all, in its words.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch.distributed as dist

from mixer_lightning import stopping
from mixer_lightning.engine.store import hosts_store, open_store
from mixer_lightning.launcher import Launch
from mixer_lightning.screen import Screen, last_line
from mixer_lightning.screen import say_what_broke as screen_says_what_broke

SILENCE_SECONDS = 45.0  # so that a lost process ends the others within a minute
INTERVAL_SECONDS = 0.5
#: That the main thread has for ending by itself, which gives better words and closes what is open.
GRACE_SECONDS = 2.0
#: More for those that are not the first: all would say the same.
SECONDS_FOR_THE_FIRST = 3.0
#: That a process which ends gives the others for hearing it.
LINGER_SECONDS = 5.0
DONE = b"done"
KILLED = "has gone without a word: it was killed, maybe for want of memory"
#: What a collective operation says where another process has gone; gloo's errors have no class of their own.
LOST = ("gloo", "nccl", "connection closed by peer", "connection reset", "broken pipe", "socket")


class Ended(NamedTuple):
    """A process that has ended, with its exit code, and why."""

    rank: int
    host: str
    code: int
    why: str

    def __str__(self) -> str:
        return f"process {self.rank}{f' (on {self.host})' if self.host else ''} {self.why}"


class Presence:
    """This process among those of its launch; `watch` begins, `leave` or `tell` end it.

    Args:
        seconds: after so long without a word of a process it is given up.
        end: ends this process where its main thread does not; called from a thread with why, and the exit code.
        is_busy: whether ending now would lose what is being saved.
    """

    def __init__(
        self,
        launch: Launch,
        *,
        seconds: float,
        end: Callable[[str, int], None],
        is_busy: Callable[[], bool] = lambda: False,
    ) -> None:
        self.launch, self.seconds, self.end, self.is_busy = launch, seconds, end, is_busy
        self.ended: Ended | None = None  # the first of another process
        self._store: Any = None
        self._connected, self._over, self._found = threading.Event(), threading.Event(), threading.Event()
        self._token, self._beats = uuid.uuid4().hex, 0
        self._values: dict[int, bytes] = {}  # last said, by rank
        self._heard: dict[int, float] = {}
        self._homes: dict[int, dict[str, Any]] = {}  # of those that have come
        self._before = ""  # what an earlier round of an elastic launch has left
        self._looked = time.monotonic()
        self._answered: float | None = None  # when the store last did, from when it is reached
        self._thread = threading.Thread(target=self._watch, name="presence", daemon=True)
        self._talker = threading.Thread(target=self._talk, name="presence talks", daemon=True)

    def watch(self) -> None:
        """Come, and watch the others from here on."""
        self._talker.start()
        self._thread.start()

    def tell(self, code: int, why: str) -> None:
        """Say to all others that this process ends: `why` goes on after "process 1 (on node2)"."""
        self._over.set()
        self._in_time(lambda: self._say_end(code, why))
        self._close()

    def _say_end(self, code: int, why: str) -> None:
        if self._connected.wait(LINGER_SECONDS):
            self._publish(Ended(self.launch.rank, socket.gethostname(), code, why))
            self._store.add("heard", 1)
            self._linger(lambda: self._store.add("heard", 0) >= self.launch.world_size)

    def leave(self) -> None:
        """Say that this process has done its part."""
        self._over.set()
        self._in_time(self._say_done)
        self._close()

    def _say_done(self) -> None:
        if self._connected.is_set():
            self._store.set(f"beat/{self.launch.rank}", DONE)
            self._linger(self._all_done)

    def _in_time(self, work: Callable[[], None]) -> None:
        """Let the store's answer not be waited for where it cannot come: a host has gone, or its cable."""

        def do() -> None:
            with contextlib.suppress(Exception):
                work()

        helper = threading.Thread(target=do, name="presence ends", daemon=True)
        helper.start()
        helper.join(3 * LINGER_SECONDS)

    def gone(self, error: Exception) -> Ended | None:
        """Who has gone, where an error of this process says no more than that somebody has; None where nobody has."""
        if self.ended is None and not is_lost_connection(error):
            return None
        self._found.wait(self.seconds + GRACE_SECONDS)
        self._over.set()
        return self.ended

    # ------------------------------------------------------------------------------------------- the thread's

    def _watch(self) -> None:
        """See whether the store of another host answers, which `_talk` may wait for in vain; end this process."""
        before = time.monotonic()
        while not self._over.wait(INTERVAL_SECONDS) and self.ended is None:
            now = time.monotonic()
            if self._answered is not None and self.launch.rank:
                self._answered += max(0.0, now - before - 2 * INTERVAL_SECONDS)  # this process was paused
                self._find(self._lost(now - self._answered))
            before = now
        if self.ended is not None:
            self._end()

    def _talk(self) -> None:
        began = time.monotonic()
        try:
            self._come()
        except (ConnectionError, RuntimeError) as error:  # the store went as soon as it was there
            self._find(Ended(0, "", 1, f"has not come: {last_line(error)}"))
        while not self._over.wait(INTERVAL_SECONDS) and self.ended is None:
            try:
                self._beat()
                self._find(self._look())
                self._answered = time.monotonic()
            except Exception:  # torch raises several, on a connection that is lost
                self._find(self._lost(time.monotonic() - (self._answered or began)))
        if self.ended is not None and self._connected.is_set():
            with contextlib.suppress(Exception):
                self._store.add("heard", 1)

    def _come(self) -> None:
        _, store = open_store(self.launch, seconds=self.seconds)
        self._answered = time.monotonic()
        across = os.environ.get("GROUP_WORLD_SIZE", "1") != "1"
        if across and os.environ.get("TORCHELASTIC_MAX_RESTARTS", "0") != "0":
            # Agents count restarts each for itself: there is no number of the round that all know.
            self._store = dist.PrefixStore("presence", store)  # type: ignore[attr-defined]
            self._before = self._store.get("ended").decode() if self._store.check(["ended"]) else ""
            self._values = self._said(range(self.launch.world_size))
        else:
            restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
            self._store = dist.PrefixStore(f"presence/{restarts}", store)  # type: ignore[attr-defined]
        self._store.set(f"home/{self.launch.rank}", json.dumps(_home()))
        self._beat()
        self._connected.set()
        now = self._looked = time.monotonic()
        self._heard = dict.fromkeys(self._watched(), now)

    def _beat(self) -> None:
        self._beats += 1
        self._store.set(f"beat/{self.launch.rank}", f"{self._token} {self._beats}")
        if self._over.is_set():  # between the two `leave` may have said that it is done
            self._store.set(f"beat/{self.launch.rank}", DONE)

    def _watched(self) -> set[int]:
        launch = self.launch
        first = launch.rank - launch.local_rank
        near = range(first, min(first + launch.local_world_size, launch.world_size))
        return {0, *(range(launch.world_size) if launch.rank == 0 else near)} - {launch.rank}

    def _said(self, ranks: Iterable[int]) -> dict[int, bytes]:
        """The last word of each that has said one."""
        there = [rank for rank in ranks if rank in self._values or self._store.check([f"beat/{rank}"])]
        return dict(
            zip(
                there, self._store.multi_get([f"beat/{rank}" for rank in there]) if there else [], strict=True
            )
        )

    def _look(self) -> Ended | None:
        """The first process that has ended without being done, as far as this one is to know."""
        found = self._published()
        now = time.monotonic()
        paused = now - self._looked - 2 * INTERVAL_SECONDS  # this process, so it heard nobody
        self._looked = now
        for rank, value in self._said(self._heard).items():
            if value != self._values.get(rank):
                self._values[rank], self._heard[rank] = value, now
                if rank not in self._homes:
                    self._homes[rank] = json.loads(self._store.get(f"home/{rank}"))
        for rank in list(self._heard):
            self._heard[rank] += max(0.0, paused)
            found = found or self._state(rank, now)
        if found is not None and self._published() is None:
            found = self._publish(found)
        return found

    def _state(self, rank: int, now: float) -> Ended | None:
        """Whether a process has gone; None where it is there, or done."""
        home = self._homes.get(rank)
        if home is None:
            if now - self._heard[rank] <= self.seconds:
                return None
            return Ended(rank, "", 1, f"has not come within {self.seconds:g} s")
        if self._values[rank] == DONE:
            return None
        if not _is_alive(home):
            # It may have ended in order since its word was read.
            if self._said([rank])[rank] == DONE:
                return None
            return self._published() or Ended(rank, home["host"], 1, KILLED)
        if now - self._heard[rank] > self.seconds:
            return Ended(rank, home["host"], 1, f"has not been heard of for {self.seconds:g} s")
        return None

    def _lost(self, seconds: float) -> Ended | None:
        """Who has taken the store with it, which has not answered for so long; None while it may answer again."""
        home = self._homes.get(0, {"host": ""})
        if seconds > LINGER_SECONDS and 0 in self._homes and not _is_alive(home):
            return Ended(0, home["host"], 1, KILLED)
        if seconds > self.seconds:
            return Ended(0, home["host"], 1, f"has not answered for {self.seconds:g} s")
        return None

    def _published(self) -> Ended | None:
        if not self._store.check(["ended"]):
            return None
        said = self._store.get("ended").decode()
        return None if said == self._before else Ended(*json.loads(said)[1:])

    def _publish(self, ended: Ended) -> Ended:
        """Let all know of one that has ended; returns the first of whom somebody let all know."""
        mine = json.dumps([self._token, *ended])
        first = json.loads(self._store.compare_set("ended", self._before, mine))
        return Ended(*first[1:])

    def _find(self, ended: Ended | None) -> None:
        if ended is None:
            return
        self.ended = self.ended or ended
        self._found.set()

    def _end(self) -> None:
        """End this process, unless its main thread does so."""
        assert self.ended is not None
        if self._over.wait(GRACE_SECONDS + (SECONDS_FOR_THE_FIRST if self.launch.rank else 0.0)):
            return
        while self.is_busy():
            if self._over.wait(INTERVAL_SECONDS):
                return
        self.end(str(self.ended), self.ended.code)

    def _linger(self, all_have_heard: Callable[[], bool]) -> None:
        """The store ends with its process: give the others some time."""
        until = time.monotonic() + LINGER_SECONDS
        while hosts_store(self.launch) and not all_have_heard() and time.monotonic() < until:
            time.sleep(0.1)

    def _all_done(self) -> bool:
        others = [rank for rank in range(self.launch.world_size) if rank != self.launch.rank]
        said = self._said(others)
        return self._published() is not None or all(said.get(rank) == DONE for rank in others)

    def _close(self) -> None:
        for thread in (self._talker, self._thread):
            if thread.is_alive() and threading.current_thread() is not thread:
                thread.join(2 * INTERVAL_SECONDS)


def is_lost_connection(error: BaseException) -> bool:
    """Whether an error is a collective operation's, that another process did not take part in."""
    text = str(error).lower()
    is_network = isinstance(error, RuntimeError) and any(word in text for word in LOST)
    return is_network or isinstance(error, dist.DistError)


def _home() -> dict[str, Any]:
    """Where this process lives: its host, and what tells from there whether it is alive."""
    pid = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "pid": pid, "began": _began(pid)}


def _machine() -> str | None:
    """The same for two processes only where each sees the other's number: they share a kernel and its numbers."""
    with contextlib.suppress(OSError):
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    return None


def _began(pid: int) -> str | None:
    """When a process began, in ticks since its machine did; None where it has ended (proc(5), stat)."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2]
    except OSError:
        return None
    state, *rest = fields.split()
    return None if state in "ZX" else rest[18]


def _is_alive(home: dict[str, Any]) -> bool:
    """Whether a process lives; of one of another machine it is not known, so it does."""
    if home["machine"] is None or home["machine"] != _machine():
        return True
    return bool(_began(home["pid"]) == home["began"])


# ------------------------------------------------------------------------------------- of this process as a whole

_mine: Presence | None = None


@contextlib.contextmanager
def among(launch: Launch | None, *, seconds: float, end: Callable[[str, int], None]) -> Iterator[None]:
    """While entered this process watches the others of its launch, and they watch it; nothing without others."""
    global _mine
    if launch is None or launch.world_size == 1 or _mine is not None:
        yield
        return
    _mine = Presence(launch, seconds=seconds, end=end)
    stopping.last_words = lambda number: tell(stopping.exit_code(number), _asked(number))
    _mine.watch()
    try:
        yield
    except stopping.Stopped as stop:
        tell(stopping.exit_code(stop.number), _asked(stop.number))
        raise
    except BaseException as error:
        tell(1, f"failed: {type(error).__name__}")
        raise
    finally:
        leave()
        stopping.last_words = None


def _asked(number: int) -> str:
    return f"was asked to stop ({signal.Signals(number).name}), and ended without a save"


def tell(code: int, why: str) -> None:
    """Say to the others of this launch, if there are, that this process ends, and why: once."""
    global _mine
    mine, _mine = _mine, None
    if mine is not None:
        mine.tell(code, why)


def leave() -> None:
    """Say to the others that this process has done its part, unless it has told them something else."""
    global _mine
    mine, _mine = _mine, None
    if mine is not None:
        mine.leave()


def gone(error: Exception) -> Ended | None:
    """Who has gone, where an error says no more than that somebody has."""
    return _mine.gone(error) if _mine is not None else None


def say_why(screen: Screen, why: str) -> None:
    """Let all know that this process fails, and say why."""
    screen.alarm(why)
    tell(1, f"failed: {why}")


def say_what_broke(screen: Screen, error: Exception, log: Path) -> int:
    """Say which process has gone where that is behind an error; else the error, and let all know. The exit code."""
    lost = gone(error)
    if lost is not None:
        screen.note(traceback.format_exc().rstrip())
        screen.alarm(str(lost))
    else:
        screen_says_what_broke(screen, error, log)
        tell(1, f"failed: {last_line(error)}")
    return 1 if lost is None else lost.code


def save_undisturbed(is_busy: Callable[[], bool]) -> None:
    """Not to be ended while `is_busy`: what is being saved would be lost."""
    if _mine is not None:
        _mine.is_busy = is_busy


def tell_at_start(launch: Launch, code: int, why: str) -> None:
    """Say that this process ends before it has begun."""
    mine = Presence(launch, seconds=LINGER_SECONDS, end=lambda text, code: None)
    mine.watch()
    mine.tell(code, why)
