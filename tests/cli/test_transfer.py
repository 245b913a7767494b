"""`mixer transfer`: its arguments, its plan, few-shot, and a suite that is killed on the way."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from forks import Forked
from PIL import Image

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.save import save_timm
from mixer_lightning.cli import transfer
from mixer_lightning.studies.suites import FOLDER

TASKS = ("vtab_svhn", "vtab_eurosat")


@pytest.fixture
def argv(tmp_path: Path) -> list[str]:
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


PROGRAM = """
import sys
from mixer_lightning.cli.console import main
from mixer_lightning.engine import closing
from mixer_lightning.reports import first_batch
closing.draw_pictures = first_batch.draw = lambda *_: None
sys.exit(main(["transfer", *sys.argv[1:]]))
"""


def start(argv: list[str], folder: Path) -> Forked:
    return Forked(["-c", PROGRAM, *argv], cwd=folder, env=os.environ)


def test_a_suite_that_is_killed_ends_with_the_same_table(argv: list[str], tmp_path: Path) -> None:
    suite = tmp_path / "two_rates.yaml"
    rates = (FOLDER / "vtab.yaml").read_text().replace("[0.003, 0.01, 0.03]", "[0.003, 0.03]")
    suite.write_text(rates)
    argv = [*(argument for argument in argv if not argument.startswith(("suite=", "seeds="))), "seeds=1"]
    argv.append(f"suite={suite}")
    for name in ("whole", "killed"):
        (tmp_path / name).mkdir()
    process = start(argv, tmp_path / "killed")
    killed = tmp_path / "killed/runs/transfer/tiny.safetensors"
    until = time.monotonic() + 300
    while len(list(killed.glob("*/*/result.json"))) < 4:  # of six
        assert process.returncode is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    made = {path: path.stat().st_mtime_ns for path in killed.glob("*/*/result.json")}
    assert not (killed / "transfer.json").exists()

    processes = [start(argv, tmp_path / name) for name in ("whole", "killed")]
    said = [process.communicate(timeout=600)[0] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert all(path.stat().st_mtime_ns == when for path, when in made.items())  # nothing was repeated
    rows = [
        json.loads((tmp_path / name / "runs/transfer/tiny.safetensors/transfer.json").read_text())
        for name in ("whole", "killed")
    ]
    assert rows[0] == rows[1]
    assert rows[0]["runs"].keys() == set(TASKS)
    assert all(len(metrics["test/top1"]) == 1 for metrics in rows[0]["runs"].values())

    for folder in (killed / task for task in TASKS):
        for run in folder.glob("dev-*"):  # selection has not looked at the test set
            assert not any("test/" in line for line in (run / "metrics.jsonl").read_text().splitlines())
        best = max(
            (json.loads((run / "result.json").read_text())["metrics"]["val/top1"], -float(run.name[6:]))
            for run in folder.glob("dev-*")
        )
        recipes = [json.loads((run / "result.json").read_text())["recipe"] for run in folder.glob("final-*")]
        assert {recipe["optimizer"]["lr"] for recipe in recipes} == {-best[1]}
        assert [recipe["seed"] for recipe in recipes] == [1]


def test_features_are_evaluated_once(
    argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suite = tmp_path / "small.yaml"
    suite.write_text("fewshot: {digits: data=digits evals=fewshot, pets: data=pets evals=fewshot}\n")
    folder = tmp_path / "suite"
    fewshot = [
        *(argument for argument in argv[:2]),
        f"suite={suite}",
        "tasks=digits",
        f"folder={folder}",
        "image_size=8",
        "trainer=cpu",
        *(
            "batch_size=256",
            "logger=tensorboard",
            "duration.steps=4",
            "freeze=[backbone]",
        ),  # of training alone
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


def test_the_plan_counts_runs_steps_and_images(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    short = [
        argument
        for argument in argv
        if not argument.startswith(("tasks=", "duration", "batch", "seeds", "schedule"))
    ]
    assert transfer.main([*short, "--dry-run", "rate=1000"]) == 0
    said = capsys.readouterr().out
    # 19 tasks, three learning rates and three seeds, 2,500 steps of 512 images (arXiv 2105.01601, App. C)
    assert "114" in said
    assert f"{19 * 6 * 2500 * 512:,}" in said
    assert f"{19 * 6 * 2500 * 512 / 1000 / 3600:,.1f} h" in said
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["data=cifar10"], "'data' is set by the suite"),
        (["tasks=vtab_birds"], "has no 'vtab_birds'"),
        (["tasks=vtab_pet"], "did you mean 'vtab_pets'?"),
        (["suite=vtb"], "there is no suite 'vtb': did you mean 'vtab'?"),
        (["suite=no.yaml"], "there is no suite 'no.yaml': there are all, avg5, fewshot, vtab, or a path"),
        (["+data.task=pets"], "'data.task' is set by the suite"),
        (["seeds=a"], "expected whole numbers"),
        (["seeds=0,0"], "a seed stands there twice"),
        (["rate=0", "--dry-run"], "rate must be above 0"),
        (["evals=none"], "'evals' is set by the suite"),
        (["nonsense"], "not of the form key=value"),
        (["--optimzer.momentum=1"], "not of the form key=value"),
        (["optimzer.momentum=1"], "did you mean 'optimizer'"),
        (["--optimizer.momentun=1"], "unknown key 'optimizer.momentun'"),
        (["hydra.run.dir=x"], "give its runs a place with folder=<folder>"),
        (["fast_dev_run=true"], "keeps no figures to choose a learning rate by"),
    ],
)
def test_wrong_arguments_end_it_before_any_work(
    argv: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: list[str],
    message: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    try:
        code = transfer.main([*argv, *more])
    except SystemExit as end:
        code = end.code
    said = capsys.readouterr()
    assert code == 2
    assert message in said.out + said.err
    assert not (tmp_path / "runs").exists()


def test_missing_data_of_a_later_task_end_it_before_the_first_run(
    argv: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.rmtree(tmp_path / "vtab" / "eurosat")
    assert transfer.main([*argv, "data.download=false"]) == 2
    assert capsys.readouterr().out.startswith("vtab_eurosat: ")
    assert not (tmp_path / "runs").exists()


def test_many_processes_are_refused_before_any_work(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
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
        assert transfer.settings([f"checkpoint={checkpoint}"]).folder == Path(folder)
