"""Processes of a launcher meet, and what can be seen when they do: who is missing, the network's speed, the clocks.

They meet at a store of torch's own, which tells who has come before a process group waits for all.
"""

from __future__ import annotations

import datetime
import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch
import torch.distributed as dist

from mixer_lightning.engine.agreement import Standing, disagreement
from mixer_lightning.engine.distributed import gather_objects
from mixer_lightning.engine.health import Finding
from mixer_lightning.engine.machine import Machine
from mixer_lightning.engine.store import open_store
from mixer_lightning.files import existing_part
from mixer_lightning.launcher import Launch

ROUNDS = 5
MAX_SKEW_SECONDS = 1.0


class Arrival(NamedTuple):
    """A process that has come: its number, its host, and what it has found there."""

    rank: int
    host: str
    findings: list[Finding]


class Missing(Exception):
    """Not all have come."""


class Meeting:
    """The store at which the processes of a launch meet.

    Raises:
        ConnectionError: it cannot be reached within `seconds`.
    """

    def __init__(self, launch: Launch, *, seconds: float) -> None:
        self.launch, self.seconds = launch, seconds
        self.address, store = open_store(launch, seconds=seconds)
        restarts = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        self.store = dist.PrefixStore(f"doctor/{restarts}", store)  # type: ignore[attr-defined]

    def arrive(self, findings: Sequence[Finding]) -> None:
        """Say that this process has come, and what it has found."""
        said = {"host": socket.gethostname(), "findings": [each._asdict() for each in findings]}
        self.store.set(f"here/{self.launch.rank}", json.dumps(said))

    def arrivals(self) -> list[Arrival]:
        """All that have come, on the first process; the others wait for its word.

        Raises:
            Missing: not all came within the time.
        """
        if self.launch.rank != 0:
            self.store.wait(["all"], datetime.timedelta(seconds=2 * self.seconds + 10))
            if self.store.get("all") != b"here":
                raise Missing
            return []
        ranks = set(range(self.launch.world_size))
        deadline = time.monotonic() + self.seconds
        waiting = ranks
        while waiting and time.monotonic() < deadline:
            waiting = {rank for rank in waiting if not self.store.check([f"here/{rank}"])}
            time.sleep(0.1)
        self.store.set("all", "missing" if waiting else "here")
        found = []
        for rank in sorted(ranks - waiting):
            said = json.loads(self.store.get(f"here/{rank}"))
            found.append(Arrival(rank, said["host"], [Finding(**each) for each in said["findings"]]))
        if waiting:
            raise Missing(found, sorted(waiting))
        return found

    def part(self) -> None:
        """Wait for each other: the store ends with the first process."""
        self.store.set(f"gone/{self.launch.rank}", "1")
        if self.launch.rank == 0:
            limit = datetime.timedelta(seconds=self.seconds)
            self.store.wait([f"gone/{rank}" for rank in range(self.launch.world_size)], limit)


def missing(found: Sequence[Arrival], waiting: Sequence[int], *, seconds: float, address: str) -> Finding:
    """What to say of processes that have not come."""
    hosts = sorted({each.host for each in found})
    numbers = ", ".join(map(str, waiting))
    return Finding(
        "processes",
        "failure",
        f"{len(found)} of {len(found) + len(waiting)} came to {address} within {seconds:g} s, on {', '.join(hosts)}; "
        f"missing: {numbers}",
        "look at what the missing ones print; all nodes need the same MASTER_ADDR and MASTER_PORT, open in the "
        "firewall, and torchrun on each node its own --node-rank",
    )


