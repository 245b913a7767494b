"""Two hosts on one machine: each has a network, host name and process numbers of its own, a cable between them.

Linux's namespaces make them (`ip netns`, `unshare`), which takes root. To be seen with -s: what was tried, how it
ended, and the seconds.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from conftest import ROOT, TINY
from mixer_lightning import results


def has_namespaces() -> bool:
    """Whether this machine lets us make networks."""
    if os.name != "posix" or os.geteuid() or not (shutil.which("ip") and shutil.which("unshare")):
        return False
    made = subprocess.run(["ip", "netns", "add", f"try{os.getpid()}"], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "delete", f"try{os.getpid()}"], capture_output=True, check=False)
    return made.returncode == 0


pytestmark = [
    pytest.mark.soak,
    pytest.mark.skipif(
        not has_namespaces(), reason="networks are made by root, with ip (iproute2) and unshare"
    ),
]

RECIPE = (
    *TINY, "trainer=ddp", "trainer.accelerator=cpu", "augment.mixup=0.5", "ema_decay=0.9", "stochastic_depth=0.1",
    "duration.steps=120", "eval_every.steps=120", "checkpoint_every.steps=10",
)  # fmt: skip
SECONDS = 60.0  # within which the loss of a host ends the other


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


class Host:
    """A host of the two: `start` runs a command on it, whose end by `kill` is that of all of its processes."""

    def __init__(self, number: int) -> None:
        self.number, self.netns, self.cable = (
            number,
            f"mixer{os.getpid()}n{number}",
            f"m{os.getpid() % 10**7}n{number}",
        )
        self.process: subprocess.Popen[str] | None = None

    @property
    def address(self) -> str:
        return f"10.213.77.{self.number + 1}"

    def start(self, folder: Path, *command: str) -> None:
        inside = f'hostname node{self.number}; exec "$@"'
        space = [
            "ip",
            "netns",
            "exec",
            self.netns,
            "unshare",
            "--uts",
            "--pid",
            "--fork",
            "--kill-child",
            "--mount-proc",
        ]
        env = os.environ | {"GLOO_SOCKET_IFNAME": self.cable, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        env["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"  # as docs/clusters.md has it
        self.log = (folder / f"node{self.number}.txt").open("w+")
        self.process = subprocess.Popen(
            [*space, "--mount-proc", "sh", "-c", inside, "sh", *command], cwd=folder, env=env, text=True,
            stdin=subprocess.DEVNULL, stdout=self.log, stderr=subprocess.STDOUT,
        )  # fmt: skip

    def pids(self) -> list[int]:
        done = subprocess.run(["ip", "netns", "pids", self.netns], capture_output=True, text=True, check=True)
        return [int(word) for word in done.stdout.split()]

    def workers(self) -> list[int]:
        """The processes of the training itself, without torchrun."""
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0") for pid in self.pids()}
        return [
            pid
            for pid, words in lines.items()
            if b"mixer_lightning" in words and b"torch.distributed.run" not in words
        ]

    def kill(self) -> None:
        """The power goes: all of its processes at once."""
        for pid in self.pids():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)

    def wait(self, seconds: float) -> int:
        assert self.process is not None
        return self.process.wait(timeout=seconds)

    def said(self) -> str:
        self.log.seek(0)
        return self.log.read()


@pytest.fixture
def hosts(tmp_path: Path) -> Iterator[list[Host]]:
    """Two of them, whose names the other finds in its /etc/hosts."""
    made = [Host(0), Host(1)]
    names = "127.0.0.1 localhost\n" + "".join(f"{each.address} node{each.number}\n" for each in made)
    try:
        for each in made:
            ip("netns", "add", each.netns)
            Path("/etc/netns", each.netns).mkdir(parents=True)
            Path("/etc/netns", each.netns, "hosts").write_text(names)
        ip("link", "add", made[0].cable, "netns", made[0].netns, "type", "veth", "peer", "name", made[1].cable,
           "netns", made[1].netns)  # fmt: skip
        for each in made:
            ip("-n", each.netns, "addr", "add", f"{each.address}/24", "dev", each.cable)
            ip("-n", each.netns, "link", "set", each.cable, "up")
            ip("-n", each.netns, "link", "set", "lo", "up")
        yield made
    finally:
        for each in made:
            with contextlib.suppress(subprocess.CalledProcessError):
                each.kill()
            if each.process is not None:
                each.process.wait()
            subprocess.run(["ip", "netns", "delete", each.netns], capture_output=True, check=False)
            shutil.rmtree(Path("/etc/netns", each.netns), ignore_errors=True)


TORCHRUN = (sys.executable, "-m", "torch.distributed.run")


def train(hosts: list[Host], folder: Path, *, elastic: bool = False) -> None:
    """One command on each host, as docs/clusters.md has them."""
    for each in hosts:
        if elastic:
            meet = ["--max-restarts=3", "--rdzv-backend=c10d", "--rdzv-endpoint=node0:29400"]
        else:
            meet = [f"--node-rank={each.number}", "--master-addr=node0", "--master-port=29500"]
        each.start(
            folder, *TORCHRUN, "--nnodes=2", "--nproc-per-node=1", *meet, "-m", "mixer_lightning", "train", *RECIPE,
            "hydra.run.dir=run",
        )  # fmt: skip


def weights(run_dir: Path) -> dict[str, torch.Tensor]:
    return dict(torch.load(run_dir / results.LAST, weights_only=True)["state_dict"])


def equal(left: Path, right: Path) -> bool:
    ours, theirs = weights(left), weights(right)
    return ours.keys() == theirs.keys() and all(torch.equal(ours[key], theirs[key]) for key in ours)


def wait_for(what: Callable[[], bool], seconds: float = 180) -> float:
    began = time.monotonic()
    while not what():
        assert time.monotonic() - began < seconds
        time.sleep(0.02)
    return time.monotonic() - began


def step_of(folder: Path) -> int:
    try:
        return int(torch.load(folder / "run" / results.LAST, weights_only=True)["step"])
    except FileNotFoundError:
        return 0


def note(what: str, result: str, seconds: float) -> None:
    print(f"| {what} | {result} | {seconds:.1f} |")


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same by two processes of one host."""
    folder = tmp_path_factory.mktemp("one")
    command = [*TORCHRUN, "--standalone", "--nproc-per-node=2", "-m", "mixer_lightning", "train", *RECIPE]
    subprocess.run(
        [*command, "hydra.run.dir=run"], cwd=folder, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    return folder / "run"


def test_two_hosts_train_what_one_trains(hosts: list[Host], undisturbed: Path, tmp_path: Path):
    began = time.monotonic()
    train(hosts, tmp_path)
    assert [each.wait(240) for each in hosts] == [0, 0], hosts[0].said() + hosts[1].said()
    assert equal(tmp_path / "run", undisturbed)
    note("a whole run on two hosts", "weights bitwise those of one host", time.monotonic() - began)


@pytest.mark.parametrize("lost", ["node1", "node0", "cable"])
def test_the_loss_of_a_host_ends_the_other_and_loses_nothing(
    hosts: list[Host], undisturbed: Path, tmp_path: Path, lost: str
):
    """It says which, within a minute, and leaves no process; the same command on both goes on."""
    train(hosts, tmp_path)
    wait_for(lambda: step_of(tmp_path) > 0)
    began = time.monotonic()
    if lost == "cable":
        ip("-n", hosts[1].netns, "link", "set", hosts[1].cable, "down")
        others = hosts
    else:
        hosts[int(lost[-1])].kill()
        others = [each for each in hosts if f"node{each.number}" != lost]
    codes = [each.wait(SECONDS + 30 - (time.monotonic() - began)) for each in others]
    seconds = time.monotonic() - began
    for each, code in zip(others, codes, strict=True):
        said = each.said()
        print(f"--- node{each.number}\n{said[-3000:]}")
        assert code not in (0, 2, 143), said
        assert f"process {1 - each.number}" in said
        assert each.pids() == []
    assert seconds < SECONDS
    step = step_of(tmp_path)
    assert 0 < step < 120
    if lost == "cable":
        ip("-n", hosts[1].netns, "link", "set", hosts[1].cable, "up")
    again = time.monotonic()
    train(hosts, tmp_path)
    assert [each.wait(240) for each in hosts] == [0, 0], hosts[0].said() + hosts[1].said()
    assert f"resuming run at step {step}" in hosts[0].said()
    assert equal(tmp_path / "run", undisturbed)
    note(f"{lost} lost in mid-training", "the other ended by itself, named, no process left", seconds)
    note(
        f"the same command after {lost} was lost",
        f"on from step {step}, weights bitwise",
        time.monotonic() - again,
    )


def test_torchrun_starts_both_anew_where_the_processes_of_one_are_killed(
    hosts: list[Host], undisturbed: Path, tmp_path: Path
):
    began = time.monotonic()
    train(hosts, tmp_path, elastic=True)
    wait_for(lambda: step_of(tmp_path) > 0)
    before = hosts[0].workers()
    for pid in hosts[1].workers():
        os.kill(pid, signal.SIGKILL)
    killed = time.monotonic()
    wait_for(lambda: bool(set(hosts[0].workers()) - set(before)))
    anew = time.monotonic() - killed
    codes = [each.wait(240) for each in hosts]
    print(hosts[0].said()[-4000:], hosts[1].said()[-4000:], sep="\n---\n")
    assert codes == [0, 0]
    assert "resuming run at step" in hosts[0].said()
    assert equal(tmp_path / "run", undisturbed)
    note("elastic, workers of node1 killed", "torchrun started both anew", anew)
    note("elastic, the whole run", "weights bitwise", time.monotonic() - began)
