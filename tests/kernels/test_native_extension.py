"""Native code is compiled once per machine, and done without where that fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mixer_lightning.kernels import extension

NAMES = sorted(path.stem for path in extension.CSRC.glob("*.cpp"))


def test_sources_are_found() -> None:
    assert "depthwise" in NAMES


def test_a_missing_or_failing_compiler_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    for compiler in ("no-such-compiler", "false"):
        monkeypatch.setenv("CXX", compiler)
        assert extension.load("depthwise") is None
    assert list((tmp_path / "mixer_lightning").iterdir()) == []


def test_an_unknown_name_is_not_built(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert extension.load("no_such_kernel") is None


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("name", NAMES)
def test_it_is_compiled_once_and_found_again(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    assert extension.load(name) is not None
    assert [path.suffix for path in (tmp_path / "mixer_lightning").iterdir()] == [".so"]

    def refuse(*_: object, **__: object) -> None:
        raise subprocess.SubprocessError

    monkeypatch.setattr(subprocess, "run", refuse)
    assert extension.load(name) is not None


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_changed_source_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(extension, "CSRC", tmp_path)
    for number in (1, 2):
        (tmp_path / "answer.cpp").write_text(f'extern "C" int answer() {{ return {number}; }}')
        library = extension.load("answer")
        assert library is not None
        assert library.answer() == number


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_changed_header_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(extension, "CSRC", tmp_path)
    (tmp_path / "reply.cpp").write_text('#include "number.h"\nextern "C" int reply() { return NUMBER; }')
    for number in (1, 2):
        (tmp_path / "number.h").write_text(f"constexpr int NUMBER = {number};")
        library = extension.load("reply")
        assert library is not None
        assert library.reply() == number
