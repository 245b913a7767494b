"""Dashboards: each run its own, the values that metrics.jsonl has, never a prompt, never the end of a training."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from wandb.sdk import wandb_setup
from wandb.sdk.lib import wbauth

from conftest import ROOT, TINY
from mixer_lightning import results
from mixer_lightning.config.compose import compose_one
from mixer_lightning.engine import run
from mixer_lightning.loggers import dashboards as loggers
from mixer_lightning.loggers.wandb import log_report, wandb_logger
from mixer_lightning.loggers.wandb_keys import settings_of_wandb, why_no_key

SHORT = (*TINY, "duration.steps=6", "evals=none")


def train(run_dir: Path, *words: str) -> int:
    return run.train(compose_one("train", [*SHORT, *words]), run_dir)


# --------------------------------------------------------------------------------------------- tensorboard


def test_tensorboard_has_the_values_of_the_metrics(tmp_path, capsys):
    run_dir = tmp_path / "a run"
    assert train(run_dir, "logger=tensorboard", "evals=accuracy") == 0
    assert f"tensorboard --logdir '{run_dir}'" in capsys.readouterr().out
    events = EventAccumulator(str(run_dir / "tensorboard"))
    events.Reload()
    rows = results.read_metrics(run_dir)
    names = {name for row in rows for name in row} - {"step"}
    assert names == set(events.Tags()["scalars"])  # and no hp_metric of -1
    assert {"train/loss", "test/top1", "train/lr"} <= names
    for name in names:
        points = [(event.step, event.value) for event in events.Scalars(name)]
        expected = [(row["step"], row[name]) for row in rows if name in row]
        assert [step for step, _ in points] == [step for step, _ in expected]
        assert [value for _, value in points] == pytest.approx([value for _, value in expected], rel=1e-6)


# -------------------------------------------------------------------------------------------------- W & B


def test_two_jobs_are_two_runs(tmp_path):
    """A sweep with W&B, offline because there is no key, with nobody at the keyboard."""
    env = {key: value for key, value in os.environ.items() if not key.startswith("WANDB")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), "-m", *SHORT, "seed=0,1", "logger=wandb", "name=both"],
        cwd=tmp_path, env=env | {"HOME": str(tmp_path / "home")}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ids = set()
    for seed in (0, 1):
        folder = tmp_path / "runs" / "both" / f"mixer_digits-digits-seed{seed}" / "wandb"
        (stored,) = folder.glob("offline-run-*")
        wandb_id = (folder / "id.txt").read_text().strip()
        assert stored.name.endswith(f"-{wandb_id}")
        assert (stored / f"run-{wandb_id}.wandb").stat().st_size > 1000
        assert f"wandb sync runs/both/mixer_digits-digits-seed{seed}/wandb/{stored.name}" in done.stdout
        shown = " ".join(sorted(path.name for path in (stored / "files/media").rglob("*.*")))
        assert re.search(r"curves_.*\.png.* first_batch_.*\.png.* runs_.*\.table\.json", shown), shown
        ids.add(wandb_id)
    assert len(ids) == 2
    assert not (tmp_path / "wandb").exists()


class FakeRun:
    """What `wandb.init` gives back, as far as we look."""

    offline = True
    url = None

    def __init__(self, options: dict[str, Any]) -> None:
        self.options = options
        self.dir = f"{options['dir']}/wandb/offline-run-1/files"


@pytest.fixture
def opened(monkeypatch, tmp_path):
    """The options of every call of `wandb.init`, in an environment without keys."""
    calls: list[dict[str, Any]] = []

    def init(**options: Any) -> FakeRun:
        calls.append(options)
        return FakeRun(options)

    monkeypatch.setattr(wandb_setup, "_singleton", None)  # its settings are those of this environment
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(loggers, "WandbLogger", lambda experiment: experiment)
    for name in list(os.environ):
        if name.startswith("WANDB"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("NETRC", raising=False)
    (tmp_path / "home").mkdir()
    return calls


def netrc(tmp_path: Path, host: str, name: str = ".netrc") -> None:
    file = tmp_path / "home" / name
    file.write_text(f"machine {host} login user password {'0' * 40}\n")
    file.chmod(0o600)


def test_without_a_key_it_is_offline(opened, tmp_path):
    wandb_logger(tmp_path / "run", "a/b")
    assert opened[0]["mode"] == "offline"
    assert opened[0]["name"] == "a/b"
    assert opened[0]["dir"] == str(tmp_path / "run")


def test_with_a_key_it_is_online(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb_logger(tmp_path / "run", "a/b")
    assert opened[0]["mode"] == "online"


@pytest.mark.parametrize(
    ("host", "base_url", "mode"),
    [
        ("api.wandb.ai", None, "online"),
        ("wandb.mine.org", "https://wandb.mine.org", "online"),
        ("wandb.mine.org", None, "offline"),
        ("github.com", None, "offline"),
        ("api.wandb.ai", "https://wandb.mine.org", "offline"),  # another server's key: wandb would ask
        ("wandb.mine.org:8080", "http://wandb.mine.org:8080", "online"),
    ],
)
def test_a_key_in_netrc(opened, tmp_path, monkeypatch, host, base_url, mode):
    netrc(tmp_path, host)
    if base_url:
        monkeypatch.setenv("WANDB_BASE_URL", base_url)
    wandb_logger(tmp_path / "run", "a/b")
    assert opened[0]["mode"] == mode


@pytest.mark.parametrize(("name", "variable"), [(".netrc", None), ("_netrc", None), ("keys", "~/keys")])
def test_a_netrc_is_read_as_wandb_reads_it(opened, tmp_path, monkeypatch, name, variable):
    """Where wandb looks, and whatever its mode: Python's own default insists on 600."""
    netrc(tmp_path, "api.wandb.ai", name)
    (tmp_path / "home" / name).chmod(0o644)
    if variable:
        monkeypatch.setenv("NETRC", variable)
    settings = settings_of_wandb()
    assert wbauth.read_netrc_auth(host=settings.base_url) == "0" * 40  # wandb's own word
    assert why_no_key(settings) is None


