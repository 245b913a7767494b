"""The store at which the processes of a launch meet: torchrun's agent has it, or else process 0."""

from __future__ import annotations

import datetime
import os
import socket
import time
from typing import Any

import torch.distributed as dist

from mixer_lightning.launcher import Launch


def open_store(launch: Launch, *, seconds: float) -> tuple[str, Any]:
    """The store at which the processes of a launch meet, and its address; process 0 has it, or torchrun's agent.

    A process group that is begun later by `env://` has the same.

    Raises:
        ConnectionError: it cannot be reached within `seconds`.
    """
    if "MASTER_ADDR" not in os.environ:
        from mixer_lightning.engine.machine import Machine  # Lightning, which knows of srun

        Machine.say_where_to_meet()
    host, port = os.environ["MASTER_ADDR"], os.environ["MASTER_PORT"]
    try:
        if not hosts_store(launch):
            _await_server(host, int(port), seconds=seconds)
        store = dist.TCPStore(  # type: ignore[attr-defined]
            host,
            int(port),
            world_size=None,
            is_master=hosts_store(launch),
            # Somebody listens. Where they are gone a moment later torch tries again, up to twice as long as it is told.
            timeout=datetime.timedelta(seconds=seconds / 3),
            wait_for_workers=False,
            multi_tenant=True,
        )
        store.set_timeout(datetime.timedelta(seconds=seconds))
    except (RuntimeError, ValueError, OSError) as error:  # torch's DistNetworkError is a RuntimeError
        raise ConnectionError(f"{host}:{port} cannot be reached within {seconds:g} s") from error
    return f"{host}:{port}", store


def _await_server(host: str, port: int, *, seconds: float) -> None:
    """Wait until somebody listens; torch's own wait may last twice as long, and prints pages.

    Raises:
        OSError: nobody does within `seconds`.
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            socket.create_connection((host, port), timeout=max(0.1, deadline - time.monotonic())).close()
            return
        except OSError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.2)


def hosts_store(launch: Launch) -> bool:
    """Whether this process has the store of its launch."""
    return launch.rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
