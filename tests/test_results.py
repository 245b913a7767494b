"""The run directory: files change atomically or not at all, and hold what the README says."""

from __future__ import annotations

import csv
import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from conftest import TINY
from mixer_lightning import files, results
from mixer_lightning.config.check import check
from mixer_lightning.config.compose import compose_one
from mixer_lightning.config.recipe import Recipe, load_recipe
from mixer_lightning.data.sources.locks import once_per_machine
from mixer_lightning.engine import run
from mixer_lightning.files import atomic_write, check_writable, lock_run_dir, write_text

# --------------------------------------------------------------------------------------------- atomic writes


def test_a_file_is_replaced(tmp_path):
    path = tmp_path / "x"
    for text in ("old", "new", ""):
        write_text(path, text)
        assert path.read_text() == text
        assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_the_old_file_stands_while_the_new_one_is_written(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")

    def write(file):
        file.write(b"new")
        file.flush()
        assert path.read_text() == "old"

    atomic_write(path, write)
    assert path.read_text() == "new"


@pytest.mark.parametrize("error", [ValueError, OSError, KeyboardInterrupt])
def test_a_writer_that_fails_changes_nothing(tmp_path, error):
    path = tmp_path / "x"
    path.write_text("old")

    def write(file):
        file.write(b"half of the n")
        raise error

    with pytest.raises(error):
        atomic_write(path, write)
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def process(code: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, *words], capture_output=True, text=True, timeout=300, check=False
    )


def test_a_writer_that_is_killed_changes_nothing(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    done = process(
        "import os, signal, sys; from pathlib import Path; from mixer_lightning.files import atomic_write, write_text\n"
        "def write(file):\n"
        "    file.write(b'half'); file.flush(); os.kill(os.getpid(), signal.SIGKILL)\n"
        "atomic_write(Path(sys.argv[1]), write)",
        str(path),
    )
    assert done.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


@pytest.mark.skipif(sys.platform == "win32", reason="resource limits are POSIX")
def test_a_full_disk_changes_nothing(tmp_path):
    path = tmp_path / "x"
    path.write_text("old")
    done = process(
        "import resource, sys; from pathlib import Path; from mixer_lightning.files import atomic_write, write_text\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))\n"
        "try:\n"
        "    write_text(Path(sys.argv[1]), 'n' * 100_000)\n"
        "except OSError as error:\n"
        "    sys.exit(f'OSError {error}')",
        str(path),
    )
    assert "OSError" in done.stderr
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == ["x"]


def test_a_directory_is_tried_before_anything_is_done(tmp_path):
    check_writable(tmp_path / "a" / "b")
    assert list((tmp_path / "a" / "b").iterdir()) == []
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=r"cannot write into the run directory .*file/run: .*hydra\.run\.dir="):
        check_writable(tmp_path / "file" / "run")


HOLD = """
import os, sys, time
from pathlib import Path
from mixer_lightning.files import lock_run_dir
folder, held, twice = Path(sys.argv[1]), 0, 0
end = time.monotonic() + 1.0
while time.monotonic() < end:
    try:
        with lock_run_dir(folder):
            held += 1
            try:
                os.close(os.open(folder / "inside", os.O_CREAT | os.O_EXCL))
            except FileExistsError:
                twice += 1
            else:
                (folder / "inside").unlink()
    except ValueError:
        pass
print(held, twice)
"""


def test_one_of_eight_processes_holds_a_directory(tmp_path):
    """Each takes and leaves it as fast as it can: the moment between leaving and removing the file is met often."""
    processes = [
        subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path)], stdout=subprocess.PIPE, text=True)
        for _ in range(8)
    ]
    counts = [[int(word) for word in process.communicate(timeout=300)[0].split()] for process in processes]
    assert sum(held for held, _ in counts) > 100
    assert sum(twice for _, twice in counts) == 0
    assert list(tmp_path.iterdir()) == []


def test_a_file_system_without_locks_is_said_once(tmp_path, monkeypatch):
    def flock(*_: object) -> None:
        raise OSError(errno.ENOSYS, "Function not implemented")  # Lustre mounted without its option `flock`

    said = []
    monkeypatch.setattr(files.fcntl, "flock", flock)
    monkeypatch.setattr(files.log, "warning", lambda text, *args: said.append(text % args))
    files._say_unlocked.cache_clear()
    for _ in range(2):
        with lock_run_dir(tmp_path):
            pass
        with once_per_machine([tmp_path], "index", "f", name="data") as lock:
            assert lock.folder == tmp_path
    assert len(said) == 1
    assert "no locks (Function not implemented)" in said[0]


