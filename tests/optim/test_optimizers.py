from __future__ import annotations

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from mixer_lightning.optim.optimizers import adam, adamw, lamb, sgd
from mixer_lightning.optim.schedules import linear


def layer(weight: list[float], bias: float = 0.0) -> nn.Linear:
    """A linear layer with one output, in float64, so that a formula can be compared to the last digits."""
    module = nn.Linear(len(weight), 1).double()
    with torch.no_grad():
        module.weight.copy_(torch.tensor([weight]))
        module.bias.fill_(bias)
    return module


def set_gradients(module: nn.Linear, weight: list[float], bias: float) -> None:
    module.weight.grad = torch.tensor([weight], dtype=torch.float64)
    module.bias.grad = torch.tensor([bias], dtype=torch.float64)


def test_adamw_with_decay_one_tenth_is_big_visions_adam_with_decay_1e_4_beside_the_rate():
    # big_vision: w <- w - lr * s * adam(g) - wd * s * w with lr 1e-3, wd 1e-4, s the schedule; kernels only.
    torch.manual_seed(0)
    module = layer([0.5, -2.0, 3.0], bias=1.5)
    optimizer = adamw(module, lr=1e-3, weight_decay=0.1)
    w, b = module.weight.detach().clone(), module.bias.detach().clone()
    moments = [(torch.zeros_like(w), torch.zeros_like(w)), (torch.zeros_like(b), torch.zeros_like(b))]

    for step in range(8):
        multiplier = linear(step, 8, 4, warmup_steps=3, end=1e-5)
        gradients = (torch.randn_like(w), torch.randn_like(b))
        module.weight.grad, module.bias.grad = (g.clone() for g in gradients)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * multiplier
        optimizer.step()

        updates = []
        for (m, v), g in zip(moments, gradients, strict=True):
            m.mul_(0.9).add_(0.1 * g)
            v.mul_(0.999).add_(0.001 * g**2)
            updates.append((m / (1 - 0.9 ** (step + 1))) / ((v / (1 - 0.999 ** (step + 1))).sqrt() + 1e-8))
        w = w - 1e-3 * multiplier * updates[0] - 1e-4 * multiplier * w
        b = b - 1e-3 * multiplier * updates[1]
        torch.testing.assert_close(module.weight.detach(), w, rtol=1e-10, atol=1e-13)
        torch.testing.assert_close(module.bias.detach(), b, rtol=1e-10, atol=1e-13)


def test_adamw_shrinks_an_unused_weight_by_rate_times_decay_and_adam_moves_it_by_the_whole_rate():
    decoupled, l2 = layer([2.0]), layer([2.0])
    for module, make in ((decoupled, adamw), (l2, adam)):
        optimizer = make(module, lr=0.01, weight_decay=0.1)
        set_gradients(module, [0.0], 0.0)
        optimizer.step()
    assert decoupled.weight.item() == pytest.approx(2.0 - 0.01 * 0.1 * 2.0, rel=1e-12)
    assert l2.weight.item() == pytest.approx(2.0 - 0.01, rel=1e-6)  # the first Adam step has size lr


def test_decay_reaches_the_bias_only_when_asked():
    for decays, expected in ((False, 1.0), (True, 1.0 - 0.01 * 0.5)):
        module = layer([1.0], bias=1.0)
        optimizer = adamw(module, lr=0.01, weight_decay=0.5, decay_bias_and_norm=decays)
        set_gradients(module, [0.0], 0.0)
        optimizer.step()
        assert module.bias.item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("make", [adam, adamw, lamb])
def test_betas_and_eps_arrive_in_their_places(make):
    optimizer = make(layer([1.0]), lr=0.25, weight_decay=0.5, beta1=0.7, beta2=0.8, eps=1e-3)
    for group in optimizer.param_groups:
        assert (group["lr"], group["betas"], group["eps"]) == (0.25, (0.7, 0.8), 1e-3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.0]


@pytest.mark.parametrize(
    ("nesterov", "after_one", "after_two"),
    # gradients 1 then 2: velocities 1 and 2.9; Nesterov steps by g + .9 v
    [(False, 10 - 0.1 * 1, 10 - 0.1 * (1 + 2.9)), (True, 10 - 0.1 * 1.9, 10 - 0.1 * (1.9 + 2 + 0.9 * 2.9))],
)
def test_sgd_by_hand(nesterov, after_one, after_two):
    module = layer([10.0])
    optimizer = sgd(module, lr=0.1, nesterov=nesterov)
    for gradient, expected in ((1.0, after_one), (2.0, after_two)):
        set_gradients(module, [gradient], 0.0)
        optimizer.step()
        assert module.weight.item() == pytest.approx(expected, rel=1e-12)


