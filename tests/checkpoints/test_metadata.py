"""What a stranger's file states of itself is checked: a wrong value and a lying shape end in a sentence."""

from __future__ import annotations

import json
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from small_models import digits_model, run_checkpoint

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.read import read
from mixer_lightning.checkpoints.restore import restore
from mixer_lightning.checkpoints.save import save_timm
from mixer_lightning.cli import evaluate, export, finetune, predict

MIXER = "mixer_lightning.models.mixer.Mixer"

#: Values of the JSON beside a checkpoint, and a part of the sentence.
WRONG: list[tuple[Any, str]] = [
    ({"eval_crop": 0}, r"eval_crop must be in \(0, 1\]; it is 0"),
    ({"eval_crop": "0.875"}, "'eval_crop' must be a number, found '0.875'"),
    ({"eval_crop": True}, "'eval_crop' must be a number, found True"),
    ({"eval_crop": float("nan")}, "'eval_crop' must be a number, found nan"),
    ({"mean": "grey"}, "'mean' must be three numbers, found 'grey'"),
    ({"mean": "abc"}, "'mean' must be three numbers, found 'abc'"),
    ({"mean": [0.5, 0.5]}, "'mean' must be three numbers"),
    ({"mean": 0.5}, "'mean' must be three numbers, found 0.5"),
    ({"std": [0.5, 0.0, 0.5]}, "std must be positive"),
    ({"std": [1, 1, float("inf")]}, "'std' must be three numbers"),
    ({"eval_resize": "long_side"}, "'eval_resize' must be one of short_side, square, found 'long_side'"),
    ({"eval_resize": ["square"]}, "'eval_resize' must be one of"),
    ({"eval_interpolation": {"a": 1}}, "'eval_interpolation' must be one of"),
    ({"image_size": 0}, "'image_size' must be a whole number of pixels"),
    ({"image_size": -8}, "'image_size' must be a whole number of pixels"),
    ({"image_size": "8"}, "'image_size' must be a whole number of pixels"),
    ({"image_size": 8.0}, "'image_size' must be a whole number of pixels"),
    ({"image_size": 10**12}, "'image_size' must be a whole number of pixels"),
    ({"model": ["mixer_digits"]}, "'model' must be the name of a model"),
    ({"classes": "abc"}, "'classes' must be a list of names"),
    ({"classes": [["a"], ["b"]]}, "'classes' must be a list of names"),
    ({"activation": {"name": "gelu"}}, "'activation' must be one of gelu, relu"),
    ([1, 2], "holds list, not a mapping"),
    ("x", "holds str, not a mapping"),
]  # fmt: skip


@pytest.mark.parametrize(("stated", "sentence"), WRONG)
@pytest.mark.parametrize("place", ["sidecar", "inside"])
def test_wrong_values_are_named(tmp_path: Path, stated: Any, sentence: str, place: str) -> None:
    path = tmp_path / "birds.safetensors"
    if place == "sidecar":
        save_timm(digits_model(), path)
        path.with_name("birds.safetensors.json").write_text(json.dumps(stated))
    else:
        tensors = digits_model().state_dict()
        save_file(tensors, path, metadata={"mixer_lightning": json.dumps(stated)})
        sentence = sentence.replace("holds a", "holds")
    with pytest.raises(ValueError, match=sentence) as error:
        read(path)
    assert "birds.safetensors" in str(error.value)
    assert "export again, or take it away" in str(error.value).lower()


@pytest.mark.parametrize(
    "text", ["{", "[" * 100_000, '{"a":' * 100_000, '{"mean": [1e999, 0, 0]}', "\x00", "null"]
)
def test_json_that_is_none_or_nested_too_deep_is_named(tmp_path: Path, text: str) -> None:
    save_timm(digits_model(), tmp_path / "birds.pth")
    (tmp_path / "birds.pth.json").write_text(text)
    with pytest.raises(ValueError, match=r"birds\.pth\.json"):
        read(tmp_path / "birds.pth")


@pytest.mark.parametrize(
    ("key", "value", "sentence"),
    [
        ("image_size", "large", "its recipe: 'image_size' must be a whole number"),
        ("augment", {"mean": "grey"}, "its recipe: 'mean' must be three numbers"),
        ("augment", 3, "its recipe: 'augment' must be a mapping"),
        ("model", "mixer_digits", "its recipe: 'model' must be a mapping"),
        ("choices", ["mixer_digits"], "its recipe: 'choices' must be a mapping"),
        ("model", {"_target_": MIXER, "activation": ["gelu"]}, "its recipe: 'activation' must be one of"),
    ],
)
def test_a_wrong_recipe_inside_a_checkpoint_is_named(
    tmp_path: Path, key: str, value: Any, sentence: str
) -> None:
    content = run_checkpoint(digits_model(), ema=None)
    content["recipe"][key] = value
    torch.save(content, tmp_path / "best.ckpt")
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path / "best.ckpt")