# -------------------------------------------------------------------------------------------------- metrics


def write_rows(folder: Path, *rows: dict[str, float]) -> None:
    for row in rows:
        results.append_metrics(folder, row)


def test_rows_come_back(tmp_path):
    assert results.read_metrics(tmp_path) == []
    rows = [{"step": 5, "epoch": 0.5, "train/loss": 1e-7}, {"step": 10, "epoch": 1.0, "val/top1": 0.25}]
    write_rows(tmp_path, *rows)
    assert results.read_metrics(tmp_path) == rows
    assert [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()] == rows


@pytest.mark.parametrize("cut", range(1, 12))
def test_a_line_that_was_cut_is_left_out(tmp_path, cut):
    write_rows(tmp_path, {"step": 1}, {"step": 2, "a": 0.5})
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    (tmp_path / "metrics.jsonl").write_bytes(whole[: -cut - 1])
    assert results.read_metrics(tmp_path) == [{"step": 1}]


def test_rows_after_a_step_are_dropped(tmp_path):
    write_rows(tmp_path, *({"step": step, "x": step / 2} for step in (3, 6, 6, 9)))
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 12, "x"')
    results.keep_metrics_until(tmp_path, 6)
    assert [row["step"] for row in results.read_metrics(tmp_path)] == [3, 6, 6]
    write_rows(tmp_path, {"step": 9})  # the next line begins on a line of its own
    assert [row["step"] for row in results.read_metrics(tmp_path)] == [3, 6, 6, 9]
    results.keep_metrics_until(tmp_path, 0)
    assert (tmp_path / "metrics.jsonl").read_text() == ""


