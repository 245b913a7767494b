"""Exports compute what the checkpoint computes, in the programs they are for; nothing wrong is ever left behind."""

from __future__ import annotations

import functools
import importlib.util
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.models.convmixer import ConvMixer as TimmConvMixer
from torch import Tensor, nn

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints import export as checked_export
from mixer_lightning.checkpoints import formats
from mixer_lightning.checkpoints.families import FAMILIES
from mixer_lightning.checkpoints.load import load
from mixer_lightning.checkpoints.read import read
from mixer_lightning.checkpoints.restore import Restored, restore
from mixer_lightning.checkpoints.save import save_flax, save_own, save_timm
from mixer_lightning.cli import export, predict
from mixer_lightning.models import presets
from mixer_lightning.models.convmixer import ConvMixer
from mixer_lightning.models.mixer import Mixer
from mixer_lightning.models.presets import build_model
from mixer_lightning.models.resmlp import ResMLP

CLASSES = ["wren", "crane", "swift"]
SEEN = {"mean": [0.1, 0.2, 0.3], "std": [0.5, 0.6, 0.7], "eval_crop": 0.9}
ALL_SEEN = SEEN | {  # Augment's own
    "eval_resize": "short_side",
    "eval_interpolation": "bilinear",
    "eval_rounding": "torchvision",
    "exif_orientation": False,
    "shuffle": "none",
    "shuffle_patch": 16,
    "shuffle_seed": 0,
}
IMAGES = torch.randn(5, 3, 8, 8, generator=torch.Generator().manual_seed(3))


def mixer() -> Mixer:
    assert int(15 / 11 * 11) == 14  # what timm would make of the ratio 15 / 11
    sizes = {"patch_size": 4, "num_blocks": 2, "hidden_dim": 11, "tokens_mlp_dim": 15, "channels_mlp_dim": 44}
    return Mixer(**sizes, num_classes=3, image_size=8)


def wide_mixer(folder: Path) -> Mixer:
    """What fine-tuning at twice the resolution starts from."""
    sizes = {"patch_size": 2, "num_blocks": 2, "hidden_dim": 8, "tokens_mlp_dim": 4, "channels_mlp_dim": 32}
    torch.save(Mixer(**sizes, num_classes=3, image_size=4).state_dict(), folder / "small.pth")
    model = Mixer(**sizes, num_classes=3, image_size=8)
    load(model, folder / "small.pth")
    return model


def convmixer() -> ConvMixer:
    """An even kernel, which pads unevenly, and the other activation."""
    sizes = {"dim": 8, "depth": 2, "kernel_size": 4, "patch_size": 2}
    return ConvMixer(**sizes, activation="relu", num_classes=3, image_size=8)


def resmlp() -> ResMLP:
    sizes = {"patch_size": 2, "num_blocks": 2, "hidden_dim": 12, "layer_scale": 0.1}
    return ResMLP(**sizes, num_classes=3, image_size=8)


MODELS = {
    "mixer": lambda folder: mixer(),
    "wide_mixer": wide_mixer,
    "convmixer": lambda folder: convmixer(),
    "resmlp": lambda folder: resmlp(),
}


def write_run(folder: Path, model: nn.Module) -> nn.Module:
    """A run directory whose weights are all random, BatchNorm's statistics too; the model in evaluation mode."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.is_floating_point():
                tensor.add_(0.3 * torch.rand(tensor.shape, generator=generator))
    content = {
        "state_dict": {f"model.{key}": tensor for key, tensor in model.state_dict().items()},
        "recipe": {
            "model": {"activation": getattr(model, "activation", "gelu")},
            "image_size": 8,
            "augment": {"_target_": "Augment", "flip": 0.5, **SEEN},
        },
        "classes": CLASSES,
    }
    folder.mkdir()
    torch.save(content, folder / "best.ckpt")
    return model.eval()


@torch.no_grad()
def expected(model: nn.Module) -> Tensor:
    logits: Tensor = model(IMAGES)
    assert logits.std() > 0.01
    return logits


def run(*words: str) -> int:
    """The program's exit code."""
    try:
        return export.main(words)
    except SystemExit as stop:  # argparse's way
        return int(str(stop.code))


