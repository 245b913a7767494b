"""The MLPs of a Mixer layer in few passes, against PyTorch's own operations in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from torch.utils.flop_counter import FlopCounterMode

from mixer_lightning.kernels import mlp as kernel
from mixer_lightning.kernels.mlp import mlp, plain_mlp

pytestmark = pytest.mark.skipif(kernel.native() is None, reason="no C++ compiler")

#: images, tokens, channels, hidden width: columns that fill no register, one row, several chunks of rows
SHAPES = [(2, 16, 32, 48), (3, 9, 5, 7), (1, 1, 17, 3), (5, 49, 33, 70)]


def layers(over_tokens: bool, shape: tuple[int, int, int, int]) -> tuple[nn.Linear, nn.Linear]:
    _, tokens, channels, hidden = shape
    width = tokens if over_tokens else channels
    fc1, fc2 = nn.Linear(width, hidden), nn.Linear(hidden, width)
    with torch.no_grad():
        for each in (fc1, fc2):
            each.bias.normal_()
    return fc1, fc2


def equation(x: Tensor, weights: list[Tensor], over_tokens: bool, plus: Tensor | None) -> Tensor:
    w1, b1, w2, b2 = weights
    x = x.mT if over_tokens else x
    y = F.gelu(x @ w1.mT + b1, approximate="tanh") @ w2.mT + b2
    y = y.mT if over_tokens else y
    return y if plus is None else y + plus


def relative(found: Tensor | None, true: Tensor | None) -> float:
    assert found is not None
    assert true is not None
    return float((found.detach().double() - true.detach()).abs().max() / true.detach().abs().max())


def is_fused(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_MlpBackward"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("has_plus", [False, True])
@pytest.mark.parametrize("over_tokens", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_and_gradients_are_those_of_the_equation(
    shape: tuple[int, int, int, int], over_tokens: bool, has_plus: bool, dtype: torch.dtype
) -> None:
    torch.manual_seed(0)
    fc1, fc2 = layers(over_tokens, shape)
    x = torch.randn(shape[:3]).to(dtype).requires_grad_()
    plus = torch.randn(shape[:3]).to(dtype).requires_grad_() if has_plus else None
    g = torch.randn(shape[:3]).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = mlp(x, fc1, fc2, over_tokens=over_tokens, plus=plus)
    assert is_fused(y)
    assert y.dtype == dtype
    y.backward(g)

    found = [x, *fc1.parameters(), *fc2.parameters(), *([] if plus is None else [plus])]
    true = [each.detach().double().requires_grad_() for each in found]
    y64 = equation(true[0], true[1:5], over_tokens, true[5] if has_plus else None)
    y64.backward(g.double())
    tolerance = 1e-5 if dtype == torch.float32 else 3e-2
    assert relative(y, y64) < tolerance
    for mine, right in zip(found, true, strict=True):
        assert mine.grad is not None
        assert mine.grad.dtype == mine.dtype
        assert relative(mine.grad, right.grad) < tolerance
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        assert torch.equal(mlp(x, fc1, fc2, over_tokens=over_tokens, plus=plus), y)


def test_gelu_and_its_slope_are_exact_to_the_last_places_of_float32_everywhere() -> None:
    values = torch.cat(
        [torch.linspace(-12, 12, 40_001), torch.logspace(-30, 4, 1000), -torch.logspace(-30, 4, 1000)]
    )
    fc1, fc2 = nn.Linear(1, 1), nn.Linear(1, 1)
    with torch.no_grad():
        for each in (fc1, fc2):
            each.weight.fill_(1)
            each.bias.zero_()
    x = values.view(1, -1, 1).clone().requires_grad_()
    y = mlp(x, fc1, fc2)
    assert is_fused(y)
    y.sum().backward()
    x64 = x.detach().double().requires_grad_()
    y64 = F.gelu(x64, approximate="tanh")
    y64.sum().backward()
    assert x64.grad is not None
    assert x.grad is not None
    assert float(((y - y64).detach().abs() / (1 + x64.detach().abs())).max()) < 3e-7
    assert float((x.grad - x64.grad).abs().max()) < 2e-6
    assert not x.grad[x < -8].any()  # numbers far below 1e-22 would cost hundreds of cycles each


@pytest.mark.parametrize("over_tokens", [False, True])
def test_the_number_of_threads_changes_no_gradient_of_the_bias(over_tokens: bool) -> None:
    x, g = torch.randn(5, 40, 30), torch.randn(5, 40, 30)
    fc1, fc2 = layers(over_tokens, (5, 40, 30, 150))
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        fc1.zero_grad()
        mlp(x, fc1, fc2, over_tokens=over_tokens).backward(g)
        assert fc1.bias.grad is not None
        found.append(fc1.bias.grad.clone())
    torch.set_num_threads(1)
    torch.testing.assert_close(*found, rtol=1e-6, atol=1e-6)  # the products are PyTorch's


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_visible(special: float) -> None:
    fc1, fc2 = layers(False, (2, 4, 8, 16))
    x = torch.randn(2, 4, 8)
    x[1, 3, 2] = special
    y = mlp(x.requires_grad_(), fc1, fc2)
    assert is_fused(y)
    assert not y[1, 3].isfinite().any()
    assert y[0].isfinite().all()


def test_frozen_parameters_get_no_gradient() -> None:
    fc1, fc2 = layers(True, (2, 4, 8, 16))
    fc2.requires_grad_(False)
    fc1.bias.requires_grad_(False)
    y = mlp(torch.randn(2, 4, 8), fc1, fc2, over_tokens=True)
    assert is_fused(y)
    y.square().sum().backward()
    assert fc1.weight.grad is not None
    assert fc1.bias.grad is None
    assert fc2.weight.grad is None
    assert fc2.bias.grad is None


def test_what_is_watched_traced_or_in_another_precision_takes_pytorchs_operations() -> None:
    fc1, fc2 = layers(False, (2, 4, 8, 16))
    x = torch.randn(2, 4, 8)
    assert is_fused(mlp(x, fc1, fc2))
    seen = []
    handle = fc1.register_forward_hook(lambda *_: seen.append(1))
    assert not is_fused(mlp(x, fc1, fc2))
    handle.remove()
    assert seen == [1]
    assert not is_fused(mlp(x.double(), fc1.double(), fc2.double()))
    fc1.float(), fc2.float()
    graph = torch.jit.trace(_Whole(fc1, fc2), x)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(graph(-x), mlp(-x, fc1, fc2))
    exported = torch.export.export(_Whole(fc1, fc2), (x,)).module()
    torch.testing.assert_close(exported(-x), mlp(-x, fc1, fc2))


def test_a_backward_pass_under_autocast_is_that_of_the_forward_pass() -> None:
    fc1, fc2 = layers(False, (2, 4, 8, 16))
    for over_tokens in (False, True):
        x = torch.randn(2, 8, 8, requires_grad=True)
        found = []
        for within in (False, True):
            y = mlp(x, fc1, fc2, over_tokens=over_tokens)
            with torch.autocast("cpu", torch.bfloat16, enabled=within):
                found.append(torch.autograd.grad(y, [x, *fc1.parameters()], torch.ones_like(y)))
        assert is_fused(y)
        assert all(torch.equal(one, other) for one, other in zip(*found, strict=True))


def test_an_evaluation_keeps_no_second_hidden_map(monkeypatch: pytest.MonkeyPatch) -> None:
    kept = []
    gelu = kernel._gelu
    monkeypatch.setattr(kernel, "_gelu", lambda h, bias, a: (kept.append(a is not h), gelu(h, bias, a))[1])
    fc1, fc2 = layers(False, (2, 4, 8, 16))
    x = torch.randn(2, 4, 8)
    mlp(x, fc1, fc2)
    with torch.inference_mode():
        mlp(x, fc1, fc2)
    assert kept == [True, False]


def test_what_transforms_or_counts_operations_sees_them() -> None:
    fc1, fc2 = layers(False, (2, 4, 8, 16))
    x, tangent = torch.randn(2, 4, 8), torch.randn(2, 4, 8)
    weights = [each.detach() for each in (*fc1.parameters(), *fc2.parameters())]
    expected = torch.func.jvp(lambda x: equation(x, weights, False, None), (x,), (tangent,))
    for mine, right in zip(
        torch.func.jvp(lambda x: mlp(x, fc1, fc2), (x,), (tangent,)), expected, strict=True
    ):
        torch.testing.assert_close(mine, right)
    one_by_one = torch.func.vmap(lambda x: mlp(x[None], fc1, fc2)[0])(x)
    torch.testing.assert_close(one_by_one, mlp(x, fc1, fc2))
    with torch.no_grad():
        graph = make_fx(lambda x: mlp(x, fc1, fc2))(x)
        torch.testing.assert_close(graph(-x), mlp(-x, fc1, fc2))
        with FlopCounterMode(display=False) as counter:
            mlp(x, fc1, fc2)
    assert counter.get_total_flops() == 2 * 2 * 2 * 4 * 8 * 16
    fc1.forward = lambda x: torch.zeros(2, 4, 16)  # type: ignore[method-assign]
    torch.testing.assert_close(mlp(x, fc1, fc2), fc2.bias.expand(2, 4, 8))


def test_odd_parameters_and_what_is_added_in_another_shape_take_pytorchs_operations() -> None:
    fc1, fc2 = layers(False, (2, 4, 8, 16))
    x = torch.randn(2, 4, 8)
    fc1.bias = nn.Parameter(torch.randn(32)[::2])
    weights = [*fc1.parameters(), *fc2.parameters()]
    torch.testing.assert_close(mlp(x, fc1, fc2), equation(x, weights, False, None))
    fc1.bias = nn.Parameter(torch.randn(16))
    weights = [*fc1.parameters(), *fc2.parameters()]
    torch.testing.assert_close(mlp(x, fc1, fc2, plus=x[:1]), equation(x, weights, False, x[:1]))


class _Whole(nn.Module):
    def __init__(self, fc1: nn.Linear, fc2: nn.Linear) -> None:
        super().__init__()
        self.fc1, self.fc2 = fc1, fc2

    def forward(self, x: Tensor) -> Tensor:
        return mlp(x, self.fc1, self.fc2)


@pytest.mark.parametrize("over_tokens", [False, True])
def test_gradients_of_gradients_are_pytorchs(over_tokens: bool) -> None:
    both = layers(over_tokens, (2, 4, 8, 16))
    x, plus = (torch.randn(2, 4, 8, requires_grad=True) for _ in range(2))
    inputs = [x, plus, *(parameter for layer in both for parameter in layer.parameters())]

    def penalties(function: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = function(x, *both, over_tokens=over_tokens, plus=plus)
        gradients = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in gradients), inputs)

    for found, right in zip(penalties(mlp), penalties(plain_mlp), strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)