def test_the_table_has_the_rows(tmp_path):
    rows = [{"step": 1, "epoch": 0.1, "train/loss": 2.5}, {"step": 2, "epoch": 0.2, "val/top1": 0.125}]
    write_rows(tmp_path, *rows)
    results.write_metrics_csv(tmp_path)
    with (tmp_path / "metrics.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert [{key: float(value) for key, value in row.items() if value} for row in table] == rows
    assert list(table[0]) == ["step", "epoch", "train/loss", "val/top1"]


# -------------------------------------------------------------------------------------------- result, recipes


def test_no_result_and_a_damaged_one(tmp_path):
    assert results.read_result(tmp_path) is None
    results.write_result(tmp_path, {"metrics": {"test/top1": 0.5}})
    assert results.read_result(tmp_path) == {"metrics": {"test/top1": 0.5}}
    (tmp_path / "result.json").write_text('{"metrics": {"te')
    with pytest.raises(ValueError, match=r"result\.json is damaged"):
        results.read_result(tmp_path)


def test_flatten():
    assert results.flatten({"a": {"b": 1, "c": {"d": [1, 2]}}, "e": None}) == {
        "a.b": 1,
        "a.c.d": [1, 2],
        "e": None,
    }
    assert results.flatten({}) == {}


nested = st.recursive(
    st.integers() | st.none() | st.text(max_size=2),
    lambda inner: st.dictionaries(st.sampled_from("abc"), inner, min_size=1, max_size=3),
)


@given(st.dictionaries(st.sampled_from("abc"), nested, min_size=1))
def test_flatten_keeps_every_leaf(node):
    def leaf(key: str) -> object:
        found = node
        for part in key.split("."):
            found = found[part]
        return found

    flat = results.flatten(node)
    assert all(leaf(key) == value for key, value in flat.items())

    def count(inner: object) -> int:
        return sum(map(count, inner.values())) if isinstance(inner, dict) else 1

    assert len(flat) == count(node)
    assert results.differing_keys(node, node) == []


def test_differing_keys():
    before = {"seed": 0, "optimizer": {"lr": 0.1, "eps": 1e-8}, "trainer": {"devices": 1}, "gone": 1}
    now = {"seed": 0, "optimizer": {"lr": 0.2, "eps": 1e-8, "new": None}, "trainer": {"devices": 8}}
    assert results.differing_keys(before, now, ignore=["trainer"]) == [
        ("gone", 1, None),
        ("optimizer.lr", 0.1, 0.2),
        ("optimizer.new", None, None),
    ]
    assert ("trainer.devices", 1, 8) in results.differing_keys(before, now)


def test_versions_are_those_that_are_installed():
    found = results.versions()
    assert found["torch"] == torch.__version__.partition("+")[0]
    assert found["python"] == ".".join(map(str, sys.version_info[:3]))
    assert {"lightning", "timm", "numpy", "torchvision"} <= found.keys()


def test_the_commit_is_the_checkouts(monkeypatch):
    def git(*words: str) -> str:
        here = Path(results.__file__).parent
        return subprocess.run(
            ["git", *words], cwd=here, capture_output=True, text=True, check=False
        ).stdout.strip()

    sha = results.git_sha()
    assert (sha or "").removesuffix("-dirty") == (git("rev-parse", "--verify", "-q", "HEAD") or "")
    monkeypatch.setenv("PATH", "/nowhere")
    assert results.git_sha() is None


@pytest.mark.parametrize(
    ("typed", "said"),
    [
        (
            ["/a/bin/python", "train.py", "seed=1", "data.root=/b/my birds"],
            "python train.py seed=1 'data.root=/b/my birds'",
        ),
        (["python3.12", "-m", "mixer_lightning", "train", "a=1"], "python3.12 -m mixer_lightning train a=1"),
        (["/a/bin/python", "/a/bin/mixer", "train", "-m", "a=1,2"], "mixer train -m a=1,2"),
        (
            ["/a/bin/python", "-u", "/c/train.py", "model.tokens_mlp_dim=8"],
            "python -u train.py model.tokens_mlp_dim=8",
        ),
        (["python", "train.py", "+logger.wandb.api_key=abc"], "python train.py '+logger.wandb.api_key=***'"),
        (
            ["python", "train.py", "data.root=https://me:abc@host/a"],
            "python train.py 'data.root=https://***@host/a'",
        ),
        (
            ["python", "train.py", "x=s3://a?X-Amz-Signature=abc&b=1"],
            "python train.py 'x=s3://a?X-Amz-Signature=***&b=1'",
        ),
        (["python", "t.py", "x=pipe:curl -H 'a: Bearer abc' u"], None),
    ],
)
def test_a_command_is_recorded_as_it_was_typed_without_secrets(monkeypatch, typed, said):
    monkeypatch.setattr(sys, "orig_argv", typed)
    monkeypatch.setenv("WANDB_API_KEY", "of the environment")
    found = results.command_line()
    assert said is None or found == said
    assert "abc" not in found
    assert "environment" not in found


# ---------------------------------------------------------------------------------------------- a real run


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, Recipe]:
    """The directory of a tiny run, and its recipe."""
    recipe = compose_one("train", [*TINY, "ema_decay=0.9", "seed=3"])
    run_dir = tmp_path_factory.mktemp("results") / "run"
    assert run.train(recipe, run_dir) == 0
    return run_dir, recipe


def test_the_record_is_complete(finished):
    run_dir, recipe = finished
    result = json.loads((run_dir / "result.json").read_text())
    documented = [
        "recipe",
        "metrics",
        "seed",
        "command",
        "git_sha",
        "versions",
        "device",
        "wall_seconds",
        "images_per_second",
    ]
    assert set(documented) <= result.keys()
    assert result["recipe"] == recipe.to_dict()
    assert result["seed"] == 3
    assert result["steps"] == 12
    assert result["versions"] == results.versions()
    assert re.search(r"\d+ cores", result["device"])
    assert 0 < result["wall_seconds"] < 600
    assert result["num_devices"] == 1
    assert 0 < 86400 * result["device_days"] < result["wall_seconds"]
    # of the steps alone, as the speed is: rounding apart
    assert 86400 * result["device_days"] == pytest.approx(12 * 60 / result["images_per_second"], rel=0.01)
    assert result["classes"] == [str(digit) for digit in range(10)]
    state = torch.load(run_dir / "last.ckpt", weights_only=True)["state_dict"]
    assert result["num_parameters"] == sum(tensor.numel() for tensor in state.values())


def test_the_speed_is_that_of_training(finished):
    """12 steps of 60 images cannot have taken longer than the whole."""
    result = json.loads((finished[0] / "result.json").read_text())
    assert result["images_per_second"] > 12 * 60 / result["wall_seconds"]


