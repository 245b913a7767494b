"""`mixer <command>`, which is `python -m mixer_lightning <command>`: the programs by name."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence

from mixer_lightning.screen import did_you_mean, refuse

#: The commands, and what each does in a line.
COMMANDS = {
    "train": "train a model from scratch",
    "finetune": "transfer a checkpoint to a data set",
    "evaluate": "judge a checkpoint as it is",
    "predict": "name what is on pictures",
    "export": "write a checkpoint for other programs: timm, safetensors, ONNX, Flax",
    "transfer": "every downstream number of the Mixer paper from one checkpoint",
    "prepare": "write any data set as shards",
    "models": "the table of backbones",
    "study": "measurements: loader, cifar, step_speed",
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command that a command line names; the exit code."""
    command, *rest = (sys.argv[1:] if argv is None else list(argv)) or ["--help"]
    if command in ("-h", "--help"):
        print(usage())
        return 0
    if command not in COMMANDS:
        refuse([f"unknown command '{command}'{did_you_mean(command, COMMANDS)}", usage()])
    return program(command)(rest)


def usage() -> str:
    """What `mixer --help` prints."""
    width = max(map(len, COMMANDS)) + 2
    lines = [f"  {name:<{width}}{about}" for name, about in COMMANDS.items()]
    return "\n".join(["mixer <command> [key=value ...]      mixer <command> --help", "", *lines])


def program(command: str) -> Callable[[Sequence[str]], int]:
    """The function behind a command; only this one's modules are imported."""
    if command == "train":
        from mixer_lightning.cli.train import main
    elif command == "finetune":
        from mixer_lightning.cli.finetune import main
    elif command == "evaluate":
        from mixer_lightning.cli.evaluate import main
    elif command == "predict":
        from mixer_lightning.cli.predict import main
    elif command == "export":
        from mixer_lightning.cli.export import main
    elif command == "transfer":
        from mixer_lightning.cli.transfer import main
    elif command == "prepare":
        from mixer_lightning.cli.prepare import main
    elif command == "models":
        from mixer_lightning.cli.models import main
    else:
        assert command == "study"
        from mixer_lightning.cli.study import main
    return main
