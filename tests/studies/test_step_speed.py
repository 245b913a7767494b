"""The study of training steps: what it compares, how it counts, what it writes."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from mixer_lightning.engine import device
from mixer_lightning.kernels.activation_norm import Sequential
from mixer_lightning.kernels.depthwise import DepthwiseConv2d
from mixer_lightning.studies import step_parts, step_speed, training_step
from mixer_lightning.studies.cases import CASES, Case, Variant, variants
from mixer_lightning.studies.rounds import interleave

SMALL = Case("convmixer_256_8", 1, 8, 2, 10)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_both_sides_have_the_same_parameters(case: Case) -> None:
    with torch.device("meta"):
        ours = training_step.our_model(case, kernel=False, fused=False)
        timms = training_step.timm_model(case)
    shapes = [sorted(tuple(p.shape) for p in model.parameters()) for model in (ours, timms)]
    assert shapes[0] == shapes[1]


@pytest.mark.parametrize(("kernel", "fused"), [(False, False), (True, False), (True, True)])
def test_kernels_are_in_the_model_exactly_where_they_are_asked_for(kernel: bool, fused: bool) -> None:
    model = training_step.our_model(SMALL, kernel=kernel, fused=fused)
    depthwise = [m for m in model.modules() if isinstance(m, torch.nn.Conv2d) and m.groups > 1]
    assert [isinstance(m, DepthwiseConv2d) for m in depthwise] == [kernel]
    assert [isinstance(m, Sequential) for m in model.modules()].count(True) == (3 if fused else 0)


@pytest.mark.parametrize("fused", [False, True])
def test_a_mixers_mlps_are_fused_exactly_where_it_is_asked_for(fused: bool) -> None:
    model = training_step.our_model(Case("mixer_s16", 1, 32, 2, 10), kernel=False, fused=fused)
    images = torch.randn(2, 3, 32, 32)
    names, waiting = set(), [model(images).grad_fn]
    while waiting:
        node = waiting.pop()
        if node is not None:
            names.add(type(node).__name__)
            waiting += [each for each, _ in node.next_functions]
    assert ("_MlpBackward" in names) == fused
    assert ("GeluBackward0" in names) != fused


def test_variants_follow_model_and_device() -> None:
    mixer = variants(convolutional=False, device="cpu", compile=False)
    assert mixer == [
        *(Variant(timm=True), Variant(timm=True, bf16=True)),
        *(Variant(), Variant(bf16=True), Variant(fused=True), Variant(bf16=True, fused=True)),
    ]
    cpu = variants(convolutional=True, device="cpu", compile=True)
    cuda = variants(convolutional=True, device="cuda", compile=True)
    assert Variant(channels_last=True, bf16=True, kernel=True, compile=True) in cpu
    assert Variant(channels_last=True, kernel=True, fused=True) in cpu
    assert not any(v.kernel or v.fused for v in cuda)
    assert Variant(timm=True, channels_last=True, bf16=True, compile=True) in cpu
    assert not any(v.compile for v in mixer)
    assert not any(v.bf16 for v in variants(convolutional=True, device="cpu", compile=True, bf16=False))
    assert cpu[0] == Variant(timm=True)
    assert len(set(map(str, cpu))) == len(cpu)


def test_a_step_trains() -> None:
    for variant in (Variant(timm=True), Variant(channels_last=True, bf16=True, kernel=True)):
        step = training_step.compared_step(SMALL, variant, device="cpu")
        assert device.seconds(step, device="cpu", steps=2) > 0


def test_turns_alternate() -> None:
    seen: list[str] = []

    def run(name: str) -> float:
        seen.append(name)
        return float(len(seen))

    values = interleave([lambda: run("a"), lambda: run("b")], rounds=3)
    assert "".join(seen) == "abbaab"
    assert values == [[1, 4, 5], [2, 3, 6]]


def test_ratios_are_taken_round_by_round() -> None:
    slow_round = 100.0  # a disturbance hits both sides of a round
    times = [[2.0, 2.0 * slow_round, 2.2], [1.0, 1.0 * slow_round, 1.0]]
    first, second = step_speed.summary(SMALL, times, [Variant(timm=True), Variant()])
    assert first["ratio_to_timm"] == 1
    assert second["ratio_to_timm"] == 2
    assert second["ratio_to_timm_high"] == pytest.approx(2.1)
    assert second["images_per_second"] == 2  # the median of 2, 0.02 and 2


def test_the_program_writes_what_it_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(CASES, "convmixer_256_8", SMALL)
    step_speed.main(["models=convmixer_256_8", "device=cpu", "rounds=2", f"out={tmp_path}"])
    with (tmp_path / "step_speed_cpu.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["mode"] for row in rows] == ["training"] * 12 + ["inference"] * 10
    assert rows[0]["variant"] == rows[12]["variant"] == "timm, float32"
    assert [
        row["mode"] for row in rows if row["variant"] == "ours, float32, channels_last, fused passes"
    ] == ["inference"]
    assert float(rows[0]["ratio_to_timm"]) == 1
    assert all(float(row["images_per_second"]) > 0 for row in rows)
    text = (tmp_path / "step_speed_cpu.md").read_text()
    assert "Command: `mixer study step_speed models=convmixer_256_8" in text
    assert f"torch {torch.__version__.split('+')[0]}" in text
    assert "| ours, bf16, channels_last, depthwise kernel, fused passes |" in text
    assert "ratio to timm" in capsys.readouterr().out

    with (tmp_path / "step_parts_cpu.csv").open() as file:
        parts = list(csv.DictReader(file))
    assert parts[0]["variant"] == "timm, float32"
    assert {"convolutions", "BatchNorm", "GELU", "optimiser"} <= {row["part"] for row in parts}
    for variant in {row["variant"] for row in parts}:
        mine = [float(row["share"]) for row in parts if row["variant"] == variant]
        assert sum(mine) == pytest.approx(1, abs=1e-3)
        assert mine == sorted(mine, reverse=True)
    assert "Where a step goes, by torch.profiler: timm, float32" in text


def test_operators_are_counted_by_what_they_do():
    found = step_parts.milliseconds(lambda: torch.ones(300, 300) @ torch.ones(300, 300), steps=2)
    assert next(iter(found)) == "matrix products"
    for name, part in (
        ("mixer_lightning::depthwise_weight_gradients", "depthwise weight gradients"),
        ("aten::addmm", "matrix products"),
        ("aten::add_", "sums and additions"),
        ("aten::argmax", "all else"),
    ):
        event = SimpleNamespace(name=name, cpu_parent=SimpleNamespace(name="aten::linear", cpu_parent=None))
        assert step_parts.part_of(event) == part
        event.cpu_parent.name = "Optimizer.step#AdamW.step"
        assert step_parts.part_of(event) == "optimiser"


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["models=convmixer_256_9"], "no model 'convmixer_256_9'"),
        (["models=resmlp_s12"], "'resmlp_s12' is neither a Mixer nor a ConvMixer"),
        (["rounds=1"], "rounds must be at least 2"),
        (["batch_size=0"], "batch_size must be at least 1"),
        (["modes=inferense"], "modes must be training or inference, or both, separated by commas"),
        (["roundz=3"], "unknown key 'roundz': did you mean 'rounds'?"),
    ],
)
def test_a_wrong_setting_is_named(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        step_speed.settings(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
