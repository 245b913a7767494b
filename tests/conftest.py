"""What the tests share: one thread per process, and a way to run the programs as a user does."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ["OMP_NUM_THREADS"] = "1"  # the tests run side by side; processes started by them inherit it
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["WANDB_MODE"] = "offline"
os.environ["WANDB_SILENT"] = "true"

ROOT = Path(__file__).parent.parent

#: A run of seconds: a tiny Mixer on the digits, float32 so that every CPU gives comparable bits.
TINY = (
    "model=mixer_digits",
    "data=digits",
    "trainer=cpu",
    "trainer.precision=32-true",
    "batch_size=60",
    "duration.steps=12",
    "eval_every.steps=6",
    "checkpoint_every.steps=3",
    "log_every_steps=5",
)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch = sys.modules.get("torch")
    if torch is not None:
        torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _log_as_imported() -> None:
    """A run in the same process turns the package's log to its screen, and Hydra lets errors alone through."""
    logging.getLogger().setLevel(logging.WARNING)
    log = logging.getLogger("mixer_lightning")
    log.handlers.clear()
    log.setLevel(logging.NOTSET)
    log.propagate = True


@pytest.fixture(autouse=True)
def _quick(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run in this process draws no pictures and measures no device, which takes longer than its steps.

    Tests that look at these have the marker `whole`.
    """
    if request.node.get_closest_marker("whole") is None:
        for module, name, instead in _QUICK:
            if module in sys.modules:
                monkeypatch.setattr(sys.modules[module], name, instead)


_QUICK = (
    ("mixer_lightning.engine.closing", "draw_pictures", lambda *_: None),
    ("mixer_lightning.reports.first_batch", "draw", lambda *_: None),
    ("mixer_lightning.engine.callbacks", "PEAK_SECONDS", 0.001),
    ("mixer_lightning.engine.device", "MATRIX_SIDE", {"cpu": 64, "cuda": 8192}),
)


@pytest.fixture
def program(tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    """program("train.py", "model=..."): run a script of the checkout in an empty folder, text captured."""

    def run(script: str, *words: str, timeout: float = 600, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, str(ROOT / script), *words],
            cwd=tmp_path,
            env=os.environ | env,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )

    return run
