"""Measurements behind what the README says: `mixer study <name> [key=value ...]`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from mixer_lightning.cli.subcommands import choose

#: The studies, and what each measures in a line.
STUDIES = {
    "loader": "images per second of the input pipeline, beside timm, torchvision and webdataset",
    "augment": "CPU time of RandAugment and colour jitter, by Pillow, PyTorch and native code",
    "cifar": "a training step with its input on CIFAR-sized images, beside torchvision's",
    "step_speed": "a training step beside timm's",
    "token_mixing": "pictures and figures of the weights that mix tokens, of depthwise kernels and of stems",
    "shuffling": "networks trained on shuffled pixels, and why a Mixer does not notice",
    "scale": "accuracy over cost: sizes of networks and images, parts of the training set",
    "ablation": "a ConvMixer over patch and kernel, and with its parts exchanged",
    "throughput": "images per second of every model, in inference and training, best over batch sizes",
    "convolutions": "what depthwise and pointwise convolutions cost beside a full one",
    "receptive": "the effective receptive field: which pixels a feature in the middle depends on",
}


def main(argv: Sequence[str]) -> int:
    """Run the study that a command line names; the exit code."""
    chosen = choose("mixer study", "study", STUDIES, argv)
    if chosen is not None:
        name, rest = chosen
        study(name)(rest)
    return 0


def study(name: str) -> Callable[[Sequence[str]], None]:
    """The function behind a study; only this one's modules are imported."""
    if name == "loader":
        from mixer_lightning.studies.loader import main
    elif name == "augment":
        from mixer_lightning.studies.augment import main
    elif name == "cifar":
        from mixer_lightning.studies.cifar import main
    elif name == "token_mixing":
        from mixer_lightning.studies.token_mixing import main
    elif name == "shuffling":
        from mixer_lightning.studies.shuffling import main
    elif name == "scale":
        from mixer_lightning.studies.scale import main
    elif name == "ablation":
        from mixer_lightning.studies.ablation import main
    elif name == "step_speed":
        from mixer_lightning.studies.step_speed import main
    elif name == "throughput":
        from mixer_lightning.studies.throughput import main
    elif name == "convolutions":
        from mixer_lightning.studies.convolutions import main
    else:
        assert name == "receptive"
        from mixer_lightning.studies.receptive import main
    return main
