"""A process that dies or fails, at any moment from its first line on, ends all others, which say who it was and why."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from test_distributed import finish, start

from conftest import ROOT, TINY
from mixer_lightning import results
from mixer_lightning.engine import presence, store
from mixer_lightning.engine.presence import Presence, is_lost_connection
from mixer_lightning.launcher import Launch

IN_A_MINUTE = 60  # the promise; what hangs is killed then, and the test fails


@pytest.fixture
def come(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., tuple[Presence, list[Any]]]]:
    """come(rank): a process of two on this machine, and what its thread ended it with."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MASTER_PORT", str(free.getsockname()[1]))
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    for name in ("TORCHELASTIC_USE_AGENT_STORE", "TORCHELASTIC_RESTART_COUNT", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(presence, "GRACE_SECONDS", 0.0)
    monkeypatch.setattr(presence, "SECONDS_FOR_THE_FIRST", 0.0)
    monkeypatch.setattr(presence, "LINGER_SECONDS", 1.0)
    monkeypatch.setattr(presence, "INTERVAL_SECONDS", 0.05)
    there = []

    def come(rank: int, *, seconds: float = 30.0, **options: Any) -> tuple[Presence, list[Any]]:
        ended: list[Any] = []
        launch = Launch(world_size=2, rank=rank, local_rank=rank, local_world_size=2)
        one = Presence(launch, seconds=seconds, end=lambda *said: ended.append(said), **options)
        one.watch()
        there.append(one)
        return one, ended

    yield come
    for one in there:
        one.leave()


def until(condition: Callable[[], object]) -> None:
    deadline = time.monotonic() + IN_A_MINUTE
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("first", [0, 1])
def test_who_fails_says_why_to_all(come, first):
    one, _ = come(first)
    _, ended = come(1 - first)
    one.tell(2, "failed: no images")
    until(lambda: ended)
    assert ended == [(f"process {first} (on {socket.gethostname()}) failed: no images", 2)]


def test_who_never_comes_is_named(come):
    _, ended = come(0, seconds=0.3)
    until(lambda: ended)
    assert ended == [("process 1 has not come within 0.3 s", 1)]
    _, ended = come(1)  # and is told so, should it come
    until(lambda: ended)
    assert ended == [("process 1 has not come within 0.3 s", 1)]


def test_a_first_process_that_never_comes_is_named(come):
    _, ended = come(1, seconds=0.5)
    until(lambda: ended)
    ((said, code),) = ended
    assert said.startswith("process 0 has not come: 127.0.0.1:")
    assert code == 1


def test_who_is_not_heard_of_is_given_up_and_who_is_done_is_not(come):
    first, ended = come(0, seconds=0.4)
    second, _ = come(1)
    until(lambda: 1 in first._homes)
    second._over.set()  # it hangs, with all its threads
    until(lambda: ended)
    assert ended == [(f"process 1 (on {socket.gethostname()}) has not been heard of for 0.4 s", 1)]


def test_who_is_done_is_not_waited_for(come):
    first, ended = come(0, seconds=0.4)
    second, _ = come(1)
    until(lambda: 1 in first._homes)
    second.leave()
    until(lambda: first._values[1] == presence.DONE)
    time.sleep(0.6)
    assert ended == []
    assert first._thread.is_alive()


def test_a_save_is_not_disturbed(come):
    saving = [True]
    _, ended = come(0, is_busy=lambda: saving[0])
    second, _ = come(1)
    second._connected.wait(IN_A_MINUTE)
    second.tell(1, "failed: a test")
    until(lambda: presence.Ended)
    time.sleep(0.3)
    assert ended == []
    saving.clear()
    saving.append(False)
    until(lambda: ended)


KILLED = """
import os, signal, sys, time
from mixer_lightning.engine.presence import Presence
from mixer_lightning.launcher import Launch
rank = int(sys.argv[1])
one = Presence(Launch(2, rank, rank, 2), seconds=30, end=lambda *said: None)
one.watch()
one._connected.wait()
print("come", flush=True)
time.sleep(60)
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_who_is_killed_is_named_at_once(come, rank):
    """On its own machine, long before its silence says so; also where it has the store with it."""
    with subprocess.Popen(
        [sys.executable, "-c", KILLED, str(rank)], stdout=subprocess.PIPE, cwd=ROOT
    ) as other:
        if rank == 0:
            assert other.stdout.readline() == b"come\n"
        one, ended = come(1 - rank, seconds=600.0)
        until(lambda: rank in one._homes)
        other.kill()
        until(lambda: ended)
        assert ended == [(f"process {rank} (on {socket.gethostname()}) {presence.KILLED}", 1)]


def test_a_round_of_an_elastic_launch_knows_nothing_of_the_one_before(come, monkeypatch):
    """Agents of several nodes count restarts each for itself, and their store outlives a round."""
    monkeypatch.setenv("GROUP_WORLD_SIZE", "2")
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "3")
    launch = Launch(2, 0, 0, 2)
    _, agents = store.open_store(launch, seconds=10)
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    for number in range(2):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(number))
        first, ended = come(0, seconds=30)
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")
        second, _ = come(1)
        until(lambda first=first: 1 in first._homes)
        assert ended == []
        second.tell(1, f"failed: round {number}")
        until(lambda ended=ended: ended)
        assert ended[0][0].endswith(f"failed: round {number}")
    del agents


def test_what_collective_operations_say_of_a_lost_process():
    assert is_lost_connection(
        RuntimeError("[/pytorch/gloo/transport/tcp/pair.cc:547] Connection closed by peer")
    )
    assert is_lost_connection(torch.distributed.DistBackendError("a watchdog"))
    assert not is_lost_connection(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_lost_connection(ValueError("socket"))


# ------------------------------------------------------------------------------------------------ whole runs


def test_images_that_one_process_does_not_find_end_all(tmp_path, capsys):
    processes = start(tmp_path, "run", per_rank={1: ["data=folder", "data.root=/nowhere"]})
    assert finish(processes, timeout=IN_A_MINUTE) == [2, 2]
    said = capsys.readouterr().out
    assert f"process 1 (on {socket.gethostname()}) failed: folder: no folder /nowhere" in said
    assert not (tmp_path / "run" / results.LAST).exists()


#: The process of rank 1 kills itself at a moment of the run.
SELF_KILLED = """
import os, signal, sys
from mixer_lightning.cli import start
from mixer_lightning.engine.callbacks import MetricsLog
heard = MetricsLog.on_step
def kill(self, trainer, module):
    heard(self, trainer, module)
    if os.environ["RANK"] == "1" and module.step == 4:
        os.kill(os.getpid(), signal.SIGKILL)
MetricsLog.on_step = kill
sys.exit(start.start("train"))
"""


def test_a_process_that_is_killed_while_training_is_named(tmp_path, capsys):
    processes = start(tmp_path, "run", "device_batch=30", program=("-c", SELF_KILLED))
    assert finish(processes, timeout=IN_A_MINUTE) == [1, -signal.SIGKILL]
    said = capsys.readouterr().out
    assert f"process 1 (on {socket.gethostname()}) has gone without a word" in said
    assert "The last good checkpoint, step 3, stands in run/last.ckpt" in said


#: One process is asked to stop between Lightning's preparations and the first step.
ASKED_EARLY = """
import os, signal, sys
from mixer_lightning.cli import start
from mixer_lightning.engine.agreement import Agreement
begin = Agreement.on_begin
def ask(self, trainer, module):
    if os.environ["RANK"] == "{rank}":
        os.kill(os.getpid(), signal.SIGTERM)
    begin(self, trainer, module)
Agreement.on_begin = ask
sys.exit(start.start("train"))
"""


@pytest.mark.parametrize("rank", [0, 1])
def test_a_process_that_is_asked_to_stop_before_the_first_step_ends_all(tmp_path, rank):
    processes = start(tmp_path, "run", "device_batch=30", program=("-c", ASKED_EARLY.format(rank=rank)))
    assert finish(processes, timeout=IN_A_MINUTE) == [143, 143]


def test_torchrun_that_is_killed_leaves_nobody(tmp_path):
    """It takes no SIGUSR1 unless told to: its processes save, and end."""
    words = [
        "-m",
        "torch.distributed.run",
        "--standalone",
        "--nproc_per_node=2",
        str(ROOT / "train.py"),
        *TINY,
    ]
    words += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "device_batch=30"]
    words += ["hydra.run.dir=run", "duration.steps=100000", "checkpoint_every.steps=100000"]
    log = tmp_path / "run" / results.LOG
    agent = subprocess.Popen([sys.executable, *words], cwd=tmp_path, stdout=subprocess.DEVNULL)
    try:
        rows = tmp_path / "run" / results.METRICS
        until(lambda: rows.exists() and rows.stat().st_size)
        workers = children(agent.pid)
        assert len(workers) == 2
        agent.send_signal(signal.SIGUSR1)
        agent.wait(IN_A_MINUTE)
        until(lambda: not any(map(is_there, workers)))
    finally:
        agent.kill()
    assert "stopped by SIGTERM at step" in log.read_text()
    assert torch.load(tmp_path / "run" / results.LAST, weights_only=True)["step"] > 0


def children(pid: int) -> list[int]:
    return list(map(int, Path(f"/proc/{pid}/task/{pid}/children").read_text().split()))


def is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"


def test_a_store_that_no_longer_answers_is_given_up(come):
    """A host that lost its power or its cable closes no connection: a question to it is never answered."""
    come(0)
    one, ended = come(1, seconds=0.5)
    until(lambda: 0 in one._homes)
    never = threading.Event()

    class Silent:
        def __getattr__(self, name: str) -> Callable[..., Any]:
            return lambda *args: never.wait()

    store, one._store = one._store, Silent()
    until(lambda: ended)
    assert ended == [(f"process 0 (on {socket.gethostname()}) has not answered for 0.5 s", 1)]
    one.tell(1, "failed: all was lost")  # comes to its end too
    never.set()
    one._store = store
