"""Where a process begins: its standard streams and signals are seen to, then comes the command."""

from __future__ import annotations

import sys

from mixer_lightning import launcher, stdio, stopping


def start(*command: str) -> int:
    """Run `command`, or what the command line names, with the arguments of the command line; the exit code."""
    stdio.secure()
    stopping.install()
    if launcher.is_torchrun():
        stopping.stop_with_parent()
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
