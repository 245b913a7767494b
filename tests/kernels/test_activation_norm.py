"""An activation and its BatchNorm in one pass, against PyTorch's own operations in float64."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from mixer_lightning.kernels import activation_norm
from mixer_lightning.kernels.activation_norm import Sequential

pytestmark = pytest.mark.skipif(activation_norm.native() is None, reason="no C++ compiler")

#: images, channels, height, width: channels that fill no register, several chunks of positions, a last one of one
SHAPES = [(2, 32, 8, 8), (3, 5, 7, 6), (1, 17, 3, 4), (9, 16, 11, 11), (2, 1030, 3, 3), (1, 16384, 3, 3)]
SIGMAS = {"gelu": nn.GELU, "relu": nn.ReLU}


def pair(sigma: str, channels: int, **options: float | None) -> Sequential:
    norm = nn.BatchNorm2d(channels, **options)  # type: ignore[arg-type]
    with torch.no_grad():
        norm.weight.copy_(torch.randn(channels))
        norm.bias.copy_(torch.randn(channels))
    return Sequential(SIGMAS[sigma](), norm)


def is_fused(y: Tensor) -> bool:
    return type(y.grad_fn).__name__ == "_ActivationNormBackward"


def relative(found: Tensor, true: Tensor) -> float:
    return float((found.detach().double() - true.detach()).abs().max() / true.detach().abs().max())


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_output_gradients_and_statistics_are_pytorchs(
    shape: tuple[int, ...], layout: torch.memory_format, dtype: torch.dtype, sigma: str
) -> None:
    torch.manual_seed(0)
    module = pair(sigma, shape[1])
    true_module = copy.deepcopy(module).double()
    x = (2 * torch.randn(shape)).to(dtype, memory_format=layout).requires_grad_()
    g = torch.randn(shape).to(dtype)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = module(x)
    assert is_fused(y)
    assert y.dtype == dtype
    y.backward(g)

    x64 = x.detach().double().requires_grad_()
    y64 = nn.Sequential.forward(true_module, x64)
    assert not is_fused(y64)
    y64.backward(g.double())

    tolerance = 1e-5 if dtype == torch.float32 else 5e-3  # one unit of the last place of bfloat16
    assert relative(y, y64) < tolerance
    assert x.grad is not None
    assert relative(x.grad, x64.grad) < tolerance
    for (name, mine), right in zip(module.named_parameters(), true_module.parameters(), strict=True):
        assert mine.grad is not None
        assert mine.grad.dtype == torch.float32
        assert relative(mine.grad, right.grad) < 1e-5, name
    for (name, mine), right in zip(module.named_buffers(), true_module.buffers(), strict=True):
        torch.testing.assert_close(mine.double(), right.double(), rtol=1e-5, atol=1e-6, msg=name)


def test_gelu_is_exact_to_the_last_places_of_float32_everywhere() -> None:
    values = torch.cat([torch.linspace(-12, 12, 40_001), torch.logspace(-30, 4, 1000), torch.zeros(1)])
    x = values.view(-1, 1, 1, 1).clone().requires_grad_()
    module = Sequential(nn.GELU(), nn.BatchNorm2d(1, eps=0.0))
    y = module(x)
    assert is_fused(y)
    x64 = x.detach().double().requires_grad_()
    a64 = nn.functional.gelu(x64)
    y64 = (a64 - a64.mean()) / a64.std(correction=0)
    assert float((y - y64).detach().abs().max()) < 3e-7 * float(y64.detach().abs().max())

    # a gradient that neither the mean nor the slope of the normalisation takes anything from
    g = torch.ones(len(values), dtype=torch.float64)
    basis = torch.stack([torch.ones_like(g), (a64.detach() - a64.detach().mean()).flatten()], 1)
    g = torch.sign(torch.sin(torch.arange(len(g), dtype=torch.float64)))
    g = g - basis @ torch.linalg.lstsq(basis, g).solution
    y.backward(g.float().view_as(y))
    y64.backward(g.view_as(y64))
    assert relative(x.grad, x64.grad) < 2e-6


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("sigma", SIGMAS)
def test_what_is_added_is_added_in_the_same_pass(sigma: str, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    module, x, plus, g = pair(sigma, 17), *(torch.randn(3, 17, 5, 5).to(dtype) for _ in range(3))
    alone = copy.deepcopy(module)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = module(x.requires_grad_(), plus=plus.requires_grad_())
        without = alone(x.detach())
    assert is_fused(y)
    tolerance = {"rtol": 0, "atol": 1e-6} if dtype == torch.float32 else {"rtol": 1e-2, "atol": 3e-2}
    torch.testing.assert_close(y, without + plus, **tolerance)
    y.backward(g)
    assert torch.equal(plus.grad, g)


def test_what_another_layer_follows_or_has_another_type_is_added_behind() -> None:
    torch.manual_seed(0)
    module = Sequential(*pair("gelu", 6), nn.Conv2d(6, 6, 1))
    x, plus = torch.randn(2, 6, 4, 4), torch.randn(2, 6, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(module(x, plus=plus), copy.deepcopy(module)(x) + plus)
    torch.testing.assert_close(module[:2](x, plus=plus), copy.deepcopy(module[:2])(x) + plus)


@pytest.mark.parametrize("sigma", SIGMAS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", SHAPES[:4], ids=str)
def test_an_evaluation_is_pytorchs(
    shape: tuple[int, ...], dtype: torch.dtype, sigma: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    module = pair(sigma, shape[1])
    with torch.no_grad():
        module[1].running_mean.normal_()
        module[1].running_var.uniform_(0.1, 3)
    module.eval()
    true_module = copy.deepcopy(module).double()
    x, plus = (torch.randn(shape).to(dtype) for _ in range(2))
    calls = []
    one_pass = activation_norm._evaluated
    monkeypatch.setattr(activation_norm, "_evaluated", lambda *given: (calls.append(1), one_pass(*given))[1])
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y, more = module(x), module(x, plus=plus)
    assert calls == [1, 1]
    assert y.dtype == more.dtype == dtype
    y64 = nn.Sequential.forward(true_module, x.double())
    tolerance = 1e-5 if dtype == torch.float32 else 5e-3
    assert relative(y, y64) < tolerance
    assert relative(more, y64 + plus.double()) < tolerance
    gradient = module(x.float().requires_grad_())  # evaluated and differentiated
    assert calls == [1, 1]
    assert gradient.requires_grad


def test_an_evaluated_model_is_exported_and_traced_as_operations() -> None:
    module = pair("gelu", 6).eval()
    x = torch.randn(2, 6, 4, 4)
    with torch.no_grad():
        traced = torch.jit.trace(module, x)  # type: ignore[no-untyped-call]
        exported = torch.export.export(module, (x,)).module()
        expected = module(-x)
        torch.testing.assert_close(traced(-x), expected)
        torch.testing.assert_close(exported(-x), expected)


@pytest.mark.parametrize("special", [float("nan"), float("inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_what_is_not_finite_stays_visible(special: float, dtype: torch.dtype) -> None:
    x = torch.randn(2, 8, 4, 4).to(dtype)
    x[1, 3, 2, 2] = special
    module = pair("gelu", 8)
    with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
        y = module(x.requires_grad_())
    assert is_fused(y)
    assert not y[:, 3].isfinite().any()
    assert y[:, [0, 1, 2, 4, 5, 6, 7]].isfinite().all()


def test_a_variance_far_smaller_than_the_mean_is_not_lost() -> None:
    torch.manual_seed(0)
    x = (1000 + torch.randn(4, 16, 9, 9)).requires_grad_()
    norm = nn.BatchNorm2d(16, momentum=1.0)
    y = Sequential(nn.ReLU(), norm)(x)
    assert is_fused(y)
    variance = x.detach().double().var(dim=(0, 2, 3))
    torch.testing.assert_close(norm.running_var.double(), variance, rtol=1e-4, atol=0)


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    x, g = torch.randn(5, 40, 9, 9), torch.randn(5, 40, 9, 9)
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        torch.manual_seed(1)
        module, mine = pair("gelu", 40), x.clone().requires_grad_()
        module(mine).backward(g)
        found.append([mine.grad, *(p.grad for p in module.parameters()), *module.buffers()])
    torch.set_num_threads(1)
    assert all(torch.equal(one, two) for one, two in zip(*found, strict=True))


@pytest.mark.parametrize("momentum", [0.1, 0.9, None])
def test_running_statistics_of_several_steps_are_pytorchs(momentum: float | None) -> None:
    torch.manual_seed(0)
    ours = pair("relu", 6, momentum=momentum)
    theirs = copy.deepcopy(ours)
    for _ in range(3):
        x = torch.randn(2, 6, 5, 5).requires_grad_()
        assert is_fused(ours(x))
        nn.Sequential.forward(theirs, x)
    for (name, mine), right in zip(ours.named_buffers(), theirs.buffers(), strict=True):
        torch.testing.assert_close(mine, right, rtol=1e-6, atol=1e-7, msg=name)


def test_frozen_parameters_get_no_gradient() -> None:
    module = pair("gelu", 8)
    module[1].weight.requires_grad_(False)
    y = module(torch.randn(2, 8, 4, 4))
    assert is_fused(y)
    y.square().sum().backward()
    assert module[1].weight.grad is None
    assert module[1].bias.grad is not None


@pytest.mark.parametrize("sigma", SIGMAS)
def test_gradients_of_gradients_are_pytorchs(sigma: str) -> None:
    module = pair(sigma, 8)
    x, plus = (torch.randn(2, 8, 4, 4, requires_grad=True) for _ in range(2))
    inputs = [x, plus, *module.parameters()]

    def penalties(y: Tensor) -> tuple[Tensor, ...]:
        gradients = torch.autograd.grad((y**3).sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in gradients), inputs)

    for found, right in zip(
        penalties(module(x, plus)), penalties(nn.Sequential(*module)(x) + plus), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4 * float(right.abs().max()))


def test_what_is_no_training_on_a_cpu_and_what_is_watched_is_pytorchs_own() -> None:
    x = torch.randn(2, 8, 4, 4).requires_grad_()
    assert is_fused(pair("gelu", 8)(x))
    assert not is_fused(pair("gelu", 8).eval()(x))
    assert not is_fused(pair("gelu", 8).double()(x.double()))
    assert not is_fused(Sequential(nn.GELU(approximate="tanh"), nn.BatchNorm2d(8))(x))
    assert not is_fused(Sequential(nn.GELU(), nn.BatchNorm2d(8, affine=False))(x))
    assert not is_fused(Sequential(nn.GELU(), nn.BatchNorm2d(8, track_running_stats=False))(x))
    assert not is_fused(Sequential(nn.GELU(), nn.Identity(), nn.BatchNorm2d(8))(x))
    assert not is_fused(Sequential(type("LeakyReLU", (nn.ReLU,), {})(), nn.BatchNorm2d(8))(x))
    still = pair("gelu", 8)
    still[1].track_running_stats = False  # as is done to keep statistics as they are
    assert not is_fused(still(x))
    assert still[1].num_batches_tracked == 0
    seen = []
    watched = pair("gelu", 8)
    watched[0].register_forward_hook(lambda *_: seen.append(1))
    assert not is_fused(watched(x))
    assert seen == [1]
    with torch.no_grad():
        pair("gelu", 8)(x)
    with pytest.raises(ValueError, match="more than 1 value per channel"):
        pair("gelu", 8)(torch.randn(1, 8, 1, 1).requires_grad_())
    with pytest.raises(RuntimeError):  # as PyTorch: no silent change of precision without autocast
        Sequential(nn.Conv2d(8, 8, 1), *pair("gelu", 8))(x.bfloat16())


def test_without_a_library_pytorch_does_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(activation_norm, "native", lambda: None)
    assert not is_fused(pair("gelu", 8)(torch.randn(2, 8, 4, 4)))


def test_no_subnormal_gradients_come_from_far_below_0() -> None:
    """GELU's slope at -13 is 1e-36: times a gradient it would be subnormal, which slows down all that follows."""
    torch.manual_seed(0)
    module = pair("gelu", 16)
    x = torch.linspace(-20, -10, 4096).repeat(16, 1).T.reshape(1, 64, 64, 16).permute(0, 3, 1, 2)
    x = x.contiguous(memory_format=torch.channels_last).requires_grad_()
    y = module(x)
    assert is_fused(y)
    (gradient,) = torch.autograd.grad(y, x, 1e-5 * torch.randn(y.shape))
    smallest_normal = torch.finfo(torch.float32).tiny
    assert int(((gradient != 0) & (gradient.abs() < smallest_normal)).sum()) == 0
