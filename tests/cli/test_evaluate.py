"""A checkpoint judged alone: with the recipe of its run, with other data, by several processes."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from conftest import ROOT, TINY
from mixer_lightning import results
from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.from_checkpoint import label_of, labels_of
from mixer_lightning.config.overrides import quoted
from mixer_lightning.config.recipe import EvaluationRecipe
from mixer_lightning.engine.run import evaluate, refuse_another_evaluation, train
from mixer_lightning.reports.sweep import summarise_evaluations
from mixer_lightning.results import read_evaluation

TRAINED = (
    *TINY,
    "model.num_blocks=2",
    "augment.eval_interpolation=bicubic",
    "train_split='train[:80%]'",
    "val_split='train[80%:]'",
    "evals=[accuracy,fewshot,confusion]",
    "evals.fewshot.shots=[1,5]",
    "evals.fewshot.at_end=true",
)
WORDS = ("trainer=cpu", "trainer.precision=32-true", "evals.fewshot.shots=[1,5]")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small Mixer trained on digits."""
    run_dir = tmp_path_factory.mktemp("it's trained") / "mixer_digits-digits-seed0"
    assert train(compose_one("train", TRAINED), run_dir) == 0
    return run_dir


def composed(*words: str) -> EvaluationRecipe:
    """The recipe of a command line."""
    return compose_one("evaluate", words)


def given(checkpoint: Path) -> str:
    return f"checkpoint={quoted(str(checkpoint))}"


def photos(folder: Path, *, spoilt: bool = False) -> Path:
    """Six images of each of three classes to train on, one to test."""
    for split, count in (("train", 6), ("test", 1)):
        for name in "abc":
            for i in range(count):
                path = folder / split / name / f"{i}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng([ord(name), i]).integers(0, 256, (9, 9 + i, 3), dtype=np.uint8)
                Image.fromarray(noise).save(path)
    if spoilt:
        (folder / "test" / "b" / "0.png").write_bytes(b"no picture")
    return folder


# ----------------------------------------------------------------------------------------- in a training run


def test_a_compiled_run_and_its_evaluation_say_what_the_others_do(tmp_path, run_dir, monkeypatch):
    compiled, compile_ = [], torch.compile

    def traced(function, **_):
        """Dynamo alone: to compile what it has traced would take minutes."""
        compiled.append(function)
        return compile_(function, backend="eager")

    monkeypatch.setattr(torch, "compile", traced)
    assert train(compose_one("train", [*TRAINED, "trainer.compile=true"]), tmp_path / "run") == 0
    rows, expected = (results.read_metrics(each) for each in (tmp_path / "run", run_dir))
    for name in ("train/loss", "val/top1", "fewshot/digits_5shot"):
        mine, theirs = ([row[name] for row in each if name in row] for each in (rows, expected))
        assert mine == pytest.approx(theirs, rel=1e-5)

    compiled.clear()
    words = ("evals=[accuracy,fewshot]", *WORDS, "trainer.compile=true")
    recipe = composed(given(run_dir / results.LAST), *words)
    assert evaluate(recipe, tmp_path / "evaluation") == 0
    assert len(compiled) == 2  # logits, and features for few-shot
    found = read_evaluation(tmp_path / "evaluation")["metrics"]
    assert found == pytest.approx({k: v for k, v in rows[-1].items() if k in found}, rel=1e-4)


def test_training_evaluates_and_draws_at_its_end(run_dir):
    rows = results.read_metrics(run_dir)
    assert [row["step"] for row in rows if "val/top1" in row] == [6, 12]
    assert [row["step"] for row in rows if "fewshot/digits_5shot" in row] == [12]
    assert {name for row in rows for name in row if not name.startswith("train/")} == {
        *("step", "epoch", "val/top1", "val/top5", "val/loss", "test/top1", "test/top5", "test/loss"),
        *("fewshot/digits_1shot", "fewshot/digits_5shot"),
    }
    for name in ("confusion.png", "misclassified.png", "misclassified.csv", "per_class_test.csv"):
        assert (run_dir / name).stat().st_size > 100
    with np.load(run_dir / results.CONFUSION) as found:
        matrix = found["matrix"]
    assert matrix.trace() / matrix.sum() == rows[-1]["test/top1"]


# ------------------------------------------------------------------------------------------ with its recipe


def evaluated(run_dir: Path) -> dict[str, float]:
    """Metrics of a run's evaluations, but for losses: an evaluation trains nothing, and has none."""
    metrics = results.read_result(run_dir)["metrics"]
    return {k: v for k, v in metrics.items() if not k.startswith("train/") and not k.endswith("/loss")}


