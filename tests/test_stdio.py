"""Words that cannot be written, or that a terminal would obey, are no matter for the work."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT, TINY
from mixer_lightning.stdio import printable

#: Prints more than any buffer holds, then says in a file what became of it.
TALKS = """
import os, sys
from mixer_lightning import stdio
stdio.secure()
with open("opened", "w") as file:
    number = file.fileno()
for stream in (sys.stdout, sys.stderr):
    print("\\u2026 \\udce9", file=stream, flush=True)
    print("x" * 100_000, file=stream)
os.write(os.open("said", os.O_CREAT | os.O_WRONLY), str(number).encode())
"""


@pytest.mark.parametrize(
    "redirection", [">&- 2>&- <&-", ">/dev/full 2>&1", "2>&1 | true", "| head -c 1 >/dev/null"]
)
def test_streams_that_cannot_be_written_end_nothing(tmp_path: Path, redirection: str) -> None:
    (tmp_path / "talks.py").write_text(TALKS)
    done = subprocess.run(
        ["bash", "-c", f'"{sys.executable}" talks.py {redirection}; echo "${{PIPESTATUS[0]}}" >code'],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "ascii"},
        capture_output=True,
        timeout=300,
        check=False,
    )
    assert done.stderr.replace(b"x", b"").strip() in (b"", rb"\u2026 \udce9")
    assert (tmp_path / "code").read_text().strip() == "0"
    assert int((tmp_path / "said").read_text()) > 2  # a file that is opened is no standard stream


def test_a_training_goes_on_without_anybody_who_listens(tmp_path: Path) -> None:
    """Its output is a pipe that nobody reads any more, its errors go to a full disk."""
    read, write = os.pipe()
    os.close(read)
    with Path("/dev/full").open("w") as full:
        process = subprocess.run(
            [sys.executable, str(ROOT / "train.py"), *TINY, "evals=none", "hydra.run.dir=run"],
            cwd=tmp_path,
            stdout=write,
            stderr=full,
            timeout=300,
            check=False,
        )
    os.close(write)
    assert process.returncode == 0
    assert json.loads((tmp_path / "run" / "result.json").read_text())["steps"] == 12
    said = " ".join((tmp_path / "run" / "log.txt").read_text().split())
    assert "result run/result.json" in said


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("birds\tand\nbees é 鳥 [/b] :dog:", "birds\tand\nbees é 鳥 [/b] :dog:"),
        ("\x1b]0;title\x07\x1b[2J", r"\x1b]0;title\x07\x1b[2J"),
        ("a\rb\x9b31m", r"a\x0db\x9b31m"),
        ("exe\u202egpj.png", r"exe\u202egpj.png"),
        (os.fsdecode(b"caf\xe9.jpg"), r"caf\xe9.jpg"),
        ("\ud800", r"\ud800"),
    ],
)
def test_names_do_nothing_to_a_terminal(text: str, shown: str) -> None:
    assert printable(text) == shown
