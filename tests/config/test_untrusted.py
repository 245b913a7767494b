"""A run directory, a checkpoint or a sidecar of a stranger: what it says is data, and runs nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mixer_lightning.api import create_model
from mixer_lightning.config.compose import compose, compose_one
from mixer_lightning.config.from_checkpoint import Overrides
from mixer_lightning.config.groups import groups
from mixer_lightning.config.untrusted import only_data
from mixer_lightning.files import CONF


def run_dir(folder: Path, *overrides: str, **changes: Any) -> str:
    """A run directory whose recipe says something else than it did, as checkpoint=<...>."""
    recipe = compose_one("train", ["model=mixer_digits", *overrides]).to_dict()
    for key, value in changes.items():
        node = recipe
        *above, last = key.split("__")
        for name in above:
            node = node[name]
        node[last] = value
    folder.mkdir(exist_ok=True)
    (folder / "recipe.yaml").write_text(yaml.dump(recipe))
    return f"checkpoint={folder}"


@pytest.mark.parametrize(
    "address",
    [
        "pipe:touch ran; cat x.tar",
        "p{ipe:touch ran,}",
        "{a,pipe:touch ran}",
        "reference://x.json",
        "simplecache::reference://x.json",
        "ssh://host/x.tar",
        "https://host/x.tar",
        ["train-0.tar", "pipe:touch ran"],
    ],
)
@pytest.mark.parametrize("key", ["root", "val"])
def test_commands_and_urls_are_not_taken_from_a_run(tmp_path: Path, key: str, address: Any) -> None:
    checkpoint = run_dir(tmp_path / "run", "data=shards", **{f"data__{key}": address})
    (message,) = compose("evaluate", [checkpoint]).messages
    assert f"data.{key}=" in message
    assert "from the command line alone" in message
    assert "\n" not in message


def test_what_the_message_advises_is_accepted(tmp_path: Path) -> None:
    command = "pipe:curl -s https://host/x.tar | tee 'a b'"
    checkpoint = run_dir(tmp_path / "run", "data=shards", data__val=command)
    assert compose("evaluate", [checkpoint]).messages
    assert compose_one("evaluate", [checkpoint, f"data.val={command}"]).data["val"] == command


def test_what_ones_own_file_says_is_no_strangers(tmp_path: Path) -> None:
    mine = tmp_path / "my"
    (mine / "data").mkdir(parents=True)
    node = yaml.safe_load((CONF / "data/shards.yaml").read_text()) | {"train": "pipe:cat a.tar"}
    (mine / "data/piped.yaml").write_text(yaml.safe_dump(node))
    checkpoint = run_dir(tmp_path / "run", "data=shards", data=node)
    recipe = yaml.safe_load((tmp_path / "run/recipe.yaml").read_text())
    recipe["choices"]["data"] = "piped"
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(recipe))
    (job,) = compose("evaluate", [checkpoint], folders=(CONF, mine)).jobs
    assert job.recipe.data["train"] == "pipe:cat a.tar"
    recipe["data"]["train"] = "pipe:cat b.tar"
    (tmp_path / "run/recipe.yaml").write_text(yaml.safe_dump(recipe))
    assert not compose("evaluate", [checkpoint], folders=(CONF, mine)).jobs


@pytest.mark.parametrize("program", ["evaluate", "finetune"])
@pytest.mark.parametrize(
    ("said", "shown"),
    [
        (["${oc.env:HOME}", 0.5, 0.5], "'${oc.env:HOME}'"),
        ([[[[[[[[[[0.5]]]]]]]]]], "size"),
        (yaml.safe_load("[2020-01-01]"), "a date"),
        (yaml.safe_load("&a [*a]"), "size"),
        (yaml.safe_load("!!set {x}"), "a set"),
    ],
)
def test_what_is_no_plain_data(tmp_path: Path, program: str, said: Any, shown: str) -> None:
    checkpoint = run_dir(tmp_path / "run", augment__mean=said)
    (message,) = compose(program, [checkpoint]).messages  # type: ignore[call-overload]
    assert message.startswith(str(tmp_path / "run"))
    assert shown in message
    assert "augment.mean" in message


def test_a_sidecar_is_data_too(tmp_path: Path) -> None:
    weights = tmp_path / "birds.pth"
    torch.save(create_model("mixer_digits", image_size=8, num_classes=10).state_dict(), weights)
    said = {"model": "mixer_digits", "image_size": 8, "mean": ["${oc.env:HOME}"] * 3, "std": [1, 1, 1]}
    (tmp_path / "birds.pth.json").write_text(json.dumps(said))
    (message,) = compose("finetune", [f"checkpoint={weights}"]).messages
    assert "mean" in message
    assert "${oc.env:HOME}" in message  # as it stands there


@pytest.mark.parametrize("choice", ["../../evil/x", "/tmp/evil/x", "digits,cifar10", ["digits"]])
def test_choices_are_names(tmp_path: Path, choice: Any) -> None:
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil/x.yaml").write_text("_target_: os.mkdir\npath: ran\n")
    checkpoint = run_dir(tmp_path / "run", choices__data=choice)
    composed = compose("evaluate", [checkpoint])
    assert composed.messages or composed.jobs[0].recipe.choices["data"] == "folder"  # the program's own
    with pytest.raises(ValueError, match="no choice of data"):
        only_data(Overrides({"data": choice}, {}), {}, groups())


def test_targets_are_those_of_ones_own_files() -> None:
    known = groups()
    ours = Overrides({"model": "mixer_b16"}, {"model._target_": "mixer_lightning.models.convmixer.ConvMixer"})
    assert only_data(ours, {}, known) == ours
    for target in (
        "os.system",
        "mixer_lightning.data.sources.remote.fetch",
        "torch.load",
        "timm.create_model",
    ):
        with pytest.raises(ValueError, match="only targets in files of conf/model/"):
            only_data(Overrides({}, {"model._target_": target}), {}, known)


def test_where_copies_are_kept_and_deleted_is_not_for_a_run_to_say(tmp_path: Path) -> None:
    checkpoint = run_dir(tmp_path / "run", "data=shards", data__cache="/data", data__cache_bytes=1)
    data = compose_one("evaluate", [checkpoint]).data
    assert (data["cache"], data["cache_bytes"]) == (None, 200_000_000_000)
    assert compose_one("evaluate", [checkpoint, "data.cache=/big"]).data["cache"] == "/big"