def test_figures_are_those_of_the_run(run_dir, tmp_path, capsys, monkeypatch):
    clock = itertools.count(0, 61)
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    recipe = composed(given(run_dir / results.LAST), "evals=[accuracy,fewshot,confusion]", *WORDS)
    assert evaluate(recipe, tmp_path / "found") == 0
    record = read_evaluation(tmp_path / "found")
    assert record["metrics"] == evaluated(run_dir)
    images = record["data"]["images"]
    assert (images["train"] + images["val"], images["test"]) == (1437, 360)
    assert 250 < images["val"] < 330
    assert record["checkpoint"]["path"] == str(run_dir / results.LAST)
    assert len(record["checkpoint"]["sha256"]) == 64
    assert (tmp_path / "found" / "misclassified.csv").read_text() == (
        run_dir / "misclassified.csv"
    ).read_text()
    assert (tmp_path / "found" / "confusion.png").exists()
    said = capsys.readouterr().out.replace("\n", "")
    assert f"{tmp_path}/found/confusion.png, {tmp_path}/found/misclassified.png" in said
    assert re.search(
        r"test \d+/\d+ .* left", said
    )  # how far it is: a line a minute, and this clock goes fast


def test_the_recipe_of_the_run_is_taken_and_the_command_line_has_the_last_word(run_dir):
    recipe = composed(given(run_dir))
    assert (recipe.image_size, recipe.model["num_blocks"]) == (8, 2)
    assert recipe.choices["data"] == "digits"
    assert recipe.augment["eval_interpolation"] == "bicubic"
    assert recipe.augment["eval_crop"] == 1.0
    assert (recipe.train_split, recipe.val_split, recipe.test_split) == ("train[:80%]", "train[80%:]", None)
    assert recipe.name.startswith("evaluate/")
    other = composed(given(run_dir), "image_size=16", "augment.eval_crop=0.5", "val_split=none", "name=mine")
    assert (other.image_size, other.augment["eval_crop"], other.val_split, other.name) == (
        16,
        0.5,
        "none",
        "mine",
    )
    elsewhere = composed(given(run_dir), "data=cifar10")
    assert (elsewhere.choices["data"], elsewhere.train_split, elsewhere.val_split) == (
        "cifar10",
        "train",
        None,
    )
    assert elsewhere.image_size == 8
    anew = composed(given(run_dir), "augment=transfer")
    assert (anew.augment["eval_interpolation"], anew.augment["eval_crop"]) == ("area", 0.875)


def test_other_files_take_the_customary_views():
    recipe = composed("checkpoint=Mixer-B_16.npz", "data=cifar10", "evals=[test,fewshot]")
    assert recipe.choices["model"] == "mixer_b16"
    assert (recipe.image_size, recipe.augment["eval_crop"]) == (224, 0.875)
    assert recipe.name == "evaluate/Mixer-B_16-test-fewshot"
    assert list(recipe.evals) == ["test", "fewshot"]
    convmixer = composed("checkpoint=timm:convmixer_768_32.in1k", "data=imagenet1k")
    assert convmixer.augment["mean"] == [0.485, 0.456, 0.406]
    assert convmixer.name == "evaluate/convmixer_768_32.in1k-accuracy"


def test_checkpoints_have_names_of_their_own(run_dir):
    folder = run_dir.parent.name.replace(" ", "_").replace("'", "_")
    assert label_of(str(run_dir)) == label_of(str(run_dir / results.BEST)) == f"{folder}-{run_dir.name}"
    assert label_of(str(run_dir / results.LAST)) == f"{folder}-{run_dir.name}-last"
    assert label_of("~/weights/Mixer-B_16.npz") == "Mixer-B_16"
    assert labels_of(["a/w.npz", "b/w.npz", "w-1.npz", "x.npz"]) == ["w-2", "w-3", "w-1", "x"]
    assert label_of("timm:mixer_b16_224.goog_in21k") == "mixer_b16_224.goog_in21k"


# ---------------------------------------------------------------------------------------- what is refused


