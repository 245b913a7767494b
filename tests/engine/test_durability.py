"""Flipped bits, lost rows and numbers that are not finite: noticed, said, and never gone on from in silence."""

from __future__ import annotations

import json
import os
import random
import signal
from pathlib import Path

import pytest
import torch

from conftest import TINY
from mixer_lightning import results
from mixer_lightning.api import create_model
from mixer_lightning.checkpoints import torch_file
from mixer_lightning.checkpoints.read import read
from mixer_lightning.checkpoints.restore import restore
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine.callbacks import MetricsLog
from mixer_lightning.engine.checkpoint import Checkpoints
from mixer_lightning.engine.run import evaluate, train


def flip(path: Path, bit: int) -> None:
    """Turn one bit of a file over, as a failing disk does: size and times stay."""
    with path.open("r+b") as file:
        file.seek(bit // 8)
        byte = file.read(1)[0]
        file.seek(bit // 8)
        file.write(bytes([byte ^ 1 << bit % 8]))


def flip_weight(path: Path) -> None:
    """A bit in the middle of the file, where tensors are."""
    flip(path, 8 * (path.stat().st_size // 2))


def stopped_at(run_dir: Path, step: int, monkeypatch: pytest.MonkeyPatch, *words: str) -> None:
    """A run that was asked to stop after `step` steps."""
    on_step = MetricsLog.on_step

    def interrupted(self, trainer, module):
        on_step(self, trainer, module)
        if module.step == step:
            signal.raise_signal(signal.SIGTERM)

    monkeypatch.setattr(MetricsLog, "on_step", interrupted)
    assert train(compose_one("train", [*TINY, *words]), run_dir) == 143
    monkeypatch.undo()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run_dir = tmp_path_factory.mktemp("whole") / "run"
    assert train(compose_one("train", TINY), run_dir) == 0
    return run_dir


# ------------------------------------------------------------------------------------------------ flipped bits


def test_any_flipped_bit_is_noticed_or_changes_nothing(tmp_path):
    """Padding and dates of the archive may change; what is read may not."""
    content = {"a": torch.arange(300.0), "step": 7, "names": ["x", "y"]}
    path = tmp_path / "x.ckpt"
    torch.save(content, path)
    good = path.read_bytes()
    bits = random.Random(0).sample(range(8 * len(good)), 300)
    noticed = 0
    for bit in bits:
        path.write_bytes(good)
        flip(path, bit)
        try:
            found = torch_file.load(path)
        except ValueError:
            noticed += 1
        else:
            assert torch.equal(found["a"], content["a"]), bit
            assert (found["step"], found["names"]) == (7, ["x", "y"]), bit
    assert noticed > 100


def test_torch_alone_would_not_notice(whole, tmp_path):
    path = tmp_path / "best.ckpt"
    path.write_bytes((whole / results.BEST).read_bytes())
    flip_weight(path)
    torch.load(path, weights_only=True)  # the reason for looking
    with pytest.raises(
        ValueError, match=r"best\.ckpt is damaged: its part .*data/\d+ is not what was written"
    ):
        read(path)


def test_files_without_checksums_are_read(tmp_path):
    """As torch writes them when asked not to compute any, and as torch before 1.6 wrote them."""
    model = create_model("mixer_digits", num_classes=10)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(model.state_dict(), tmp_path / "a.pth")
    finally:
        torch.serialization.set_crc32_options(True)
    torch.save(model.state_dict(), tmp_path / "b.pth", _use_new_zipfile_serialization=False)
    for name in ("a.pth", "b.pth"):
        for key, value in read(tmp_path / name).tensors.items():
            assert torch.equal(value, model.state_dict()[key])


def test_the_checkpoint_before_a_damaged_one_is_taken(tmp_path, whole, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    stopped_at(run_dir, 7, monkeypatch)  # saved at 3, 6 and 7
    flip_weight(run_dir / results.LAST)
    stopped_at(run_dir, 8, monkeypatch)
    said = capsys.readouterr().out
    assert "last.ckpt is damaged" in said
    assert "Going on from the one before it, previous.ckpt of step 6" in said
    # What stands there now is the new one, and before it the good one: the damaged one did not become the previous.
    flip_weight(run_dir / results.LAST)
    assert train(compose_one("train", TINY), run_dir) == 0
    assert "previous.ckpt of step 6" in capsys.readouterr().out
    expected = torch_file.load(whole / results.LAST)
    for key, value in torch_file.load(run_dir / results.LAST)["state_dict"].items():
        assert torch.equal(value, expected["state_dict"][key])
    assert not (run_dir / results.PREVIOUS).exists()  # it has finished: half the space

    def plain(rows: list[dict[str, float]]) -> list[dict[str, float]]:
        return [{k: v for k, v in row.items() if k not in results.PACE} for row in rows]

    assert plain(results.read_metrics(run_dir)) == plain(results.read_metrics(whole))


def test_two_damaged_checkpoints_are_refused(tmp_path, monkeypatch, capsys):
    stopped_at(tmp_path / "run", 7, monkeypatch)
    for name in (results.LAST, results.PREVIOUS):
        path = tmp_path / "run" / name
        path.write_bytes(path.read_bytes()[:-1000])
    capsys.readouterr()
    assert train(compose_one("train", TINY), tmp_path / "run") == 2
    said = capsys.readouterr().out
    assert f"{tmp_path}/run/last.ckpt is not a readable torch file: it is damaged or cut short" in said
    assert "weights_only" not in said


def test_a_lost_best_checkpoint_is_said_and_kept_anew(tmp_path, monkeypatch, capsys):
    run_dir, words = (
        tmp_path / "run",
        ("train_split=train[:90%]", "val_split=train[90%:]", "eval_every.steps=2"),
    )
    stopped_at(run_dir, 7, monkeypatch, *words)
    before = torch_file.load(run_dir / results.LAST)["best"]
    flip_weight(run_dir / results.BEST)
    advice = f"or take {run_dir}/last.ckpt of step 7, which is whole"
    for checkpoint in (run_dir, run_dir / results.BEST):
        with pytest.raises(
            torch_file.Damaged, match=f"best.ckpt is damaged.* Restore it from a copy, {advice}"
        ):
            read(checkpoint)
    assert read(run_dir / results.LAST).tensors
    capsys.readouterr()
    assert train(compose_one("train", [*TINY, *words]), run_dir) == 0
    said = capsys.readouterr().out
    assert "best.ckpt is damaged" in said
    assert f"The best from here on is kept instead; there was val/top1 {before['value']:.4g} at step" in said
    best = json.loads((run_dir / results.RESULT).read_text())["best"]
    assert best["step"] > 7
    assert torch_file.load(run_dir / results.BEST)["step"] == best["step"]


def test_without_hard_links_there_is_always_one_checkpoint(tmp_path, whole, monkeypatch):
    """Killed between giving the old one its name and the new one its place: the old one is gone on from."""

    def no_links(*_: object) -> None:
        raise OSError("Operation not permitted")

    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    write = Checkpoints._write
    monkeypatch.setattr(os, "link", no_links)
    monkeypatch.setattr(
        Checkpoints, "_write", lambda self, *args: killed() if self.saved_step == 6 else write(self, *args)
    )
    with pytest.raises(Killed):
        train(compose_one("train", TINY), tmp_path / "run")
    monkeypatch.undo()
    assert not (tmp_path / "run" / results.LAST).exists()
    assert train(compose_one("train", TINY), tmp_path / "run") == 0
    expected = torch_file.load(whole / results.LAST)["optimizer"]["state"]
    for i, state in torch_file.load(tmp_path / "run" / results.LAST)["optimizer"]["state"].items():
        assert all(torch.equal(value, expected[i][name]) for name, value in state.items())


# ------------------------------------------------------------------------------------------- rows and records


def test_one_damaged_line_costs_no_other(tmp_path, monkeypatch, capsys):
    run_dir = tmp_path / "run"
    stopped_at(run_dir, 7, monkeypatch)
    path = run_dir / results.METRICS
    rows = results.read_metrics(run_dir)
    assert [row["step"] for row in rows] == [5, 6]
    for line in (b'{"step": 5, "tr\x00in', b"[1, 2]", b'{"epoch": 1.0}', b"\xff\xfe", b'{"step": "5"}'):
        path.write_bytes(line + b"\n" + path.read_bytes())
    assert results.read_metrics(run_dir) == rows
    capsys.readouterr()
    assert train(compose_one("train", TINY), run_dir) == 0
    assert "metrics.jsonl is damaged: left out line 1, 2, 3, 4, 5, the others stay" in capsys.readouterr().out
    assert [row["step"] for row in results.read_metrics(run_dir)] == [5, 6, 10, 12, 12]


def test_rows_are_on_the_disk_before_the_checkpoint_that_has_seen_them(tmp_path, monkeypatch):
    """The power goes whenever a checkpoint has taken its place: what fsync has not brought to the disk is lost."""
    on_disk = {}
    fsync, link, replace = os.fsync, os.link, Path.replace

    def recorded(descriptor: int) -> None:
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))  # noqa: PTH115
        if path.name == results.METRICS:
            on_disk[path.name] = path.read_text()
        fsync(descriptor)

    checked = []

    def replaced(self: Path, target: Path) -> Path:
        if Path(target).name == results.LAST:
            step = torch.load(self, weights_only=True)["step"]
            steps = [json.loads(line)["step"] for line in on_disk.get(results.METRICS, "").splitlines()]
            expected = [row["step"] for row in results.read_metrics(tmp_path) if row["step"] <= step]
            assert steps == expected
            checked.append(step)
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", recorded)
    monkeypatch.setattr(Path, "replace", replaced)
    assert train(compose_one("train", TINY), tmp_path) == 0
    assert checked == [3, 6, 9, 12]
    assert os.link is link


def test_a_damaged_result_that_is_still_json(tmp_path, whole, capsys):
    result = json.loads((whole / results.RESULT).read_text())
    (tmp_path / results.LAST).write_bytes((whole / results.LAST).read_bytes())
    for damaged in (
        [],
        5,
        {},
        {k: v for k, v in result.items() if k != "metrics"},
        {k: v for k, v in result.items() if k != "wall_seconds"},
        result | {"metrics": {"test/top1": "0.9"}},
        result | {"best": {"value": 0.5}},
        result | {"recipe": None},
    ):
        (tmp_path / results.RESULT).write_text(json.dumps(damaged))
        assert train(compose_one("train", TINY), tmp_path) == 2
        said = capsys.readouterr().out
        assert f"{tmp_path}/result.json is damaged" in said
        assert "Delete it, and the run finishes again." in said
    (tmp_path / results.RESULT).unlink()
    assert train(compose_one("train", TINY), tmp_path) == 0


# ----------------------------------------------------------------------------------------- numbers not finite


@pytest.mark.parametrize("part", ["weight", "statistics", "average"])
def test_weights_that_are_not_finite_are_never_written(tmp_path, monkeypatch, capsys, part):
    """Neither as best.ckpt, of an evaluation before the next look at the loss, nor as last.ckpt."""
    words = ["model=convmixer_96_4", "ema_decay=0.9", "val_split=train[90%:]", "train_split=train[:90%]"]
    words += ["eval_every.steps=5", "log_every_steps=100", "checkpoint_every.steps=6"]
    on_step = MetricsLog.on_step

    def poisoned(self, trainer, module):
        on_step(self, trainer, module)
        if module.step == 4:
            with torch.no_grad():
                if part == "weight":
                    next(module.model.parameters()).fill_(float("nan"))
                elif part == "statistics":
                    next(module.model.buffers()).fill_(float("inf"))
                else:
                    next(module.ema.module.parameters()).fill_(float("nan"))

    monkeypatch.setattr(MetricsLog, "on_step", poisoned)
    assert train(compose_one("train", [*TINY, *words]), tmp_path) == 1
    said = capsys.readouterr().out
    assert "not finite" in said
    assert "Traceback" not in said
    assert not (tmp_path / results.BEST).exists()
    assert not (tmp_path / results.LAST).exists()
    assert all("val/top1" not in row for row in results.read_metrics(tmp_path))


def test_an_evaluation_of_outputs_that_are_not_finite_says_so(tmp_path, capsys):
    """Finite weights whose product overflows float32."""
    model = create_model("mixer_digits", num_classes=10)
    with torch.no_grad():
        model.head.weight.fill_(3e38)
        model.norm.bias.fill_(10.0)
    torch.save(model.state_dict(), tmp_path / "huge.pth")
    words = [
        f"checkpoint={tmp_path}/huge.pth",
        "model=mixer_digits",
        "data=digits",
        "trainer=cpu",
        "image_size=8",
    ]
    recipe = compose_one("evaluate", [*words, "trainer.precision=32-true"])
    assert evaluate(recipe, tmp_path / "run") == 1
    said = capsys.readouterr().out
    assert "the network's output is not finite for 360 of 360 images of test" in said
    assert not (tmp_path / "run" / results.EVALUATION).exists()


def test_weights_that_are_not_finite_are_not_loaded(tmp_path):
    state = create_model("mixer_digits", num_classes=10).state_dict()
    state["norm.weight"][3] = float("nan")
    torch.save(state, tmp_path / "diverged.pth")
    with pytest.raises(ValueError, match=r"diverged\.pth holds weights that are not finite \(norm\.weight\)"):
        restore(tmp_path / "diverged.pth", model="mixer_digits", image_size=8)
