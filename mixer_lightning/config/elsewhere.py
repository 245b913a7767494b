"""Keys as other programs call them, or without their group: what was meant by them."""

from __future__ import annotations

from collections.abc import Collection

import yaml

from mixer_lightning.files import CONF

#: What timm, ultralytics, torchvision's references and the Lightning-Hydra template call what has another name here.
ELSEWHERE = {
    "amp": "trainer.precision",
    "batch": "batch_size",
    "bs": "batch_size",
    "ckpt": "checkpoint",
    "ckpt_path": "checkpoint",
    "clip_grad": "clip_grad_norm",
    "data_dir": "data.root",
    "data_path": "data.root",
    "dataset": "data",
    "device": "trainer",
    "drop_path": "stochastic_depth",
    "epoch": "duration.epochs",
    "epochs": "duration.epochs",
    "gradient_clip_val": "clip_grad_norm",
    "img_size": "image_size",
    "imgsz": "image_size",
    "input_size": "image_size",
    "learning_rate": "optimizer.lr",
    "lr0": "optimizer.lr",
    "max_epochs": "duration.epochs",
    "max_steps": "duration.steps",
    "model_ema_decay": "ema_decay",
    "num_workers": "trainer.decode_threads",
    "opt": "optimizer",
    "output": "hydra.run.dir",
    "output_dir": "hydra.run.dir",
    "path": "data.root",
    "precision": "trainer.precision",
    "pretrained": "checkpoint",
    "sched": "schedule",
    "scheduler": "schedule",
    "smoothing": "loss.label_smoothing",
    "steps": "duration.steps",
    "wd": "optimizer.weight_decay",
    "weights": "checkpoint",
    "workers": "trainer.decode_threads",
}
#: The same of choices of a group.
CHOICES_ELSEWHERE = {"trainer": {"cuda": "gpu", "0": "gpu"}}
#: Groups whose keys are looked for, as somebody may type them without the group; the first that has one counts.
GROUPS = ("optimizer", "schedule", "loss", "data", "augment", "trainer", "model")


def meant(key: str, value: str, known: Collection[str]) -> str:
    """ ": did you mean 'optimizer.lr=0.1'?" for lr=0.1 and the like, to be put behind a message; else empty.

    `known` are the root keys and groups of the program.
    """
    name = key.strip("-").replace("-", "_")
    if name == "resume":
        return ": the same command again goes on where a run was stopped"
    found = name if name in known else ELSEWHERE.get(name) or _in_group(name)
    if found is None or found.partition(".")[0] not in known:
        return ""
    text = value.strip("'\"")
    if name not in known and name in ELSEWHERE and text.lower() in ("true", "false"):
        text = "<...>"  # a switch there; none of these keys is one here
    if found == "trainer.decode_threads" and text == "0":
        text = "1"  # there: in the training's own process
    text = CHOICES_ELSEWHERE.get(found, {}).get(text, text)
    return f": did you mean '{found}={text}'?"


def _in_group(name: str) -> str | None:
    """The dotted key of that name that most files of a group have: others are taken by few choices only."""
    for group in GROUPS:
        nodes = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in (CONF / group).glob("*.yaml")]
        has_it = [isinstance(node, dict) and name in node for node in nodes]
        if 2 * sum(has_it) > len(has_it) and not name.startswith("_"):
            return f"{group}.{name}"
    return None
