"""Command lines of key=value arguments, for the programs that take no recipe."""

from __future__ import annotations

import argparse
import errno
import os
import re
from collections import deque
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NoReturn

from mixer_lightning.screen import did_you_mean, refuse


def without_value(argument: str) -> str | None:
    """What is wrong with `output=`, which a shell makes of an unset variable: no folder stands for nothing."""
    key, equals, value = argument.lstrip("-+").partition("=")
    if equals and not value.strip("'\" "):
        return f"'{key}=' is empty: give a value, or leave it out"
    return None


def without_dashes(argv: Sequence[str], keys: Collection[str]) -> list[str]:
    """`--optimizer.lr=0.1`, as agents of sweeps write it, as `optimizer.lr=0.1`; `keys` are those of the root."""
    return [
        word[2:] if "=" in word and word.startswith("--") and re.split("[.=]", word[2:])[0] in keys else word
        for word in argv
    ]


def is_path(word: str, options: Collection[str]) -> bool:
    """Whether a word is a file and no option=value: the folders of a sweep's runs have an "=" in their names."""
    key, equals, _ = word.partition("=")
    if word.startswith("-") or (equals and key.partition("/")[0] in options):
        return False
    return not equals or "/" in key or Path(word).exists()


def listed(text: str) -> list[str]:
    """The parts of 'a,b' or '[a, "b"]', each once, without blanks, quotes and empty ones."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    parts = (part.strip(" '\"") for part in text.split(","))
    return list(dict.fromkeys(part for part in parts if part))


def output_folder(key: str, path: Path) -> Path:
    """The folder that an option names, made where there is none; where it cannot be, a message ends the program."""
    path = path.expanduser()
    try:
        path.mkdir(parents=True, exist_ok=True)
        if not os.access(path, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
    except OSError as error:
        refuse([f"{key}: {path} cannot be a folder to write to: {error.strerror}"])
    return path


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
        actions = {option.lstrip("-"): action for option, action in self._option_string_actions.items()}
        words = deque(argv)
        messages = []
        while words:
            word = words.popleft()
            key, equals, _ = word.lstrip("-").partition("=")
            if not equals and not word.startswith("-"):
                messages.append(f"'{word}' is not of the form key=value")
            elif key not in actions:
                messages.append(f"unknown key '{key}'{did_you_mean(key, list(actions))}")
            elif message := without_value(word):
                messages.append(message)
            elif not equals and actions[key].nargs != 0:  # --key value, as other programs take it
                value = words.popleft() if words and is_path(words[0], actions) else "<...>"
                messages.append(f"{word} is not of the form key=value: write {key}={value}")
        return messages

    def read(self, argv: Sequence[str]) -> argparse.Namespace:
        """The values of a command line."""
        if messages := self.wrong(argv):
            refuse(messages)
        return self.parse_args([a if a.startswith("-") else f"--{a}" for a in argv])

    def error(self, message: str) -> NoReturn:
        """Refuse, as the programs with a recipe do."""
        missing = re.fullmatch(r"the following arguments are required: (.*)", message)
        if missing:
            keys = [key.lstrip("-") for key in missing[1].split(", ")]
            refuse([f"'{key}' is missing: {key}=<...>" for key in keys])
        refuse([re.sub(r"^argument --([\w.]+): ", r"\1: ", message)])
