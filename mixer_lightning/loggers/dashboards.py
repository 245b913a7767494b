"""Dashboards behind explicit signatures, and never in the way of training. The only importer of wandb."""

from __future__ import annotations

import contextlib
import netrc
import os
import secrets
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import Logger, TensorBoardLogger, WandbLogger


class Dashboards:
    """The dashboards of a run. One that fails says so, once, and is left out from there on."""

    def __init__(self, makers: Mapping[str, Callable[[], Logger]], *, say: Callable[[str], None]) -> None:
        self.makers, self.say = makers, say
        self.loggers: dict[str, Logger] = {}

    def open(self) -> None:
        """Connect to them."""
        for name, make in self.makers.items():
            self._try(name, lambda name=name, make=make: self.loggers.update({name: make()}))  # type: ignore[misc]

    def log_recipe(self, recipe: dict[str, Any]) -> None:
        """The hyper-parameters of the run."""
        self._each(lambda logger: logger.log_hyperparams(recipe))

    def log_metrics(self, step: int, row: dict[str, float]) -> None:
        """One point per metric."""
        self._each(lambda logger: logger.log_metrics(row, step))

    def advise(self, run_dir: Path) -> None:
        """Say where each is to be seen."""
        self._each(lambda logger: self.say(_advice(logger, run_dir)))

    def close(self) -> None:
        """Close them for good, or the next job of a sweep would log into the same W&B run."""
        self._each(_finish)
        self.loggers.clear()

    def _each(self, use: Callable[[Logger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            self._try(name, lambda logger=logger: use(logger))  # type: ignore[misc]

    def _try(self, name: str, use: Callable[[], None]) -> None:
        try:
            use()
        except Exception as error:  # weeks of training must not end because a dashboard is out of reach
            lost = self.loggers.pop(name, None)
            self.say(f"logger.{name} failed and is left out from here on: {error}")
            with contextlib.suppress(Exception):
                _disconnect(lost)


def tensorboard(run_dir: Path, run_name: str) -> TensorBoardLogger:
    """Event files in `<run_dir>/tensorboard`: `tensorboard --logdir runs`."""
    return TensorBoardLogger(save_dir=str(run_dir), name="tensorboard", version="")


def wandb(
    run_dir: Path,
    run_name: str,
    *,
    project: str = "mixer-lightning",
    entity: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    init_timeout_seconds: float = 60.0,
) -> WandbLogger:
    """A Weights & Biases run that a later sitting of the same run directory continues.

    `auto` is what WANDB_MODE says, else online. Without a key in WANDB_API_KEY or ~/.netrc online becomes offline: it
    never asks for one. If the server does not answer in time, the run goes on offline.
    """
    import wandb as client

    if mode == "auto":
        mode = os.environ.get("WANDB_MODE", "online")  # type: ignore[assignment]
    if mode == "online" and not _has_key():
        mode = "offline"
    folder = run_dir / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    id_file = folder / "id.txt"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4))

    def open_run(mode: str) -> WandbLogger:
        settings = client.Settings(init_timeout=init_timeout_seconds, console="off", silent=True)
        run = client.init(
            project=project,
            entity=entity,
            name=run_name,
            id=id_file.read_text().strip(),
            resume="allow",
            dir=str(run_dir),
            mode=mode,  # type: ignore[arg-type]
            settings=settings,
        )
        return WandbLogger(experiment=run)

    try:
        return open_run(mode)
    except (client.errors.CommError, client.errors.UsageError, TimeoutError):
        client.teardown()
        return open_run("offline")


def _advice(logger: Logger, run_dir: Path) -> str:
    """What a user does to see the dashboard, in one line."""
    if isinstance(logger, TensorBoardLogger):
        return f"tensorboard --logdir {run_dir}"
    if isinstance(logger, WandbLogger):
        run = logger.experiment
        if getattr(run, "offline", False):
            return f"W&B is offline here; upload with: wandb sync {Path(run.dir).parent}"
        return f"W&B: {getattr(run, 'url', None)}"
    return f"logging to {type(logger).__name__}"


def _finish(logger: Logger) -> None:
    try:
        logger.finalize("success")
    finally:
        _disconnect(logger)


def _disconnect(logger: Logger | None) -> None:
    if isinstance(logger, WandbLogger):
        import wandb as client

        client.finish()


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = urlparse(os.environ.get("WANDB_BASE_URL", "")).hostname
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any(name in hosts for name in (host, "api.wandb.ai", "api.forge.coreweave.com") if name)