def together(meeting: Meeting, *, out: Path, megabytes: int, in_time: Callable[[], object]) -> list[Finding]:
    """Checks that all processes make together; the same on all but for the folder, which the first has written to.

    `in_time` is called whenever they have heard of each other.
    """
    machine = Machine(accelerator="auto", devices=None)
    launch, limit = meeting.launch, datetime.timedelta(seconds=meeting.seconds)
    backend = "nccl" if machine.device_type == "cuda" else "gloo"
    if machine.device_type == "cuda":
        torch.cuda.set_device(machine.device)
    group = dist.PrefixStore("group", meeting.store)  # type: ignore[attr-defined]
    dist.init_process_group(
        backend, store=group, rank=launch.rank, world_size=launch.world_size, timeout=limit
    )
    try:
        findings = [_sum(machine, launch, backend)]
        in_time()
        findings.append(_speed(machine, launch, megabytes=megabytes))
        in_time()
        findings += [_clocks(), _versions(), _folder(out, launch)]
        in_time()
    finally:
        dist.destroy_process_group()
    return findings


def _sum(machine: Machine, launch: Launch, backend: str) -> Finding:
    """An all-reduce of numbers whose sum is known."""
    value = torch.full((3,), float(launch.rank + 1), device=machine.device)
    dist.all_reduce(value)
    found, right = float(value[0]), launch.world_size * (launch.world_size + 1) / 2
    if found != right:
        return Finding(
            "all-reduce", "failure", f"{backend} says {found:g} for {right:g}", "NCCL_P2P_DISABLE=1 tells whether "
            "the links between GPUs are at fault",
        )  # fmt: skip
    return Finding("all-reduce", "ok", f"{backend}, {launch.world_size} processes, the sum is right")


def _speed(machine: Machine, launch: Launch, *, megabytes: int) -> Finding:
    """The bandwidth of gradients: each process sends and receives 2 (n - 1) / n of them."""
    gradients = torch.zeros(megabytes * 10**6 // 4, device=machine.device)
    seconds = []
    for _ in range(ROUNDS + 1):
        dist.barrier()
        began = time.perf_counter()
        dist.all_reduce(gradients)
        if machine.device_type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    took = sorted(seconds[1:])[ROUNDS // 2]
    gigabytes = megabytes / 1000 * 2 * (launch.world_size - 1) / launch.world_size / took
    return Finding(
        "bandwidth",
        "ok",
        f"{gigabytes:.2f} GB/s by process: {1000 * took:,.1f} ms for {megabytes} MB of gradients, median of {ROUNDS}",
    )


def _clocks() -> Finding:
    """The farthest difference between clocks, as far as the time of a message lets one say."""
    dist.barrier()
    began = time.perf_counter()
    times = gather_objects((socket.gethostname(), time.time()))
    message = time.perf_counter() - began
    skew = max(now for _, now in times) - min(now for _, now in times)
    said = f"{max(0.0, skew - message):.2f} s apart at least, {skew:.2f} s at most"
    if skew - message > MAX_SKEW_SECONDS:
        late = min(times, key=lambda each: each[1])[0]
        return Finding("clocks", "warning", f"{said}; {late} is behind", "let chrony or ntpd set them")
    return Finding("clocks", "ok", said)


def _versions() -> Finding:
    """Whether all have the same code and libraries."""
    standings = gather_objects(Standing.here())
    what = disagreement(standings)
    if what is not None:
        return Finding("same code", "failure", what)
    hosts = sorted({each.host for each in standings})
    return Finding("same code", "ok", f"on {', '.join(hosts)}")


def _folder(out: Path, launch: Launch) -> Finding:
    """Whether all see what the first writes: a run is resumed from its directory."""
    there = existing_part(out)
    token = there / f".doctor-{gather_objects(os.getpid())[0]}.seen"
    if launch.rank == 0:
        token.touch()
    dist.barrier()
    seen = gather_objects((socket.gethostname(), token.exists()))
    if launch.rank == 0:
        token.unlink(missing_ok=True)
    blind = sorted({host for host, sees in seen if not sees})
    if blind:
        return Finding(
            "shared folder",
            "failure",
            f"{', '.join(blind)} does not see what the first process writes to {there}",
            "runs must be on a file system that all nodes share",
        )
    return Finding("shared folder", "ok", f"all see {there}")
