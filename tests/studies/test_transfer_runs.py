"""The runs of a transfer suite: their recipes, and the choice of a learning rate."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from mixer_lightning import results
from mixer_lightning.api import create_model
from mixer_lightning.data.crops import FILTERS
from mixer_lightning.data.stateless_random import sample_keys
from mixer_lightning.screen import Screen
from mixer_lightning.studies.suites import read_suite
from mixer_lightning.studies.transfer_plan import format_time, show_plan
from mixer_lightning.studies.transfer_runs import Step, SuiteRuns, best_learning_rate, run_all
from mixer_lightning.targets import build

OVERRIDES = ["checkpoint=x", "model=mixer_b16"]


def test_a_run_that_saw_the_test_set_chooses_nothing(tmp_path: Path) -> None:
    suite = read_suite("vtab").only(["vtab_svhn"])
    (task,) = suite.tasks
    steps = SuiteRuns(suite, folder=tmp_path, overrides=OVERRIDES, seeds=[0]).dev(task)
    for step, val in zip(steps, (0.5, 0.7, 0.7), strict=True):
        step.run_dir.mkdir(parents=True)
        results.write_result(step.run_dir, {"metrics": {"val/top1": val}})
    assert best_learning_rate(task, steps) == 0.01  # the smaller of equals
    results.write_result(steps[0].run_dir, {"metrics": {"val/top1": float("nan")}})
    assert best_learning_rate(task, steps) == 0.01  # what is not a number chooses nothing
    results.write_result(steps[0].run_dir, {"metrics": {"val/top1": 0.5, "test/top1": 0.9}})
    with pytest.raises(ValueError, match="test set, which chooses nothing"):
        best_learning_rate(task, steps)
    results.write_result(steps[0].run_dir, {"metrics": {"train/loss": 0.5}})
    with pytest.raises(ValueError, match="no val/top1"):
        best_learning_rate(task, steps)


def finish(step: Step, **metrics: float) -> None:
    """What a run leaves behind."""
    record = {"recipe": step.recipe.to_dict(), "best": None, "images_per_second": 1.0, "wall_seconds": 1.0}
    step.run_dir.mkdir(parents=True)
    results.write_result(step.run_dir, {**record, "metrics": {f"test/{k}": v for k, v in metrics.items()}})


def test_the_table_keeps_what_other_suites_made_of_the_same_checkpoint(tmp_path: Path) -> None:
    for name, task, given in (
        ("avg5", "cifar10", OVERRIDES),
        ("avg5", "pets", ["checkpoint=other", *OVERRIDES[1:]]),
        ("vtab", "vtab_svhn", OVERRIDES),
    ):
        runs = SuiteRuns(read_suite(name).only([task]), folder=tmp_path, overrides=given, seeds=[0, 1])
        for step, top1 in zip(runs.final(runs.suite.tasks[0], 0.01), (0.5, 0.6), strict=True):
            finish(step, top1=top1, top5=1.0)
    metrics = runs.metrics()  # of vtab, whose command came last
    assert metrics == {task: {"test/top1": [0.5, 0.6]} for task in ("vtab_svhn", "cifar10")}


def test_a_folder_of_another_checkpoint_is_refused_before_any_run(tmp_path: Path) -> None:
    suite = read_suite("avg5").only(["cifar10", "pets"])
    made, now = (
        SuiteRuns(suite, folder=tmp_path, overrides=[f"checkpoint={name}", *OVERRIDES[1:]], seeds=[0])
        for name in ("1k/B_16.npz", "21k/B_16.npz")
    )
    finish(made.dev(suite.tasks[1])[0], top1=0.5)
    with pytest.raises(ValueError, match=r"(?s)checkpoint: '1k/B_16.npz' there.*\(folder=<another>\)"):
        run_all(now, Screen())
    assert not (tmp_path / "cifar10").exists()


def test_figures_of_weights_that_have_been_replaced_do_not_stand(tmp_path: Path) -> None:
    torch.save(create_model("mixer_digits", num_classes=7).state_dict(), tmp_path / "x.pth")
    overrides = [f"checkpoint={tmp_path}/x.pth"]
    suite = read_suite("fewshot").only(["pets"])
    runs = SuiteRuns(suite, folder=tmp_path, overrides=overrides, seeds=[0])
    recipe, run_dir = runs.fewshot(suite.fewshot[0])
    run_dir.mkdir(parents=True)
    record = {"metrics": {}, "recipe": recipe.to_dict(), "checkpoint": {"sha256": "0" * 64}}
    (run_dir / results.EVALUATION).write_text(json.dumps(record))
    with pytest.raises(ValueError, match="other weights than"):
        run_all(runs, Screen(silent=True))


def test_the_protocol_of_the_five() -> None:
    """Steps of arXiv 2010.11929, Table 4; learning rates of arXiv 2105.01601, App. C; dev splits of the former."""
    suite = read_suite("avg5")
    runs = SuiteRuns(suite, folder=Path("x"), overrides=OVERRIDES, seeds=[0])
    expected = {
        "imagenet1k": (20_000, 500, "train[:99%]", "train[99%:]"),
        "cifar10": (10_000, 500, "train[:98%]", "train[98%:]"),
        "cifar100": (10_000, 500, "train[:98%]", "train[98%:]"),
        "pets": (500, 100, "train[:90%]", "train[90%:]"),
        "flowers": (500, 100, "train[:90%]+val[:90%]", "train[90%:]+val[90%:]"),
    }
    assert [task.name for task in suite.tasks] == list(expected)
    for task in suite.tasks:
        dev, (final,) = runs.dev(task), runs.final(task, 0.03)
        assert [step.recipe.optimizer["lr"] for step in dev] == [0.003, 0.01, 0.03, 0.06]
        assert [str(step.run_dir) for step in dev][:2] == [
            f"x/{task.name}/dev-lr0.003",
            f"x/{task.name}/dev-lr0.01",
        ]
        for step in (*dev, final):
            recipe = step.recipe
            steps, warm_up, *_ = expected[task.name]
            assert recipe.choices["data"] == task.name
            assert (recipe.duration.steps, recipe.schedule["warmup_steps"]) == (steps, warm_up)
            assert (recipe.batch_size, recipe.clip_grad_norm, recipe.optimizer["momentum"]) == (512, 1.0, 0.9)
            assert recipe.optimizer["weight_decay"] == recipe.augment["mixup"] == 0
        assert {(s.recipe.train_split, s.recipe.val_split) for s in dev} == {expected[task.name][2:]}
        assert {step.recipe.test_split for step in dev} == {"none"}
        assert final.recipe.train_split == ("train+val" if task.name == "flowers" else "train")
        assert final.recipe.val_split == "none"
        assert final.recipe.test_split == ("val" if task.name == "imagenet1k" else "test")
        assert ("real" in final.recipe.evals) == (task.name == "imagenet1k")
    assert runs.final(suite.tasks[0], 0.03)[0].recipe.evals.keys() == {"accuracy", "real"}


def test_the_protocol_of_vtab() -> None:
    """2,500 steps of 512 (arXiv 2105.01601, App. C), views of Scenic's vtab_plainvit_config.py at 224 px: pp_train is
    resize(256)|random_crop(224)|flip_lr, pp_eval resize(224); tasks without, as in arXiv 1912.11370, appendix F."""
    suite = read_suite("vtab")
    runs = SuiteRuns(suite, folder=Path("x"), overrides=OVERRIDES, seeds=[0])
    uncropped = {"clevr_count", "clevr_dist", "dmlab", "kitti_dist", "dsprites_loc"}
    unflipped = {"dsprites_loc", "dsprites_ori", "smallnorb_azimuth"}
    for task in suite.tasks:
        dev, (final,) = runs.dev(task), runs.final(task, 0.03)
        assert [step.recipe.optimizer["lr"] for step in dev] == [0.003, 0.01, 0.03]
        name = task.name.removeprefix("vtab_")
        for step in (*dev, final):
            recipe = step.recipe
            assert recipe.data["task"] == name
            assert (recipe.duration.steps, recipe.batch_size, recipe.schedule["warmup_steps"]) == (
                2500,
                512,
                200,
            )
            augment = build(recipe.augment)
            size = np.array([500]), np.array([250])
            trained = augment.train_crops(sample_keys(0, [(0, 0, 0)]), *size, recipe.image_size)
            tested = augment.eval_crops(*size, recipe.image_size)
            side = 224 if name in uncropped else 256
            for crops, to in ((trained, side), (tested, 224)):
                assert (crops.to_width, crops.to_height) == (to, to)
                assert (crops.width, crops.height) == (500, 250)
                assert FILTERS[crops.filter[0]] == "tf_bilinear"
            assert (tested.x, tested.y) == (0, 0)
            assert recipe.augment["flip"] == (0.0 if name in unflipped else 0.5)
        assert {step.recipe.data["split"] for step in dev} == {"train800"}
        assert {step.recipe.test_split for step in dev} == {"none"}
        assert (final.recipe.data["split"], final.recipe.val_split) == ("trainval1000", "none")


def test_what_the_user_sets_goes_before_the_suite_but_not_before_its_splits() -> None:
    suite = read_suite("vtab").only(["vtab_dsprites_ori"])
    given = [*OVERRIDES, "transfer=flowers", "augment.flip=0.0", "batch_size=32"]
    runs = SuiteRuns(suite, folder=Path("x"), overrides=given, seeds=[0])
    recipe = runs.final(suite.tasks[0], 0.01)[0].recipe
    assert (recipe.choices["transfer"], recipe.duration.steps, recipe.batch_size) == ("flowers", 500, 32)


def test_what_is_wrong_with_a_recipe_is_said_with_its_task() -> None:
    suite = read_suite("all").only(["pets"])
    for more, message in (
        ("optimizer.momentun=1", "pets: unknown key 'optimizer.momentun'"),
        ("duration.epochs=3", "pets: the suite's durations are in steps, found 3 epochs"),
    ):
        with pytest.raises(ValueError, match=message):
            SuiteRuns(suite, folder=Path("x"), overrides=[*OVERRIDES, more], seeds=[0]).check()


def test_times_are_short() -> None:
    assert [format_time(seconds) for seconds in (12, 600, 7200)] == ["12 s", "10 min", "2.0 h"]


def test_a_plan_says_device_days(capsys: pytest.CaptureFixture[str]) -> None:
    suite = read_suite("vtab").only(["vtab_dsprites_ori"])
    runs = SuiteRuns(suite, folder=Path("x"), overrides=OVERRIDES, seeds=[0])
    (task,) = suite.tasks
    images = sum(step.images for step in (*runs.dev(task), *runs.final(task, task.learning_rates[0])))
    show_plan(runs, Screen(), images_per_second=10.0)
    assert f"device_days {images / 10 / 86400:.3g};" in capsys.readouterr().out
