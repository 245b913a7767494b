"""Dashboards of W&B as code: `mixer dashboard pretraining project=mixer-lightning`."""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from mixer_lightning.cli.subcommands import choose
from mixer_lightning.config.arguments import Parser, listed
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.files import write_text
from mixer_lightning.loggers import wandb_keys
from mixer_lightning.loggers.workspaces import KINDS, SWEEP, VARIED, Dashboard
from mixer_lightning.screen import Screen, did_you_mean, last_line, refuse


def settings(kind: str, argv: Sequence[str]) -> argparse.Namespace:
    """The options of a command line, as key=value; a wrong one ends the program with a message."""
    parser = Parser(
        f"dashboard {kind}",
        usage="[project=NAME] [entity=NAME] [group=NAME] [to=FILE.json]"
        + (" [metric=NAME] [keys=KEY,KEY]" if kind == SWEEP else ""),
        description=f"A workspace and a report of W&B for {KINDS[kind]}.\n"
        "Saved on the server where wandb finds a key; else, or with to=, written as JSON.",
    )
    add = parser.add_argument
    add("--project", default="mixer-lightning", metavar="NAME", help="default: %(default)s")
    add("--entity", default="", metavar="NAME", help="user or team; default: the key's")
    add("--group", default="", metavar="NAME", help="only runs of name=NAME; default: all of the kind")
    if kind == SWEEP:
        add("--metric", default="val/top1", metavar="NAME", help="to judge by; default: %(default)s")
        add("--keys", default=",".join(VARIED), metavar="KEYS", help="that vary; default: %(default)s")
    add("--to", type=Path, metavar="FILE", help="write JSON there, save nothing")
    chosen = parser.read(argv)
    if kind == SWEEP:
        chosen.keys = listed(chosen.keys)
        known = [field.name for field in fields(Recipe)]
        for first in (key.partition(".")[0] for key in chosen.keys):
            if first not in known:
                refuse([f"keys={first} is no key of a recipe{did_you_mean(first, known)}"])
    if chosen.to is not None:
        chosen.to = chosen.to.expanduser()
        if chosen.to.is_dir():
            refuse([f"to={chosen.to} is a folder: name a file in it, to={chosen.to / f'{kind}.json'}"])
    return chosen


def main(argv: Sequence[str]) -> int:
    """Save a dashboard, or write it; the exit code."""
    selected = choose("mixer dashboard", "kind", KINDS, argv)
    if selected is None:
        return 0
    kind, rest = selected
    chosen = settings(kind, rest)
    if importlib.util.find_spec("wandb_workspaces") is None:
        refuse(["mixer dashboard needs wandb-workspaces: pip install -e '.[dashboards]'"])
    screen = Screen()
    of_sweep = {"metric": chosen.metric, "keys": chosen.keys} if kind == SWEEP else {}
    dashboard = Dashboard(kind, chosen.project, chosen.entity, chosen.group, **of_sweep)
    why = None
    if chosen.to is None:
        of_wandb = wandb_keys.settings_of_wandb()
        mode, why = wandb_keys.mode_here("auto", of_wandb)
        if mode == "online":
            return _save(dashboard, wandb_keys.server_of(of_wandb), screen)
    path = chosen.to or Path(f"{kind}_dashboard.json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, dashboard.to_json())
    except OSError as error:
        refuse([f"{path} cannot be written: {error.strerror or error}"])
    screen.say(f"written to {path}" + (f", not saved on a server: {why}" if why else ""))
    if why:
        screen.say("with a key for W&B the same command saves it there and prints its address")
    return 0


def _save(dashboard: Dashboard, server: str, screen: Screen) -> int:
    """Save on the server and print the addresses; the exit code."""
    try:
        with contextlib.redirect_stderr(io.StringIO()):  # wandb says what it does, on its own terms
            addresses = dashboard.save()
    except Exception as error:  # of the network, the server or its rights: many kinds
        screen.say(
            f"{server} did not take the dashboard: {last_line(error)}. to=<file>.json writes it instead"
        )
        return 1
    for line in addresses:
        screen.say(line)
    return 0
