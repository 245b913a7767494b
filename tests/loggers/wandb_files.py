"""What a W&B file holds, as W&B's own reader tells it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple


class Stored(NamedTuple):
    """One session of a run, as it lies in its folder until it is uploaded."""

    run: dict[str, Any]
    config: dict[str, Any]
    history: list[dict[str, Any]]  # with the step as `_step`, keys of media as `name._type` and so on
    summary: dict[str, Any]
    exit_code: int | None
    artifacts: dict[str, list[str]]  # name without the run's id: files

    def names(self) -> set[str]:
        """All that was logged; of media without what W&B keeps about them."""
        return {name.partition(".")[0] for row in self.history for name in row if name[0] != "_"}


def sessions(run_dir: Path) -> list[Stored]:
    """The sessions of a run directory, the first first."""
    files = sorted(run_dir.glob("wandb/offline-run-*/run-*.wandb"), key=lambda path: path.stat().st_mtime_ns)
    return [read(file) for file in files]


def read(file: Path) -> Stored:
    """One file, by `wandb leet inspect`."""
    done = subprocess.run(
        [sys.executable, "-m", "wandb", "leet", "inspect", "--json", str(file)],
        capture_output=True, text=True, timeout=300, check=True,
    )  # fmt: skip
    run: dict[str, Any] = {}
    config: dict[str, Any] = {}
    history: list[dict[str, Any]] = []
    summary: dict[str, Any] = {}
    exit_code = None
    artifacts: dict[str, list[str]] = {}
    for line in done.stdout.splitlines():
        record = json.loads(line)
        kind = record["type"]
        content = record.get(kind, {})
        if kind == "run":
            run = content
        elif kind == "config":
            config |= content.get("update", {})
        elif kind == "history":
            history.append(content["item"])
        elif kind == "summary":
            summary |= content.get("update", {})
        elif kind == "artifact":
            _, _, name = content["name"].split("-", 2)
            artifacts[name.partition("-")[0]] = [each["path"] for each in content["manifest"]["contents"]]
        elif kind == "exit":
            exit_code = content.get("exit_code", 0)
    return Stored(run, config, history, summary, exit_code, artifacts)