def test_a_key_in_the_settings(opened, tmp_path, monkeypatch):
    folder = tmp_path / "home/.config/wandb"
    folder.mkdir(parents=True)
    (folder / "settings").write_text(f"[default]\napi_key = {'0' * 40}\nbase_url = https://wandb.mine.org\n")
    wandb_logger(tmp_path / "run", "a/b")
    assert opened[0]["mode"] == "online"


def test_an_identity_token_is_a_key(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_IDENTITY_TOKEN_FILE", "token")
    wandb_logger(tmp_path / "run", "a/b")
    assert opened[0]["mode"] == "online"


def said_of(caplog: pytest.LogCaptureFixture) -> str:
    return " ".join(
        record.getMessage() for record in caplog.records if record.name.startswith("mixer_lightning")
    )


@pytest.mark.parametrize(
    ("how", "why"),
    [
        ("nothing", "no key for"),
        ("another", ".netrc has none"),
        ("damaged", ".netrc cannot be read"),
        ("environment", "WANDB_MODE=offline"),
        ("option", "logger.wandb.mode=offline"),
        ("settings", "wandb's settings say offline"),
        ("short", "the key in"),
        ("server", "the server was not reached: slow"),
    ],
)
def test_going_offline_says_why(opened, tmp_path, monkeypatch, caplog, how, why):
    caplog.set_level("INFO", logger="mixer_lightning")
    if how == "another":
        netrc(tmp_path, "github.com")
    elif how == "damaged":
        (tmp_path / "home/.netrc").write_text("machine api.wandb.ai login user pass")
    elif how == "short":
        (tmp_path / "home/.netrc").write_text("machine api.wandb.ai login user password 123")
    elif how == "environment":
        monkeypatch.setenv("WANDB_MODE", "offline")
    elif how == "settings":  # what `wandb offline` writes
        folder = tmp_path / "home/.config/wandb"
        folder.mkdir(parents=True)
        (folder / "settings").write_text("[default]\nmode = offline\n")
    elif how == "server":
        monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
        init = wandb.init

        def slow(**options: Any) -> FakeRun:
            if options["mode"] == "online":
                raise wandb.errors.CommError("slow")
            return init(**options)

        monkeypatch.setattr(wandb, "init", slow)
        monkeypatch.setattr(wandb, "teardown", lambda: None)
    wandb_logger(tmp_path / "run", "a/b", mode="offline" if how == "option" else "auto")
    assert opened[-1]["mode"] == "offline"
    assert "W&B is offline here: " in said_of(caplog)
    assert why in said_of(caplog)


def test_the_environment_decides_before_the_key(opened, tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    monkeypatch.setenv("WANDB_MODE", "offline")
    wandb_logger(tmp_path / "run", "a/b")
    wandb_logger(tmp_path / "run", "a/b", mode="disabled")
    assert [call["mode"] for call in opened] == ["offline", "disabled"]


@pytest.mark.parametrize("where", ["option", "environment"])
def test_online_without_a_key_never_asks(opened, tmp_path, monkeypatch, where):
    if where == "environment":
        monkeypatch.setenv("WANDB_MODE", "online")
    wandb_logger(tmp_path / "run", "a/b", mode="online" if where == "option" else "auto")
    assert opened[0]["mode"] == "offline"


@pytest.mark.parametrize(
    "error", [wandb.errors.CommError("slow"), TimeoutError(), wandb.errors.UsageError("no")]
)
def test_a_server_that_does_not_answer(opened, tmp_path, monkeypatch, error):
    calls = []

    def init(**options: Any) -> FakeRun:
        calls.append(options["mode"])
        if options["mode"] == "online":
            raise error
        return FakeRun(options)

    monkeypatch.setattr(wandb, "init", init)
    monkeypatch.setattr(wandb, "teardown", lambda: None)
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    wandb_logger(tmp_path / "run", "a/b")
    assert calls == ["online", "offline"]


def test_a_later_session_goes_on_in_the_same_run(opened, tmp_path):
    for folder in ("one", "one", "two"):
        wandb_logger(tmp_path / folder, folder)
    first, again, other = (call["id"] for call in opened)
    assert first == again
    assert first != other
    assert {call["resume"] for call in opened} == {"allow"}


def test_a_real_run_keeps_its_id_and_says_how_to_upload(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    seen, said = [], []
    for _ in range(2):
        dashboards = loggers.Dashboards(
            {"wandb": lambda: wandb_logger(tmp_path / "a run", "a/b", project="tests")}, say=said.append
        )
        dashboards.open()
        seen.append(wandb.run.id)
        folder = Path(wandb.run.dir).parent
        assert folder.is_relative_to(tmp_path / "a run")
        dashboards.advise(tmp_path / "a run")
        assert said == [f"W&B is offline here; upload with: wandb sync '{folder}'"]
        said.clear()
        dashboards.log_metrics(3, {"x": 1.0})
        dashboards.close()
        assert wandb.run is None
    assert seen[0] == seen[1] == (tmp_path / "a run" / "wandb" / "id.txt").read_text()
    assert said == []


def test_wandb_is_given_numbers_as_numbers_and_pictures(tmp_path):
    given: dict[str, Any] = {}
    logger: Any = SimpleNamespace(
        experiment=SimpleNamespace(log=lambda found, step: given.update(found), step=3)
    )
    Image.new("RGB", (5, 3)).save(tmp_path / "curves.png")
    rows = [["run", "images", "top1", "note"], ["a", "1,200", "", ""], ["b", "7", "0.5", ""]]
    log_report(logger, {"runs": rows, "none": [["a"]]}, {"curves": tmp_path / "curves.png"})
    assert list(given) == ["tables/runs", "tables/none", "pictures/curves"]
    assert given["tables/runs"].columns == ["run", "images", "top1", "note"]
    assert given["tables/runs"].data == [["a", 1200.0, None, ""], ["b", 7.0, 0.5, ""]]
    assert given["tables/none"].data == []
    assert given["pictures/curves"].image.size == (5, 3)


@pytest.mark.parametrize("method", ["log_metrics", "log_hyperparams", "finalize"])
def test_a_run_that_broke_is_closed_nonetheless(monkeypatch, method):
    """Or the next job of a sweep would be given this one's run."""
    finished = []
    monkeypatch.setattr(wandb, "finish", lambda *_, **__: finished.append(True))

    class Cut(loggers.WandbLogger):
        def __init__(self) -> None:
            pass

        def log_metrics(self, *_: Any, **__: Any) -> None:
            self._maybe("log_metrics")

        def log_hyperparams(self, *_: Any, **__: Any) -> None:
            self._maybe("log_hyperparams")

        def finalize(self, *_: Any) -> None:
            self._maybe("finalize")

        def _maybe(self, name: str) -> None:
            if name == method:
                raise ConnectionError("cut")

    said: list[str] = []
    dashboards = loggers.Dashboards({"wandb": Cut}, say=said.append)
    dashboards.open()
    dashboards.log_recipe({})
    dashboards.log_metrics(1, {"x": 1.0})
    dashboards.close()
    assert len(said) == 1
    assert "cut" in said[0]
    assert finished


# --------------------------------------------------------------------------------- a dashboard that breaks


class Broken(CSVLogger):
    """Raises in one of its methods."""

    breaks = ""

    def _maybe(self, method: str) -> None:
        if self.breaks == method:
            raise ConnectionError(f"no route to the dashboard in {method}")

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self._maybe("log_metrics")

    def log_hyperparams(self, params: Any = None) -> None:
        self._maybe("log_hyperparams")

    def save(self) -> None:
        pass

    def finalize(self, status: str) -> None:
        self._maybe("finalize")


def broken(run_dir: Path, run_name: str, *, breaks: str) -> Broken:
    """A logger that raises where it is told to."""
    if breaks == "opening":
        raise ConnectionError("no route to the dashboard in opening")
    logger = Broken(str(run_dir))
    logger.breaks = breaks
    return logger


BREAKS = ["log_metrics", "opening", "log_hyperparams", "finalize"]


@pytest.mark.parametrize("method", BREAKS)
def test_a_broken_dashboard_does_not_stop_the_training(tmp_path, capsys, method):
    words = ("+logger.mine._target_=test_loggers.broken", f"+logger.mine.breaks={method}")
    assert train(tmp_path / "run", *words) == 0
    assert (tmp_path / "run" / "result.json").exists()
    said = capsys.readouterr().out
    assert f"no route to the dashboard in {method}" in said
    assert said.count("no route") == 1  # once, not at every step


def test_the_other_dashboards_go_on(tmp_path):
    words = ("logger=tensorboard", "+logger.a._target_=test_loggers.broken", "+logger.a.breaks=log_metrics")
    assert train(tmp_path / "run", *words) == 0
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [5, 6]


@pytest.mark.parametrize(
    ("words", "status"), [((), "success"), (("optimizer.lr=1e30", "clip_grad_norm=null"), "failed")]
)
def test_a_dashboard_is_told_how_a_run_ended(tmp_path, monkeypatch, words, status):
    told = []
    monkeypatch.setattr(Broken, "finalize", lambda self, status: told.append(status))
    given = ("+logger.mine._target_=test_loggers.broken", "+logger.mine.breaks=none", *words)
    code = train(tmp_path / "run", *given)
    assert (code == 0, told) == (status == "success", [status])
