"""What the study `augment` compares: operations and recipes, by Pillow, by PyTorch and by native code."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from mixer_lightning.config.compose import compose_one
from mixer_lightning.data import decode, image_ops, operations
from mixer_lightning.data.crops import Crops, Integers
from mixer_lightning.data.image_ops import TAPS, Floats, Operation
from mixer_lightning.data.policies import BIG_VISION, TIMM, ColorJitter, RandAugment
from mixer_lightning.data.stateless_random import sample_keys
from mixer_lightning.data.transforms import Augment
from mixer_lightning.studies.pipelines import IMAGE_SIZE
from mixer_lightning.studies.rounds import interleave, middle_half
from mixer_lightning.targets import build

RECIPES = (
    "mixer_imagenet1k",
    "convmixer_imagenet1k",
    "deit_imagenet1k",
    "convmixer_a1",
    "convmixer_cifar10_25",
)
JITTER = 0.4  # timm's default
MAGNITUDE, BIG_VISION_MAGNITUDE = (
    9.0,
    15.0,
)  # of operations one by one: ConvMixer's and Mixer's on ImageNet-1k
MEAN = (0.485, 0.456, 0.406)


class Case(NamedTuple):
    """What happens to B images, each N operations; and the same by Pillow, where it has them."""

    name: str
    operations: Integers  # [B, N]
    arguments: Floats  # [B, N]
    taps: Integers  # [B, N]
    centres: Floats  # [B, N, 2]
    fill: npt.NDArray[np.uint8]
    pillow: Callable[[Image.Image], Image.Image] | None


def photographs(files: Sequence[Path]) -> tuple[Tensor, dict[Path, str]]:
    """A random resized crop of each JPEG file, uint8 [B, 3, S, S], but of the broken ones: what is wrong with these."""
    augment = Augment(crop="random_resized")
    keys = sample_keys(0, [(0, i, 0) for i in range(len(files))])

    def crops_of(positions: Integers, widths: Integers, heights: Integers) -> Crops:
        return augment.train_crops(keys[positions], widths, heights, IMAGE_SIZE)

    out = torch.zeros(len(files), 3, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)
    broken = dict(decode.decode_crops([path.read_bytes() for path in files], crops_of, list(out)))
    kept = [i for i in range(len(files)) if i not in broken]
    return out[kept], {files[i]: reason for i, reason in broken.items()}


def cases(count: int) -> Iterator[Case]:
    """timm's operations and big_vision's, one by one; then recipes; for `count` images."""
    from timm.data.auto_augment import rand_augment_transform
    from torchvision.transforms import ColorJitter as TorchvisionJitter

    fill = tuple(round(255 * each) for each in MEAN)
    options = {"img_mean": fill, "interpolation": Image.Resampling.BICUBIC}
    for each in rand_augment_transform("rand-m9-inc1-p1", options).ops:
        yield _one(each.name, *TIMM[each.name], MAGNITUDE, count, fill, each)
    for name, (operation, argument) in BIG_VISION.items():
        if operation > Operation.TF_CONTRAST:  # those below are timm's too
            yield _one(
                f"{name}, big_vision", operation, argument, BIG_VISION_MAGNITUDE, count, (128, 128, 128), None
            )
    for recipe in RECIPES:
        yield _recipe(recipe, count)
    keys = sample_keys(0, [(0, i, 0) for i in range(count)])
    jitter = ColorJitter(JITTER).sample_params(keys)
    taps, centres = np.ones_like(jitter.operations), np.zeros((*jitter.operations.shape, 2))
    theirs = TorchvisionJitter(JITTER, JITTER, JITTER)
    name = f"colour jitter {JITTER}"
    yield Case(name, jitter.operations, jitter.factors, taps, centres, np.zeros(3, np.uint8), theirs)


def _one(
    name: str,
    operation: Operation,
    argument: Callable[[Floats, Floats], Floats],
    magnitude: float,
    count: int,
    fill: tuple[int, ...],
    pillow: Any,
) -> Case:
    shape = count, 1
    values = argument(np.full(shape, magnitude), np.ones(shape))
    return Case(
        name,
        np.full(shape, int(operation)),
        values,
        np.full(shape, TAPS["bicubic"]),
        np.full((*shape, 2), 0.5),
        np.array(fill, np.uint8),
        pillow,
    )


def _recipe(name: str, count: int) -> Case:
    from timm.data.auto_augment import rand_augment_transform
    from torchvision.transforms import RandAugment as TorchvisionRandAugment

    augment = build(compose_one("train", [f"augment={name}"]).augment)
    text, interpolation = augment.rand_augment, augment.interpolation
    policy = RandAugment(
        text, interpolation="bilinear" if interpolation == "tf_bilinear" else interpolation, mean=augment.mean
    )
    params = policy.sample_params(sample_keys(0, [(0, i, 0) for i in range(count)]))
    pillow: Any = None
    if text.startswith("torchvision"):
        n, m = (int(part[1:]) for part in text.split("-")[1:])
        pillow = TorchvisionRandAugment(n, m)
    elif text.startswith("rand"):
        options: dict[str, Any] = {"img_mean": tuple(policy.fill)}
        if interpolation != "random":  # which is what it does without
            options["interpolation"] = Image.Resampling[interpolation.upper()]
        # always of the mean magnitude: Posterize would at times keep no bit, which Pillow refuses
        pillow = rand_augment_transform(re.sub(r"-mstd[\d.]+", "", text), options)
    return Case(
        f"{name}: {text}",
        params.operations,
        params.arguments,
        params.taps,
        params.centres,
        policy.fill,
        pillow,
    )


def compare(case: Case, images: Tensor, *, rounds: int) -> dict[str, Any]:
    """CPU milliseconds per image of each side, medians of alternating rounds, and how far the results are apart."""

    def ours(apply: Callable[..., Tensor]) -> Tensor:
        return apply(images, case.operations, case.arguments, case.taps, fill=case.fill, centres=case.centres)

    sides: dict[str, Callable[[], object]] = {}
    pillow = case.pillow
    if pillow is not None:
        theirs = [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in images]
        sides["pillow"] = lambda: [pillow(image) for image in theirs]
    sides["pytorch"] = lambda: ours(image_ops.apply_operations)
    sides["native"] = lambda: ours(operations.apply_operations)
    first, second = ours(image_ops.apply_operations), ours(operations.apply_operations)
    apart = (first.int() - second.int()).abs()
    timed = [lambda each=each: _milliseconds(each) / len(images) for each in sides.values()]
    times = dict(zip(sides, interleave(timed, rounds=rounds), strict=True))
    row: dict[str, Any] = {"what": case.name, "pillow": None, "pillow_ratio": None}
    for name, values in times.items():
        row[name] = middle_half(values)[1]
    for name in [each for each in times if each != "native"]:
        ratios = [a / b for a, b in zip(times[name], times["native"], strict=True)]
        row[f"{name}_ratio_low"], row[f"{name}_ratio"], row[f"{name}_ratio_high"] = middle_half(ratios)
    return row | {"differing": float((apart > 0).float().mean()), "most": int(apart.max())}


def _milliseconds(run: Callable[[], object]) -> float:
    begin = time.thread_time()
    run()
    return 1000 * (time.thread_time() - begin)
