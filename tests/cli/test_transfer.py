"""The transfer suite: its plan, the choice of a learning rate, its table, and a suite that is killed on the way."""

from __future__ import annotations

import io
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_lightning import results
from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.save import save_timm
from mixer_lightning.cli import transfer
from mixer_lightning.reports import transfer as tables

TASKS = ("vtab_svhn", "vtab_eurosat")


@pytest.fixture
def words(tmp_path: Path) -> list[str]:
    """A command line for two miniature tasks, in the layout of extracted VTAB data."""
    random = np.random.default_rng(0)
    for task in TASKS:
        folder = tmp_path / "vtab" / task.removeprefix("vtab_")
        for kind, count in (("train800", 12), ("val200", 6), ("train800val200", 18), ("test", 10)):
            (folder / "images" / kind).mkdir(parents=True)
            lines = []
            for i in range(count):
                file = io.BytesIO()
                shade = np.full((8, 8, 3), 25 * (i % 10) + 10) + random.integers(0, 10, (8, 8, 3))
                Image.fromarray(shade.astype(np.uint8)).save(file, "PNG")
                (folder / "images" / kind / f"{i:06}.png").write_bytes(file.getvalue())
                lines.append(f"images/{kind}/{i:06}.png {i % 10}\n")
            (folder / f"{kind}.txt").write_text("".join(lines))
    save_timm(create_model("mixer_digits", num_classes=10, image_size=8), tmp_path / "tiny.safetensors")
    return [
        f"checkpoint={tmp_path / 'tiny.safetensors'}",
        "model=mixer_digits",
        "suite=vtab",
        f"tasks={','.join(TASKS)}",
        "seeds=0,1",
        f"data.root={tmp_path / 'vtab'}",
        "data.check_counts=false",
        "image_size=8",
        "batch_size=6",
        "device_batch=6",
        "duration.steps=4",
        "eval_every.steps=4",
        "checkpoint_every.steps=4",
        "schedule.warmup_steps=1",
        "trainer=cpu",
        "trainer.precision=32-true",
    ]


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "mixer_lightning", "transfer", *words],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_suite_that_is_killed_ends_with_the_same_table(words: list[str], tmp_path: Path) -> None:
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    process = start(words, tmp_path / "killed")
    killed = tmp_path / "killed/runs/transfer/tiny.safetensors"
    until = time.monotonic() + 120
    while len(list(killed.glob("*/*/result.json"))) < 4:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    made = {path: path.stat().st_mtime_ns for path in killed.glob("*/*/result.json")}
    assert not (killed / "transfer.json").exists()

    processes = [start(words, tmp_path / name) for name in ("whole", "killed")]
    said = [process.communicate(timeout=180)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())  # nothing was repeated
    rows = [
        json.loads((tmp_path / name / "runs/transfer/tiny.safetensors/transfer.json").read_text())
        for name in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
    assert rows[0]["runs"].keys() == set(TASKS)
    assert all(len(metrics["test/top1"]) == 2 for metrics in rows[0]["runs"].values())

    for folder in (killed / task for task in TASKS):
        for run in folder.glob("dev-*"):  # selection has not looked at the test set
            assert not any("test/" in line for line in (run / "metrics.jsonl").read_text().splitlines())
        best = max(
            (json.loads((run / "result.json").read_text())["metrics"]["val/top1"], -float(run.name[6:]))
            for run in folder.glob("dev-*")
        )
        recipes = [json.loads((run / "result.json").read_text())["recipe"] for run in folder.glob("final-*")]
        assert {recipe["optimizer"]["lr"] for recipe in recipes} == {-best[1]}
        assert sorted(recipe["seed"] for recipe in recipes) == [0, 1]


def test_features_are_judged_once(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(transfer, "FEWSHOT", ("digits", "pets"))
    folder = tmp_path / "suite"
    fewshot = [
        *(word for word in words[:2]),
        "suite=fewshot",
        "tasks=digits",
        f"folder={folder}",
        "image_size=8",
        "trainer=cpu",
    ]
    assert transfer.main([*fewshot, "--dry-run"]) == 0
    assert "the features of digits for few-shot" in capsys.readouterr().out
    assert transfer.main(fewshot) == 0
    assert "fewshot/digits_25shot" in capsys.readouterr().out
    figures = json.loads((folder / "transfer.json").read_text())["runs"]["digits"]
    assert set(figures) == {f"fewshot/digits_{shots}shot" for shots in (1, 5, 10, 25)}
    assert 0.1 < figures["fewshot/digits_1shot"][0] < figures["fewshot/digits_25shot"][0] < 1
    made = (folder / "digits/fewshot/evaluation.json").stat().st_mtime_ns
    assert transfer.main(fewshot) == 0
    assert (folder / "digits/fewshot/evaluation.json").stat().st_mtime_ns == made
    assert transfer.main([*fewshot, "evals.fewshot.shots=[2]"]) == 2  # other figures do not pass for these
    assert "holds another evaluation" in capsys.readouterr().out


def test_a_run_that_saw_the_test_set_chooses_nothing(words: list[str], tmp_path: Path) -> None:
    chosen, rest = transfer.settings([*words, f"folder={tmp_path / 'suite'}"])
    suite = transfer.Suite(chosen.tasks, folder=chosen.folder, overrides=rest, seeds=[0])
    steps = suite.dev(suite.tasks[0])
    for step, val in zip(steps, (0.5, 0.7, 0.7), strict=True):
        step.run_dir.mkdir(parents=True)
        results.write_result(step.run_dir, {"metrics": {"val/top1": val}})
    assert transfer.chosen_rate(suite.tasks[0], steps) == 0.01  # the smaller of equals
    results.write_result(steps[0].run_dir, {"metrics": {"val/top1": 0.5, "test/top1": 0.9}})
    with pytest.raises(ValueError, match="test set, which chooses nothing"):
        transfer.chosen_rate(suite.tasks[0], steps)
    results.write_result(steps[0].run_dir, {"metrics": {"train/loss": 0.5}})
    with pytest.raises(ValueError, match="no val/top1"):
        transfer.chosen_rate(suite.tasks[0], steps)


def test_the_plan_counts_runs_steps_and_images(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = [
        word for word in words if not word.startswith(("tasks=", "duration", "batch", "seeds", "schedule"))
    ]
    assert transfer.main([*short, "--dry-run", "rate=1000"]) == 0
    said = capsys.readouterr().out
    # 19 tasks, three learning rates and three seeds, 2,500 steps of 512 images (arXiv 2105.01601, App. C)
    assert "114" in said
    assert f"{19 * 6 * 2500 * 512:,}" in said
    assert f"{19 * 6 * 2500 * 512 / 1000 / 3600:,.1f} h" in said
    assert not (tmp_path / "runs").exists()


def test_the_protocol_of_the_five() -> None:
    """Steps of arXiv 2010.11929, Table 4; learning rates of arXiv 2105.01601, App. C; dev splits of the former."""
    suite = transfer.Suite(
        transfer.AVG5, folder=Path("x"), overrides=["checkpoint=x", "model=mixer_b16"], seeds=[0]
    )
    expected = {
        "imagenet1k": (20_000, 500, "train[:99%]", "train[99%:]"),
        "cifar10": (10_000, 500, "train[:98%]", "train[98%:]"),
        "cifar100": (10_000, 500, "train[:98%]", "train[98%:]"),
        "pets": (500, 100, "train[:90%]", "train[90%:]"),
        "flowers": (500, 100, "train[:90%]+val[:90%]", "train[90%:]+val[90%:]"),
    }
    for task in transfer.AVG5:
        dev, (final,) = suite.dev(task), suite.final(task, 0.03)
        assert [step.recipe.optimizer["lr"] for step in dev] == [0.003, 0.01, 0.03, 0.06]
        for step in (*dev, final):
            recipe = step.recipe
            steps, warm_up, *_ = expected[task.data]
            assert (recipe.duration.steps, recipe.schedule["warmup_steps"]) == (steps, warm_up)
            assert (recipe.batch_size, recipe.clip_grad_norm, recipe.optimizer["momentum"]) == (512, 1.0, 0.9)
            assert recipe.optimizer["weight_decay"] == recipe.augment["mixup"] == 0
        assert {(s.recipe.train_split, s.recipe.val_split) for s in dev} == {expected[task.data][2:]}
        assert {step.recipe.test_split for step in dev} == {"none"}
        assert final.recipe.val_split == "none"
        assert final.recipe.test_split == ("val" if task.data == "imagenet1k" else "test")
    assert suite.final(transfer.AVG5[0], 0.03)[0].recipe.evals.keys() == {"accuracy", "real"}


@pytest.mark.parametrize(
    ("parts", "published"),
    [  # arXiv 2010.11929, Table 2: ImageNet, CIFAR-10, CIFAR-100, Pets, Flowers; the mean: arXiv 2105.01601, Table 2
        ((88.55, 99.50, 94.55, 97.56, 99.68), 95.97),
        ((85.30, 99.15, 93.25, 94.67, 99.61), 94.39),
        ((87.54, 99.37, 93.51, 96.62, 99.63), 95.33),
    ],
)
def test_avg_5_of_published_parts(parts: tuple[float, ...], published: float) -> None:
    runs = {data: {"test/top1": [part / 100]} for data, part in zip(tables.FIVE, parts, strict=True)}
    row = tables.row(runs)
    assert row["Avg 5"] == pytest.approx((published, 0.0), abs=0.0065)
    assert row["ImNet"][0] == pytest.approx(parts[0])
    assert "VTAB-1k" not in row
    assert "ReaL" not in row


def test_vtab_is_the_mean_over_tasks_not_over_groups() -> None:
    names = [name for group in tables.VTAB_GROUPS.values() for name in group]
    assert len(names) == 19
    values = {name: [i / 20, i / 25] for i, name in enumerate(names)}
    row = tables.row({f"vtab_{name}": {"test/top1": seeds} for name, seeds in values.items()})
    means = [100 * statistics.fmean(seeds[k] for seeds in values.values()) for k in (0, 1)]
    assert row["VTAB-1k"] == pytest.approx((statistics.fmean(means), statistics.stdev(means)))
    assert row["natural"][0] != pytest.approx(row["VTAB-1k"][0])
    incomplete = {f"vtab_{name}": {"test/top1": values[name]} for name in names[1:]}
    assert "VTAB-1k" not in tables.row(incomplete)
    stopped = {f"vtab_{name}": {"test/top1": values[name][: 1 if name == "svhn" else 2]} for name in names}
    assert set(tables.row(stopped)) == {"specialized", "structured"}  # svhn lacks a seed


def test_published_rows_stand_beside_it(tmp_path: Path) -> None:
    rows = tables.published("mixer_l16")
    assert {row["avg5"] for row in rows} == {"87.25", "93.63", "93.86", "93.91", "94.51", "94.77", "95.13"}
    tables.write(tmp_path, {"ImNet": (80.0, 0.1)}, rows, {"imagenet1k": {"test/top1": [0.801, 0.799]}})
    assert "| this checkpoint | 80.00 ± 0.10 |" in (tmp_path / "transfer.md").read_text()
    assert (tmp_path / "transfer.csv").read_text().splitlines()[1] == "imagenet1k,test/top1,80,0.141421,2"


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data=cifar10"], "'data' is the suite's to say"),
        (["tasks=vtab_birds"], "has no 'vtab_birds'"),
        (["seeds=a"], "expected whole numbers"),
        (["seeds=0,0"], "a seed stands there twice"),
        (["rate=0", "--dry-run"], "rate must be above 0"),
        (["evals=none"], "'evals' is the suite's to say"),
        (["nonsense"], "not of the form key=value"),
        (["optimzer.momentum=1"], "did you mean 'optimizer'"),
    ],
)
def test_wrong_words_end_it_before_any_work(
    words: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = transfer.main([*words, *more])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert code == 2
    assert message in said.out + said.err
    assert not (tmp_path / "runs").exists()


def test_many_processes_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(SystemExit) as end:
        transfer.settings(["checkpoint=x"])
    assert end.value.code == 2
    assert "one process" in capsys.readouterr().err


def test_it_is_called_by_its_checkpoint() -> None:
    for checkpoint, folder in (
        ("runs/default/mixer-digits/best.ckpt", "runs/transfer/mixer-digits"),
        ("timm:mixer_b16_224.goog_in21k", "runs/transfer/mixer_b16_224.goog_in21k"),
        ("weights/Mixer-B_16.npz", "runs/transfer/Mixer-B_16.npz"),
    ):
        assert transfer.settings([f"checkpoint={checkpoint}"])[0].folder == Path(folder)


def test_hours_in_words() -> None:
    assert [transfer._hours(seconds) for seconds in (12, 600, 7200)] == ["12 s", "10 min", "2.0 h"]
