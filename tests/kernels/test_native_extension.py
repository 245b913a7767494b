"""Native code is compiled once per machine, and done without where that fails."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from mixer_lightning.kernels import compiler, extension

NAMES = sorted(path.stem for path in compiler.CSRC.glob("*.cpp"))


def test_sources_are_found() -> None:
    assert "depthwise" in NAMES


def test_a_missing_or_failing_compiler_leaves_nothing_and_is_said_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    extension._say.cache_clear()
    for name, why in (
        ("no-such-compiler", "no C++ compiler was found"),
        ("false", "the C++ compiler failed"),
    ):
        caplog.clear()
        monkeypatch.setenv("CXX", name)
        assert extension.load("depthwise") is None
        assert extension.load("jpeg") is None
        (said,) = caplog.messages
        assert said == (
            f"native code is missing, decoding and training on a CPU are slower: {why}. "
            "Install g++, or name a compiler by CXX"
        )
    assert list((tmp_path / "mixer_lightning").iterdir()) == []
    extension._say.cache_clear()


def test_levels_are_those_of_the_psabi(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Of the wheel's libraries the best is taken that the processor can run; flags of two real processors."""
    monkeypatch.setattr(compiler, "PREBUILT", tmp_path)
    for level in compiler.LEVELS:
        (tmp_path / level).mkdir()
        (tmp_path / level / "depthwise.so").touch()
    haswell = "fpu sse2 ssse3 fma cx16 sse4_1 sse4_2 movbe popcnt aes xsave avx f16c abm bmi1 avx2 bmi2"
    skylake_x = f"{haswell} avx512f avx512dq avx512cd avx512bw avx512vl"
    ivy_bridge = "fpu sse2 ssse3 cx16 sse4_1 sse4_2 popcnt aes xsave avx f16c"
    for flags, level in ((haswell, "x86-64-v3"), (skylake_x, "x86-64-v4"), (ivy_bridge, None)):
        monkeypatch.setattr(compiler, "_abilities", lambda flags=flags: frozenset(flags.split()))
        found = compiler.prebuilt("depthwise")
        assert (found and found.parent.name) == level
        assert compiler.prebuilt("no_such_kernel") is None


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


def test_a_cache_folder_that_cannot_be_is_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    extension._say.cache_clear()
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert extension.load("depthwise") is None
    assert "Not a directory" in caplog.messages[0]
    assert "or name another by XDG_CACHE_HOME" in caplog.messages[0]
    extension._say.cache_clear()


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_library_that_was_cut_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(compiler, "CSRC", tmp_path)
    (tmp_path / "whole.cpp").write_text('extern "C" int whole() { return 3; }')
    compile_library = compiler.compile_library
    monkeypatch.setattr(compiler, "compile_library", lambda _, library, **__: library.write_bytes(b""))
    (tmp_path / "mixer_lightning").mkdir()
    assert extension.load("whole") is None
    monkeypatch.setattr(compiler, "compile_library", compile_library)
    library = extension.load("whole")
    assert library is not None
    assert library.whole() == 3


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_changed_source_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "CSRC", tmp_path)
    for number in (1, 2):
        (tmp_path / "answer.cpp").write_text(f'extern "C" int answer() {{ return {number}; }}')
        library = extension.load("answer")
        assert library is not None
        assert library.answer() == number


@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_a_changed_header_is_compiled_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(compiler, "CSRC", tmp_path)
    (tmp_path / "reply.cpp").write_text('#include "number.h"\nextern "C" int reply() { return NUMBER; }')
    for number in (1, 2):
        (tmp_path / "number.h").write_text(f"constexpr int NUMBER = {number};")
        library = extension.load("reply")
        assert library is not None
        assert library.reply() == number
