"""The study of augmentation: every case by every side, and what is written."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_lightning.data.image_ops import Operation
from mixer_lightning.kernels import augment as kernel
from mixer_lightning.studies import augment, augment_cases

pytestmark = pytest.mark.skipif(kernel.native() is None, reason="no C++ compiler")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three JPEG files in two classes."""
    random = np.random.default_rng(0)
    for i in range(3):
        folder = tmp_path / "photos" / f"class{i % 2}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(random.integers(0, 256, (40, 50, 3), dtype=np.uint8)).save(folder / f"{i}.JPEG")
    return tmp_path / "photos"


def test_cases_cover_both_sets_of_operations_and_the_recipes() -> None:
    found = list(augment_cases.cases(2))
    names = [case.name for case in found]
    assert len(set(names)) == len(names)
    assert {"Rotate", "Rotate, big_vision", "colour jitter 0.4"} <= set(names)
    assert [name.split(":")[0] for name in names if ": " in name] == list(augment_cases.RECIPES)
    done = {int(operation) for case in found for operation in case.operations.ravel()}
    assert {Operation.EQUALIZE, Operation.TF_ROTATE, Operation.CUTOUT, Operation.SHARPNESS} <= done
    without = [case.name for case in found if case.pillow is None]
    assert without == [name for name in names if "big_vision" in name]


def test_sides_agree_and_are_timed(root: Path) -> None:
    images, broken = augment_cases.photographs(sorted(root.glob("*/*")))
    assert not broken
    assert tuple(images.shape) == (3, 3, 224, 224)
    case = next(case for case in augment_cases.cases(3) if case.name == "Invert")
    assert case.pillow is not None
    assert np.asarray(case.pillow(Image.new("RGB", (4, 4)))).min() == 255
    row = augment_cases.compare(case, images, rounds=2)
    assert row["most"] == row["differing"] == 0
    assert min(row["pillow"], row["pytorch"], row["native"]) > 0
    assert row["pytorch_ratio_low"] <= row["pytorch_ratio"] <= row["pytorch_ratio_high"]


def test_what_it_writes(
    root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "class0" / "broken.jpg").write_bytes(b"nothing")
    every = list(augment_cases.cases(3))
    chosen = [case for case in every if case.name in ("Invert", "Rotate", "Rotate, big_vision")]
    monkeypatch.setattr(augment_cases, "cases", lambda _: iter(chosen))
    augment.main([f"root={root}", "rounds=2", f"out={tmp_path / 'out'}"])
    with (tmp_path / "out/augment_cpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["what"] for row in rows] == ["Invert", "Rotate", "Rotate, big_vision"]
    assert [row["pillow"] == "" for row in rows] == [False, False, True]
    text = (tmp_path / "out/augment_cpu.md").read_text()
    assert "3 photographs of 224 px" in text
    said = f"left out: 1 of 4 files cannot be decoded, such as {root}/class0/broken.jpg: "
    assert said in capsys.readouterr().out
    assert "| Invert | 0." in text
    assert "Command: `mixer study augment root=" in text


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["root=/nowhere/at/all"], "there is no folder"),
        (["rounds=1"], "at least 2"),
        (["images=0"], "at least 1"),
    ],
)
def test_wrong_arguments(
    argv: list[str], message: str, root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        augment.settings([f"root={root}", *argv])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
