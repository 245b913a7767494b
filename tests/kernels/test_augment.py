"""RandAugment's operations by native code, against the same in PyTorch; both against Pillow in tests/data."""

from __future__ import annotations

import ctypes
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from sanitized import sanitized
from sklearn.datasets import load_sample_image
from torch import Tensor

from conftest import ROOT
from mixer_lightning.data import image_ops, operations, policies
from mixer_lightning.data.image_ops import Operation
from mixer_lightning.data.stateless_random import sample_keys
from mixer_lightning.data.transforms import Augment
from mixer_lightning.kernels import augment, compiler

NATIVE = augment.native()
pytestmark = pytest.mark.skipif(NATIVE is None, reason="no C++ compiler")

FILL = np.array([124, 116, 104], np.uint8)
#: Arguments of operations that have one.
ARGUMENTS = {
    Operation.POSTERIZE: (0, 3, 8),
    Operation.SOLARIZE: (0, 101.5, 256),
    Operation.SOLARIZE_ADD: (0, 66, 128),
    Operation.BLUR: (0.1, 1.13, 2.0),
    Operation.CUTOUT: (0.5, 9, 60),
    Operation.ROTATE: (-27.3, 90, 181),
    Operation.TF_ROTATE: (-27.3, 90, 181),
    Operation.TF_TRANSLATE_X: (-0.5, 10, 150),
    Operation.TF_TRANSLATE_Y: (-0.5, 10, 150),
}
FACTORS = (0.1, 0.73, 1.9)
SLOPES = (-0.27, 0.003, 1.35)
INTERPOLATED = (
    *(Operation.SHEAR_X, Operation.SHEAR_Y, Operation.TRANSLATE_X, Operation.TRANSLATE_Y, Operation.ROTATE),
)


def photos(side: int) -> Tensor:
    """A photograph, noise, few levels, one level."""
    random = np.random.default_rng(side)
    images = np.stack(
        [
            load_sample_image("china.jpg")[100 : 100 + side, 200 : 200 + side],
            random.integers(0, 256, (side, side, 3)),
            random.integers(30, 34, (side, side, 3)),
            np.full((side, side, 3), (200, 30, 255)),
        ]
    )
    return torch.from_numpy(images.astype(np.uint8)).permute(0, 3, 1, 2).contiguous()


def done(
    images: Tensor,
    operation: Operation,
    argument: float,
    taps: int = 1,
    apply: Any = operations.apply_operations,
) -> Tensor:
    shape = len(images), 1
    result: Tensor = apply(
        images,
        np.full(shape, int(operation)),
        np.full(shape, float(argument)),
        np.full(shape, taps),
        fill=FILL,
        centres=np.full((*shape, 2), 0.31),
    )
    return result


@pytest.mark.parametrize("operation", Operation)
def test_an_operation_gives_pytorchs_numbers(operation: Operation) -> None:
    """The same bits, but for interpolations: float32 sums of another order, by one level in 10,000 places at most."""
    arguments = ARGUMENTS.get(operation, SLOPES if operation >= Operation.SHEAR_X else FACTORS)
    differing, count = 0, 0
    for side in (1, 2, 5, 33, 96):
        images = photos(side)
        for argument in arguments:
            for taps in (1, 2, 4) if operation in INTERPOLATED else (1,):
                found = done(images, operation, argument, taps)
                wanted = done(images, operation, argument, taps, image_ops.apply_operations)
                if taps == 1:
                    assert torch.equal(found, wanted), (side, argument)
                else:
                    assert (found.int() - wanted.int()).abs().max() <= 1, (side, argument, taps)
                    differing += int((found != wanted).sum())
                    count += found.numel()
    assert differing <= 1e-4 * count


def test_only_what_is_to_be_flipped_is() -> None:
    images, which = photos(33), np.array([True, False, True, False])
    before = images.clone()
    wanted = torch.stack([images[0].flip(-1), images[1], images[2].flip(-1), images[3]])
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        found = operations.flipped(given, which)
        assert torch.equal(found, wanted)
        assert found.stride() == given.stride()
    assert torch.equal(images, before)


def test_operations_have_the_same_numbers_on_both_sides() -> None:
    source = (compiler.CSRC / "augment.cpp").read_text()
    names = re.findall(r"\w+", source.partition("enum Operation : int64_t {")[2].partition("}")[0])
    assert names == [operation.name for operation in Operation]


def recipe(name: str) -> Augment:
    fields = yaml.safe_load((ROOT / "conf" / "augment" / f"{name}.yaml").read_text())
    del fields["_target_"]
    return Augment(**fields)


@pytest.mark.parametrize(
    "name", ["mixer_imagenet1k", "convmixer_imagenet1k", "convmixer_a1", "convmixer_cifar10_100"]
)
def test_a_recipes_images_are_pytorchs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """To the bit where nothing is interpolated; else a level differs here and there, after a later contrast more."""
    images, augmentation = photos(64).repeat(12, 1, 1, 1), recipe(name)
    params = augmentation.sample_params(sample_keys(0, [(0, i, 0) for i in range(len(images))]))
    before, found = images.clone(), augmentation.apply(images, params)
    assert torch.equal(images, before)
    monkeypatch.setattr(policies, "apply_operations", image_ops.apply_operations)
    wanted = augmentation.apply(images, params)
    assert (found != images).flatten(1).any(1).float().mean() > 0.5
    if name in ("mixer_imagenet1k", "convmixer_cifar10_100"):
        assert torch.equal(found, wanted)
    assert (found != wanted).float().mean() < 1e-4


def all_operations() -> Tensor:
    """Images after each operation, and after all of them."""
    images = photos(45)
    one_by_one = [
        done(images, operation, argument, taps)
        for operation in Operation
        for argument in ARGUMENTS.get(operation, SLOPES if operation >= Operation.SHEAR_X else FACTORS)
        for taps in ((1, 2, 4) if operation in INTERPOLATED else (1,))
    ]
    for operation in Operation:
        images = done(images, operation, ARGUMENTS.get(operation, (0.2,))[0], 4)
    return torch.stack([*one_by_one, images])


def test_bits_are_the_same_for_any_number_of_threads() -> None:
    here = all_operations()
    for threads in (2, 5):
        torch.set_num_threads(threads)
        assert torch.equal(all_operations(), here)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_bits_are_the_same_for_any_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert NATIVE is not None
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    levels = ["x86-64"] + ["x86-64-v3"] * (" avx2 " in cpuinfo and " fma " in cpuinfo)
    here = all_operations()
    for level in levels:
        library = tmp_path / f"{level}.so"
        compiler.compile_library(compiler.CSRC / "augment.cpp", library, march=level)
        function = ctypes.CDLL(str(library)).augment_images
        function.argtypes, function.restype = NATIVE.argtypes, NATIVE.restype
        monkeypatch.setattr(augment, "native", lambda function=function: function)
        assert torch.equal(all_operations(), here), level
        monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_operations_stay_within_an_image_under_sanitizers(tmp_path: Path) -> None:
    """All operations with arguments far beyond those of any recipe, on images of 1 to 40 px of exactly their memory."""
    flags = ("-march=native", "-fopenmp", "-ffp-contract=off", "-fsanitize=float-cast-overflow")
    program = sanitized("augment_operations", tmp_path, *flags)
    ran = subprocess.run([program, "2000", "0"], check=False, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout == "2000 images\n"


def test_short_memory_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augment, "native", lambda: lambda *_: False)
    with pytest.raises(MemoryError, match="images of 5 px"):
        done(photos(5), Operation.INVERT, 0)
