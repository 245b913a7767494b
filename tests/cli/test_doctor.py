"""`mixer doctor`: what is wrong with a machine, or between machines, and what would mend it."""

from __future__ import annotations

import os
import re
import resource
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conftest import ROOT
from mixer_lightning.cli import doctor
from mixer_lightning.engine import health
from mixer_lightning.engine.health import Finding
from mixer_lightning.engine.meeting import Arrival
from mixer_lightning.kernels import activation_norm


def free_port() -> str:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return str(free.getsockname()[1])


def launched(rank: int, port: str, *, processes: int = 2) -> dict[str, str]:
    """What torchrun says to a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": port,
    }


def test_a_machine_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "cat").mkdir()
    assert doctor.main([f"out={tmp_path}/runs/new", f"data={tmp_path}/images"]) == 0
    said = capsys.readouterr().out
    assert "1 entries (cat)" in said
    assert "where" not in said
    assert all(name in said for name in ("versions", "kernels", "devices", "open files", "disk"))
    assert [path.name for path in tmp_path.iterdir()] == ["images"]  # nothing is left


def test_a_failure_gives_exit_code_1_and_says_what_mends_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert doctor.main([f"out={tmp_path}", f"data={tmp_path}/nowhere"]) == 1
    said = capsys.readouterr().out
    assert "FAILS" in said
    assert "data: mount it on this node as on the others" in said


def a_low_limit(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Finding:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (512, hard))
    try:
        return health.open_files()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def an_old_torch(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Finding:
    monkeypatch.setattr(health.metadata, "requires", lambda name: ["torch>=99.0", "no-such-package>=1"])
    return health.packages()


def no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Finding:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path.with_name("cache")))
    monkeypatch.setenv("CXX", "no-such-compiler")
    monkeypatch.setattr(activation_norm, "native", activation_norm.native.__wrapped__)
    return health.kernels()


def a_full_disk(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Finding:
    def full(source: Path, target: Path) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    return health.disk(tmp_path)


def an_empty_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Finding:
    return health.images(tmp_path)


@pytest.mark.parametrize(
    ("fault", "state", "said", "remedy"),
    [
        (a_low_limit, "warning", "at most 512", "ulimit -n "),
        (an_old_torch, "failure", r"torch is .* torch>=99.0 is needed; no-such-package is missing", "pip install"),
        (no_compiler, "warning", "activation_norm: .* no C\\+\\+ compiler was found", "Install g\\+\\+"),
        (a_full_disk, "failure", "cannot be written to: No space left on device", "make room"),
        (an_empty_folder, "failure", "is empty", "mount it"),
    ],
)  # fmt: skip
def test_faults_of_a_machine_are_named(
    fault: Callable[[pytest.MonkeyPatch, Path], Finding],
    state: str,
    said: str,
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    found = fault(monkeypatch, tmp_path)
    assert found.state == state
    assert re.search(said, found.said)
    assert re.search(remedy, found.remedy)
    assert list(tmp_path.iterdir()) == []


def test_what_all_hosts_have_is_said_once() -> None:
    good, low = Finding("open files", "ok", "at most 65,536"), Finding("open files", "warning", "at most 512")
    here = Finding("versions", "ok", "torch 2.15.0")
    arrivals = [Arrival(0, "a", [here, good]), Arrival(1, "a", [here, good]), Arrival(2, "b", [here, low])]
    assert doctor.by_place(arrivals) == [("all", here), ("a", good), ("b", low)]


def test_who_does_not_come_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in launched(0, free_port(), processes=3).items():
        monkeypatch.setenv(name, value)
    assert doctor.main([f"out={tmp_path}", "seconds=0.5"]) == 1
    said = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 came to 127.0.0.1:" in said
    assert "missing: 1, 2" in said
    assert "same MASTER_ADDR and MASTER_PORT" in said


def test_a_first_process_that_cannot_be_reached_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    port = free_port()
    for name, value in launched(1, port).items():
        monkeypatch.setenv(name, value)
    assert doctor.main([f"out={tmp_path}", "seconds=0.5"]) == 1
    assert f"127.0.0.1:{port} cannot be reached within 0.5 s" in capfd.readouterr().err


@pytest.mark.slow
def test_two_processes_meet(tmp_path: Path) -> None:
    port = free_port()
    command = [sys.executable, "-m", "mixer_lightning", "doctor", f"out={tmp_path}", "megabytes=1"]
    both = [
        subprocess.Popen(
            command, cwd=ROOT, env=os.environ | launched(rank, port), text=True, stdout=subprocess.PIPE
        )
        for rank in range(2)
    ]
    said = [process.communicate(timeout=300)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert said[1] == ""
    words = " ".join(said[0].split())
    for each in ("gloo, 2 processes, the sum is right", "for 1 MB of gradients", f"all see {tmp_path}"):
        assert each in words
    rows = [line.split()[0] for line in said[0].splitlines() if line.strip() and not line.startswith(" ")]
    assert rows.count("disk") == 1, "one line for both processes"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ("seconds=0", "seconds must be above 0"),
        ("megabytes=0", "megabytes must be at least 1"),
        ("dota=x", "did you mean"),
    ],
)
def test_wrong_arguments(argument: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="2"):
        doctor.main([argument])
    assert said in capsys.readouterr().err
