"""`mixer prepare` on small sets of images, in this process or in one that may be killed."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from pictures import picture

from mixer_lightning.cli.prepare import parse
from mixer_lightning.prepare import program
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


def odd_photos(folder: Path, each: int) -> Path:
    source = write_photos(folder, each)
    names = [line.split("\t")[0] for line in source.read_text().splitlines()]
    (folder / names[3]).write_bytes(b"")
    (folder / names[-2]).write_bytes(picture(1, "PNG"))
    return source