def test_a_head_for_other_classes_is_refused_but_features_serve(run_dir, tmp_path, capsys):
    words = [given(run_dir), "data=folder", f"data.root={photos(tmp_path / 'photos')}", *WORDS]
    assert evaluate(composed(*words, "evals=[test,fewshot]"), tmp_path / "both") == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "is not a classifier of folder, which test would judge: 10 classes there, 3 here. " in said
    assert "use evals=fewshot" in said
    assert not (tmp_path / "both").exists()
    assert evaluate(composed(*words, "evals=fewshot"), tmp_path / "features") == 0
    assert set(read_evaluation(tmp_path / "features")["metrics"]) == {
        "fewshot/folder_1shot",
        "fewshot/folder_5shot",
    }


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["data=digits"], "'checkpoint' is missing"),
        (
            ["checkpoint=no/such.npz", "data=digits", "model=mixer_digits"],
            "there is no checkpoint file no/such.npz",
        ),
        (["RUN", "evals=none"], "'evals' is empty"),
        (
            ["RUN", "val_split=none", "evals=val"],
            "evals.val: no split 'val', there are: test. Take evals=test",
        ),
        (["RUN", "evals=real"], "evals.real: ReaL has classes up to 999, but digits has 10"),
        (["RUN", "model.num_blocks=3"], "does not fit"),
    ],
)
def test_mistakes_end_with_a_sentence_and_leave_nothing(run_dir, tmp_path, capsys, words, message):
    words = [given(run_dir) if word == "RUN" else word for word in words]
    assert evaluate(composed(*words, "trainer=cpu"), tmp_path / "found") == 2
    assert message in " ".join(capsys.readouterr().out.split())
    assert not (tmp_path / "found").exists()


def test_an_evaluation_does_not_take_the_place_of_another(run_dir, tmp_path, capsys):
    words = [given(run_dir), "evals=test", *WORDS[:2]]
    assert evaluate(composed(*words), tmp_path / "found") == 0
    before = read_evaluation(tmp_path / "found")
    for change in ("image_size=16", given(run_dir / results.LAST)):
        other = composed(
            *(word for word in words if word.partition("=")[0] != change.partition("=")[0]), change
        )
        assert evaluate(other, tmp_path / "found") == 2
        assert change.partition("=")[0] in capsys.readouterr().out
        assert read_evaluation(tmp_path / "found") == before
    assert evaluate(composed(*words, "device_batch=5"), tmp_path / "found") == 0
    assert read_evaluation(tmp_path / "found")["metrics"] == before["metrics"]


def test_an_evaluation_of_an_earlier_version_may_be_made_again(run_dir, tmp_path, capsys):
    """Its evaluation.json holds the keys of training too."""
    recipe = composed(given(run_dir), "evals=test", *WORDS[:2])
    old = recipe.to_dict() | {
        "batch_size": 64,
        "optimizer": {"lr": 0.03},
        "duration": {"steps": 1},
        "logger": {},
    }
    (tmp_path / results.EVALUATION).write_text(json.dumps({"metrics": {}, "recipe": old}))
    refuse_another_evaluation(recipe, tmp_path)
    (tmp_path / results.EVALUATION).write_text(json.dumps({"metrics": {}, "recipe": old | {"image_size": 9}}))
    with pytest.raises(ValueError, match="image_size: 9 there, 8 here"):
        refuse_another_evaluation(recipe, tmp_path)


def test_an_unreadable_image_fails_and_is_named(run_dir, tmp_path, capsys):
    root = photos(tmp_path / "photos", spoilt=True)
    recipe = composed(given(run_dir), "data=folder", f"data.root={root}", "evals=fewshot", *WORDS)
    assert evaluate(recipe, tmp_path / "found") == 1
    assert f"cannot read {root}/test/b/0.png" in "".join(capsys.readouterr().out.split("\n"))
    assert not (tmp_path / "found" / results.EVALUATION).exists()


def test_several_evaluations_make_one_table(tmp_path, capsys):
    for name, metrics in (("one", {"val/top1": 0.5}), ("two", {"fewshot/x_5shot": 0.25})):
        (tmp_path / name).mkdir()
        (tmp_path / name / results.EVALUATION).write_text(json.dumps({"metrics": metrics}))
    assert summarise_evaluations({tmp_path / "one": {"k": 1}, tmp_path / "two": {"k": 2}}) == 0
    said = capsys.readouterr().out
    assert "50.00 %" in said
    assert "25.00 %" in said
    assert summarise_evaluations({tmp_path / "one": {}, tmp_path / "three": {}}) == 1


# ------------------------------------------------------------------------------------------- as a program


