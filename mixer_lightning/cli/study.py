"""Measurements behind what the README says: `mixer study <name> [key=value ...]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixer_lightning.screen import did_you_mean, refuse

#: The studies, and what each measures in a line.
STUDIES = {
    "loader": "images per second of the input pipeline, beside timm, torchvision and webdataset",
    "cifar": "a training step with its input on CIFAR-sized images, beside torchvision's",
    "step_speed": "a training step beside timm's",
}


def main(argv: Sequence[str]) -> int:
    """Run the study that a command line names; the exit code."""
    name, *rest = argv or ["--help"]
    if name in ("-h", "--help"):
        print(usage())
        return 0
    if name not in STUDIES:
        refuse([f"unknown study '{name}'{did_you_mean(name, STUDIES)}", usage()])
    study(name)(rest)
    return 0


def usage() -> str:
    """What `mixer study --help` prints."""
    width = max(map(len, STUDIES)) + 2
    lines = [f"  {name:<{width}}{about}" for name, about in STUDIES.items()]
    return "\n".join(["mixer study <name> [key=value ...]      mixer study <name> --help", "", *lines])


def study(name: str) -> Callable[[Sequence[str]], None]:
    """The function behind a study; only this one's modules are imported."""
    if name == "loader":
        from mixer_lightning.studies.loader import main
    elif name == "cifar":
        from mixer_lightning.studies.cifar import main
    else:
        assert name == "step_speed"
        from mixer_lightning.studies.step_speed import main
    return main
