"""Processes that would not do the same are told apart before the first step."""

from __future__ import annotations

import dataclasses
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mixer_lightning.data import identity
from mixer_lightning.data.sources.folder import folder
from mixer_lightning.engine import agreement
from mixer_lightning.engine.agreement import Agreement, Standing, code_digests, disagreement


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for split in ("train", "val"):
        for name in ("cat", "dog"):
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = np.full((8, 8, 3), 40 * number + 100 * (name == "dog"), np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{number}.png")
    return tmp_path / "images"


def standing(images: Path, **changes: Any) -> Standing:
    mine = Standing(
        host="node1",
        recipe={"seed": 0, "optimizer": {"lr": 0.1, "beta": 0.9}},
        code={"losses.py": "a", "models/mixer.py": "b"},
        versions={"python": "3.11.7", "torch": "2.15.0"},
        kernels={"depthwise": True, "jpeg": True},
        data=identity.record(folder(root=str(images))),
        step=3,
    )
    return dataclasses.replace(mine, **changes)


def test_the_same_on_other_hosts_may_train(images: Path) -> None:
    copied = shutil.copytree(images, images.parent / "copied")
    standings = [standing(images), standing(copied, host="node2")]
    assert disagreement(standings) is None
    assert standings[0].digest() == standings[1].digest()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"recipe": {"seed": 1, "optimizer": {"lr": 0.2, "beta": 0.9}}}, "another recipe .*, optimizer.lr, seed: "),
        ({"versions": {"python": "3.11.7", "torch": "2.14.0"}}, "torch 2.14.0 and not 2.15.0 of process 0"),
        ({"versions": {"python": "3.11.7"}}, "torch missing and not 2.15.0 of process 0"),
        ({"code": {"losses.py": "a", "models/mixer.py": "c"}}, "another version .*: models/mixer.py differ"),
        ({"code": {"losses.py": "a"}}, "another version .*: models/mixer.py differ"),
        ({"kernels": {"depthwise": True, "jpeg": False}}, "native code for jpeg: install a C.. compiler on all nodes"),
        ({"step": 1000}, "stands at step 1,000, process 0 at 3"),
    ],
)  # fmt: skip
def test_what_differs_is_named(images: Path, changes: dict[str, Any], said: str) -> None:
    mine, other = standing(images), standing(images, host="node2", **changes)
    assert mine.digest() != other.digest()
    found = disagreement([mine, mine, other])
    assert found is not None
    assert re.search(said, found)
    assert found.startswith("process 2")


def rename(images: Path) -> None:
    (images / "train" / "cat" / "0.png").rename(images / "train" / "cat" / "00.png")


def swap_labels(images: Path) -> None:
    (images / "train" / "cat").rename(images / "train" / "x")
    (images / "train" / "dog").rename(images / "train" / "cat")
    (images / "train" / "x").rename(images / "train" / "dog")


def remove(images: Path) -> None:
    (images / "val" / "dog" / "1.png").unlink()


def replace(images: Path) -> None:
    for path in (images / "val").rglob("*.png"):
        Image.fromarray(np.random.default_rng(0).integers(0, 256, (9, 9, 3)).astype(np.uint8)).save(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (rename, "as many train images as here, but others, or under other names"),
        (swap_labels, "looked at are other files"),
        (remove, "4 val there"),
        (replace, "val images of the same names, but 4 of 4"),
    ],
)
def test_other_images_on_a_node_are_named(images: Path, change: Any, said: str) -> None:
    copied = shutil.copytree(images, images.parent / "copied")
    change(copied)
    mine, other = standing(images), standing(copied, host="node2")
    assert mine.digest() != other.digest()
    found = disagreement([mine, other])
    assert found is not None
    assert "process 1 (on node2) has other data than process 0 (on node1" in found
    assert said in found


def test_one_changed_line_of_the_package_is_another_version(tmp_path: Path) -> None:
    shutil.copytree(agreement.PACKAGE, tmp_path / "package", ignore=shutil.ignore_patterns("__pycache__"))
    before = code_digests()
    assert {"losses.py", "engine/agreement.py", "kernels/csrc/depthwise.cpp"} <= before.keys()
    assert code_digests(tmp_path / "package") == before
    with (tmp_path / "package" / "losses.py").open("a") as file:
        file.write("# one more line\n")
    after = code_digests(tmp_path / "package")
    assert [name for name in before if before[name] != after[name]] == ["losses.py"]


def test_a_single_process_compares_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(agreement, "gather_objects", lambda value: pytest.fail("a collective call"))
    Agreement(None, {}).on_begin(None, None)  # type: ignore[arg-type]
