"""Whether wandb finds a key, and which server it talks to: without asking for one, and without Lightning."""

from __future__ import annotations

import netrc
import os
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import urlsplit

Mode = Literal["auto", "online", "offline", "disabled"]


def settings_of_wandb() -> Any:
    """wandb's settings of this process: of its files and the environment, as `wandb.init` will find them."""
    from wandb.sdk import wandb_setup  # `wandb.setup` would start its service too

    return wandb_setup.singleton().settings


def usual_mode(settings: Any) -> tuple[Mode, str]:
    """What mode=auto means here, and who says so."""
    mode = os.environ.get("WANDB_MODE") or settings.mode or "online"
    who = f"WANDB_MODE={mode}" if os.environ.get("WANDB_MODE") else f"wandb's settings say {mode}"
    return cast("Mode", {"run": "online", "dryrun": "offline"}.get(mode, mode)), who


def mode_here(mode: Mode, settings: Any) -> tuple[Mode, str]:
    """The mode that a run will have, of the one that its recipe names, and why it is not online."""
    why = f"logger.wandb.mode={mode}"
    if mode == "auto":
        mode, why = usual_mode(settings)
    if mode == "online":
        missing = why_no_key(settings)
        mode, why = ("offline", missing) if missing is not None else (mode, why)
    return mode, why


def server_of(settings: Any) -> str:
    """The host and port that wandb talks to."""
    return urlsplit(str(settings.base_url)).netloc


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
    return f"no key for {server_of(settings)}: wandb login, or set WANDB_API_KEY{found}"


def _netrc_path() -> Path:
    """The netrc file that wandb reads."""
    if named := os.environ.get("NETRC"):
        return Path(named).expanduser()
    usual, windows = (Path.home() / name for name in (".netrc", "_netrc"))
    return windows if windows.exists() and not usual.exists() else usual