def start(folder: Path, *words: str, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mixer_lightning", "evaluate", *words],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": str(ROOT)} | env,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    try:
        texts = [process.communicate(timeout=300)[0] for process in processes]
    except subprocess.TimeoutExpired:
        for process in processes:
            process.kill()
        raise
    return [(process.returncode, text) for process, text in zip(processes, texts, strict=True)]


@pytest.mark.slow
def test_two_processes_of_a_launcher_find_what_one_found(run_dir, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    words = [given(run_dir / results.LAST), "evals=[accuracy,fewshot,confusion]", "evals.fewshot.shots=[1,5]"]
    words += ["trainer=ddp", "trainer.accelerator=cpu", "trainer.precision=32-true", "device_batch=17"]
    meeting = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    both = [start(tmp_path, *words, **meeting, RANK=rank, LOCAL_RANK=rank) for rank in "01"]
    (first, said), (second, nothing) = finish(both)
    assert (first, second) == (0, 0), said + nothing
    assert "test/top1" in said
    assert "top1" not in nothing
    (file,) = tmp_path.glob(f"runs/evaluate/*/*/{results.EVALUATION}")
    record: dict[str, Any] = json.loads(file.read_text())
    assert record["metrics"] == evaluated(run_dir)
    assert (file.parent / "misclassified.csv").read_text() == (run_dir / "misclassified.csv").read_text()


def test_a_slip_of_the_finger_is_answered(tmp_path):
    ((code, said),) = finish(
        [start(tmp_path, "checkpoint=x.npz", "evlas=test", "evals.accuracy.spits=[val]")]
    )
    assert code == 2
    assert "unknown key 'evlas': did you mean 'evals'?" in said
    assert "did you mean 'evals.accuracy.splits'?" in said
    assert not (tmp_path / "runs").exists()


# ------------------------------------------------------------------------------------------ with other folders


@pytest.fixture(scope="module")
def of_photos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The photos, and a run that has learnt them."""
    root = tmp_path_factory.mktemp("photos")
    folder, run_dir = photos(root / "photos"), root / "mixer_digits-folder-seed0"
    words = (*TINY, "data=folder", f"data.root={folder}", "image_size=8", "batch_size=6")
    assert train(compose_one("train", [*words, "evals=accuracy"]), run_dir) == 0
    return folder, run_dir


def judged(run_dir: Path, out: Path, root: Path) -> dict[str, Any]:
    """Image by image: what was hit, by file, and the figures."""
    recipe = composed(given(run_dir), f"data.root={root}", "evals=[accuracy,confusion]", *WORDS[:2])
    assert evaluate(recipe, out) == 0
    with np.load(out / results.CONFUSION) as found:
        matrix = found["matrix"]
    return {"matrix": matrix, "metrics": read_evaluation(out)["metrics"]}


def test_a_hold_out_folder_is_judged_by_the_names_of_its_classes(of_photos, tmp_path):
    """Without train/, without some classes, in another order, or class folders alone: each image is judged the same."""
    folder, run_dir = of_photos
    whole = judged(run_dir, tmp_path / "whole", folder)
    assert whole["matrix"].shape == (3, 3)
    for place, classes in (("alone/test", "abc"), ("few/test", "cb"), ("bare", "cb")):
        for name in classes:
            shutil.copytree(folder / "test" / name, tmp_path / place / name)
        root = (tmp_path / place).parent if place.endswith("test") else tmp_path / place
        found = judged(run_dir, tmp_path / f"{root.name} judged", root)
        rows = ["abc".index(name) for name in classes]
        np.testing.assert_array_equal(found["matrix"][rows], whole["matrix"][rows])
        assert found["matrix"].sum() == len(classes)
        assert found["metrics"]["test/top1"] == found["matrix"].trace() / len(classes)


def test_a_class_that_the_checkpoint_does_not_know_is_named(of_photos, tmp_path, capsys):
    folder, run_dir = of_photos
    shutil.copytree(folder / "test", tmp_path / "more/test")
    (tmp_path / "more/test/b").rename(tmp_path / "more/test/emu")
    recipe = composed(given(run_dir), f"data.root={tmp_path / 'more'}", *WORDS[:2])
    assert evaluate(recipe, tmp_path / "out") == 2
    assert "1 of its 3 classes are none of the 3 that the checkpoint knows: 'emu'" in capsys.readouterr().out
    recipe = composed(given(run_dir), f"data.root={tmp_path / 'more'}", "evals=fewshot", *WORDS[:2])
    assert evaluate(recipe, tmp_path / "out") == 2
    assert "folder has no train split, from which few-shot takes its images" in capsys.readouterr().out
