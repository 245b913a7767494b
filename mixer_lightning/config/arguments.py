"""Command lines of key=value arguments, for the programs that take no recipe."""

from __future__ import annotations

import argparse
import re
from collections.abc import Sequence
from typing import NoReturn

from mixer_lightning.screen import did_you_mean, refuse


def without_value(argument: str) -> str | None:
    """What is wrong with `output=`, which a shell makes of an unset variable: no folder stands for nothing."""
    key, equals, value = argument.lstrip("-+").partition("=")
    if equals and not value.strip("'\" "):
        return f"'{key}=' is empty: give a value, or leave it out"
    return None


class Parser(argparse.ArgumentParser):
    """Takes key=value as well as --key=value; every wrong argument ends the program with a sentence and exit code 2."""

    def __init__(self, program: str, *, usage: str, description: str) -> None:
        super().__init__(
            prog=f"mixer {program}",
            usage=f"%(prog)s {usage}",
            description=description,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )

    def add_model_options(self) -> None:
        """checkpoint, and what may be said where it does not tell: model, image_size."""
        self.add_argument(
            "--checkpoint",
            required=True,
            metavar="FILE",
            help="a file of weights, a run directory or timm:<name>",
        )
        self.add_argument("--model", metavar="NAME", help="of conf/model, where the checkpoint does not tell")
        self.add_argument(
            "--image_size", type=int, metavar="N", help="side in pixels; default: the checkpoint's"
        )

    def check_at_least(self, minimum: int, chosen: argparse.Namespace, *names: str) -> None:
        """Refuse values below `minimum` of the named options; those that were not given are None."""
        for name in names:
            value = getattr(chosen, name)
            if value is not None and value < minimum:
                self.error(f"{name} must be at least {minimum}, found {value}")

    def wrong(self, argv: Sequence[str]) -> list[str]:
        """What is wrong with the form and the keys of a command line."""
        known = [option.lstrip("-") for option in self._option_string_actions]
        messages = []
        for argument in argv:
            key, equals, _ = argument.lstrip("-").partition("=")
            if key in known and (message := without_value(argument)):
                messages.append(message)
            elif not equals and not argument.startswith("-"):
                messages.append(f"'{argument}' is not of the form key=value")
            elif key not in known:
                messages.append(f"unknown key '{key}'{did_you_mean(key, known)}")
        return messages

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The values of a command line."""
        argv = self._joined(argv)
        if messages := self.wrong(argv):
            refuse(messages)
        return self.parse_args([a if a.startswith("-") else f"--{a}" for a in argv])

    def _joined(self, argv: Sequence[str]) -> list[str]:
        """`--batch-size 32` as `--batch_size=32`."""
        joined: list[str] = []
        for argument in argv:
            before = self._option_string_actions.get(joined[-1]) if joined else None
            if before is not None and before.nargs != 0 and "=" not in argument and argument[:1] != "-":
                joined[-1] += f"={argument}"
                continue
            option, equals, value = argument.partition("=")
            underscored = f"--{option[2:].replace('-', '_')}"
            if option.startswith("--") and option not in self._option_string_actions:
                option = underscored if underscored in self._option_string_actions else option
            joined.append(f"{option}{equals}{value}")
        return joined

    def error(self, message: str) -> NoReturn:
        """Refuse, as the programs with a recipe do."""
        missing = re.fullmatch(r"the following arguments are required: (.*)", message)
        if missing:
            keys = [key.lstrip("-") for key in missing[1].split(", ")]
            refuse([f"'{key}' is missing: {key}=<...>" for key in keys])
        refuse([re.sub(r"^argument --(\w+): ", r"\1: ", message)])
