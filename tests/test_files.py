"""Files in odd places: file systems that lack a call, users without a home, any locale."""

from __future__ import annotations

import ast
import errno
import logging
import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from conftest import ROOT
from mixer_lightning import files


@pytest.fixture(autouse=True)
def _nothing_said_yet():
    for once in (files._say_unsynced, files._temporary_cache):
        once.cache_clear()


def fsync_answers(monkeypatch, error: int) -> None:
    """Let folders answer fsync as CIFS and some FUSE file systems do."""
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(error, os.strerror(error))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


@pytest.mark.parametrize("error", [errno.EINVAL, errno.ENOSYS, errno.ENOTSUP])
def test_a_folder_that_cannot_be_flushed_is_said_once(tmp_path, monkeypatch, caplog, error):
    fsync_answers(monkeypatch, error)
    with caplog.at_level(logging.WARNING):
        for text in ("a", "b"):
            files.write_text(tmp_path / "x", text)
    assert (tmp_path / "x").read_text() == "b"
    assert [os.strerror(error) in record.message for record in caplog.records] == [True]


def test_a_disk_that_fails_is_an_error(tmp_path, monkeypatch):
    fsync_answers(monkeypatch, errno.EIO)
    with pytest.raises(OSError, match="Input/output"):
        files.write_text(tmp_path / "x", "a")


@pytest.fixture
def no_home(tmp_path, monkeypatch) -> Path:
    """The temporary folder of a machine that knows neither HOME nor the user."""
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def home(cls):
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", classmethod(home))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    return tmp_path


def test_without_a_home_the_cache_is_a_private_folder(no_home, caplog):
    with caplog.at_level(logging.WARNING):
        folder = files.cache_home()
    assert folder == files.cache_home() == no_home / f"mixer_lightning-{os.getuid()}"
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    (record,) = caplog.records
    assert "no home folder" in record.message
    assert "XDG_CACHE_HOME" in record.message


def test_a_home_that_cannot_be_written(tmp_path, monkeypatch, caplog):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", lambda: Path("/"))  # as containers have it for an unknown user
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert files.cache_home().parent == tmp_path
    assert "may not be written" in caplog.text


def test_a_home_that_may_not_be_entered(tmp_path, monkeypatch, caplog):
    """HOME of another user, of mode 700, as an image keeps it that is started with an unknown user id."""
    look = os.stat

    def stat_of_another(path, *args, **kwargs):
        if str(path).startswith(f"{tmp_path}/root/"):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return look(path, *args, **kwargs)

    (tmp_path / "root").mkdir()
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "root"))
    monkeypatch.setattr(os, "stat", stat_of_another)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert files.cache_home() == tmp_path / f"mixer_lightning-{os.getuid()}"
    assert f"{tmp_path}/root may not be written" in caplog.text


@pytest.mark.parametrize("kind", ["writable", "link", "file"])
def test_compiled_code_is_not_loaded_from_a_folder_that_others_can_write(no_home, kind):
    taken = no_home / f"mixer_lightning-{os.getuid()}"
    if kind == "writable":
        taken.mkdir()
        taken.chmod(0o777)
    elif kind == "link":
        (no_home / "theirs").mkdir()
        taken.symlink_to(no_home / "theirs")
    else:
        taken.touch()
    assert files.cache_home() != taken
    assert stat.S_IMODE(files.cache_home().stat().st_mode) == 0o700


def test_every_text_file_is_opened_as_utf8():
    found = []
    for path in sorted((ROOT / "mixer_lightning").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            is_text = name in ("read_text", "write_text")
            if name == "open" and isinstance(node.func, ast.Attribute):
                mode = node.args[0] if node.args else ast.Constant("r")
                is_text = isinstance(mode, ast.Constant) and set(str(mode.value)) <= set("rwaxt+")
                is_text &= ast.unparse(node.func.value) not in ("tarfile", "run.dashboards")
            is_ours = name == "write_text" and len(node.args) == 2  # files.write_text, which encodes
            if is_text and not is_ours and "encoding" not in {keyword.arg for keyword in node.keywords}:
                found.append(f"{path.name}:{node.lineno}")
    assert found == []


def test_recipes_are_read_in_any_locale(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\n# Vögel, 鳥\nimage_sise: 8\n"
    (tmp_path / "experiment/birds.yaml").write_text(text, encoding="utf-8")
    done = subprocess.run(
        [
            sys.executable,
            "-X",
            "utf8=0",
            str(ROOT / "train.py"),
            f"--config-dir={tmp_path}",
            "experiment=birds",
        ],
        env=os.environ | {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"},
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 2
    assert "'image_sise': did you mean 'image_size'" in done.stderr
    assert "Traceback" not in done.stderr
