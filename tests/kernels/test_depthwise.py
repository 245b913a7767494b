"""The fast gradients of the depthwise convolution against PyTorch's own, in float64."""

from __future__ import annotations

import functools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mixer_lightning.kernels import depthwise, extension
from mixer_lightning.kernels.depthwise import DepthwiseConv2d, Padding, depthwise_conv2d

FORMS = ["native", "plain"]

#: channels, height, width, kernel, padding: odd and even kernels, channels that fill no register, images smaller than
#: the kernel, kernels wider than what is done at a time, padding beyond the kernel
SHAPES = [
    (32, 9, 11, (3, 3), "same"),
    (20, 8, 7, (4, 4), "same"),
    (5, 12, 7, (5, 5), "valid"),
    (16, 7, 6, (9, 9), "same"),
    (3, 5, 6, (12, 12), "same"),
    (17, 6, 9, (2, 5), "same"),
    (16, 9, 9, (3, 3), 5),
    (8, 6, 5, (3, 4), (0, 2)),
]


@pytest.fixture(params=FORMS)
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to the gradients of the weights; without a compiler only the plain one."""
    if request.param == "plain":
        monkeypatch.setattr(depthwise, "native_weight_gradients", lambda: None)
    elif depthwise.native_weight_gradients() is None:
        pytest.skip("no C++ compiler")
    return str(request.param)


def draw(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(shape).to(dtype).requires_grad_()


def relative(found: Tensor, true: Tensor) -> float:
    return float((found.detach().double() - true.detach()).abs().max() / true.detach().abs().max())


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
@pytest.mark.parametrize(("channels", "height", "width", "kernel", "padding"), SHAPES)
def test_output_and_gradients_are_those_of_conv2d(
    channels: int,
    height: int,
    width: int,
    kernel: tuple[int, int],
    padding: Padding,
    layout: torch.memory_format,
    dtype: torch.dtype,
) -> None:
    torch.manual_seed(0)
    x = draw(3, channels, height, width, dtype=dtype).detach().to(memory_format=layout).requires_grad_()
    weight, bias = draw(channels, 1, *kernel, dtype=dtype), draw(channels, dtype=dtype)
    y = depthwise_conv2d(x, weight, bias, padding=padding)
    assert type(y.grad_fn).__name__ == "_DepthwiseBackward"
    g = torch.randn_like(y)
    found = [y, *torch.autograd.grad(y, (x, weight, bias), g)]

    x64, weight64, bias64 = (t.detach().double().requires_grad_() for t in (x, weight, bias))
    y64 = F.conv2d(x64, weight64, bias64, padding=padding, groups=channels)
    true = [y64, *torch.autograd.grad(y64, (x64, weight64, bias64), g.double())]

    tolerance = 1e-5 if dtype == torch.float32 else 8e-3  # two units of the last place of bfloat16
    for mine, right in zip(found, true, strict=True):
        assert mine.shape == right.shape
        assert mine.dtype == dtype
        assert relative(mine, right) < tolerance


def test_both_forms_give_the_sums_of_small_integers_exactly() -> None:
    if depthwise.native_weight_gradients() is None:
        pytest.skip("no C++ compiler")
    x, g = (torch.randint(-3, 4, (2, 19, 6, 10)).float() for _ in range(2))
    native = depthwise.weight_gradients(x, g, 5, 5, 2, 2)
    plain = depthwise.plain_weight_gradients(x, g, 5, 5, 2, 2)
    assert torch.equal(native[0], plain[0])
    assert torch.equal(native[1], plain[1])
    assert torch.equal(native[1], g.sum((0, 2, 3)))


def test_the_usual_dtype_of_the_process_does_not_change_a_bit() -> None:
    x, g = torch.randn(2, 8, 6, 6), torch.randn(2, 8, 6, 6)
    expected = depthwise.weight_gradients(x, g, 3, 3, 1, 1)
    torch.set_default_dtype(torch.float64)
    try:
        found = depthwise.weight_gradients(x, g, 3, 3, 1, 1)
    finally:
        torch.set_default_dtype(torch.float32)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_what_is_traced_or_transformed_takes_pytorchs_operations() -> None:
    conv, x = DepthwiseConv2d(8, 3), torch.randn(2, 8, 6, 6)
    traced = torch.jit.trace(conv, x)
    torch.testing.assert_close(traced(x), conv(x))
    parameters = dict(conv.named_parameters())

    def loss(parameters: dict[str, Tensor]) -> Tensor:
        y: Tensor = torch.func.functional_call(conv, parameters, (x,))
        return y.square().sum()

    found = torch.func.grad(loss)(parameters)
    loss(parameters).backward()
    for name, parameter in conv.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad)


def test_a_backward_pass_under_autocast_has_the_forward_passs_precision() -> None:
    conv, x = DepthwiseConv2d(8, 3), draw(2, 8, 6, 6, dtype=torch.float32)
    y = conv(x).square().sum()
    (expected,) = torch.autograd.grad(y, x, retain_graph=True)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(torch.autograd.grad(y, x)[0], expected)


def test_the_number_of_threads_does_not_change_a_bit() -> None:
    x, g = torch.randn(3, 32, 8, 8), torch.randn(3, 32, 8, 8)
    one = depthwise.weight_gradients(x, g, 3, 3, 1, 1)
    torch.set_num_threads(2)
    two = depthwise.weight_gradients(x, g, 3, 3, 1, 1)
    torch.set_num_threads(1)
    assert torch.equal(one[0], two[0])
    assert torch.equal(one[1], two[1])


@pytest.mark.usefixtures("form")
def test_autocast_computes_in_bfloat16_and_keeps_the_parameters_gradients_in_float32() -> None:
    torch.manual_seed(0)
    conv = DepthwiseConv2d(16, 5)
    x = draw(2, 16, 8, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        y = conv(x)
    assert y.dtype == torch.bfloat16
    y.float().square().sum().backward()
    grads = [x.grad, conv.weight.grad, conv.bias.grad]
    true = torch.autograd.grad(
        F.conv2d(x, conv.weight, conv.bias, padding=2, groups=16).square().sum(), (x, conv.weight, conv.bias)
    )
    for mine, right in zip(grads, true, strict=True):
        assert mine is not None
        assert mine.dtype == torch.float32
        assert 0 < relative(mine, right.double()) < 0.03


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format])
def test_a_gradient_has_the_strides_of_its_weight(layout: torch.memory_format) -> None:
    conv = DepthwiseConv2d(8, 3).to(memory_format=layout)
    conv(torch.randn(2, 8, 5, 5)).sum().backward()
    assert conv.weight.grad is not None
    assert conv.weight.grad.stride() == conv.weight.stride()


def test_without_bias_and_with_frozen_parameters() -> None:
    x, weight = draw(2, 8, 6, 6, dtype=torch.float32), torch.randn(8, 1, 3, 3)
    depthwise_conv2d(x, weight, None).sum().backward()
    x2 = x.detach().requires_grad_()
    F.conv2d(x2, weight, padding=1, groups=8).sum().backward()
    torch.testing.assert_close(x.grad, x2.grad)

    weight.requires_grad_()
    depthwise_conv2d(x.detach(), weight, None).sum().backward()
    weight2 = weight.detach().requires_grad_()
    F.conv2d(x.detach(), weight2, padding=1, groups=8).sum().backward()
    torch.testing.assert_close(weight.grad, weight2.grad)


def test_what_is_no_training_on_a_cpu_is_conv2d_itself() -> None:
    conv = DepthwiseConv2d(8, 3)
    x = torch.randn(2, 8, 6, 6)
    with torch.no_grad():
        assert torch.equal(conv(x), F.conv2d(x, conv.weight, conv.bias, padding="same", groups=8))
    assert type(conv.double()(x.double()).grad_fn).__name__ == "ConvolutionBackward0"
    assert conv.to("meta")(x.to("meta")).device.type == "meta"
    with pytest.raises(RuntimeError):  # as nn.Conv2d: no silent change of precision without autocast
        DepthwiseConv2d(8, 3)(x.bfloat16())


def test_the_module_is_conv2d_by_name_and_by_seed() -> None:
    torch.manual_seed(3)
    ours = DepthwiseConv2d(6, 4)
    torch.manual_seed(3)
    torchs = nn.Conv2d(6, 6, 4, groups=6, padding="same")
    assert list(ours.state_dict()) == list(torchs.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), torchs.parameters(), strict=True))


def test_gradients_of_gradients_are_those_of_conv2d() -> None:
    inputs = [draw(*shape, dtype=torch.float32) for shape in ((2, 4, 5, 5), (4, 1, 3, 3), (4,))]

    def penalties(convolve: Callable[..., Tensor]) -> tuple[Tensor, ...]:
        y = convolve(*inputs, padding="same")
        gradients = torch.autograd.grad(y.square().sum(), inputs, create_graph=True)
        return torch.autograd.grad(sum(each.square().sum() for each in gradients), inputs)

    expected = penalties(functools.partial(F.conv2d, groups=4))
    for found, right in zip(penalties(depthwise_conv2d), expected, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_the_operator_keeps_the_promises_that_torch_compile_relies_on() -> None:
    x, g = torch.randn(2, 8, 6, 6), torch.randn(2, 8, 6, 6)
    torch.library.opcheck(
        depthwise.weight_gradients,
        (x, g, 3, 3, 1, 1),
        test_utils=("test_schema", "test_faketensor"),
    )


def test_without_a_library_there_is_no_native_function(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(extension, "load", lambda name: None)
    assert depthwise.native_weight_gradients.__wrapped__() is None
