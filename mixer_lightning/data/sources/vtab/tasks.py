"""The 19 tasks of VTAB-1k: what each consists of, where its images come from, and the data set that it makes."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.sources.vtab import natural, specialized, structured
from mixer_lightning.data.sources.vtab.subset import load
from mixer_lightning.data.sources.vtab.task import Request, Task
from mixer_lightning.screen import did_you_mean


def vtab(
    *,
    task: Literal[
        "caltech101",
        "cifar100",
        "dtd",
        "flowers",
        "pets",
        "sun397",
        "svhn",
        "patch_camelyon",
        "eurosat",
        "resisc45",
        "diabetic_retinopathy",
        "clevr_count",
        "clevr_dist",
        "dmlab",
        "kitti_dist",
        "dsprites_loc",
        "dsprites_ori",
        "smallnorb_azimuth",
        "smallnorb_elevation",
    ],
    root: str,
    split: Literal["train800", "trainval1000"],
    lists: str | None = None,
    check_counts: bool = True,
    download: bool = False,
    process: bool = True,
) -> Dataset:
    """One task: 1,000 images for training, and its whole test set.

    root           the folder of all tasks, or of this one. In `<root>/<task>` lie either the extracted data that go
                   round as "vtab-1k" (of NOAH, SSF and others; JPEGs compressed once more): train800.txt, val200.txt,
                   train800val200.txt, test.txt and images/; or the originals: without them, a message says where to
                   get them and where they belong
    split          "train800": 800 for training and 200, "val", to choose by; "trainval1000": all 1,000 for training
    lists          lists of names, to choose images in the originals by: a folder with .txt files of those four names,
                   or a .json file as of Visual Prompt Tuning. Without, the published images are found by their keys
    check_counts   off: take any number of images, such as a few for a trial
    download       fetch the originals, where torchvision can
    process        of diabetic_retinopathy: scale and level photographs as fundus.py says whenever they are read, which
                   is slow; off for images that are processed already

    Raises:
        FileNotFoundError: the data, or lists, are not there.
        ValueError: they are damaged, or not of the published size; an unknown task or split.
    """
    if task not in TASKS:
        raise ValueError(
            f"vtab has no task '{task}'{did_you_mean(task, TASKS)}: there are {', '.join(TASKS)}"
        )
    if not process and task != "diabetic_retinopathy":
        raise ValueError(f"vtab_{task}: data.process=false is for diabetic_retinopathy only")
    base = Path(root).expanduser().absolute()
    return load(Request(TASKS[task], base, split, lists, check_counts, download, process))


def _three(train: int, validation: int, test: int) -> dict[str, int]:
    return {"train": train, "validation": validation, "test": test}


def _two(train: int, test: int) -> dict[str, int]:
    return {"train": train, "test": test}


_CLEVR = {"train": 70_000, "validation": 15_000}  # CLEVR's own test images have no labels
_DSPRITES = {"train": 737_280}
_NORB = _two(24_300, 24_300)
_OWN, _TEST = ("validation", 0), ("test", 0)

# Counts: google-research/task_adaptation, task_adaptation/data/*.py, on the builders of TensorFlow Datasets (TFDS).
# Label changes: BiT (arXiv 1912.11370), appendix F, which leaves out random crops and flips where they would.
# fmt: off
_ROWS = [
    #    task, classes, splits of TFDS, the 200 begin at, tests begin at
    Task("caltech101", 102, _two(3_060, 6_084), ("train", 2_754), _TEST, natural.caltech101,
         source="caltech-101.zip of data.caltech.edu"),
    Task("cifar100", 100, _two(50_000, 10_000), ("train", 45_000), _TEST, natural.cifar100,
         source="torchvision downloads 169 MB", other_folders=("cifar",)),
    Task("dtd", 47, _three(1_880, 1_880, 1_880), _OWN, _TEST, natural.dtd,
         source="torchvision downloads 600 MB"),
    Task("flowers", 102, _three(1_020, 1_020, 6_149), _OWN, _TEST, natural.flowers,
         source="torchvision downloads 345 MB", other_folders=("oxford_flowers102",)),
    Task("pets", 37, _two(3_680, 3_669), ("train", 2_944), _TEST, natural.pets,
         source="torchvision downloads 800 MB", other_folders=("oxford_iiit_pet",)),
    Task("sun397", 397, _three(76_128, 10_875, 21_750), _OWN, _TEST, natural.sun397,
         source="SUN397.tar.gz of vision.princeton.edu"),
    Task("svhn", 10, _two(73_257, 26_032), ("train", 65_931), _TEST, natural.svhn,
         source="torchvision downloads 246 MB"),
    Task("patch_camelyon", 2, _three(262_144, 32_768, 32_768), _OWN, _TEST, specialized.patch_camelyon,
         source="camelyonpatch_level_2_split_*.h5.gz of zenodo.org/record/2546921"),
    Task("eurosat", 10, {"train": 27_000}, ("train", 16_200), ("train", 21_600), specialized.eurosat,
         source="torchvision downloads 94 MB"),
    Task("resisc45", 45, {"train": 31_500}, ("train", 18_900), ("train", 25_200), specialized.resisc45,
         source="NWPU-RESISC45.rar of Northwestern Polytechnical University"),
    Task("diabetic_retinopathy", 5, _three(35_126, 10_906, 42_670), _OWN, _TEST, specialized.diabetic_retinopathy,
         source="kaggle.com/c/diabetic-retinopathy-detection"),
    Task("clevr_count", 8, _CLEVR, ("train", 63_000), ("validation", 0), structured.clevr_count,
         source="CLEVR_v1.0.zip of cs.stanford.edu/people/jcjohns/clevr",
         label_changes_with=("crop",), other_folders=("clevr",)),
    Task("clevr_dist", 6, _CLEVR, ("train", 63_000), ("validation", 0), structured.clevr_dist,
         source="CLEVR_v1.0.zip of cs.stanford.edu/people/jcjohns/clevr",
         label_changes_with=("crop",), other_folders=("clevr",)),
    Task("dmlab", 6, _three(65_550, 22_628, 22_735), _OWN, _TEST, structured.dmlab,
         source="dmlab.tar.gz of storage.googleapis.com/dmlab-vtab", label_changes_with=("crop",)),
    Task("kitti_dist", 4, _three(6_347, 423, 711), _OWN, _TEST, structured.kitti_dist,
         source="cvlibs.net/datasets/kitti (object detection)",
         label_changes_with=("crop",), other_folders=("kitti",)),
    Task("dsprites_loc", 16, _DSPRITES, ("train", 589_824), ("train", 663_552), structured.dsprites_loc,
         source="github.com/google-deepmind/dsprites-dataset",
         label_changes_with=("crop", "flip"), other_folders=("dsprites",)),
    Task("dsprites_ori", 16, _DSPRITES, ("train", 589_824), ("train", 663_552), structured.dsprites_ori,
         source="github.com/google-deepmind/dsprites-dataset",
         label_changes_with=("flip",), other_folders=("dsprites",)),
    Task("smallnorb_azimuth", 18, _NORB, _TEST, ("test", 12_150), structured.smallnorb_azimuth,
         source="cs.nyu.edu/~ylclab/data/norb-v1.0-small",
         label_changes_with=("flip",), other_folders=("smallnorb", "smallnorb_azi")),
    Task("smallnorb_elevation", 9, _NORB, _TEST, ("test", 12_150), structured.smallnorb_elevation,
         source="cs.nyu.edu/~ylclab/data/norb-v1.0-small",
         other_folders=("smallnorb", "smallnorb_ele")),
]
# fmt: on

TASKS = {task.name: task for task in _ROWS}
