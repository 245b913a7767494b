"""The study of shuffled pixels: the exact statement, what networks lose, what a command line makes."""

from __future__ import annotations

import copy
import csv

import pytest
import torch

from mixer_lightning import results
from mixer_lightning.api import create_model
from mixer_lightning.data.shuffling import Shuffle
from mixer_lightning.reports import shuffling as report
from mixer_lightning.studies import shuffling
from mixer_lightning.studies.shuffling_proof import permute_weights, prove

SHUFFLE = Shuffle(kind="patches", patch_size=4, seed=1, image_size=16)
SMALL = {
    "patch_size": 4,
    "num_blocks": 3,
    "hidden_dim": 24,
    "tokens_mlp_dim": 12,
    "channels_mlp_dim": 48,
}


def network(name, **overrides):
    """With random numbers in the head and in all biases, which begin as zeros."""
    torch.manual_seed(0)
    model = create_model(name, num_classes=5, image_size=16, overrides=overrides).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def test_a_mixer_with_permuted_weights_has_the_logits_of_the_original():
    model = network("mixer_s16", **SMALL)
    permuted = copy.deepcopy(model)
    permute_weights(permuted, SHUFFLE)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        expected, found = model(images), permuted(SHUFFLE(images))
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * expected.abs().max().item())
        assert (model(SHUFFLE(images)) - expected).abs().max() > 0.1 * expected.abs().max()
    proof = prove(model, SHUFFLE)
    assert proof.is_equal
    assert proof.unpermuted > 0.1
    assert proof.permuted_float64 < 1e-13
    assert "the logits are the same" in str(proof)


@pytest.mark.parametrize("forgotten", ["stem.proj.weight", "mlp_tokens.fc1.weight", "mlp_tokens.fc2.weight"])
def test_every_permuted_weight_is_needed(forgotten):
    """But b2, the same for all channels of a token, which LayerNorm takes away again."""
    model = network("mixer_s16", **SMALL)
    permuted = copy.deepcopy(model)
    permute_weights(permuted, SHUFFLE)
    before = {name: value for name, value in model.state_dict().items() if name.endswith(forgotten)}
    assert before
    permuted.load_state_dict(before, strict=False)
    images = torch.randn(3, 3, 16, 16)
    with torch.no_grad():
        difference = (permuted(SHUFFLE(images)) - model(images)).abs().max() / model(images).abs().max()
    assert difference > 1e-3


def test_a_convolutional_network_has_other_logits():
    residual = prove(network("wrn_28_2", depth=10, width=1), SHUFFLE)
    assert residual.tensors == []
    assert residual.unpermuted > 0.01
    assert "no permutation of weights undoes that" in str(residual)
    mixed = prove(network("convmixer_96_4", patch_size=4), SHUFFLE)
    assert mixed.tensors == ["0.weight"] or mixed.tensors == ["stem.0.weight"]
    assert not mixed.is_equal
    assert "the logits are others" in str(mixed)


def test_drops_are_of_the_ends_of_the_curves():
    ends = {"original": 0.5, "patches": 0.4, "pixels": 0.125}
    rows = [
        {"model": "net", "input": kind, "step": step, report.ACCURACY: end if step == 8 else 0.3}
        for kind, end in ends.items()
        for step in (4, 8)
    ]
    patches, pixels = report.drops(rows)
    assert (patches.points, patches.relative) == (pytest.approx(10), pytest.approx(20))
    assert (pixels.points, pixels.relative) == (pytest.approx(37.5), pytest.approx(75))


def test_the_verdict_follows_the_numbers():
    def said(mixer, net, kind="patches"):
        found = [report.Drop("mixer", kind, 0.5, mixer), report.Drop("net", kind, 0.5, net)]
        return shuffling.verdict(found, unaware=["mixer"])

    assert "while a network of convolutions does shows here" in said(0.49, 0.3)
    assert "does not show here" in said(0.3, 0.3)
    assert "does not show here" in said(0.4, 0.39)
    assert "mixer -1.0 points (-2 %), net -20.0 points (-40 %)" in said(0.49, 0.3)
    assert "it may use no neighbourhoods yet" in said(0.49, 0.3, kind="pixels")
    assert "it may use no neighbourhoods yet" not in said(0.4, 0.3, kind="pixels")


ARGV = [
    "data=digits",
    "models=mixer_digits,convmixer_96_4",
    "mixer_digits.patch_size=2",
    "mixer_digits.num_blocks=1",
    "convmixer_96_4.dim=8",
    "convmixer_96_4.depth=1",
    "evals.fewshot.seeds=[0]",
    "trainer=cpu",
    "duration.steps=4",
    "eval_every.steps=2",
]


def test_from_the_command_line_to_the_page(tmp_path, capsys, monkeypatch):
    argv = [*ARGV, f"folder={tmp_path / 'runs'}", f"out={tmp_path / 'out'}"]
    shuffling.main(argv)
    with (tmp_path / "out/shuffling_digits.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["step"] for row in rows] == ["2", "4"] * 6
    assert {row["input"] for row in rows} == set(report.INPUTS)
    final = results.read_result(tmp_path / "runs/mixer_digits-pixels", whole=True)
    assert final["recipe"]["augment"]["shuffle"] == "pixels"
    assert float(rows[5][report.ACCURACY]) == pytest.approx(
        final["metrics"]["fewshot/digits_5shot"], rel=1e-3
    )
    patches = results.read_result(tmp_path / "runs/mixer_digits-patches", whole=True)
    assert patches["recipe"]["augment"]["shuffle_patch"] == 2  # the Mixer's
    text = (tmp_path / "out/shuffling_digits.md").read_text()
    assert "| mixer_digits | (1) patches and pixels in patches |" in text
    assert "the logits are the same" in text
    assert "no permutation of weights undoes that" in text
    assert "Chance is 10 % with 10 classes" in text
    assert (tmp_path / "out/shuffling_digits.png").stat().st_size > 10_000
    before = [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").rglob(results.RESULT))]
    capsys.readouterr()
    curves = shuffling.curves
    monkeypatch.setattr(shuffling, "curves", lambda runs: ("my/birds", curves(runs)[1]))  # as by data.name
    shuffling.main(argv)
    assert "training](shuffling_my_birds.png)" in (tmp_path / "out/shuffling_my_birds.md").read_text()
    assert capsys.readouterr().out.count("finished before") == 6
    assert before == [path.stat().st_mtime_ns for path in sorted((tmp_path / "runs").rglob(results.RESULT))]
    shuffling.main([f"checkpoint={tmp_path / 'runs/mixer_digits-patches'}"])
    assert "the logits are the same" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["modles=mixer_s16"], "unknown key 'modles': did you mean 'models'?"),
        (["models=mixer_s17"], "there is no model 'mixer_s17': did you mean 'mixer_s16'?"),
        (["patch=0"], "patch must be at least 1"),
        (["augment.shuffle=pixels"], "'augment.shuffle' is set by the study"),
        (["name=x"], "'name' is set by the study: use folder="),
        (["checkpoint=a.npz", "data=digits"], "'data' has no place beside it"),
        (["checkpoint=nowhere.npz"], "there is no checkpoint file nowhere.npz"),
        (["data=digits", "optimiser.lr=1"], "unknown key 'optimiser"),
        ([*ARGV, "patch=3"], "images of 8 px cannot be cut into patches of 3 px"),
    ],
)
def test_a_wrong_setting_is_named(argv, message, capsys):
    with pytest.raises(SystemExit) as stop:
        shuffling.main(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
