"""`mixer prepare` on small sets of images, in this process or in one that may be killed."""

from __future__ import annotations

import json
import os
import random
import signal
import tarfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pictures import picture

from mixer_lightning.cli.prepare import parse
from mixer_lightning.prepare import program
from mixer_lightning.prepare.cleaning import Outcome
from mixer_lightning.prepare.readers import Sample
from mixer_lightning.prepare.state import State
from mixer_lightning.screen import Screen

CLASSES = ("elk", "newt", "osprey", "wren")


def run(*arguments: Any, **pace: Any) -> int:
    try:
        return program.write_shards(
            parse([str(argument) for argument in [*arguments, "threads=2"]]), Screen(), **pace
        )
    except SystemExit as stop:
        return int(str(stop.code))


def write_photos(folder: Path, each: int) -> Path:
    folder.mkdir()
    lines = []
    for number in range(4 * each):
        name = CLASSES[number // each]
        (folder / f"{name}_{number:03d}.jpg").write_bytes(picture(number))
        lines.append(f"{name}_{number:03d}.jpg\t{name}\n")
    (folder / "photos.tsv").write_text("".join(lines))
    return folder / "photos.tsv"


def contents(output: Path, split: str) -> dict[str, dict[str, bytes]]:
    """Samples of all shards of a split, by key, as tarfile reads them."""
    samples: dict[str, dict[str, bytes]] = {}
    for path in sorted(output.glob(f"{split}-*.tar")):
        with tarfile.open(path) as tar:
            for info in tar:
                key, _, suffix = info.name.rpartition(".")
                samples.setdefault(key, {})[suffix] = tar.extractfile(info).read()
    return samples


def files_of(output: Path) -> dict[str, bytes]:
    """Everything written, without what says how long it took."""
    assert not (output / ".partial").exists()
    timed = ("report.json", "report.png")
    return {path.name: path.read_bytes() for path in output.iterdir() if path.name not in timed}


def in_a_child(act: Callable[[], int]) -> int:
    """The id of a forked process that does something and exits with its result."""
    child = os.fork()
    if child == 0:
        code = 70
        try:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            code = act()
        finally:
            os._exit(code)
    return child


def exit_code(child: int) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def stopping_short(act: Callable[[], int], most: int) -> Callable[[], int]:
    """Does the same in a child, but waits for its end when so many images are read: it cannot finish before."""

    def act_in_part() -> int:
        true = State.take

        def take(state: State, sample: Sample, outcome: Outcome) -> None:
            while state.consumed >= most:
                time.sleep(1)
            true(state, sample, outcome)

        State.take = take
        return act()

    return act_in_part


def kill(child: int, journal: Path, least: int, draws: random.Random) -> None:
    """SIGKILL at a random moment after so many images are committed."""
    while not journal.exists() or sum(json.loads(journal.read_text())["read"].values()) < least:
        assert os.waitpid(child, os.WNOHANG) == (0, 0)
        time.sleep(0.001)
    time.sleep(draws.uniform(0, 0.01))
    os.kill(child, signal.SIGKILL)
    assert exit_code(child) == -signal.SIGKILL


def odd_photos(folder: Path, each: int) -> Path:
    source = write_photos(folder, each)
    names = [line.split("\t")[0] for line in source.read_text().splitlines()]
    (folder / names[3]).write_bytes(b"")
    (folder / names[-2]).write_bytes(picture(1, "PNG"))
    return source