def test_a_config_of_the_hub_with_wrong_values_is_named(tmp_path: Path) -> None:
    save_timm(digits_model(), tmp_path / "model.safetensors")
    for wrong in ({"mean": "grey"}, {"std": [1, 1]}, {"crop_pct": []}, {"crop_pct": -1}, {"mean": 3}):
        config = {"architecture": "mixer_b16_224", "pretrained_cfg": wrong}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(ValueError, match=r"config\.json"):
            read(tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text("[" * 100_000)  # anybody's
    assert read(tmp_path / "model.safetensors").preprocessing["mean"] == [0.5, 0.5, 0.5]


@pytest.mark.parametrize("program", ["finetune", "evaluate", "predict", "export"])
def test_every_program_ends_with_2_and_a_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], program: str
) -> None:
    monkeypatch.chdir(tmp_path)
    save_timm(digits_model(), tmp_path / "birds.pth")
    (tmp_path / "birds.pth.json").write_text(json.dumps({"eval_crop": 0}))
    (tmp_path / "a.png").touch()
    word = "checkpoint=birds.pth"
    main, argv = {
        "finetune": (finetune.main, [word, "data=digits"]),
        "evaluate": (evaluate.main, [word, "data=digits"]),
        "predict": (predict.main, [word, "images=a.png"]),
        "export": (export.main, [word, "to=timm", "output=x.pth"]),
    }[program]
    try:
        code = main(argv)
    except SystemExit as stopped:
        code = stopped.code
    assert code == 2
    said = capsys.readouterr()
    assert "birds.pth.json" in (said.out + said.err).replace("\n", "")
    assert "Traceback" not in said.out + said.err


# ---------------------------------------------------------------------------------------------- absurd shapes


@contextmanager
def little_memory() -> Iterator[None]:
    """No room for another 4 GiB: who asks for more gets a MemoryError."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    before = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (used + (4 << 30), before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


def test_a_head_of_a_million_million_classes_that_are_not_there(tmp_path: Path) -> None:
    state = digits_model().state_dict()
    state["head.weight"] = torch.zeros(1).expand(10**12, 64)
    state["head.bias"] = torch.zeros(1).expand(10**12)
    torch.save(state, tmp_path / "birds.pth")
    with (
        little_memory(),
        pytest.raises(ValueError, match=r"head.weight is said to be \[1000000000000, 64\]"),
    ):
        restore(tmp_path / "birds.pth")


def test_sizes_that_add_up_to_more_than_is_there(tmp_path: Path) -> None:
    """Two small tensors can name a layer of 10^10 numbers."""
    state = digits_model().state_dict()
    state["stem.proj.weight"] = torch.zeros(100_000, 3, 1, 1)
    state["blocks.0.mlp_channels.fc1.weight"] = torch.zeros(100_000, 1)
    save_file(state, tmp_path / "birds.safetensors")
    with little_memory(), pytest.raises(ValueError, match="its tensors do not belong to one model"):
        restore(tmp_path / "birds.safetensors")


def test_arrays_of_a_lying_npz_are_never_asked_for(tmp_path: Path) -> None:
    np.savez(tmp_path / "mixer.npz", **{"head/kernel": np.zeros(3, np.float32)})
    content = (tmp_path / "mixer.npz").read_bytes()
    shape = b"(3,), }"
    lying = content.replace(shape + b" " * 20, b"(1000000000000,), }".ljust(len(shape) + 20))
    assert lying != content
    (tmp_path / "mixer.npz").write_bytes(lying)
    with little_memory(), pytest.raises(ValueError, match=r"mixer\.npz is not a readable NumPy"):
        read(tmp_path / "mixer.npz")


@pytest.mark.parametrize("asked", [{"num_classes": 10**12}, {"image_size": 2**13 * 8}])
def test_a_model_that_no_machine_holds_is_refused_before_it_is_built(
    tmp_path: Path, asked: dict[str, int]
) -> None:
    save_timm(digits_model(), tmp_path / "birds.pth")
    with little_memory():
        with pytest.raises(ValueError, match="GB of memory"):
            restore(tmp_path / "birds.pth", **asked)
        with pytest.raises(ValueError, match="GB of memory"):
            create_model("mixer_digits", **asked)


def test_tensors_that_are_no_plain_numbers(tmp_path: Path) -> None:
    for wrong, sentence in (
        (torch.zeros(0, 64), r"head.weight \[0, 64\] is empty"),
        (
            torch.zeros(10, 64).to_sparse(),
            "head.weight is a torch.sparse_coo tensor on cpu, not plain numbers",
        ),
        (torch.zeros(10, 64, device="meta"), "not plain numbers"),
    ):
        torch.save({**digits_model().state_dict(), "head.weight": wrong}, tmp_path / "birds.pth")
        with pytest.raises(ValueError, match=sentence):
            read(tmp_path / "birds.pth")


def test_a_model_of_the_users_has_parameters_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "best.ckpt"
    node = {"_target_": "own_parts.Net", "width": 4, "activation": "silu"}
    torch.save(
        {
            "recipe": {"model": node, "choices": {"model": "net"}, "image_size": 8, "augment": {}},
            "classes": ["a", "b"],
            "state_dict": {"model.fc.weight": torch.ones(2, 4), "model.fc.bias": torch.ones(2)},
        },
        path,
    )
    found = read(path)
    assert found.model_name == "net"
    assert found.classes == ["a", "b"]
