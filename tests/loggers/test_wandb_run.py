"""A run as W&B has it: read back from what it would upload, over a crash and the session that goes on."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import yaml
from lightning.pytorch import Callback
from wandb_files import Stored, sessions

from conftest import TINY
from mixer_lightning import results
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine import run
from mixer_lightning.engine.labels import labels_of
from mixer_lightning.loggers import wandb as wandb_dashboard
from mixer_lightning.loggers.workspaces import KINDS, VARIED, Bars, Lines, Pictures, sections

CRASH_AFTER = 5  # steps; the last checkpoint is of step 3


class Crash(Callback):
    """Ends the first session in the middle."""

    left = 1

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        if pl_module.step == CRASH_AFTER and Crash.left:
            Crash.left -= 1
            raise RuntimeError("the power is gone")


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory) -> Path:
    """A run that broke and went on, with images of val and test, and all that a dashboard shows."""
    folder = tmp_path_factory.mktemp("wandb") / "mine" / "mixer_digits-digits-seed0"
    words = (
        *TINY, "name=mine", "duration.steps=8", "eval_every.steps=4", "log_every_steps=2", "logger=wandb",
        "logger.wandb.mode=offline", "logger.wandb.tags=[first]", "evals=[accuracy,confusion]",
        "train_split=train[:90%]", "val_split=train[90%:]", "+callbacks.crash._target_=test_wandb_run.Crash",
    )  # fmt: skip
    Crash.left = 1
    codes = [run.train(compose_one("train", words), folder) for _ in range(2)]
    assert codes == [1, 0]
    return folder


@pytest.fixture(scope="module")
def stored(run_dir) -> list[Stored]:
    return sessions(run_dir)


def test_both_sessions_are_one_run(run_dir, stored):
    assert len(stored) == 2
    wandb_id = (run_dir / "wandb/id.txt").read_text()
    assert {each.run["run_id"] for each in stored} == {wandb_id}
    for each in stored:
        assert each.run["display_name"] == "mine/mixer_digits-digits-seed0"
        assert (each.run["run_group"], each.run["job_type"]) == ("mine", "pretraining")
        assert each.run["tags"] == ["mixer_digits", "digits", "first"]
    assert [each.exit_code for each in stored] == [1, 0]


def test_the_config_is_the_recipe(run_dir, stored):
    recipe = yaml.safe_load((run_dir / results.RECIPE).read_text())
    for each in stored:
        assert {key: value for key, value in each.config.items() if key in recipe} == recipe


def test_it_goes_on_at_its_step_and_the_last_session_has_it_all(run_dir, stored):
    """The first session had saved step 3: the row of step 2 is given once more, that of step 4 made once more."""
    first, second = ([row["_step"] for row in each.history] for each in stored)
    assert first == [2, 4]
    assert second == [2, 4, 6, 8]
    rows: dict[int, dict[str, float]] = {}
    for row in results.read_metrics(run_dir):
        rows.setdefault(int(row.pop("step")), {}).update(row)
    found = {row["_step"]: row for row in stored[-1].history}
    assert found.keys() == rows.keys()
    for step, row in rows.items():
        assert {name: found[step].get(name) for name in row} == pytest.approx(row), step


def test_what_the_server_has_is_not_sent_again():
    """A run that W&B knows up to step 4 is given the rows of later steps, and its best of all."""
    sent: list[tuple[int, dict[str, float]]] = []
    run = SimpleNamespace(step=5, summary={}, log=lambda row, step: sent.append((step, row)))
    before = [{"step": 2, "val/top1": 0.9}, {"step": 4, "val/top1": 0.5}, {"step": 6, "val/top1": 0.6}]
    logger = wandb_dashboard.StepLogger(run, before=before)
    assert sent == [(6, {"val/top1": 0.6})]
    assert logger.best == {"best/val/top1": 0.9}


def test_an_evaluation_of_a_step_that_is_closed_stands_at_the_next():
    sent: list[tuple[int, dict[str, float]]] = []
    run = SimpleNamespace(step=5, summary={}, log=lambda row, step: sent.append((step, row)))
    logger = wandb_dashboard.StepLogger(run)
    logger.log_metrics({"val/top1": 0.6}, 4)
    logger.log_metrics({"train/loss": 1.0}, 8)
    assert sent == [(5, {"val/top1": 0.6}), (8, {"train/loss": 1.0})]
    assert run.summary == {"best/val/top1": 0.6}


def test_the_summary_has_last_and_best(run_dir, stored):
    summary = stored[-1].summary
    rows = results.read_metrics(run_dir)
    for name, choose in (("val/top1", max), ("test/top1", max), ("val/loss", min), ("test/loss", min)):
        values = [row[name] for row in rows if name in row]
        assert len(values) == 2
        assert summary[name] == pytest.approx(values[-1])
        assert summary[wandb_dashboard.best_name(name)] == pytest.approx(choose(values))


def test_pictures_and_predictions_come_at_the_end(run_dir, stored):
    assert not stored[0].names() & {"pictures/confusion", "charts/confusion_table"}
    (chart,) = run_dir.glob("wandb/offline-run-*/files/media/table/charts/confusion_table*.json")
    counts = json.loads(chart.read_text())["data"]
    assert sum(row[2] for row in counts) == 360  # the test images
    (table,) = run_dir.glob("wandb/offline-run-*/files/media/table/examples/misclassified*.json")
    content = json.loads(table.read_text())
    assert content["columns"] == ["image", "name", "true", "predicted", "probability"]
    assert len(content["data"]) == 25
    assert all(row[2] != row[3] for row in content["data"])
    pictures = [path for path in stored[-1].artifacts["examplesmisclassified"] if path.endswith(".png")]
    assert len(pictures) == 25
    assert stored[-1].history[-1]["_step"] == 8
    assert "pictures/confusion._type" in stored[-1].history[-1]


# ------------------------------------------------------------------------------------ what dashboards show


@pytest.mark.parametrize("kind", KINDS)
def test_every_chart_shows_what_a_run_logs(kind, stored):
    logged = set().union(*(each.names() for each in stored))
    for section in sections(kind):
        for chart in section.charts:
            if isinstance(chart, Lines | Bars):
                names = set(chart.metrics)
            elif isinstance(chart, Pictures):
                names = set(chart.names)
            else:
                names = {chart.metric}
            assert names <= logged, chart


def test_settings_are_keys_of_the_recipe(run_dir):
    known = results.flatten(yaml.safe_load((run_dir / results.RECIPE).read_text()))
    assert set(VARIED) <= set(known)


# ------------------------------------------------------------------------------------------------- labels


@pytest.mark.parametrize(
    ("words", "tables"),
    [
        (("experiment=mixer_b16_imagenet1k",), ["mixer_table3", "convmixer_imagenet"]),
        (("experiment=mixer_h14_jft300m",), ["mixer_table2", "mixer_table3"]),
        (("experiment=convmixer_768_32_imagenet1k",), ["convmixer_imagenet"]),
        (("experiment=convmixer_256_8_p1_k9_cifar10_200ep",), ["convmixer_ablation"]),
        (("experiment=mixer_digits",), []),
    ],
)
def test_an_experiment_has_the_tags_of_its_tables(words, tables):
    recipe = compose_one("train", words)
    group, kind, tags = labels_of(recipe)
    assert (group, kind) == (recipe.name, "pretraining")
    assert list(tags) == [*(recipe.choices[each] for each in ("experiment", "model", "data")), *tables]


def test_a_transfer_is_one():
    recipe = compose_one("finetune", ["model=mixer_s16", "data=digits", "checkpoint=x.npz", "name=mine"])
    assert labels_of(recipe) == ("mine", "transfer", ("mixer_s16", "digits"))
    assert labels_of(compose_one("train", ["model=mixer_b16", "data=imagenet1k"])).tags == (
        "mixer_b16",
        "imagenet1k",
    )
