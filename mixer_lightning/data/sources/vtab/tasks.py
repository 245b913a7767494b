"""What the 19 tasks consist of.

Source: google-research/task_adaptation, task_adaptation/data/*.py, on the builders of TensorFlow Datasets (TFDS).
"""

from __future__ import annotations

from dataclasses import dataclass

NUM_TRAIN = 800
NUM_VAL = 200


@dataclass(frozen=True)
class Task:
    """One task: how many images lie in each split of its TFDS builder, and which of them VTAB-1k takes.

    The 800 are always the first of "train", in the order in which TFDS stores it. `val` and `test` are a split and the
    position at which the 200, and the test images, begin there; the test images go on to the split's end.
    """

    name: str
    classes: int
    sizes: dict[str, int]
    val: tuple[str, int]
    test: tuple[str, int]

    @property
    def folders(self) -> tuple[str, ...]:
        """Folders under root in which the task is looked for: its name, and what others call it."""
        return (self.name, *_OTHER_FOLDERS.get(self.name, ()))

    @property
    def num_test(self) -> int:
        """Number of test images."""
        split, begin = self.test
        return self.sizes[split] - begin


def _three(train: int, validation: int, test: int) -> dict[str, int]:
    return {"train": train, "validation": validation, "test": test}


def _two(train: int, test: int) -> dict[str, int]:
    return {"train": train, "test": test}


_CLEVR = {"train": 70_000, "validation": 15_000}  # CLEVR's own test images have no labels
_DSPRITES = {"train": 737_280}
_NORB = _two(24_300, 24_300)
_OWN, _TEST = ("validation", 0), ("test", 0)

# fmt: off
_ROWS = [
    #    task                  classes  TFDS' splits                  the 200 begin at    tests begin at
    Task("caltech101",           102, _two(3_060, 6_084),             ("train", 2_754),   _TEST),
    Task("cifar100",             100, _two(50_000, 10_000),           ("train", 45_000),  _TEST),
    Task("dtd",                   47, _three(1_880, 1_880, 1_880),    _OWN,               _TEST),
    Task("flowers",              102, _three(1_020, 1_020, 6_149),    _OWN,               _TEST),
    Task("pets",                  37, _two(3_680, 3_669),             ("train", 2_944),   _TEST),
    Task("sun397",               397, _three(76_128, 10_875, 21_750), _OWN,               _TEST),
    Task("svhn",                  10, _two(73_257, 26_032),           ("train", 65_931),  _TEST),
    Task("patch_camelyon",         2, _three(262_144, 32_768, 32_768), _OWN,              _TEST),
    Task("eurosat",               10, {"train": 27_000},              ("train", 16_200),  ("train", 21_600)),
    Task("resisc45",              45, {"train": 31_500},              ("train", 18_900),  ("train", 25_200)),
    Task("diabetic_retinopathy",   5, _three(35_126, 10_906, 42_670), _OWN,               _TEST),
    Task("clevr_count",            8, _CLEVR,                         ("train", 63_000),  ("validation", 0)),
    Task("clevr_dist",             6, _CLEVR,                         ("train", 63_000),  ("validation", 0)),
    Task("dmlab",                  6, _three(65_550, 22_628, 22_735), _OWN,               _TEST),
    Task("kitti_dist",             4, _three(6_347, 423, 711),        _OWN,               _TEST),
    Task("dsprites_loc",          16, _DSPRITES,                      ("train", 589_824), ("train", 663_552)),
    Task("dsprites_ori",          16, _DSPRITES,                      ("train", 589_824), ("train", 663_552)),
    Task("smallnorb_azimuth",     18, _NORB,                          _TEST,              ("test", 12_150)),
    Task("smallnorb_elevation",    9, _NORB,                          _TEST,              ("test", 12_150)),
]
# fmt: on

TASKS = {task.name: task for task in _ROWS}

_OTHER_FOLDERS = {
    "cifar100": ("cifar",),
    "flowers": ("oxford_flowers102",),
    "pets": ("oxford_iiit_pet",),
    "clevr_count": ("clevr",),
    "clevr_dist": ("clevr",),
    "kitti_dist": ("kitti",),
    "dsprites_loc": ("dsprites",),
    "dsprites_ori": ("dsprites",),
    "smallnorb_azimuth": ("smallnorb", "smallnorb_azi"),
    "smallnorb_elevation": ("smallnorb", "smallnorb_ele"),
}