@pytest.fixture(params=MODELS)
def model(request: pytest.FixtureRequest, tmp_path: Path) -> nn.Module:
    """Its run directory is <tmp_path>/run."""
    return write_run(tmp_path / "run", MODELS[request.param](tmp_path))


# ---------------------------------------------------------------------------------------------- formats


@pytest.mark.parametrize("suffix", [".safetensors", ".pth", ".pt"])
def test_timm_loads_it_by_the_printed_line(
    model: nn.Module, tmp_path: Path, suffix: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / f'my "timm"\'s{suffix}'
    assert run(f"checkpoint={tmp_path / 'run'}", "to=timm", f"output={path}") == 0
    said = capsys.readouterr().out
    assert "max |difference| of logits" in said
    assert f"by timm {timm.__version__}" in said
    (line,) = (line.removeprefix("use: ") for line in said.splitlines() if line.startswith("use: "))
    names: dict[str, object] = {"timm": timm, "torch": torch, "functools": functools}
    exec(line, names)
    theirs = names["model"]
    assert type(theirs).__module__.startswith("timm.")
    with torch.no_grad():
        torch.testing.assert_close(theirs.eval()(IMAGES), expected(model), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [name for family in FAMILIES for name in family.timm_names])
def test_known_models_have_timms_own_names(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        ours = create_model(name, num_classes=7)
        restored = Restored(ours, name, 224, None, {}, None)  # type: ignore[arg-type]
        function, arguments = formats.timm_call(restored)
        assert function == "timm.create_model"
        theirs = timm.create_model(**arguments)
    shapes = [{key: t.shape for key, t in m.state_dict().items()} for m in (ours, theirs)]
    assert shapes[0] == shapes[1]
    if isinstance(theirs, TimmConvMixer):
        assert isinstance(theirs.stem[1], nn.ReLU if ours.activation == "relu" else nn.GELU)
    elif isinstance(ours, ResMLP):
        assert theirs.blocks[0].mlp_channels.act.approximate == "none"
    else:
        assert theirs.blocks[0].mlp_tokens.act.approximate == "tanh"


def test_a_known_shape_with_another_activation_is_spelled_out() -> None:
    with torch.device("meta"):
        sizes = {"dim": 768, "depth": 32, "kernel_size": 7, "patch_size": 7}
        gelu = ConvMixer(**sizes, activation="gelu", num_classes=7, image_size=224)
    function, arguments = formats.timm_call(Restored(gelu, "convmixer_768_32", 224, None, {}, None))  # type: ignore[arg-type]
    assert (function, arguments["act_layer"]) == ("timm.models.convmixer.ConvMixer", nn.GELU)


def test_our_own_format_needs_nothing_else(model: nn.Module, tmp_path: Path) -> None:
    path = tmp_path / "own.safetensors"
    assert run(f"checkpoint={tmp_path / 'run'}", "to=safetensors", f"output={path}") == 0
    restored = restore(path)
    with torch.no_grad():
        assert torch.equal(restored.model(IMAGES), expected(model))
    assert (restored.image_size, restored.classes, restored.preprocessing) == (8, CLASSES, ALL_SEEN)


def test_the_flax_format_is_of_mixers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = write_run(tmp_path / "run", mixer())
    path = tmp_path / "m.npz"
    assert run(f"checkpoint={tmp_path / 'run'}", "to=npz", f"output={path}") == 0
    with np.load(path, allow_pickle=False) as arrays:
        kernel = arrays["MixerBlock_1/token_mixing/Dense_0/kernel"]
        np.testing.assert_array_equal(kernel, model.blocks[1].mlp_tokens.fc1.weight.detach().numpy().T)
    with torch.no_grad():
        assert torch.equal(restore(path).model(IMAGES), expected(model))

    write_run(tmp_path / "other", convmixer())
    assert run(f"checkpoint={tmp_path / 'other'}", "to=npz", f"output={tmp_path / 'c.npz'}") == 2
    assert (
        "to=npz is the official layout of Mixers; the checkpoint is of ConvMixer" in capsys.readouterr().out
    )
    assert not (tmp_path / "c.npz").exists()


def test_onnx_computes_it_for_any_batch(
    model: nn.Module, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from onnx.reference import ReferenceEvaluator

    path = tmp_path / "m.onnx"
    assert run(f"checkpoint={tmp_path / 'run'}", "to=onnx", f"output={path}") == 0
    said = capsys.readouterr().out
    assert "max |difference| of logits" in said
    evaluator = ReferenceEvaluator(str(path))
    for part in (IMAGES, IMAGES[:1]):
        (logits,) = evaluator.run(None, {"images": part.numpy()})
        np.testing.assert_allclose(logits, expected(model)[: len(part)], rtol=1e-4, atol=1e-5)
    beside = json.loads((tmp_path / "m.onnx.json").read_text())
    assert beside["classes"] == CLASSES
    assert beside["image_size"] == 8
    assert ALL_SEEN.items() <= beside.items()
    assert "short side to 8 px, antialiased bilinear, of which the centre: float32 [batch, 3, 8, 8]" in said

    # Where ONNX Runtime is not installed, the evaluator of onnx judges; where neither is, nobody does.
    for missing, words in (
        (["onnxruntime"], "reference evaluator"),
        (["onnxruntime", "onnx"], "pip install"),
    ):
        without(monkeypatch, *missing)
        logits, runtime = formats.reload_onnx(path, restore(tmp_path / "run"))
        assert words in runtime
        assert (logits is None) == ("onnx" in missing)


def test_halo_attention_in_onnx(tmp_path: Path) -> None:
    overrides = {
        "block_size": 2,
        "halo_size": 1,
        "base_width": 8,
        "num_blocks": [1, 1, 1, 1],
        "convolution_stages": 3,
    }
    torch.manual_seed(0)
    model = build_model(
        "halonet_h3", num_classes=3, image_size=64, overrides={**overrides, "value_ratio": 1.5}
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.rand_like(parameter))
    restored = Restored(model.eval(), "halonet_h3", 64, None, {}, None)  # type: ignore[arg-type]
    formats.save_onnx(tmp_path / "m.onnx", restored)
    logits, _ = formats.reload_onnx(tmp_path / "m.onnx", restored)
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        expected = model(images).numpy()
    assert expected.std() > 0.01
    assert logits is not None
    np.testing.assert_allclose(logits(images), expected, rtol=1e-3, atol=1e-4)


def test_onnx_runtime_runs_it_where_it_is_installed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", convmixer())
    assert run(f"checkpoint={tmp_path / 'run'}", "to=onnx", f"output={tmp_path / 'm.onnx'}") == 0
    assert "by ONNX Runtime " in capsys.readouterr().out


def without(monkeypatch: pytest.MonkeyPatch, *names: str) -> None:
    """As if packages were not installed."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name in names else find(name, *rest)
    )


def test_what_onnx_needs_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    write_run(tmp_path / "run", mixer())
    without(monkeypatch, "onnxscript")
    assert run(f"checkpoint={tmp_path / 'run'}", "to=onnx", f"output={tmp_path / 'm.onnx'}") == 2
    assert (
        "to=onnx needs onnx and onnxscript: pip install onnx onnxscript onnxruntime"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize(
    ("to", "name"),
    [("timm", "m.pth"), ("timm", "m.safetensors"), ("npz", "m.npz"), ("safetensors", "own.safetensors")],
)
@pytest.mark.parametrize("make", [mixer, convmixer])
def test_predict_says_of_an_export_what_it_says_of_the_run(
    to: str, name: str, make: Callable[[], nn.Module], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if (to, make) == ("npz", convmixer):
        make = functools.partial(wide_mixer, tmp_path)
    write_run(tmp_path / "run", make())
    assert run(f"checkpoint={tmp_path / 'run'}", f"to={to}", f"output={tmp_path / name}") == 0
    pixels = np.random.default_rng(0).integers(0, 256, (13, 30, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")

    def rows(checkpoint: Path) -> Any:
        words = [f"checkpoint={checkpoint}", f"images={tmp_path / 'a.png'}", "device=cpu"]
        assert predict.main([*words, f"output={tmp_path / 'out.json'}"]) == 0
        return json.loads((tmp_path / "out.json").read_text())

    capsys.readouterr()
    (theirs,), (ours,) = rows(tmp_path / name), rows(tmp_path / "run")
    assert "assumed" not in capsys.readouterr().out
    assert [each["class"] for each in theirs["classes"]] == [each["class"] for each in ours["classes"]]
    assert {each["class"] for each in ours["classes"]} == set(CLASSES)
    found, wanted = ([each["probability"] for each in row["classes"]] for row in (theirs, ours))
    np.testing.assert_allclose(found, wanted, rtol=1e-6)
    (tmp_path / f"{name}.json").unlink(missing_ok=True)
    if to == "timm" and make is mixer:  # the same weights alone
        (alone,) = rows(tmp_path / name)
        assert abs(alone["classes"][0]["probability"] - wanted[0]) > 1e-4
        said = capsys.readouterr().out
        assert "assumed: mean [0.5, 0.5, 0.5], std [0.5, 0.5, 0.5], eval_crop 0.875, eval_resize" in said
        assert "names no classes" in said


def test_a_model_without_an_entry_in_families(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "conf_model"
    folder.mkdir()
    target = "_target_: mixer_lightning.models.baselines.timm_backbone"
    (folder / "resnet.yaml").write_text(f"{target}\ntimm_name: resnet18\n")
    monkeypatch.setattr(presets, "MODEL_FOLDER", folder)
    model = create_model("resnet", num_classes=3, image_size=32)
    save_own(tmp_path / "a.safetensors", Restored(model, "resnet", 32, CLASSES, {}, None))  # type: ignore[arg-type]
    words = (f"checkpoint={tmp_path / 'a.safetensors'}", f"output={tmp_path / 'b.safetensors'}")
    assert run(*words, "to=safetensors") == 0
    assert "resnet at 32, 3 classes written to" in capsys.readouterr().out
    assert restore(tmp_path / "b.safetensors").classes == CLASSES
    assert (
        run(*words, "to=timm", "overwrite=true") == 0
    )  # which compares the logits with those of timm's model
    assert 'use: timm.create_model(model_name="resnet18", num_classes=3, checkpoint_path="' in (
        capsys.readouterr().out
    )


# --------------------------------------------------------------------------------------- other settings


def test_a_larger_size_and_another_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    save_flax(create_model("mixer_digits", num_classes=21), tmp_path / "m.npz")
    words = (f"checkpoint={tmp_path / 'm.npz'}", "to=safetensors", f"output={tmp_path / 'm.safetensors'}")
    assert run(*words, "image_size=16", "num_classes=4", "model=mixer_digits") == 0
    said = capsys.readouterr().out
    assert "2x2 parts of 8 px" in said
    assert "the head is new: its weights are zero" in said
    assert str(read(tmp_path / "m.safetensors").model) == (
        "mixer_digits at 16 (token mixing of 2x2 parts), 4 classes"
    )


def test_an_output_that_is_there_is_kept_unless_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_run(tmp_path / "run", mixer())
    path = tmp_path / "new" / "m.npz"
    words = (f"checkpoint={tmp_path / 'run'}", "to=npz", f"output={path}")
    assert run(*words) == 0  # the folder is made
    path.write_text("precious")
    assert run(*words) == 2
    assert f"{path} is there already: use another output, or overwrite=true" in capsys.readouterr().err
    assert path.read_text() == "precious"
    assert run(*words, "overwrite=true") == 0
    assert restore(path).name is None
    assert sorted(file.name for file in path.parent.iterdir()) == ["m.npz", "m.npz.json"]


def forge(monkeypatch: pytest.MonkeyPatch, to: str, write: Callable[[Path, Restored], None]) -> None:
    monkeypatch.setitem(formats.FORMATS, to, formats.FORMATS[to]._replace(write=write))


def test_a_file_that_computes_something_else_is_not_kept(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, restored: Restored) -> None:
        state = restored.model.state_dict()
        changed = state["blocks.0.mlp_tokens.fc1.weight"].clone()
        torch.save(state | {"blocks.0.mlp_tokens.fc1.weight": changed.roll(1, 0)}, path)

    write_run(tmp_path / "run", mixer())
    path = tmp_path / "out" / "m.pth"
    path.parent.mkdir()
    path.write_text("the last good one")
    forge(monkeypatch, "timm", write)
    assert run(f"checkpoint={tmp_path / 'run'}", "to=timm", f"output={path}", "overwrite=true") == 1
    assert "m.pth was not written: timm 1" in capsys.readouterr().out
    assert path.read_text() == "the last good one"
    assert list(path.parent.iterdir()) == [path]


def test_weights_that_are_no_numbers_are_not_exported(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = mixer()
    nn.init.constant_(model.norm.bias, float("nan"))
    save_timm(model, tmp_path / "nan.pth")
    assert run(f"checkpoint={tmp_path / 'nan.pth'}", "to=npz", f"output={tmp_path / 'm.npz'}") == 2
    assert "holds weights that are not finite (norm.bias)" in capsys.readouterr().out
    assert not (tmp_path / "m.npz").exists()


def test_a_full_disk_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def write(path: Path, restored: Restored) -> None:
        path.write_text("half")
        raise OSError(28, "No space left on device")

    write_run(tmp_path / "run", mixer())
    forge(monkeypatch, "npz", write)
    (tmp_path / "out").mkdir()
    assert run(f"checkpoint={tmp_path / 'run'}", "to=npz", f"output={tmp_path / 'out' / 'm.npz'}") == 1
    assert "was not written: [Errno 28] No space left on device" in capsys.readouterr().out
    assert list((tmp_path / "out").iterdir()) == []


def test_the_weights_of_a_large_onnx_file_move_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = write_run(tmp_path / "run", mixer())

    def write_two(path: Path, restored: Restored) -> None:
        path.write_bytes(b"graph")
        path.with_name(f"{path.name}.data").write_bytes(b"weights")

    judged = formats.of_module(model), "nobody"
    monkeypatch.setattr(checked_export, "metadata", lambda restored: {})
    fake = formats.Format(write_two, lambda path, restored: judged, lambda path, restored: "")
    monkeypatch.setitem(formats.FORMATS, "onnx", fake)
    written = checked_export.write_checked(restore(tmp_path / "run"), "onnx", tmp_path / "out" / "m.onnx")
    assert written.num_bytes == len(b"graph") + len(b"weights") + len("{}\n")
    assert (tmp_path / "out" / "m.onnx").read_bytes() == b"graph"
    assert (tmp_path / "out" / "m.onnx.data").read_bytes() == b"weights"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["to=npz", "output=m.npz"], "'checkpoint' is missing: checkpoint=<...>"),
        (["checkpoint=x.npz", "to=tflite", "output=m.npz"], "invalid choice: 'tflite'"),
        (["checkpoint=x.npz", "to=npz", "output=m.pth"], "to=npz writes a file ending in .npz, not m.pth"),
        (["checkpoint=x.npz", "to=npz", "output=m.npz", "image_size=0"], "image_size must be at least 1"),
        (
            ["checkpoint=x.npz", "to=npz", "output=m.npz", "imagesize=8"],
            "unknown key 'imagesize': did you mean 'image_size'?",
        ),
        (
            ["checkpoint=x.npz", "to=npz", "output=m.npz", "overwite=true"],
            "unknown key 'overwite': did you mean 'overwrite'?",
        ),
        (["checkpoint=x.npz", "to=npz", "output=m.npz"], "there is no checkpoint file x.npz"),
        (["checkpoint=timm:mixer", "to=npz", "output=m.npz"], "timm has no weights 'mixer'"),
        (
            ["checkpoint=other.pth", "to=timm", "output=m.pth"],
            "does not tell what model it holds: say model=",
        ),
    ],
)
def test_a_wrong_word_is_named_and_nothing_written(
    words: list[str],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({"layer.weight": torch.zeros(2)}, "other.pth")
    assert run(*words) == 2
    said = capsys.readouterr()
    assert message in said.out + said.err
    assert [path.name for path in tmp_path.iterdir()] == ["other.pth"]


def test_it_is_a_program(tmp_path: Path) -> None:
    write_run(tmp_path / "run", mixer())
    command = [sys.executable, "-m", "mixer_lightning", "export", "checkpoint=run", "to=npz", "output=m.npz"]
    root = str(Path(export.__file__).parents[2])
    done = subprocess.run(
        command, cwd=tmp_path, env={"PYTHONPATH": root}, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "written to m.npz" in done.stdout
    assert "pixels in [0, 1] minus [0.1, 0.2, 0.3], divided by [0.5, 0.6, 0.7]" in done.stdout
