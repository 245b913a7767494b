"""Predictions for pictures: the same as the network's on the evaluation's view, and bad pictures named."""

from __future__ import annotations

import itertools
import json
import os
import re
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mixer_lightning.api import create_model
from mixer_lightning.checkpoints.restore import restore
from mixer_lightning.checkpoints.save import save_timm
from mixer_lightning.cli import predict
from mixer_lightning.engine import prediction
from mixer_lightning.stdio import printable


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """A ConvMixer for 16 px whose head tells its classes apart."""
    torch.manual_seed(0)
    model = create_model("convmixer_96_4", num_classes=7, image_size=16)
    torch.nn.init.normal_(model.head.weight)
    save_timm(model, tmp_path / "convmixer_96_4.safetensors")
    return tmp_path / "convmixer_96_4.safetensors"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    (tmp_path / "pictures/deeper").mkdir(parents=True)
    for i, name in enumerate(("b.png", "deeper/a.png", "c.PNG")):
        pixels = random.integers(0, 256, (18 + i, 30, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "pictures" / name, "PNG")
    (tmp_path / "pictures/notes.txt").write_text("no image")
    return tmp_path / "pictures"


def words(checkpoint: Path, pictures: Path, *more: str) -> list[str]:
    given = [f"checkpoint={checkpoint}", f"images={pictures}", f"output={checkpoint.parent / 'out.json'}"]
    return [*given, "model=convmixer_96_4", "image_size=16", "device=cpu", *more]


def test_the_figures_are_the_networks_on_the_evaluations_view(checkpoint: Path, pictures: Path) -> None:
    assert predict.main(words(checkpoint, pictures, "top=3", "batch_size=2")) == 0
    rows = json.loads((checkpoint.parent / "out.json").read_text())
    assert [Path(row["file"]).name for row in rows] == ["b.png", "c.PNG", "a.png"]
    model = create_model("convmixer_96_4", num_classes=7, image_size=16, checkpoint=checkpoint).eval()
    restored = restore(checkpoint, model="convmixer_96_4", image_size=16)
    side = int(16 / restored.preprocessing.get("eval_crop", 1.0))
    view = v2.Compose(
        [
            v2.PILToTensor(),
            v2.Resize(
                side,
                interpolation=v2.InterpolationMode(
                    restored.preprocessing.get("eval_interpolation", "bilinear")
                ),
                antialias=True,
            ),
            v2.CenterCrop(16),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(restored.preprocessing["mean"], restored.preprocessing["std"]),
        ]
    )
    for row in rows:
        with torch.inference_mode():
            share = model(view(Image.open(row["file"]))[None]).softmax(dim=1)[0]
        assert [int(each["class"]) for each in row["classes"]] == share.argsort(descending=True)[:3].tolist()
        for each in row["classes"]:
            assert each["probability"] == pytest.approx(float(share[int(each["class"])]), abs=1e-4)


def test_a_bad_picture_is_named_and_the_others_go_on(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (pictures / "bad.jpg").write_bytes(b"\xff\xd8\xff")
    assert predict.main(words(checkpoint, pictures)) == 1
    rows = {Path(row["file"]).name: row for row in json.loads((checkpoint.parent / "out.json").read_text())}
    assert len(rows) == 4
    assert "classes" not in rows["bad.jpg"]
    assert sum(each["probability"] for each in rows["b.png"]["classes"]) <= 1 + 1e-6
    said = capsys.readouterr().out
    assert "cannot read" in said
    assert "bad.jpg" in said
    assert "3 of 4 images" in said


def test_names_of_classes_from_a_file(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = [f"bird {i}" for i in range(7)]
    (tmp_path / "names.txt").write_text("\n".join(names) + "\n")
    assert predict.main(words(checkpoint, pictures, f"classes={tmp_path / 'names.txt'}", "top=7")) == 0
    rows = json.loads((checkpoint.parent / "out.json").read_text())
    assert {each["class"] for each in rows[0]["classes"]} == set(names)
    (tmp_path / "names.txt").write_text("one\n")
    assert predict.main(words(checkpoint, pictures, f"classes={tmp_path / 'names.txt'}")) == 2
    assert "has 1 lines, the model 7 classes" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("more", "message"),
    [(["images=/nowhere"], "there is no /nowhere"), (["output=/nowhere/x.json"], "cannot write in /nowhere")],
)
def test_what_is_not_there(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str], more: list[str], message: str
) -> None:
    assert predict.main(words(checkpoint, pictures, *more)) == 2
    assert message in capsys.readouterr().out


@pytest.mark.parametrize(
    ("share", "shown"),
    [(0.9731, "97.3 %"), (0.001, "0.1 %"), (0.000043, "0.0043 %"), (0.0005, "0.050 %"), (3e-9, "3.0e-07 %")],
)
def test_small_shares_keep_two_digits(share: float, shown: str) -> None:
    assert prediction.percent(share) == shown


def test_an_onnx_file_is_told_its_place(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (checkpoint.parent / "birds.onnx").touch()
    assert predict.main(words(checkpoint.parent / "birds.onnx", pictures)) == 2
    (line,) = capsys.readouterr().out.splitlines()
    assert "is for ONNX Runtime, and its sidecar birds.onnx.json states" in line


def test_a_folder_is_no_output(
    checkpoint: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        predict.main(words(checkpoint, pictures, f"output={tmp_path}"))
    assert end.value.code == 2
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    "env",
    [
        {"WORLD_SIZE": "2", "RANK": "1", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"},
        {"SLURM_NTASKS": "4", "SLURM_PROCID": "3"},
    ],
)
def test_it_is_one_process_wherever_it_is_started(checkpoint, pictures, monkeypatch, env) -> None:
    """A shell inside a job has the variables of a launcher: every image is still there, with its own classes."""
    assert predict.main(words(checkpoint, pictures)) == 0
    expected = json.loads((checkpoint.parent / "out.json").read_text())
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert predict.main(words(checkpoint, pictures)) == 0
    assert json.loads((checkpoint.parent / "out.json").read_text()) == expected
    assert len(expected) == 3


def test_hidden_files_and_pipes_are_passed_over_and_others_counted(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (pictures / "b.png").read_bytes()
    (pictures / "._b.png").write_bytes(b"\0\5\26\7")
    (pictures / ".cache").mkdir()
    (pictures / ".cache/x.png").write_bytes(whole)
    os.mkfifo(pictures / "pipe.png")
    Image.open(pictures / "b.png").save(pictures / "d.jfif", "JPEG")
    Image.open(pictures / "b.png").save(pictures / "e.gif")
    assert predict.main(words(checkpoint, pictures)) == 0
    rows = json.loads((checkpoint.parent / "out.json").read_text())
    assert [Path(row["file"]).name for row in rows] == ["b.png", "c.PNG", "d.jfif", "a.png", "e.gif"]
    said = capsys.readouterr().out
    assert "images: 2 files are not read, by ending: 1 .txt, 1 pipe, device or socket" in said


def test_a_pipe_is_refused_by_name(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(pictures / "pipe.png")
    assert predict.main(words(checkpoint, pictures / "pipe.png")) == 2
    assert (
        f"images: {pictures / 'pipe.png'} is not read: it is a named pipe, not a file"
        in capsys.readouterr().out
    )


def test_names_of_files_and_classes_are_text(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not the markup, the emoji nor the escape sequences of a terminal's library; no BOM of Windows' editors either."""
    named = {"b.png": "a[/b].png", "c.PNG": "[old]dog.png", "deeper/a.png": ":dog:.png"}
    (pictures / "a[").mkdir()
    for name, other in named.items():
        (pictures / name).rename(pictures / other)
    classes = ["[red]owl", ":cat:", "a[/x]", "\x1b[2Jcrow", ":bug:", "[b]", "\x1b]0;x\x07"]
    (pictures.parent / "names.txt").write_text("\n".join(classes), encoding="utf-8-sig")
    monkeypatch.chdir(pictures)  # so that each row has a line
    given = words(checkpoint, Path(), f"classes={pictures.parent / 'names.txt'}", "top=1")
    assert predict.main(given) == 0
    said = capsys.readouterr().out
    rows = json.loads((checkpoint.parent / "out.json").read_text())
    assert {row["file"] for row in rows} == set(named.values())
    for row in rows:
        name = row["classes"][0]["class"]
        assert name in classes
        assert re.search(re.escape(f"{row['file']} ") + f" *{re.escape(printable(name))} [0-9.]+ %", said)
    assert "\x1b" not in said


def test_it_says_how_far_it_is(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there is no terminal, a line a minute."""
    clock = itertools.count(0, 61)
    monkeypatch.setattr(time, "perf_counter", lambda: float(next(clock)))
    assert predict.main(words(checkpoint, pictures, "batch_size=1")) == 0
    assert re.search(r"^2/3 images .*left$", capsys.readouterr().out, re.MULTILINE)


def test_a_name_that_is_not_utf8_is_read_and_written(
    checkpoint: Path, pictures: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.rename(pictures / "b.png", os.fsencode(pictures) + b"/caf\xe9.png")  # noqa: PTH104
    assert predict.main(words(checkpoint, pictures)) == 0
    text = (checkpoint.parent / "out.json").read_text(encoding="utf-8")
    assert r"caf\\xe9.png" in text
    assert r"caf\xe9.png" in capsys.readouterr().out.replace("\n", "")


def test_a_checkpoint_without_a_head_is_to_be_fine_tuned(tmp_path: Path, pictures: Path, capsys) -> None:
    """And no key is advised that predict does not have."""
    model = create_model("convmixer_96_4", num_classes=2, image_size=16)
    save_timm(model, tmp_path / "convmixer_96_4.pth")
    state = torch.load(tmp_path / "convmixer_96_4.pth", weights_only=True)
    torch.save({k: v for k, v in state.items() if "head" not in k}, tmp_path / "convmixer_96_4.pth")
    assert predict.main(words(tmp_path / "convmixer_96_4.pth", pictures)) == 2
    said = " ".join(capsys.readouterr().out.split())
    assert "has no head, so it knows no classes: fine-tune it first (mixer finetune checkpoint=...)" in said
    assert "num_classes=" not in said
