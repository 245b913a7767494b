"""Weights & Biases: a run that goes on under its id, offline where there is no key. The only importer of wandb."""

from __future__ import annotations

import logging
import netrc
import os
import secrets
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

from lightning.pytorch.loggers import WandbLogger

from mixer_lightning.ranges import PositiveFloat

Mode = Literal["auto", "online", "offline", "disabled"]

log = logging.getLogger(__name__)


def wandb_logger(
    run_dir: Path,
    run_name: str,
    *,
    project: str = "mixer-lightning",
    entity: str | None = None,
    mode: Mode = "auto",
    init_timeout_seconds: PositiveFloat = 60.0,
) -> WandbLogger:
    """A Weights & Biases run that a later session of the same run directory continues.

    `auto` is what WANDB_MODE or `wandb offline` says, else online. Without a key where wandb looks for one
    (WANDB_API_KEY, WANDB_IDENTITY_TOKEN_FILE, the netrc file, its settings) online becomes offline: it never asks for
    one. If the server does not answer in time, the run goes on offline. The log says why it is.
    """
    import wandb as client

    settings = settings_of_wandb()
    why = f"logger.wandb.mode={mode}"
    if mode == "auto":
        mode, why = _usual_mode(settings)
    if mode == "online":
        missing = why_no_key(settings)
        mode, why = ("offline", missing) if missing is not None else (mode, why)
    folder = run_dir / "wandb"
    folder.mkdir(parents=True, exist_ok=True)
    id_file = folder / "id.txt"
    if not id_file.exists():
        id_file.write_text(secrets.token_hex(4), encoding="utf-8")

    def open_run(mode: str) -> WandbLogger:
        settings = client.Settings(init_timeout=init_timeout_seconds, console="off", silent=True)
        run = client.init(
            project=project,
            entity=entity,
            name=run_name,
            id=id_file.read_text(encoding="utf-8").strip(),
            resume="allow",
            dir=str(run_dir),
            mode=mode,  # type: ignore[arg-type]
            settings=settings,
        )
        return WandbLogger(experiment=run)

    try:
        logger = open_run(mode)
    except (client.errors.Error, TimeoutError) as error:
        client.teardown()
        first_line = (str(error).strip() or type(error).__name__).splitlines()[0]
        logger, why = open_run("offline"), f"the server was not reached: {first_line}"
        mode = "offline"
    if mode != "online":
        log.info(f"W&B is {mode} here: {why}")
    return logger


def where(logger: WandbLogger) -> str:
    """Where a run is to be seen, or the command that uploads it."""
    run = logger.experiment
    if getattr(run, "disabled", False):
        return "W&B is disabled here"
    if getattr(run, "offline", False):
        return f"W&B is offline here; upload with: wandb sync {Path(run.dir).parent}"
    return f"W&B: {getattr(run, 'url', None)}"


def log_report(
    logger: WandbLogger, tables: Mapping[str, Sequence[Sequence[str]]], pictures: Mapping[str, Path]
) -> None:
    """Tables, whose first row names the columns, as `tables/<name>`, and pictures as `pictures/<name>`."""
    import wandb as client

    found: dict[str, Any] = {}
    for name, (columns, *rows) in tables.items():
        cells = [_numbers(column) for column in zip(*rows, strict=True)]
        found[f"tables/{name}"] = client.Table(
            columns=list(columns), data=[list(row) for row in zip(*cells, strict=True)]
        )
    found |= {f"pictures/{name}": client.Image(str(path)) for name, path in pictures.items()}
    if found:
        logger.experiment.log(found)


def _numbers(cells: Sequence[str]) -> list[float | None] | list[str]:
    """A column as numbers, None for an empty cell; as it is where a cell is none. W&B wants one type in a column."""
    try:
        numbers = [float(cell.replace(",", "")) if cell else None for cell in cells]
    except ValueError:
        return list(cells)
    return numbers if any(number is not None for number in numbers) else list(cells)


def disconnect(exit_code: int = 0) -> None:
    """Close the run for good, or the next job of a sweep would log into it; it is shown as failed unless 0."""
    import wandb as client

    client.finish(exit_code=exit_code)


def settings_of_wandb() -> Any:
    """wandb's settings of this process: of its files and the environment, as `wandb.init` will find them."""
    from wandb.sdk import wandb_setup  # `wandb.setup` would start its service too

    return wandb_setup.singleton().settings


def _usual_mode(settings: Any) -> tuple[Mode, str]:
    """What mode=auto means here, and who says so."""
    mode = os.environ.get("WANDB_MODE") or settings.mode or "online"
    who = f"WANDB_MODE={mode}" if os.environ.get("WANDB_MODE") else f"wandb's settings say {mode}"
    return cast("Mode", {"run": "online", "dryrun": "offline"}.get(mode, mode)), who


def why_no_key(settings: Any) -> str | None:
    """Why wandb would have to ask for a key; None where it finds one, in the environment, a netrc or its settings."""
    from wandb.errors import AuthenticationError
    from wandb.sdk.lib import wbauth

    in_environment = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")
    if any(os.environ.get(name) for name in in_environment) or settings.api_key:
        return None
    path = _netrc_path()
    try:
        netrc.netrc(path)  # whatever its mode, which Python minds only of a default file
        if wbauth.read_netrc_auth(host=settings.base_url):
            return None
        found = f"; {path} has none"
    except FileNotFoundError:
        found = ""
    except (OSError, ValueError, netrc.NetrcParseError) as error:
        return f"{path} cannot be read: {error}"
    except AuthenticationError as error:
        return f"the key in {path} is none: {error}"
    return f"no key for {urlsplit(settings.base_url).netloc}: wandb login, or set WANDB_API_KEY{found}"


def _netrc_path() -> Path:
    """The netrc file that wandb reads."""
    if named := os.environ.get("NETRC"):
        return Path(named).expanduser()
    usual, windows = (Path.home() / name for name in (".netrc", "_netrc"))
    return windows if windows.exists() and not usual.exists() else usual
