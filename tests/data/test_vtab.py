"""The 19 tasks of VTAB-1k: what is published of them, what the recipes say, and which augmentations they refuse."""

from __future__ import annotations

import re
import typing
from dataclasses import replace
from pathlib import Path

import pytest
from vtab_miniatures import PUBLISHED, load, parsed, put_extracted, sizes

from mixer_lightning.config.compose import compose, compose_one
from mixer_lightning.data.sources.vtab import classes
from mixer_lightning.data.sources.vtab.subset import slices, stored_order
from mixer_lightning.data.sources.vtab.tasks import TASKS, vtab
from mixer_lightning.data.splits import choose
from mixer_lightning.data.transforms import Augment
from mixer_lightning.targets import build

CONF = Path(__file__).parents[2] / "conf"


#: Where BiT (arXiv 1912.11370, appendix F) leaves out random crops and flips.
NO_CROP = {"clevr_count", "clevr_dist", "dmlab", "kitti_dist", "dsprites_loc"}
NO_FLIP = {"dsprites_loc", "dsprites_ori", "smallnorb_azimuth"}


def test_there_are_nineteen():
    assert sorted(TASKS) == sorted(PUBLISHED)
    assert len(PUBLISHED) == 19


@pytest.mark.parametrize("name", PUBLISHED)
def test_slices_at_full_size(name):
    num_classes, splits, val, test = PUBLISHED[name]
    task = TASKS[name]
    assert (task.classes, task.sizes) == (num_classes, sizes(splits))
    assert slices(task, task.sizes) == {
        "train": ("train", 0, 800),
        "val": parsed(val),
        "test": parsed(test),
    }
    assert task.num_test == parsed(test)[2] - parsed(test)[1]


def test_the_order_is_that_of_tfds():
    """CIFAR-10 begins in TFDS with train_16399, train_01680, ..., as its documentation and many books print."""
    printed = [16399, 1680, 47917, 17307, 27051, 48736, 26263, 1456, 19135, 31598, 12970, 4223]
    assert stored_order("train", [str(row) for row in range(50_000)])[:12].tolist() == printed
    assert stored_order("test", [str(row) for row in range(50_000)])[:2].tolist() != printed[:2]


def test_tasks_may_be_named_on_the_command_line():
    annotations = typing.get_type_hints(vtab)
    assert list(typing.get_args(annotations["task"])) == list(TASKS)
    refused = compose("finetune", ["data=vtab"]).messages
    assert len(refused) == 1
    assert "'data.task' is missing" in refused[0]
    misspelt = compose("finetune", ["data=vtab", "data.task=pet"]).messages
    assert len(misspelt) == 1
    for name in PUBLISHED:
        assert re.search(rf"\b{name}\b", refused[0])
        assert re.search(rf"\b{name}\b", misspelt[0])
    assert "did you mean 'pets'?" in misspelt[0]
    with pytest.raises(ValueError, match=r"no task 'pet': did you mean 'pets'\?"):
        vtab(task="pet", root="x", split="train800")


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_recipe_describes_every_task(name):
    lines = (CONF / "data" / "vtab.yaml").read_text().splitlines()
    (row,) = [line for line in lines if line.startswith(f"#   {name} ")]
    assert row.split()[2:4] == [f"{TASKS[name].classes}", f"{TASKS[name].num_test:,}"]
    assert row.endswith(f"; {TASKS[name].source}")


@pytest.mark.parametrize("name", PUBLISHED)
def test_training_refuses_what_changes_a_label(name, tmp_path):
    put_extracted(tmp_path / name, train=4, val=2, test=3, num_classes=PUBLISHED[name][0])
    data = choose(load(name, tmp_path))
    recipe = compose_one("finetune", ["data=vtab", f"data.task={name}", "augment.flip=0.3"])
    changes = [kind for kind, where in (("crop", NO_CROP), ("flip", NO_FLIP)) if name in where]
    assert data.label_changes_with == tuple(changes)
    if not changes:
        data.refuse_label_changing(build(recipe.augment))
        return
    with pytest.raises(
        ValueError, match=f"^vtab_{name}: a label changes with a {' or a '.join(changes)}: use "
    ) as e:
        data.refuse_label_changing(build(recipe.augment))
    mend = str(e.value).rpartition(": use ")[2].split()
    wanted = {"crop": {"crop=none"}, "flip": {"flip=0.0"}}  # evaluations see whole images as it is
    assert set(mend) == {f"augment.{each}" for kind in changes for each in wanted[kind]}
    mended = compose_one("finetune", ["data=vtab", f"data.task={name}", *mend])
    data.refuse_label_changing(build(mended.augment))
    variant = "vtab" + "_uncropped" * (name in NO_CROP) + "_unflipped" * (name in NO_FLIP)
    protocol = compose_one("finetune", ["data=vtab", f"data.task={name}", f"transfer={variant}"])
    assert {**protocol.to_dict(), "choices": 0} == {**mended.to_dict(), "choices": 0}
    assert name in (CONF / "transfer" / f"{variant}.yaml").read_text().splitlines()[1]
    with pytest.raises(ValueError, match="label changes"):  # a centre crop of every image is one too
        replace(data, label_changes_with=("crop",)).refuse_label_changing(Augment(eval_crop=0.875))


def test_class_names():
    assert len(classes.flowers()) == 102
    for names, count in (
        (classes.CALTECH101, 102), (classes.CIFAR100, 100), (classes.DTD, 47), (classes.PETS, 37),
        (classes.RESISC45, 45), (classes.EUROSAT, 10),
    ):  # fmt: skip
        assert len(set(names)) == count
        assert names == sorted(names, key=str.lower)


def test_photographs_of_other_tasks_are_not_processed(tmp_path):
    with pytest.raises(ValueError, match=r"vtab_dtd: data\.process=false is for diabetic_retinopathy only"):
        load("dtd", tmp_path, process=False)
