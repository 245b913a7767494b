"""`mixer <command>`, which is `python -m mixer_lightning <command>`: the programs by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import mixer_lightning
from mixer_lightning.cli.subcommands import choose

#: The commands, and what each does in a line.
COMMANDS = {
    "train": "train a model from scratch",
    "finetune": "transfer a checkpoint to a data set",
    "evaluate": "measure a checkpoint as it is",
    "predict": "classify image files with a checkpoint",
    "export": "write a checkpoint for other programs: timm, safetensors, ONNX, Flax",
    "search": "search for the best setting of a training with Optuna",
    "transfer": "the Mixer paper's transfer table from one checkpoint",
    "prepare": "write any data set as shards",
    "models": "the table of backbones",
    "doctor": "check versions, devices, disk and the network between processes",
    "dashboard": "a workspace and a report on W&B, for pretraining, transfer or a sweep",
    "report": "tables, figures and one page of results, beside the published ones",
    "study": "measurements of input pipelines and training steps",
}


def main(argv: Sequence[str]) -> int:
    """Run the command that a command line names; the exit code."""
    if list(argv[:1]) == ["--version"]:
        print(f"mixer-lightning {mixer_lightning.__version__}")
        return 0
    chosen = choose("mixer", "command", COMMANDS, argv)
    if chosen is None:
        return 0
    command, rest = chosen
    return program(command)(rest)


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
    elif command == "search":
        from mixer_lightning.cli.search import main
    elif command == "prepare":
        from mixer_lightning.cli.prepare import main
    elif command == "models":
        from mixer_lightning.cli.models import main
    elif command == "doctor":
        from mixer_lightning.cli.doctor import main
    elif command == "dashboard":
        from mixer_lightning.cli.dashboard import main
    elif command == "report":
        from mixer_lightning.cli.report import main
    else:
        assert command == "study"
        from mixer_lightning.cli.study import main
    return main
