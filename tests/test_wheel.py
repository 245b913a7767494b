"""The wheel, outside any checkout: it holds every package, data file and recipe, and its programs run."""

from __future__ import annotations

import json
import os
import platform
import shutil
import subprocess
import sys
import tomllib
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from conftest import ROOT, TINY
from mixer_lightning.kernels import compiler

#: What stands in the package's folders and is not Python.
DATA_FILES = {".csv", ".cpp", ".h", ".html"}

LEVEL = "x86-64-v3"
HAS_NATIVE_CODE = (
    platform.system() == "Linux" and platform.machine() == "x86_64" and shutil.which("g++") is not None
)

Mixer = Callable[..., subprocess.CompletedProcess[str]]


def tracked() -> list[Path]:
    """Files of the checkout that git knows, relative to its root."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [Path(name) for name in done.stdout.split("\0") if name and (ROOT / name).is_file()]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from a copy of the tracked files."""
    folder = tmp_path_factory.mktemp("wheel")
    for path in tracked():
        (folder / "checkout" / path).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / path, folder / "checkout" / path)
    pip = [sys.executable, "-m", "pip", "wheel", "--no-deps", "--no-build-isolation", "--no-index", "-w", "."]
    done = subprocess.run(
        [*pip, "./checkout"],
        cwd=folder,
        env=os.environ | {"MIXER_LIGHTNING_LEVELS": LEVEL},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def mixer(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Mixer:
    """mixer("train", ...): a command of the unpacked wheel, in a folder that is empty at first."""
    installed = tmp_path_factory.mktemp("site-packages")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(installed)
    folder = tmp_path_factory.mktemp("elsewhere")
    env = os.environ | {"PYTHONPATH": str(installed)}
    code = "import mixer_lightning; print(mixer_lightning.__file__)"
    where = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, env=env, capture_output=True, text=True, check=True
    )
    assert where.stdout.startswith(str(installed))  # not the checkout, nor an editable install of it

    def run(*argv: str) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "mixer_lightning", *argv],
            cwd=folder,
            env=env,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done

    run.folder, run.env = folder, env  # type: ignore[attr-defined]
    return run


def test_every_package_is_listed():
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    there = {".".join(path.parent.parts) for path in tracked() if path.name == "__init__.py"}
    folders = {
        path.parent for path in tracked() if path.suffix == ".py" and path.parts[0] == "mixer_lightning"
    }
    assert {".".join(folder.parts) for folder in folders} == there  # none without __init__.py
    assert listed == there | {"mixer_lightning.conf"}


def test_the_wheel_holds_every_file(wheel: Path):
    with zipfile.ZipFile(wheel) as archive:
        held = set(archive.namelist())
        (scripts,) = (archive.read(name).decode() for name in held if name.endswith("entry_points.txt"))
    expected = set()
    for path in tracked():
        if path.parts[0] == "mixer_lightning" and path.suffix in DATA_FILES | {".py"}:
            expected.add(str(path))
        if path.parts[0] == "conf":
            expected.add(str("mixer_lightning" / path))
    kernels = {Path(path).stem for path in expected if path.endswith(".cpp")} if HAS_NATIVE_CODE else ()
    expected |= {f"mixer_lightning/kernels/prebuilt/{LEVEL}/{name}.so" for name in kernels}
    assert {name for name in held if ".dist-info/" not in name} == expected
    tag = f"py3-none-linux_{platform.machine()}" if HAS_NATIVE_CODE else "py3-none-any"
    assert wheel.name.endswith(f"-{tag}.whl")  # for every Python
    assert "mixer = mixer_lightning.cli.start:start" in scripts


@pytest.mark.skipif(not HAS_NATIVE_CODE, reason="no g++ on Linux x86-64")
def test_native_code_needs_no_compiler(mixer: Mixer, tmp_path: Path):
    if compiler.LEVELS[LEVEL] - compiler._abilities():
        pytest.skip(f"this processor is below {LEVEL}")
    env = mixer.env | {"CXX": "no-such-compiler", "XDG_CACHE_HOME": str(tmp_path)}  # type: ignore[attr-defined]
    code = "from mixer_lightning.kernels.compiled import compiled; print(compiled())"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=env, capture_output=True, text=True, check=True
    )
    assert "True" in done.stdout
    assert "False" not in done.stdout


def test_help_shows_the_recipes_inside(mixer: Mixer):
    assert "train a model from scratch" in mixer("--help").stdout
    assert "mixer_l16_imagenet21k" in mixer("train", "--help").stdout
    assert mixer("models").stdout.count("mixer_") > 5


def test_ones_own_recipe_comes_by_config_dir(mixer: Mixer):
    folder: Path = mixer.folder  # type: ignore[attr-defined]
    (folder / "my" / "experiment").mkdir(parents=True)
    (folder / "my" / "experiment" / "birds.yaml").write_text(
        "# @package _global_\ndefaults:\n  - override /model: mixer_s16\nname: birds\n"
    )
    shown = yaml.safe_load(mixer("train", "--config-dir=my", "experiment=birds", "--cfg", "job").stdout)
    assert (shown["name"], shown["model"]["hidden_dim"]) == ("birds", 512)


def test_it_trains_finetunes_predicts_and_exports(mixer: Mixer):
    folder: Path = mixer.folder  # type: ignore[attr-defined]
    mixer("train", *TINY)
    trained = Path("runs/default/mixer_digits-digits-seed0")
    mixer("finetune", f"checkpoint={trained}", *TINY[1:], "device_batch=60", "schedule.warmup_steps=2")
    (tuned,) = (path.relative_to(folder) for path in folder.glob("runs/finetune/*"))
    result = json.loads((folder / tuned / "result.json").read_text())
    assert result["recipe"]["checkpoint"] == str(trained)

    (folder / "images").mkdir()
    for i in range(3):
        pixels = np.random.default_rng(i).integers(0, 256, (12, 10, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(folder / "images" / f"{i}.png")
    mixer("predict", f"checkpoint={tuned}", "images=images", "output=out.json")
    assert "images/2.png" in (folder / "out.json").read_text()
    mixer("export", f"checkpoint={tuned}", "to=safetensors", "output=digits.safetensors")
    assert (folder / "digits.safetensors").stat().st_size > 1000
