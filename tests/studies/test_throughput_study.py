"""The study of throughput: what it times, how it counts, what it leaves out, how it goes on."""

from __future__ import annotations

import csv
import functools
from pathlib import Path

import pytest
import torch

from mixer_lightning.api import create_model
from mixer_lightning.data.order import MicroBatches
from mixer_lightning.engine import device
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.setup import lightning_trainer
from mixer_lightning.losses import softmax_cross_entropy
from mixer_lightning.models import catalogue
from mixer_lightning.models.presets import list_models
from mixer_lightning.optim.optimizers import adamw
from mixer_lightning.reports.throughput import page
from mixer_lightning.studies import throughput, throughput_runs, training_step
from mixer_lightning.studies.throughput_table import MATMUL, Setting, Table

QUICK = ["device=cpu", "precision=32-true", "batch_sizes=1,2", "seconds=0.001"]
CONDITIONS = {
    "precision": "32-true", "layout": "auto", "compile": "false", "seconds": 1.0,
    "device": "cpu", "machine": "a machine", "versions": "torch 2.15.0, timm 1.0.31",
}  # fmt: skip


@pytest.fixture(autouse=True)
def _small_matrices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(device.MATRIX_SIDE, "cpu", 64)
    monkeypatch.setattr(throughput_runs, "release_memory", lambda _: None)  # which looks through all objects


def rows_of(folder: Path) -> list[dict[str, str]]:
    with (folder / "throughput_cpu.csv").open() as file:
        return list(csv.DictReader(file))


def measured(table: Table, model: str, mode: str, values: list[float], *, batch_size: int = 8) -> None:
    setting = Setting(model, mode, batch_size, 224, definition="", **CONDITIONS)
    table.row(setting, parameters=10, macs=10**9).values.extend(values)


