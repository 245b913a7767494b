"""Weights & Biases: a run that goes on under its id, offline where there is no key. The only importer of wandb."""

from __future__ import annotations

import netrc
import os
import secrets
from pathlib import Path
from typing import Literal
from urllib.parse import urlparse

from lightning.pytorch.loggers import WandbLogger


def wandb_logger(
    run_dir: Path,
    run_name: str,
    *,
    project: str = "mixer-lightning",
    entity: str | None = None,
    mode: Literal["auto", "online", "offline", "disabled"] = "auto",
    init_timeout_seconds: float = 60.0,
) -> WandbLogger:
    """A Weights & Biases run that a later session of the same run directory continues.

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


def where(logger: WandbLogger) -> str:
    """Where a run is to be seen, or the command that uploads it."""
    run = logger.experiment
    if getattr(run, "offline", False):
        return f"W&B is offline here; upload with: wandb sync {Path(run.dir).parent}"
    return f"W&B: {getattr(run, 'url', None)}"


def disconnect(exit_code: int = 0) -> None:
    """Close the run for good, or the next job of a sweep would log into it; it is shown as failed unless 0."""
    import wandb as client

    client.finish(exit_code=exit_code)


def _has_key() -> bool:
    if os.environ.get("WANDB_API_KEY"):
        return True
    try:
        host = urlparse(os.environ.get("WANDB_BASE_URL", "")).hostname
        hosts = netrc.netrc().hosts
    except (OSError, netrc.NetrcParseError):
        return False
    return any(name in hosts for name in (host, "api.wandb.ai", "api.forge.coreweave.com") if name)
