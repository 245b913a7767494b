"""The study of convolutions: closed forms against torch's counter, what is measured again, the pages."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from mixer_lightning.studies import convolution_costs, convolutions
from mixer_lightning.studies.convolution_costs import OPERATORS, Case, convolution, cost, operators, step

SMALL = ["kernels=1,3", "widths=4", "sizes=5", "rounds=2", "seconds=0", "device=cpu"]


@pytest.mark.parametrize("operator", OPERATORS)
@pytest.mark.parametrize(("kernel", "width", "size"), [(1, 8, 4), (3, 6, 5), (8, 5, 9), (11, 12, 7)])
def test_closed_forms_are_what_torch_counts(operator: str, kernel: int, width: int, size: int) -> None:
    counted = cost(operator, kernel=kernel, width=width, size=size)
    with torch.device("meta"):
        module, maps = convolution(operator, kernel=kernel, width=width), torch.empty(1, width, size, size)
    with FlopCounterMode(display=False) as counter:
        assert module(maps).shape == maps.shape
    assert counted.parameters == sum(p.numel() for p in module.parameters())
    if operator == "pointwise":
        assert counted == cost("full", kernel=1, width=width, size=size)
    assert 2 * counted.macs == counter.get_total_flops()


def test_the_ratios_that_the_module_states() -> None:
    full, depthwise, separable = (
        cost(name, kernel=7, width=48, size=10).macs for name in ("full", "depthwise", "separable")
    )
    assert full / depthwise == 48
    assert full / separable == pytest.approx(49 * 48 / (49 + 48))


def test_a_step_leaves_the_gradients_of_input_and_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[torch.Tensor] = []

    def remember(operator: str, *, kernel: int, width: int) -> torch.nn.Module:
        module = convolution(operator, kernel=kernel, width=width)
        module.register_full_backward_hook(lambda _, inner, outer: kept.extend(inner))
        kept.append(module.weight)
        module.weight.register_post_accumulate_grad_hook(lambda p: kept.append(p.grad.clone()))
        return module

    monkeypatch.setattr(convolution_costs, "convolution", remember)
    case = Case("depthwise", 3, 4, 5, 2, "channels_last", "float32")
    step(case, "training", device="cpu")()
    weight, weight_gradient, input_gradient = sorted(
        kept, key=lambda t: (t.shape[0] == 2, not t.requires_grad)
    )
    assert weight_gradient.shape == weight.shape == (4, 1, 3, 3)
    assert input_gradient.shape == (2, 4, 5, 5)
    assert weight_gradient.abs().sum() > 0
    assert input_gradient.abs().sum() > 0
    assert weight.grad is None  # the next one adds to nothing


def test_our_kernel_is_compared_on_a_cpu_alone_and_pointwise_once() -> None:
    assert "depthwise_ours" not in operators(kernel=3, device="cuda")
    assert operators(kernel=1, device="cpu") == ["full", "depthwise", "depthwise_ours", "pointwise"]
    assert operators(kernel=5, device="cuda") == ["full", "depthwise", "separable"]
    x = torch.randn(2, 4, 6, 6)
    ours = convolution("depthwise_ours", kernel=3, width=4)
    assert torch.equal(ours(x), F.conv2d(x, ours.weight, ours.bias, padding=1, groups=4))


def test_what_is_there_is_not_measured_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    convolutions.main([*SMALL, f"out={tmp_path}"])
    path = tmp_path / "convolutions_cpu.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    # 4 operators at each kernel, 2 layouts, 2 precisions, forward and training
    assert len(rows) == 2 * 4 * 2 * 2 * 2
    assert all(float(row["ms_low"]) <= float(row["ms"]) <= float(row["ms_high"]) for row in rows)
    page = (tmp_path / "convolutions_cpu.md").read_text()
    assert "| 4 | 5x5 | 3 | full | 148 | 0.00 | 1.0 |" in page
    assert "Command: `mixer study convolutions kernels=1,3" in page
    assert (tmp_path / "convolutions_cpu.png").read_bytes().startswith(b"\x89PNG")

    monkeypatch.setattr(convolutions.report, "draw", lambda *_: None)
    before, made = path.read_bytes(), []
    monkeypatch.setattr(
        convolution_costs, "step", lambda case, mode, **_: made.append(case) or (lambda: None)
    )
    convolutions.main([*SMALL, f"out={tmp_path}"])
    assert path.read_bytes() == before
    assert not made
    path.write_text("\n".join(before.decode().splitlines()[:-3]) + "\n")  # stopped before the last three
    convolutions.main([*SMALL, f"out={tmp_path}"])
    assert len(made) == 3
    with path.open() as file:
        again = list(csv.DictReader(file))
    assert again[:-3] == rows[:-3]
    assert len(again) == len(rows)

    convolutions.main(["batch_size=9", *SMALL, f"out={tmp_path}"])
    assert ", batch 9, in" in (tmp_path / "convolutions_cpu.md").read_text()
    convolutions.main([*SMALL, f"out={tmp_path}"])
    assert ", batch 4, in" in (tmp_path / "convolutions_cpu.md").read_text()


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["kernels=3,x"], "kernels must be whole numbers of at least 1, such as kernels=3,7; found 'x'"),
        (["widths=0"], "widths must be whole numbers"),
        (["layouts=channels"], "layouts: there is no 'channels', only contiguous and channels_last"),
        (["rounds=1"], "rounds must be at least 2"),
        (["threads=0"], "threads must be at least 1"),
        (["kernel=3"], "unknown key 'kernel': did you mean 'kernels'?"),
    ],
)
def test_a_wrong_setting_is_named(argv: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        convolutions.settings(argv)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_file_of_something_else_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "convolutions_cpu.csv").write_text("a,b\n1,2\n")
    with pytest.raises(SystemExit) as stop:
        convolutions.main([*SMALL, f"out={tmp_path}"])
    assert stop.value.code == 2
    assert "holds no measurements of this study" in capsys.readouterr().err