def test_the_step_is_that_of_the_trainer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two steps of the Classifier in Lightning's loop, and two of the study's, give the same weights, bit by bit."""
    machine = Machine(accelerator="cpu", precision="32-true")
    torch.manual_seed(0)
    images, labels = torch.randn(4, 3, 8, 8), torch.randint(10, (4,))
    images = images.contiguous(memory_format=torch.channels_last)
    monkeypatch.setattr(training_step, "random_images", lambda *_, **__: images)
    monkeypatch.setattr(torch, "randint", lambda *_, **__: labels)
    start = create_model("convmixer_96_4", num_classes=10).state_dict()

    def model() -> torch.nn.Module:
        made = create_model("convmixer_96_4", num_classes=10)
        made.load_state_dict(start)
        return machine.place(made)

    ours = model()
    step = training_step.training_step(
        ours, machine, batch_size=4, image_size=8, num_classes=10, clip_grad_norm=0.1
    )
    step()
    step()
    classifier = Classifier(
        model(), loss=softmax_cross_entropy, optimizer=functools.partial(adamw, lr=1e-4, weight_decay=0.1),
        schedule=lambda _: 1.0, micro_batches=MicroBatches(4, 4, 1), machine=machine, clip_grad_norm=0.1,
        ema_decay=None,
    )  # fmt: skip
    batch = (images, torch.nn.functional.one_hot(labels, 10).float())
    trainer = lightning_trainer(machine, steps=2, accumulate=1, callbacks=[], run_dir=None)
    trainer.fit(classifier, torch.utils.data.DataLoader([batch, batch], batch_size=None))
    theirs = classifier.model.state_dict()
    assert any(not torch.equal(start[key], theirs[key]) for key in start)
    for key, value in ours.state_dict().items():
        assert torch.equal(value, theirs[key]), key


def test_a_run_and_what_it_writes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["models=[mixer_digits, lenet_5]", *QUICK, "rounds=2", f"out={tmp_path}"]
    throughput.main(argv)
    rows = rows_of(tmp_path)
    done = {(row["model"], row["mode"], row["batch_size"]): row for row in rows}
    assert len(done) == len(rows) == 1 + 2 * 2 * 2
    for model in ("mixer_digits", "lenet_5"):
        for mode in ("inference", "training"):
            both = [done[model, mode, size] for size in ("1", "2")]
            assert sorted(row["rounds"] for row in both) == ["1", "2"]  # the best alone goes on
            assert [row["is_best"] for row in both].count("True") == 1
            best = max(both, key=lambda row: int(row["rounds"]))
            assert best["is_best"] == "True"
            assert float(best["images_per_second"]) == float(best["images_per_second_per_device"]) > 0
            values = [float(value) for value in best["values"].split()]
            assert float(best["images_per_second"]) == pytest.approx(sum(values) / 2, rel=1e-3)
            matrices = float(done["", MATMUL, "0"]["macs_per_second"])
            passes = {"inference": 1, "training": 3}[mode]
            assert float(matrices) == pytest.approx(
                max(map(float, done["", MATMUL, "0"]["values"].split())), rel=1e-3
            )
            achieved = float(best["images_per_second"]) * int(best["macs"]) * passes
            assert float(best["mfu"]) == pytest.approx(achieved / matrices, rel=0.01)
    assert done["mixer_digits", "training", "1"]["macs"] == str(catalogue.counted()["mixer_digits"].macs)
    text = (tmp_path / "throughput_cpu.md").read_text()
    assert "## Inference" in text
    assert "## Training" in text
    assert "Command: `mixer study throughput 'models=[mixer_digits, lenet_5]'" in text
    assert capsys.readouterr().out.count("images/s\n") == 2 * 2 * 2 + 2 * 2


def test_what_is_measured_is_not_measured_again_and_a_stop_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def stopped_at(limit: int | None) -> None:
        def seconds_for(step: object, **_: object) -> float:
            if limit is not None and len(seen) == limit:
                raise KeyboardInterrupt
            seen.append("a measurement")
            return 0.5

        monkeypatch.setattr(throughput_runs, "seconds_for", seconds_for)

    argv = ["models=lenet_5", *QUICK, "rounds=2", f"out={tmp_path}"]
    stopped_at(3)
    with pytest.raises(KeyboardInterrupt):
        throughput.main(argv)
    before = [row["values"] for row in rows_of(tmp_path) if row["mode"] != MATMUL]
    assert before == ["2", "4", "2"]
    assert (tmp_path / "throughput_cpu.md").exists()
    stopped_at(None)
    throughput.main(argv)
    assert len(seen) == 2 * 2 + 2  # as many as in a run that is not stopped
    seen.clear()
    throughput.main(argv)
    assert seen == []
    throughput.main([*argv[:-1], "layout=channels_last", argv[-1]])  # another option is another measurement
    assert len(seen) == 6
    assert len(rows_of(tmp_path)) == 2 * (1 + 4)


def test_rounds_are_interleaved_over_the_models(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    order: list[str] = []
    visit = throughput_runs.Study.visit

    def noting(self: throughput_runs.Study, case: throughput_runs.Case, number: int) -> None:
        order.append(case.name)
        visit(self, case, number)

    monkeypatch.setattr(throughput_runs.Study, "visit", noting)
    monkeypatch.setattr(throughput_runs, "seconds_for", lambda *_, **__: 1.0)
    throughput.main(["models=mixer_digits,lenet_5", *QUICK, "modes=inference", "rounds=3", f"out={tmp_path}"])
    assert order == ["lenet_5", "mixer_digits", "mixer_digits", "lenet_5", "lenet_5", "mixer_digits"]


def test_a_batch_that_does_not_fit_ends_the_sweep_of_its_model_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make = throughput_runs.Study.step

    def limited(
        self: throughput_runs.Study, case: throughput_runs.Case, model: torch.nn.Module, mode: str, size: int
    ) -> training_step.Step:
        if case.name == "mixer_digits" and mode == "training" and size >= 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nmore")
        return make(self, case, model, mode, size)

    monkeypatch.setattr(throughput_runs.Study, "step", limited)
    argv = ["models=mixer_digits,lenet_5", *QUICK[:2], "seconds=0.001", "batch_sizes=1,2,4", "rounds=1"]
    throughput.main([*argv, f"out={tmp_path}"])
    rows = {(row["model"], row["mode"], row["batch_size"]): row for row in rows_of(tmp_path)}
    assert rows["mixer_digits", "training", "1"]["is_best"] == "True"
    assert rows["mixer_digits", "training", "2"]["left_out"].startswith("CUDA out of memory")
    assert ("mixer_digits", "training", "4") not in rows
    assert rows["mixer_digits", "inference", "4"]["left_out"] == ""
    assert rows["lenet_5", "training", "4"]["left_out"] == ""
    assert (
        "| mixer_digits | training | 2 | CUDA out of memory" in (tmp_path / "throughput_cpu.md").read_text()
    )


def test_what_is_wrong_with_one_batch_alone_does_not_end_the_sweep(tmp_path: Path) -> None:
    """BatchNorm takes no single value, which one image of one pixel is, and takes those of two images."""
    argv = ["models=convmixer_96_4", *QUICK, "modes=training", "rounds=2", "image_size=1", f"out={tmp_path}"]
    throughput.main(argv)
    rows = {row["batch_size"]: row for row in rows_of(tmp_path) if row["mode"] == "training"}
    assert "more than 1 value per channel" in rows["1"]["left_out"]
    assert (rows["2"]["rounds"], rows["2"]["is_best"]) == ("2", "True")


def test_on_a_cpu_no_batch_is_tried_that_the_memory_will_not_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A kernel without memory kills: 2 images took 2 MB, so that 4 need 4 MB, and 3 are free."""
    monkeypatch.setattr(throughput_runs, "available_bytes", lambda _: 3_000_000)
    peaks = iter([1_000_000, 2_000_000])
    monkeypatch.setattr(throughput_runs.PeakMemory, "bytes", lambda _: next(peaks))
    argv = ["models=lenet_5,mixer_digits", *QUICK[:2], "seconds=0.001", "batch_sizes=1,2,4", "rounds=1"]
    throughput.main([*argv, "modes=training", f"out={tmp_path}"])
    rows = {(row["model"], row["batch_size"]): row["left_out"] for row in rows_of(tmp_path)}
    assert rows["lenet_5", "2"] == ""
    assert rows["lenet_5", "4"] == "needs about 0.0 GB of memory, 0.0 GB are free"
    weights = 151_178 * 18  # bytes of weights, gradients and Adam's moments: 2.72 MB of 2.7 MB
    assert weights > 0.9 * 3_000_000
    assert rows["mixer_digits", "1"].startswith("needs about")


