"""Programs that take key=value arguments name a mistyped one, before anything slow is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import mixer_lightning
from mixer_lightning.cli.study import study
from mixer_lightning.config.arguments import listed

SLOW = ("torch", "timm", "lightning", "matplotlib")
RUN = """
import sys
from mixer_lightning.cli.console import main
try:
    sys.exit(main(sys.argv[1:]))
except SystemExit as end:
    slow = [name for name in {slow!r} if name in sys.modules]
    print(end.code, slow)
"""


@pytest.mark.parametrize(
    ("program", "words", "message"),
    [
        ("predict", ["chekpoint=x", "images=y"], "unknown key 'chekpoint': did you mean 'checkpoint'?"),
        ("predict", ["checkpoint=x", "y.png"], "'y.png' is not of the form key=value"),
        ("predict", ["checkpoint=x"], "'images' is missing: images=<...>"),
        (
            "predict",
            ["checkpoint=x", "images=y", "output="],
            "'output=' is empty: give a value, or leave it out",
        ),
        ("export", ["checkpoint=", "to=npz"], "'checkpoint=' is empty: give a value, or leave it out"),
        ("prepare", ["data=folder", "output="], "'output=' is empty: give a value, or leave it out"),
        ("transfer", ["checkpoint=x", "folder="], "'folder=' is empty: give a value, or leave it out"),
        ("export", ["checkpoint=x", "too=npz"], "unknown key 'too': did you mean 'to'?"),
        ("prepare", ["data=folder", "sorce=x"], "unknown key 'sorce': did you mean 'source'?"),
        ("prepare", ["--data", "folder"], "--data is not of the form key=value: write data=folder"),
        (
            "prepare",
            ["--threads", "--data", "x"],
            "--threads is not of the form key=value: write threads=<...>",
        ),
        (
            "predict",
            ["--checkpoint", "runs/a-lr=0.1/best.ckpt", "images=y"],
            "--checkpoint is not of the form key=value: write checkpoint=runs/a-lr=0.1/best.ckpt",
        ),
        ("export", ["--to", "npz", "out=y"], "--to is not of the form key=value: write to=npz"),
        ("train", ["plan=true", "plan.price=abc"], "plan.price: invalid float value: 'abc'"),
        ("transfer", ["checkpoint=x", "suit=vtab"], "unknown key 'suit': did you mean 'suite'?"),
    ],
)
def test_a_mistyped_key_is_named_at_once(program: str, words: list[str], message: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(slow=SLOW), program, *words],
        env={"PYTHONPATH": str(Path(mixer_lightning.__file__).parents[1])},
        capture_output=True,
        text=True,
        check=False,
    )
    assert message in done.stderr.splitlines()
    assert done.stdout.strip() == "2 []"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a,b", ["a", "b"]),
        ("[a, 'b', a]", ["a", "b"]),
        (" [ conv*, mixer_[bl]16 ] ", ["conv*", "mixer_[bl]16"]),
        ("mixer_[bl]*,x[12]", ["mixer_[bl]*", "x[12]"]),
        (",", []),
    ],
)
def test_lists_of_words(text: str, words: list[str]) -> None:
    assert listed(text) == words


@pytest.mark.parametrize(
    ("name", "argv"),
    [
        ("throughput", ["models=lenet_5", "device=cpu"]),
        ("convolutions", ["kernels=1", "device=cpu"]),
        ("receptive", ["models=mixer_digits"]),
        ("step_speed", ["models=mixer_digits", "device=cpu"]),
        ("cifar", ["root=."]),
    ],
)
def test_a_study_that_cannot_write_says_so_before_it_measures(
    name: str, argv: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(SystemExit) as stop:
        study(name)([*argv, f"out={tmp_path / 'file' / 'results'}"])
    assert stop.value.code == 2
    assert "results cannot be a folder to write to: Not a directory" in capsys.readouterr().err
