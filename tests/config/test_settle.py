"""What follows from where a recipe is started."""

from __future__ import annotations

import pytest

from mixer_lightning.config.compose import compose, compose_one
from mixer_lightning.config.settle import settled

SHARDS = ("model=mixer_digits", "data=shards")


@pytest.mark.parametrize(
    ("words", "device_batch"),
    [
        ((), 128),  # of conf/scratch/shards.yaml
        (("batch_size=16",), 16),
        (("batch_size=192",), 96),
        (("batch_size=256",), 128),
        (("batch_size=16", "device_batch=8"), 8),
        (("batch_size=16", "device_batch=12"), 12),  # what is stated is not changed, and refused later
        (("batch_size=251",), 128),  # prime: images one by one are no answer
    ],
)
def test_a_customary_device_batch_gives_way_to_the_batch(words, device_batch):
    assert compose_one("train", [*SHARDS, *words]).device_batch == device_batch


def test_it_gives_way_to_the_number_of_processes(monkeypatch):
    for name, value in {"WORLD_SIZE": 16, "RANK": 0, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 8}.items():
        monkeypatch.setenv(name, str(value))
    assert compose_one("train", SHARDS).device_batch == 1024 // 16
    paper = compose_one("train", ["experiment=convmixer_1536_20_imagenet1k"])
    assert (paper.batch_size, paper.device_batch) == (640, 64)  # the statistics of BatchNorm are the paper's


def test_every_job_of_a_sweep_by_itself():
    jobs, messages, _ = compose("finetune", ["data=pets", "batch_size=32,96,512"], multirun=True)
    assert messages == []
    assert [job.recipe.device_batch for job in jobs] == [32, 48, 64]


def test_a_relative_folder_is_stored_as_it_is_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    here = str(tmp_path)
    for words, root in (
        (["data.root=birds"], f"{here}/birds"),
        (["data.root=./birds"], f"{here}/birds"),
        (["data.root=/birds"], "/birds"),
        (["data=shards", "data.root=s3://bucket/birds"], "s3://bucket/birds"),
        (["data=cifar10"], f"{here}/data/cifar10"),
    ):
        recipe = compose_one("train", ["model=mixer_digits", "data=folder", *words])
        assert recipe.data["root"] == root
    recipe = compose_one("train", [*SHARDS, "data.cache=cache"])
    assert recipe.data["cache"] == f"{here}/cache"


def test_a_root_of_ones_own_is_a_folder_if_it_is_there(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    data = {"_target_": "own.birds", "root": "beans"}
    assert settled({"data": data}, stated=(), choices={})["data"]["root"] == "beans"
    (tmp_path / "beans").mkdir()
    assert settled({"data": data}, stated=(), choices={})["data"]["root"] == f"{tmp_path}/beans"