def test_steps_that_would_take_too_long_are_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(throughput_runs, "seconds_for", lambda *_, **__: 1.0)
    argv = ["models=lenet_5", *QUICK[:2], "seconds=0.001", "batch_sizes=1,2", "rounds=1", "step_seconds=2.5"]
    throughput.main([*argv, f"out={tmp_path}"])
    rows = {(row["mode"], row["batch_size"]): row["left_out"] for row in rows_of(tmp_path)}
    # Inference made 2 images in a second: a training step is expected to take three times as long.
    assert rows["inference", "2"] == rows["training", "1"] == ""
    assert rows["training", "2"] == ""
    throughput.main([*argv[:-1], "step_seconds=0.9", f"out={tmp_path / 'other'}"])
    rows = {(row["mode"], row["batch_size"]): row["left_out"] for row in rows_of(tmp_path / "other")}
    assert rows["inference", "2"] == "a step would take about 2 s"
    assert rows["training", "1"] == "a step would take about 3 s"


def test_published_speeds_stand_in_columns_of_their_own(tmp_path: Path) -> None:
    table = Table(tmp_path / "throughput_cpu.csv")
    for mode in ("inference", "training"):
        measured(table, "mixer_b16", mode, [2.0, 1.0, 3.0])
    table.write({("mixer_b16", 224): {"published_tpuv3_core": 1384.0, "published_rtx_8000": 1025.0}})
    inference, training = rows_of(tmp_path)
    assert inference["images_per_second"] == "2.0"
    assert (inference["published_tpuv3_core"], inference["published_rtx_8000"]) == ("1384.0", "1025.0")
    assert (training["published_tpuv3_core"], training["published_rtx_8000"]) == ("", "")
    assert (inference["images_per_second_low"], inference["images_per_second_high"]) == ("1.5", "2.5")


def test_the_order_of_speed_and_the_days_of_a_plan(tmp_path: Path) -> None:
    table = Table(tmp_path / "throughput_cpu.csv")
    for model, speed in (("a", 40.0), ("b", 30.0), ("c", 20.0), ("d", 10.0)):
        measured(table, model, "inference", [speed])
    measured(table, "d", "training", [10.0])
    theirs = {"a": 3.0, "b": 4.0, "c": 2.0, "d": 1.0}  # the first two change places: 1 - 6·2 / (4·15)
    larger = Setting("d", "training", 8, 448, definition="", **CONDITIONS)  # the plan is of 224 px
    table.row(larger, parameters=10, macs=10**9).values.append(2.0)
    table.write({(model, 224): {"published_rtx_3090": speed} for model, speed in theirs.items()})
    plan = {
        "model": "d",
        "input": 224,
        "data": "x",
        "epochs": 10,
        "images": 8_640_000,
        "device": "TPUv3 core",
    }
    plan["core_days"] = 5.0
    about = {key: str(value) for key, value in CONDITIONS.items()}
    asked = {"models": ["a", "d", "e"], "modes": ["inference", "training"]}
    text = page(table.path, about=about, command=["mixer study throughput"], plans=[plan], **asked)
    assert "\n* Asked for and without a figure: a (training), e\n" in text
    assert "rank correlation 0.80 (Spearman)" in text
    assert "| 1 | 2 | a | 40 | 3 |" in text
    assert "| d | x | 10 | 10 | 5 (TPUv3 core) |" in text  # 8.64 million images at 10 a second


def test_plans_are_at_the_size_that_the_papers_trained_at() -> None:
    planned = {(plan["model"], plan["input"]) for plan in throughput_runs.plans()}
    assert {("mixer_h14", 224), ("vit_l16", 224), ("bit_r200x3", 224)} < planned
    assert {size for _, size in planned} == {224}  # NFNet-F4+, which is timed at 512 px, too