def test_sgd_adds_its_decay_to_the_gradient_of_the_weight():
    module = layer([10.0], bias=10.0)
    optimizer = sgd(module, lr=0.1, momentum=0.0, weight_decay=0.5)
    set_gradients(module, [1.0], 1.0)
    optimizer.step()
    assert module.weight.item() == pytest.approx(10 - 0.1 * (1 + 0.5 * 10))
    assert module.bias.item() == pytest.approx(10 - 0.1)


def test_nesterov_without_momentum_names_both_keys():
    with pytest.raises(ValueError, match=r"optimizer\.nesterov.*optimizer\.momentum"):
        sgd(layer([1.0]), lr=0.1, momentum=0.0, nesterov=True)


def test_first_lamb_step_by_hand():
    # Adam's first step is the sign of the gradient; LAMB adds the decay and rescales by |w| / |step|,
    # the undecayed bias keeps Adam's step.
    module = layer([3.0, -4.0], bias=1.0)
    optimizer = lamb(module, lr=0.1, weight_decay=0.5, eps=1e-12, max_grad_norm=None)
    set_gradients(module, [2.0, -7.0], 5.0)
    optimizer.step()
    update = torch.tensor([1 + 0.5 * 3, -1 + 0.5 * -4], dtype=torch.float64)
    expected = torch.tensor([3.0, -4.0], dtype=torch.float64) - 0.1 * 5 / update.norm() * update
    torch.testing.assert_close(module.weight.detach()[0], expected, rtol=1e-8, atol=0)
    assert module.bias.item() == pytest.approx(0.9, rel=1e-8)


def test_lambs_own_clip_sees_the_norm_over_all_parameters():
    # A second gradient of the same direction: with a clip both count alike, without one the large one rules.
    moved = {}
    for clip in (1.0, None):
        module = layer([3.0, 4.0])
        optimizer = lamb(module, lr=0.01, weight_decay=0.1, max_grad_norm=clip)
        for scale in (1000.0, 1.0):
            set_gradients(module, [0.6 * scale, 0.8 * scale], 0.0)
            optimizer.step()
        moved[clip] = optimizer.state[module.weight]["exp_avg"].clone()
    torch.testing.assert_close(moved[1.0][0], torch.tensor([0.6, 0.8], dtype=torch.float64) * 0.19)
    assert moved[None].norm() > 50


@pytest.mark.parametrize("make", [adam, adamw, sgd, lamb])
def test_descends_a_quadratic(make):
    module = layer([1.0, -2.0, 0.5], bias=3.0)
    target = torch.tensor([0.3, 0.7, -0.2], dtype=torch.float64)
    optimizer = make(module, lr=0.02, weight_decay=0.0)

    def loss() -> torch.Tensor:
        return ((module.weight - target) ** 2).sum() + ((module.bias - 1) ** 2).sum()

    start = loss().item()
    for _ in range(300):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss().item() < 0.01 * start


@pytest.mark.parametrize("make", [adam, adamw, sgd])
class TestFused:
    def test_on_the_cpu(self, make):
        assert all(group["fused"] for group in make(layer([1.0]), lr=0.1, weight_decay=0.1).param_groups)

    def test_not_where_torch_lacks_the_kernel(self, make):
        optimizer = make(nn.Linear(2, 2, device="meta"), lr=0.1, weight_decay=0.1)
        assert not any(group["fused"] for group in optimizer.param_groups)

    def test_lightning_may_clip_its_gradients_in_mixed_precision(self, make):
        module = layer([1.0])
        optimizer = make(module, lr=0.1, weight_decay=0.1)
        set_gradients(module, [30.0], 40.0)
        plugin = MixedPrecision("bf16-mixed", "cpu")
        plugin.clip_gradients(optimizer, 1.0)
        assert module.weight.grad.item() == pytest.approx(0.6)
        assert module.bias.grad.item() == pytest.approx(0.8)

    def test_loss_scaling_leaves_the_step_unchanged(self, make):
        plain, scaled = layer([1.0, 2.0]), layer([1.0, 2.0])
        image = torch.tensor([[0.3, -0.7]], dtype=torch.float64)
        optimizer = make(plain, lr=0.1, weight_decay=0.1)
        plain(image).square().sum().backward()
        optimizer.step()

        optimizer = make(scaled, lr=0.1, weight_decay=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
        scaler.scale(scaled(image).square().sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        torch.testing.assert_close(scaled.weight, plain.weight, rtol=1e-10, atol=0)
        torch.testing.assert_close(scaled.bias, plain.bias, rtol=1e-10, atol=0)