def test_the_metrics_are_the_last_ones(finished):
    run_dir, _ = finished
    rows = results.read_metrics(run_dir)
    result = json.loads((run_dir / "result.json").read_text())
    for name in ("test/top1", "test/top5", "train/loss", "train/top1"):
        assert result["metrics"][name] == [row[name] for row in rows if name in row][-1]
    assert round(result["metrics"]["test/top1"] * 360) == pytest.approx(
        result["metrics"]["test/top1"] * 360, abs=1e-3
    )
    assert [row["step"] for row in rows if "test/top1" in row] == [6, 12]
    assert [row["step"] for row in rows if "train/loss" in row] == [5, 10, 12]
    assert all(row["epoch"] == pytest.approx(row["step"] * 60 / 1437, abs=1e-4) for row in rows)
    assert all(re.fullmatch(r"(step|epoch|(train|test)/\w+)", name) for row in rows for name in row)


def test_the_table_of_a_run_has_its_rows(finished):
    run_dir, _ = finished
    with (run_dir / "metrics.csv").open(newline="") as file:
        table = [{key: float(value) for key, value in row.items() if value} for row in csv.DictReader(file)]
    assert table == results.read_metrics(run_dir)


def test_the_stored_recipe_is_the_recipe(finished):
    run_dir, recipe = finished
    text = (run_dir / "recipe.yaml").read_text()
    assert "${" not in text
    stored = yaml.safe_load(text)
    assert stored["choices"]["model"] == "mixer_digits"
    assert load_recipe(Recipe, stored) == recipe
    del stored["choices"]
    assert check(stored, Recipe) == []


@pytest.mark.parametrize("name", ["last.ckpt", "best.ckpt"])
def test_checkpoints_are_plain(finished, name):
    run_dir, recipe = finished
    state = torch.load(run_dir / name, weights_only=True)
    assert state["recipe"] == recipe.to_dict()
    assert state["classes"] == [str(digit) for digit in range(10)]
    assert all(key.startswith("model.") for key in state["state_dict"])
    kinds = set()

    def look(node: object) -> None:
        kinds.add(type(node))
        if isinstance(node, dict):
            for key, value in node.items():
                look(key)
                look(value)
        elif isinstance(node, list | tuple):
            for value in node:
                look(value)

    look(state)
    assert {kind.__name__ for kind in kinds} <= {
        "dict", "OrderedDict", "list", "tuple", "str", "int", "float", "bool", "NoneType", "Tensor",
    }  # fmt: skip


def test_the_best_checkpoint_holds_the_averaged_weights(finished):
    run_dir, _ = finished
    last, best = (torch.load(run_dir / name, weights_only=True) for name in ("last.ckpt", "best.ckpt"))
    assert best["step"] == last["step"] == 12
    different = 0
    for name, tensor in last["ema"].items():
        torch.testing.assert_close(best["state_dict"][f"model.{name}"], tensor)
        different += not torch.equal(tensor, last["state_dict"][f"model.{name}"])
    assert different > 10


def test_files_may_be_read_by_others(finished):
    for name in ("recipe.yaml", "result.json", "last.ckpt"):
        assert os.stat(finished[0] / name).st_mode & 0o444 == 0o444  # noqa: PTH116


def test_device_days_count_every_session_by_its_devices(tmp_path, monkeypatch):
    """Two sessions: an hour on four devices, then two hours on one."""
    from mixer_lightning.engine.callbacks import MetricsLog
    from mixer_lightning.loggers.dashboards import Dashboards

    now = [0.0]
    monkeypatch.setattr("mixer_lightning.engine.callbacks.time.perf_counter", lambda: now[0])

    def log(num_devices: int) -> MetricsLog:
        return MetricsLog(
            tmp_path, every_steps=1, total_steps=9, steps_per_epoch=1.0, num_devices=num_devices,
            dashboards=Dashboards({}, say=print),
        )  # fmt: skip

    first = log(4)
    now[0] += 3600.0
    first.pause()
    second = log(1)
    second.device_seconds, second.train_seconds = first.device_seconds, first.train_seconds
    now[0] += 7200.0
    second.pause()
    assert second.device_time == {"num_devices": 1, "device_days": 0.25}
    assert second.train_seconds == 3 * 3600.0
