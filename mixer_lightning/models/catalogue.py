"""What is known of each model without building it: family, size, cost, published results, public weights.

costs.csv and weights.csv stand beside this file. `mixer models --count` writes costs.csv, and the rows of timm in
weights.csv; the others are the authors' own files. Importing this module does not import torch.
"""

from __future__ import annotations

import csv
import fnmatch
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from mixer_lightning.models.presets import Cost, Published
from mixer_lightning.results import read_rows
from mixer_lightning.screen import did_you_mean

COSTS = Path(__file__).with_name("costs.csv")
WEIGHTS = Path(__file__).with_name("weights.csv")
SPEEDS = Path(__file__).with_name("published_speed.csv")

#: The data of a published row: what it is called, and the number of classes of a head for it.
DATA = {
    "imagenet1k": ("ImageNet", 1000),
    "imagenet21k": ("ImageNet, pre-trained on ImageNet-21k", 1000),
    "jft300m": ("ImageNet, pre-trained on JFT-300M", 1000),
    "jft300m_unlabelled": ("ImageNet, with JFT-300M unlabelled", 1000),
    "alt_text_1.8b": ("ImageNet, pre-trained on 1.8 billion captions", 1000),
    "ilsvrc2010": ("ILSVRC-2010", 1000),
    "cifar10": ("CIFAR-10", 10),
    "cifar10_4k": ("CIFAR-10, 4,000 labels", 10),
    "mnist": ("MNIST", 10),
    "usps1989": ("zip codes of 1989", 10),
    "digits": ("digits", 10),
}
#: Data that only their owners have; weights pre-trained on them were never released.
PRIVATE = {"jft300m": "JFT-300M", "alt_text_1.8b": "the captions"}

#: What papers call a family, by the beginning of a model's name; any other is called by that.
FAMILIES = {
    "alexnet": "AlexNet",
    "bit": "BiT",
    "caformer": "CAFormer",
    "convformer": "ConvFormer",
    "convmixer": "ConvMixer",
    "convnext": "ConvNeXt",
    "convnextv2": "ConvNeXt-V2",
    "deit": "DeiT",
    "efficientnet": "EfficientNet",
    "fastvit": "FastViT",
    "gmixer": "gMixer",
    "gmlp": "gMLP",
    "halonet": "HaloNet",
    "lecun": "LeCun-1989",
    "lenet": "LeNet",
    "mixer": "MLP-Mixer",
    "mobilenetv3": "MobileNetV3",
    "nfnet": "NFNet",
    "poolformer": "PoolFormer",
    "poolformerv2": "PoolFormer-V2",
    "resmlp": "ResMLP",
    "resnet": "ResNet",
    "starnet": "StarNet",
    "swin": "Swin",
    "vit": "ViT",
    "wrn": "WRN",
}


def family_key(name: str) -> str:
    """The beginning of a model's name: resnet of resnet50, convnextv2 of convnextv2_tiny."""
    match = re.match(r".+?(?=_|\d+$|$)", name)
    return match[0] if match else name


def family(name: str) -> str:
    """The family that a model's name tells."""
    return FAMILIES.get(family_key(name), family_key(name))


def matching(names: Sequence[str], words: Sequence[str], *, beginnings: bool = False) -> list[str]:
    """Those of `names` that words mean, in their order: a name, a family, or a pattern such as 'mixer*'; all for none.

    With `beginnings`, the beginning of names means them, too: good for looking, while what costs hours should not
    take resnet5 for a ResNet-50.

    Raises:
        ValueError: a word means nothing; the message says what is near.
    """

    def is_meant(name: str, word: str) -> bool:
        if word in names:  # convmixer_1536_20 is not convmixer_1536_20_p7_k3
            return name == word
        called = (name, family(name).lower(), family_key(name))
        is_called = any(fnmatch.fnmatchcase(each, word.lower()) for each in called)
        return is_called or (beginnings and name.startswith(word.lower()))

    meant = {word: {name for name in names if is_meant(name, word)} for word in words}
    for word, found in meant.items():
        if not found:
            begun = [name for name in names if name.startswith(word.lower())]
            hint = f": did you mean '{begun[0]}', or the pattern '{word}*'?" if begun else ""
            hint = hint or did_you_mean(word, [*names, *map(family_key, names)])
            raise ValueError(
                f"no model and no family is called '{word}'{hint or ': `mixer models` lists them'}"
            )
    return [name for name in names if not words or any(name in found for found in meant.values())]


def digest(node: Mapping[str, Any]) -> str:
    """A short fingerprint of what a file of conf/model says: a count is that of the numbers it was made with."""
    return hashlib.sha256(json.dumps(node, sort_keys=True).encode()).hexdigest()[:12]


class CountedModel(NamedTuple):
    """A row of costs.csv: a model at one size of image and number of classes."""

    model: str
    digest: str
    num_classes: int
    input: int
    parameters: int
    macs: int
    largest: str


def counted() -> dict[str, CountedModel]:
    """The rows of costs.csv by model; none where there is no such file yet."""
    if not COSTS.exists():
        return {}
    return {row.model: row for row in read_rows(COSTS, CountedModel)}


def known_cost(
    row: CountedModel | None, node: Mapping[str, Any], *, num_classes: int, image_size: int
) -> Cost | None:
    """What costs.csv has for a model with exactly these numbers; None: it must be counted."""
    if row is None or (row.digest, row.num_classes, row.input) != (digest(node), num_classes, image_size):
        return None
    return Cost(row.parameters, row.macs, row.largest)


def weights() -> dict[str, list[str]]:
    """Where public weights of each model are, in the order of weights.csv: timm:<name>, or a file's address."""
    found: dict[str, list[str]] = {}
    with WEIGHTS.open(newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            found.setdefault(row["model"], []).append(row["weights"])
    return found


def best_known(name: str, rows: Sequence[Published]) -> Published | None:
    """The published row at a model's own size: trained on one data set alone if there is one, else the highest."""
    own = [row for row in rows if row.model == name]
    size = min((row.input for row in own), default=None)
    own = [row for row in own if row.input == size]
    alone = [row for row in own if row.data in ("imagenet1k", "cifar10")]
    return next(iter(alone), max(own, key=lambda row: row.top1_percent or 0.0, default=None))


class PublishedSpeed(NamedTuple):
    """What others measured of a model on their device: images per second of inference, and core-days of a training.

    Comparable only among rows of one `device`. `core_days` are days of one such device for pre-training on `data`.
    """

    model: str
    data: str
    epochs: int | None
    input: int
    device: str
    images_per_second: float | None
    core_days: float | None
    source: str


def published_speeds() -> list[PublishedSpeed]:
    """Rows of published_speed.csv, in its order."""
    return read_rows(SPEEDS, PublishedSpeed)


def num_classes_of(row: Published | None) -> int:
    """Outputs of the head that the table counts: those of the data of a model's published row."""
    return DATA.get(row.data, ("", 1000))[1] if row is not None else 1000


def unverified(about: str, rows: Sequence[Published]) -> bool:
    """Whether the comments of a model's file, or the source of a published row, call something unverified."""
    return any("unverified" in text.lower() for text in (about, *(row.source for row in rows)))
