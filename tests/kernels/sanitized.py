"""Programs of C++ that AddressSanitizer and UndefinedBehaviorSanitizer watch."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from mixer_lightning.kernels import compiler


def sanitized(name: str, folder: Path, *flags: str) -> Path:
    """<name>.cpp, which lies here, compiled into a folder; its first finding ends it. The test is skipped without."""
    program, source = folder / name, Path(__file__).with_name(f"{name}.cpp")
    common = [
        "-std=c++17",
        "-g",
        "-O1",
        "-Wno-psabi",
        "-fno-sanitize-recover=all",
        "-fsanitize=address,undefined",
    ]
    built = subprocess.run(
        ["g++", *common, *flags, f"-I{compiler.CSRC}", str(source), "-o", str(program)],
        check=False,
        capture_output=True,
    )
    if b"asan" in built.stderr:
        pytest.skip("g++ has no sanitizers here")
    assert built.returncode == 0, built.stderr.decode()
    return program
