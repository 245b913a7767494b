"""Where a process begins: its standard streams and signals are seen to, then comes the command."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from mixer_lightning import launcher, stdio, stopping


def start(*command: str) -> int:
    """Run `command`, or what the command line names, with the arguments of the command line; the exit code."""
    stdio.secure()
    stopping.install()
    if launcher.is_torchrun():
        stopping.stop_with_parent()
    if not launcher.is_trial():
        return _run(command)
    tell = stopping.end_by_signal_if_stopped()
    try:
        return tell(_run(command))
    except SystemExit as end:
        tell(end.code if isinstance(end.code, int) else 1)
        raise


def _run(command: Sequence[str]) -> int:
    """Run the command; the exit code."""
    try:
        from mixer_lightning.cli.console import main  # late: Ctrl-C during an import is Ctrl-C

        code = main([*command, *sys.argv[1:]])
        if code in map(stopping.exit_code, stopping.SIGNALS):
            stopping.end_soon(code)  # a thread may wait for a read that never comes back
        return code
    except stopping.Stopped as stop:
        if launcher.is_first():
            print(f"stopped by {stop}", file=sys.stderr)
        return stopping.exit_code(stop.number)
