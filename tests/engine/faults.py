"""Sessions of a training that end in the ways of a cluster, and what all of them together come to.

A session is a process for each rank; what all sessions say is in `<run>.log`.
"""

from __future__ import annotations

import contextlib
import math
import os
import random
import signal
import socket
import subprocess
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from forks import Forked

from conftest import ROOT
from mixer_lightning import results
from mixer_lightning.checkpoints import sharded

#: Within which a process has ended after another was killed, or after it was asked to stop.
SECONDS_TO_END = 60.0
KILLED = -signal.SIGKILL
ASKED = 128 + signal.SIGTERM


class Session:
    """A training command that has been given, once for each rank."""

    def __init__(self, words: Sequence[str], run_dir: Path, *, num_ranks: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = str(free.getsockname()[1])
        log = run_dir.with_suffix(".log")
        log.parent.mkdir(parents=True, exist_ok=True)
        self.ranks = []
        for rank in range(num_ranks):
            env = dict(os.environ)
            if num_ranks > 1:
                env |= {
                    "RANK": str(rank),
                    "LOCAL_RANK": str(rank),
                    "WORLD_SIZE": str(num_ranks),
                    "LOCAL_WORLD_SIZE": str(num_ranks),
                    "MASTER_ADDR": "127.0.0.1",
                    "MASTER_PORT": port,
                    "TORCHELASTIC_RUN_ID": "faults",
                    "GROUP_RANK": "0",
                }
            argv = [str(ROOT / "train.py"), *words, f"hydra.run.dir={run_dir}"]
            self.ranks.append(Forked(argv, cwd=run_dir.parent, env=env, log=log))

    def wait(self, seconds: float) -> bool:
        """Whether all ranks have ended, at the latest after so long."""
        until = time.monotonic() + seconds
        for each in self.ranks:
            with contextlib.suppress(subprocess.TimeoutExpired):
                each.wait(max(0.0, until - time.monotonic()))
        return None not in self.codes()

    def send(self, number: int, ranks: Sequence[int]) -> None:
        """A signal to some ranks."""
        for rank in ranks:
            self.ranks[rank].send_signal(number)

    def codes(self) -> list[int | None]:
        """Exit codes by rank."""
        return [each.returncode for each in self.ranks]


def run_to_the_end(words: Sequence[str], run_dir: Path, *, num_ranks: int, timeout: float = 600.0) -> float:
    """An undisturbed run; its seconds."""
    began = time.monotonic()
    session = Session(words, run_dir, num_ranks=num_ranks)
    assert session.wait(timeout), run_dir.with_suffix(".log").read_text()
    assert session.codes() == [0] * num_ranks, run_dir.with_suffix(".log").read_text()
    return time.monotonic() - began


def killed(session: Session, rng: random.Random) -> str:
    """kill -9 to one rank or all; the others end by themselves."""
    ranks = list(range(len(session.ranks)))
    chosen = ranks if rng.random() < 0.5 else [rng.choice(ranks)]
    session.send(signal.SIGKILL, chosen)
    ended(session)
    for rank, code in enumerate(session.codes()):
        assert (code in (KILLED, 0)) if rank in chosen else (code != KILLED), session.codes()
    return "kill -9 of all ranks" if len(chosen) == len(ranks) else "kill -9 of one rank"


def asked_to_stop(session: Session, rng: random.Random) -> str:
    """SIGTERM or SIGUSR1 to some ranks: all save and end; sometimes asked again, as an impatient scheduler does."""
    number = rng.choice([signal.SIGTERM, signal.SIGUSR1])
    ranks = rng.sample(range(len(session.ranks)), k=rng.randint(1, len(session.ranks)))
    session.send(number, ranks)
    if rng.random() < 0.3 and not session.wait(0.3):
        session.send(signal.SIGTERM, ranks)
    ended(session)
    # A process that has not got so far as to catch it ends by it; its launcher's others are told.
    early = {-number, -signal.SIGTERM, 1}
    assert set(session.codes()) <= {ASKED, 128 + number, 0, *early}, session.codes()
    return signal.Signals(number).name


def ended(session: Session) -> None:
    """All ranks have ended within a minute."""
    began = time.monotonic()
    if not session.wait(SECONDS_TO_END):
        codes = session.codes()
        session.send(signal.SIGKILL, [rank for rank, code in enumerate(codes) if code is None])
        raise AssertionError(f"exit codes {codes} {time.monotonic() - began:.0f} s after a fault")


Fault = Callable[[Session, random.Random], str]


def run_with_faults(
    words: Sequence[str],
    run_dir: Path,
    *,
    num_ranks: int,
    faults: Sequence[Fault],
    rng: random.Random,
    seconds: float,
    most: int | None = None,
    minutes: float = math.inf,
) -> Counter[str]:
    """Give a command again and again until its run has finished; the faults that its sessions met, by name.

    Args:
        faults: one of them, drawn by `rng`, strikes in each session, after up to `seconds`.
        most: so many, after which a session is left alone.
        minutes: after which it is as well.
    """
    met: Counter[str] = Counter()
    began = time.monotonic()
    while True:
        session = Session(words, run_dir, num_ranks=num_ranks)
        is_left_alone = time.monotonic() - began > 60 * minutes
        is_left_alone |= most is not None and sum(met.values()) >= most
        if session.wait(1800.0 if is_left_alone else rng.uniform(0.0, seconds)):
            if session.codes() == [0] * num_ranks:
                return met
            raise AssertionError((session.codes(), run_dir.with_suffix(".log").read_text()[-3000:]))
        assert not is_left_alone, run_dir.with_suffix(".log").read_text()[-3000:]
        met[rng.choice(faults)(session, rng)] += 1


def assert_same_bits(got: Path, expected: Path) -> None:
    """Weights, averages, optimiser state and every logged number of two runs, but those of the machine's pace."""
    rows = [
        [{k: v for k, v in row.items() if k not in results.PACE} for row in results.read_metrics(each)]
        for each in (got, expected)
    ]
    assert rows[0] == rows[1]
    here, there = (sharded.load(each / results.LAST) for each in (got, expected))
    assert here["step"] == there["step"]
    for part in ("state_dict", "ema"):
        assert here.get(part, {}).keys() == there.get(part, {}).keys()
        for name, value in there.get(part, {}).items():
            assert torch.equal(here[part][name], value), (part, name)
    for number, slots in there["optimizer"]["state"].items():
        for name, value in slots.items():
            assert torch.equal(here["optimizer"]["state"][number][name], value), (number, name)