def test_a_batch_size_that_comes_later_may_be_the_best(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It has one round when the old best has two; in the first one it was faster."""
    monkeypatch.setattr(throughput_runs, "seconds_for", lambda *_, **__: 1.0)
    argv = ["models=lenet_5", *QUICK[:2], "seconds=0.001", "modes=inference", "rounds=2", f"out={tmp_path}"]
    throughput.main([*argv, "batch_sizes=1"])
    throughput.main([*argv, "batch_sizes=1,2"])
    rows = {row["batch_size"]: row for row in rows_of(tmp_path) if row["mode"] == "inference"}
    assert (rows["2"]["is_best"], rows["2"]["values"]) == ("True", "2 2")
    assert rows["1"]["is_best"] == "False"


def test_rows_of_another_machine_stay_and_other_files_are_not_overwritten(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "throughput_cpu.csv"
    table = Table(path)
    theirs = Setting("mixer_h14", "training", 4, 224, definition="", **CONDITIONS)
    table.row(theirs).left_out = "needs about 12.0 GB of memory, 8.0 GB are free"
    measured(table, "mixer_b16", "inference", [1e-6])  # by which a step of lenet_5 would take minutes
    table.write({})
    monkeypatch.setattr(throughput_runs, "seconds_for", lambda *_, **__: 1.0)
    argv = ["models=lenet_5", *QUICK, "rounds=1", "step_seconds=10", f"out={tmp_path}"]
    throughput.main(argv)
    assert all(row["values"] for row in rows_of(tmp_path) if row["model"] == "lenet_5")
    (kept,) = (row for row in rows_of(tmp_path) if row["model"] == "mixer_h14")
    assert (kept["machine"], kept["left_out"]) == (
        "a machine",
        "needs about 12.0 GB of memory, 8.0 GB are free",
    )
    path.write_text("loader,images_per_second\nours,100\n")
    with pytest.raises(SystemExit, match="2"):
        throughput.main(argv)
    assert "holds no measurements of this study: move it away, or say out=" in capsys.readouterr().err
    assert path.read_text() == "loader,images_per_second\nours,100\n"


@pytest.mark.parametrize("row", catalogue.published_speeds(), ids=str)
def test_published_speeds_are_of_models(row: catalogue.PublishedSpeed) -> None:
    assert row.model in list_models()
    assert row.data in catalogue.DATA
    assert row.device in ("TPUv3 core", "RTX 8000", "RTX 3090")
    assert (row.core_days is not None) == (row.device == "TPUv3 core")


@pytest.mark.parametrize(
    ("words", "names"),
    [
        ("[resnet50,mixer_s16]", {"resnet50", "mixer_s16"}),
        ("resnet50,mixer_s16", {"resnet50", "mixer_s16"}),
        ("swin,lenet_5", {"swin_s", "swin_t", "lenet_5"}),  # a family
        ("convmixer_1536_20", {"convmixer_1536_20"}),  # a whole name is that model alone
        ("[ 'convmixer_1536*' ]", {name for name in list_models() if name.startswith("convmixer_1536")}),
        ("*", set(list_models())),
    ],
)
def test_models_by_list_and_pattern(words: str, names: set[str]) -> None:
    assert set(throughput.settings([f"models={words}"]).models) == names


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["models=resnet51"], "no model and no family is called 'resnet51': did you mean 'resnet50'"),
        (
            ["models=lenet_5,resnet5"],
            "is called 'resnet5': did you mean 'resnet50', or the pattern 'resnet5*'?",
        ),
        (["modes=sleep"], "modes must be inference or training"),
        (["rounds=0"], "rounds must be at least 1"),
        (["batch_sizes=0"], "batch_sizes must be whole numbers from 1 on"),
        (["seconds=0"], "seconds must be above 0"),
        (["precision=bf16"], "precision: invalid choice"),
        (["roundz=3"], "unknown key 'roundz': did you mean 'rounds'?"),
    ],
)
def test_a_wrong_setting_is_named(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        throughput.settings(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_model_that_cannot_be_built_at_a_size_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["models=mixer_b16,lenet_5", *QUICK, "modes=inference", "rounds=1", "image_size=33"]
    throughput.main([*argv, f"out={tmp_path}"])
    assert "mixer_b16 is left out: image_size 33" in capsys.readouterr().out


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
def test_on_a_gpu(tmp_path: Path) -> None:
    argv = ["models=convmixer_96_4,mixer_digits", "device=cuda", "precision=bf16-mixed", "batch_sizes=16,64"]
    throughput.main([*argv, "rounds=2", "seconds=0.01", f"out={tmp_path}"])
    with (tmp_path / "throughput_cuda.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["mode"] != MATMUL]
    assert len(rows) == 2 * 2 * 2
    assert all(int(row["peak_memory_bytes"]) > 0 for row in rows)
    assert all(0 < float(row["mfu"]) < 1 for row in rows)
