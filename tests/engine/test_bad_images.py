"""Images that a run named as bad may be removed or repaired, as it advises; nothing else of the data may change."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from conftest import TINY
from mixer_lightning import results
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine import run
from mixer_lightning.engine.callbacks import MetricsLog


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Photographs of many sizes, which are read anew each time."""
    noise = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in ("cats", "dogs"):
            (tmp_path / "pets" / split / name).mkdir(parents=True)
            for i in range(6):
                pixels = noise.integers(0, 256, (12, 12 + i, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "pets" / split / name / f"{i}.jpg")
    return tmp_path / "pets"


@pytest.fixture
def session(tmp_path: Path, photos: Path) -> Callable[..., int]:
    """A session of one run, six steps in two epochs; `damage` is done after the third. The exit code."""
    words = [
        *TINY,
        "data=folder",
        f"data.root={photos}",
        "image_size=8",
        "batch_size=4",
        "duration.steps=null",
    ]
    words += ["duration.epochs=2", "eval_every.steps=4", "checkpoint_every.steps=1", "max_bad_fraction=0.01"]

    def session(damage: Callable[[], object] = lambda: None) -> int:
        on_step = MetricsLog.on_step

        def and_damage(self, trainer, module):
            on_step(self, trainer, module)
            if module.step == 3:
                damage()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(MetricsLog, "on_step", and_damage)
            return run.train(compose_one("train", words), tmp_path / "run")

    return session


@pytest.mark.parametrize("kind", ["folder", "shards"])
def test_what_holds_all_images_is_lost_in_mid_run(tmp_path, photos, kind, capsys):
    """No image is a bad one then: the run stops, and once the folder or shard is back it ends with the same bits."""
    words = [
        *TINY,
        f"data={kind}",
        "image_size=8",
        "batch_size=4",
        "duration.steps=9",
        "eval_every.steps=100",
    ]
    words += ["checkpoint_every.steps=2", "max_bad_fraction=0.5"]
    if kind == "shards":
        (tmp_path / "set").mkdir()
        for split in ("train", "val"):
            with webdataset.TarWriter(str(tmp_path / "set" / f"{split}-0.tar")) as tar:
                for number, path in enumerate(sorted(photos.glob(f"{split}/*/*.jpg"))):
                    tar.write({"__key__": f"{number:03d}", "jpg": path.read_bytes(), "cls": number % 2})
    else:
        photos.rename(tmp_path / "set")
    words.append(f"data.root={tmp_path / 'set'}")
    assert run.train(compose_one("train", words), tmp_path / "undisturbed") == 0
    lost = tmp_path / "set" / "train-0.tar" if kind == "shards" else tmp_path / "set"
    on_step = MetricsLog.on_step

    def and_lose(self, trainer, module):
        on_step(self, trainer, module)
        if module.step == 3 and kind == "shards":
            shutil.copy2(lost, tmp_path / "kept")
            os.truncate(lost, 2000)
        elif module.step == 3:
            lost.rename(tmp_path / "kept")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MetricsLog, "on_step", and_lose)
        assert run.train(compose_one("train", words), tmp_path / "run") == 1
    said = capsys.readouterr().out
    expected = (
        "Put the whole file back" if kind == "shards" else "can be read no more: No such file or directory"
    )
    assert expected in said
    assert str(lost) in said
    assert "another image is used instead" not in said
    assert "The last good checkpoint, step 2," in said
    (tmp_path / "kept").replace(lost)
    assert run.train(compose_one("train", words), tmp_path / "run") == 0
    states = [
        torch.load(tmp_path / name / results.LAST, weights_only=True) for name in ("run", "undisturbed")
    ]
    for name, value in states[1]["state_dict"].items():
        assert torch.equal(states[0]["state_dict"][name], value), name


def cut(*paths: Path) -> None:
    for path in paths:
        path.write_bytes(path.read_bytes()[:200])


def finishes(session: Callable[..., int], tmp_path: Path, root: Path, said: Callable[[], str]) -> None:
    """What was never named must not go; as it stands the run ends, and knows its data again."""
    other = root / "val" / "cats" / "0.jpg"
    content = other.read_bytes()
    other.unlink()
    assert session() == 2
    assert "holds a run on other data" in said()
    other.write_bytes(content)
    assert session() == 0
    result = results.read_result(tmp_path / "run")
    assert result["images"] == {split: len(list((root / split).rglob("*.jpg"))) for split in ("train", "val")}
    assert result["steps"] == 6
    said()
    assert session() == 0
    assert "has finished this recipe" in said()
    other.unlink()
    assert session() == 2


def test_a_bad_image_of_an_evaluation_is_removed(tmp_path, photos, session, capsys):
    bad = [photos / "val" / name for name in ("dogs/3.jpg", "cats/1.jpg")]
    assert session(lambda: cut(*bad)) == 1
    said = capsys.readouterr().out
    assert "put a good file in its place, or remove it" in said.replace("\n", " ")
    while bad:  # each session names one
        named = next(path for path in bad if f"cannot read {path}" in said)
        bad.remove(named)
        named.unlink()
        if bad:
            assert session() == 1
            said = capsys.readouterr().out
            assert f"1 val image named in {results.BAD_IMAGES} is gone" in said
    with (tmp_path / "run" / results.BAD_IMAGES).open("a") as file:
        file.write("{torn")
    finishes(session, tmp_path, photos, lambda: capsys.readouterr().out)


def test_bad_training_images_are_removed_and_repaired(tmp_path, photos, session, capsys):
    bad = [photos / "train" / name for name in ("dogs/3.jpg", "cats/1.jpg", "cats/2.jpg")]
    whole = bad[0].read_bytes()
    assert session(lambda: cut(*bad)) == 1
    said = capsys.readouterr().out
    assert "remove them, or allow more" in said.replace("\n", " ")
    named = [path for path in bad if f"cannot read {path}" in said]
    assert len(named) >= 2
    for path in bad:
        path.unlink() if path in named[1:] else path.write_bytes(whole)
    finishes(session, tmp_path, photos, lambda: capsys.readouterr().out)


def test_an_attempt_that_saved_nothing_leaves_no_bad_images_and_the_next_one_names_them_anew(
    tmp_path, photos, session
):
    bad = photos / "train" / "dogs" / "3.jpg"
    cut(bad)
    assert session() == 0
    (row,) = results.read_bad_images(tmp_path / "run")
    shutil.rmtree(tmp_path / "run")
    (tmp_path / "run").mkdir()
    for each in (row, {**row, "key": 1}):
        results.append_bad_image(tmp_path / "run", each)
    assert session() == 0
    assert results.read_bad_images(tmp_path / "run") == [row]
    assert row["image"] == str(bad)
    assert row["labels"] == [1]
