"""What a machine, or all machines of a launch, have for a long run: `mixer doctor`.

    mixer doctor
    torchrun --nnodes=2 --node-rank=<0 or 1> --master-addr=<node 0> --nproc-per-node=8 -m mixer_lightning doctor
    srun --ntasks-per-node=8 python -m mixer_lightning doctor data=/mnt/imagenet

Launched as a training would be, the processes say who of them is missing, whether the nodes have the same code, how
fast gradients pass between them, and whether all see the folder of runs.
"""

from __future__ import annotations

import argparse
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mixer_lightning import launcher
from mixer_lightning.config.arguments import Parser
from mixer_lightning.screen import Screen, last_line, refuse

if TYPE_CHECKING:
    from mixer_lightning.engine.health import Finding
    from mixer_lightning.engine.meeting import Arrival

SIGNS = {"ok": "ok", "warning": "look", "failure": "FAILS"}


def settings(argv: Sequence[str]) -> argparse.Namespace:
    """The command line, as key=value or --key=value. A wrong argument ends the program with a message."""
    parser = Parser(
        "doctor",
        usage="[out=runs] [data=FOLDER] [seconds=60] [megabytes=64]",
        description="Checks versions, devices, limits, disk and, launched by torchrun or srun as a training is, the "
        "other\nprocesses and the network between them; says what to do about each fault. Exit code 1 if something "
        "fails.",
    )
    add = parser.add_argument
    add("--out", type=Path, default=Path("runs"), metavar="FOLDER", help="of runs; default: %(default)s")
    add("--data", type=Path, metavar="FOLDER", help="of images or shards, which all nodes should see")
    add("--seconds", type=float, default=60.0, metavar="N", help="to wait for others; default: %(default)g")
    add("--megabytes", type=int, default=64, metavar="N", help="of gradients to sum; default: %(default)s")
    chosen = parser.read(argv)
    parser.check_at_least(1, chosen, "megabytes")
    if not 0 < chosen.seconds < 86400:
        parser.error(f"seconds must be above 0 and below a day, found {chosen.seconds:g}")
    chosen.out = chosen.out.expanduser()
    chosen.data = chosen.data and chosen.data.expanduser()
    return chosen


def main(argv: Sequence[str]) -> int:
    """Make the checks, print them on the first process; the exit code."""
    chosen = settings(argv)
    try:
        launch = launcher.launched()
    except ValueError as error:
        refuse([str(error)])
    screen = Screen(silent=not launcher.is_first())
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "FATAL")  # pages of frames for a connection that is refused
    from mixer_lightning.engine.health import findings_of_host

    mine = list(findings_of_host(chosen.out, chosen.data))
    if launch is None:
        return show(screen, [("", each) for each in mine])
    return _launched(chosen, launch, mine, screen)


def show(screen: Screen, findings: Sequence[tuple[str, Finding]]) -> int:
    """Print findings, each with the processes that have it, and what would mend the bad ones; the exit code."""
    several = any(where for where, _ in findings)
    columns = ["check", "", *(["where"] if several else []), "found"]
    rows = [
        [each.name, SIGNS[each.state], *([where] if several else []), each.said] for where, each in findings
    ]
    screen.table("", columns, rows)
    for _, each in findings:
        if each.remedy:
            screen.say(f"{each.name}: {each.remedy}")
    return int(any(each.state == "failure" for _, each in findings))


def _launched(
    chosen: argparse.Namespace, launch: launcher.Launch, mine: Sequence[Finding], screen: Screen
) -> int:
    """The checks with the other processes of a launch; the exit code, the same on all."""
    from mixer_lightning.engine import meeting

    alarm = _Alarm(screen, seconds=chosen.seconds)
    try:
        met = meeting.Meeting(launch, seconds=chosen.seconds)
        met.arrive(mine)
        try:
            arrivals = met.arrivals()
        except meeting.Missing as incomplete:
            if not screen.silent:
                found, waiting = incomplete.args
                missing = meeting.missing(found, waiting, seconds=chosen.seconds, address=met.address)
                show(screen, [*by_place(found), ("", missing)])
            return 1
        alarm.wind()
        together = meeting.together(met, out=chosen.out, megabytes=chosen.megabytes, in_time=alarm.wind)
        alarm.stop()
        met.part()
    except (ConnectionError, RuntimeError) as error:
        screen.alarm(
            f"the processes cannot speak with each other: {last_line(error)}. See that MASTER_ADDR is an address of "
            "the first node that all nodes reach, its ports are open, and NCCL_SOCKET_IFNAME (GLOO_SOCKET_IFNAME on "
            "CPUs) names the network between them"
        )
        return 1
    finally:
        alarm.stop()
    shown = [*by_place(arrivals), *(("all", each) for each in together)]
    code = int(any(each.state == "failure" for each in [*mine, *together]))
    return show(screen, shown) if not screen.silent else code


def by_place(arrivals: Sequence[Arrival]) -> list[tuple[str, Finding]]:
    """Findings in the order of checks, each once with the hosts that have it."""
    hosts = list(dict.fromkeys(each.host for each in arrivals))
    places: dict[Finding, list[str]] = {}
    for arrival in arrivals:
        for each in arrival.findings:
            places.setdefault(each, []).append(arrival.host)
    names = list(dict.fromkeys(each.name for arrival in arrivals for each in arrival.findings))
    found = sorted(places.items(), key=lambda item: names.index(item[0].name))
    return [
        ("all" if len(set(where)) == len(hosts) else ", ".join(dict.fromkeys(where)), each)
        for each, where in found
    ]


class _Alarm:
    """Ends a process whose network does not answer: a collective call cannot be interrupted."""

    def __init__(self, screen: Screen, *, seconds: float) -> None:
        self.screen, self.seconds = screen, seconds
        self.timer: threading.Timer | None = None

    def wind(self) -> None:
        """Ring after `seconds` from now."""
        self.stop()
        self.timer = threading.Timer(self.seconds + 5, self._ring)
        self.timer.daemon = True
        self.timer.start()

    def stop(self) -> None:
        """Do not ring."""
        if self.timer is not None:
            self.timer.cancel()

    def _ring(self) -> None:
        self.screen.alarm(
            f"no answer from the other processes for {self.seconds:g} s: the ports between the nodes may be closed, or "
            "NCCL_SOCKET_IFNAME (GLOO_SOCKET_IFNAME on CPUs) be needed; NCCL_DEBUG=INFO tells more"
        )
        os._exit(1)
