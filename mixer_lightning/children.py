"""Trainings as child processes, each by torchrun where it has several processes. Without torch.

Lightning's own launcher runs the command line of its parent again, a whole sweep in every process of every job: a job
of several processes is a child of its own, which torchrun starts.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import site
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from mixer_lightning import launcher
from mixer_lightning.stopping import StopRequests

PACKAGE_PARENT = Path(__file__).parents[1]
#: What torchrun says itself: "E1128 17:01:02.345000 123 site-packages/torch/distributed/elastic/...] ...".
_BY_TORCHRUN = re.compile(r"^[A-Z]\d{4} [\d:.]+ \d+ .*torch/distributed/")
_WORKERS_CODE = re.compile(r"exitcode\s*:\s*(-?\d+)")
#: For how long torchrun waits for processes that were asked to stop, which save first.
SHUTDOWN_SECONDS = 600


def num_processes(trainer: Mapping[str, Any]) -> int:
    """How many processes a training of this `trainer` is to have, where no launcher was started for it.

    Raises:
        ValueError: one for each GPU, and there is none.
    """
    devices = trainer.get("devices", 1)
    if devices is not None:
        return int(devices)
    gpus = 0 if trainer.get("accelerator") == "cpu" else _num_gpus()
    if not gpus:
        raise ValueError(
            "trainer=ddp has one process for each GPU, and there is none here: say how many processes a job has, "
            "trainer.devices=2"
        )
    return gpus


def _num_gpus() -> int:
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return len([each for each in visible.split(",") if each.strip() not in ("", "-1")])
    with contextlib.suppress(OSError):
        return len(list(Path("/proc/driver/nvidia/gpus").iterdir()))
    return 0


class Child:
    """`mixer <argv>` in a process of its own, or in several that torchrun starts; it ends when this process does.

    Args:
        argv: the command line.
        processes: how many.
        hear: hears each line of what they say; called from a thread. What torchrun says itself is left out.
        folder: where it works.
    """

    def __init__(
        self, argv: Sequence[str], *, processes: int, hear: Callable[[str], None], folder: Path | None = None
    ) -> None:
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}"]
        self.hear, self.last_lines = hear, deque[str](maxlen=50)
        self._workers_code: int | None = None
        self._process = subprocess.Popen(
            [*command, "-m", "mixer_lightning", *argv],
            cwd=folder,
            env=_environment(processes),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,  # Ctrl-C is for the parent, which asks its child to stop
            preexec_fn=_end_with_parent if sys.platform == "linux" else None,
        )
        self._reader = threading.Thread(target=self._read, name="child", daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        reports = False
        for line in self._process.stdout:
            line = line.rstrip("\n")
            if _BY_TORCHRUN.match(line):
                reports = reports or line.startswith("E")  # a traceback and a table follow, to the end
            elif not reports:
                self.last_lines.append(line)
                self.hear(line)
            found = _WORKERS_CODE.search(line) if reports else None
            if found and self._workers_code is None:
                self._workers_code = int(found[1])

    def ask_to_stop(self) -> None:
        """SIGTERM: a training saves after its step, and ends; torchrun passes it on."""
        self._process.send_signal(signal.SIGTERM)

    def poll(self) -> int | None:
        """The exit code of the training; None while it runs. A process that a signal ended gives 128 + its number."""
        code = self._process.poll()
        if code is None:
            return None
        self._reader.join(5.0)
        if code and self._workers_code is not None:  # torchrun's own is 1
            code = self._workers_code
        return code if code >= 0 else 128 - code

    def wait(self, requests: StopRequests, *, look: Callable[[], None] = lambda: None) -> int:
        """The exit code, `look`ing every now and then; asked to stop by `requests`, when its child has."""
        asked = False
        while (code := self.poll()) is None:
            if requests.received and not asked:
                asked = True
                self.ask_to_stop()
            look()
            time.sleep(0.1)
        look()
        return code


def _environment(processes: int) -> dict[str, str]:
    """This process's, without what a launcher said to it; in which this package is found."""
    env = {key: value for key, value in os.environ.items() if not launcher.is_of_torchrun(key)}
    if str(PACKAGE_PARENT) not in site.getsitepackages():
        env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(PACKAGE_PARENT), env.get("PYTHONPATH")]))
    if processes > 1:
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        env.setdefault("OMP_NUM_THREADS", str(max(1, cores // processes)))
        env.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", str(SHUTDOWN_SECONDS))
    return env


def _end_with_parent() -> None:
    """Linux: SIGTERM when the parent is killed, or a training would go on that nobody waits for."""
    pr_set_pdeathsig = 1  # prctl(2)
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGTERM)
