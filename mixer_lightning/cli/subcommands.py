"""Programs by name: which of them a command line asks for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from mixer_lightning.screen import did_you_mean, refuse


def choose(
    program: str, kind: str, about: Mapping[str, str], argv: Sequence[str]
) -> tuple[str, list[str]] | None:
    """The name that comes first and the arguments behind it; None where only the usage was asked for, and printed.

    Args:
        program: what stands before the name: "mixer".
        kind: what is named: "command".
        about: the names, and what each does in a line.
        argv: the command line. An unknown name ends the program with exit code 2.
    """
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(usage(program, kind, about))
        return None
    if name not in about:
        refuse([f"unknown {kind} '{name}'{did_you_mean(name, about)}", usage(program, kind, about)])
    return name, rest


def usage(program: str, kind: str, about: Mapping[str, str]) -> str:
    """What `--help` prints."""
    width = max(map(len, about)) + 2
    lines = [f"  {name:<{width}}{what}" for name, what in about.items()]
    first = f"{program} <{kind}> [key=value ...]      {program} <{kind}> --help"
    return "\n".join([first, "", *lines])
