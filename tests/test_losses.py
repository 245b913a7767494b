from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from timm.data.mixup import mixup_target
from timm.loss import BinaryCrossEntropy, SoftTargetCrossEntropy

from mixer_lightning.losses import binary_cross_entropy, sigmoid_cross_entropy, softmax_cross_entropy

LABELS = torch.tensor([2, 0, 1, 4])
LOSSES = [softmax_cross_entropy, sigmoid_cross_entropy, binary_cross_entropy]


@pytest.fixture
def logits() -> torch.Tensor:
    return torch.randn(4, 5, generator=torch.Generator().manual_seed(0)) * 3


def one_hot(labels: torch.Tensor, num_classes: int = 5) -> torch.Tensor:
    return F.one_hot(labels, num_classes).float()


def test_softmax_by_hand():
    # softmax of (log 1, log 3) is (1/4, 3/4)
    logits = torch.tensor([[0.0, math.log(3)], [math.log(3), 0.0]])
    targets = torch.tensor([[0.0, 1.0], [0.5, 0.5]])
    expected = (-math.log(3 / 4) + -0.5 * (math.log(3 / 4) + math.log(1 / 4))) / 2
    assert softmax_cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.5])
def test_softmax_is_torchs_cross_entropy(logits, smoothing):
    ours = softmax_cross_entropy(logits, one_hot(LABELS), label_smoothing=smoothing)
    torch.testing.assert_close(ours, F.cross_entropy(logits, LABELS, label_smoothing=smoothing))


def test_smoothing_after_mixup_is_timms_smoothing_inside_it(logits):
    share = 0.3
    mixed = share * one_hot(LABELS) + (1 - share) * one_hot(LABELS.flip(0))
    theirs = SoftTargetCrossEntropy()(logits, mixup_target(LABELS, 5, lam=share, smoothing=0.1))
    torch.testing.assert_close(softmax_cross_entropy(logits, mixed, label_smoothing=0.1), theirs)

    theirs = BinaryCrossEntropy()(logits, mixup_target(LABELS, 5, lam=share, smoothing=0.1))
    torch.testing.assert_close(binary_cross_entropy(logits, mixed, label_smoothing=0.1), theirs)


def test_sigmoid_sums_over_classes_and_averages_over_the_batch():
    # sigmoid(log 3) = 3/4, sigmoid(0) = 1/2
    logits = torch.tensor([[math.log(3), 0.0, 0.0], [0.0, 0.0, 0.0]])
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.0, 1.0, 0.0]])
    expected = ((-math.log(3 / 4) + 2 * math.log(2)) + 3 * math.log(2)) / 2
    assert sigmoid_cross_entropy(logits, targets).item() == pytest.approx(expected, rel=1e-6)


def test_sigmoid_is_big_visions_formula(logits):
    targets = torch.rand(4, 5, generator=torch.Generator().manual_seed(1))
    log_p, log_not_p = torch.log(torch.sigmoid(logits)), torch.log(1 - torch.sigmoid(logits))
    expected = -(targets * log_p + (1 - targets) * log_not_p).sum(-1).mean()
    torch.testing.assert_close(sigmoid_cross_entropy(logits, targets), expected, rtol=1e-5, atol=1e-6)


def test_head_bias_of_the_mixer_recipe_starts_the_loss_near_one_class_worth_of_surprise():
    # every class at probability 1/1000: -log(1/1000) for the true one and about 1 for the 999 others
    targets = one_hot(torch.tensor([7]), 1000)
    at_bias = sigmoid_cross_entropy(torch.full((1, 1000), -6.9), targets)
    assert at_bias.item() == pytest.approx(6.9 + 1, abs=0.02)
    assert sigmoid_cross_entropy(torch.zeros(1, 1000), targets).item() == pytest.approx(693.1, abs=0.1)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_binary_is_timms_mean_over_classes(logits, smoothing):
    ours = binary_cross_entropy(logits, one_hot(LABELS), label_smoothing=smoothing)
    torch.testing.assert_close(ours, BinaryCrossEntropy(smoothing=smoothing)(logits, LABELS))


def test_binary_without_smoothing_is_sigmoid_divided_by_the_number_of_classes(logits):
    targets = one_hot(LABELS)
    torch.testing.assert_close(
        binary_cross_entropy(logits, targets) * 5, sigmoid_cross_entropy(logits, targets)
    )


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_logits_are_computed_in_float32(loss, dtype, logits):
    half = logits.to(dtype)
    value = loss(half, one_hot(LABELS).to(dtype))
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, loss(half.float(), one_hot(LABELS)), rtol=0, atol=0)


@pytest.mark.parametrize("loss", LOSSES)
def test_huge_logits_stay_finite_in_value_and_gradient(loss):
    logits = torch.tensor([[60000.0, -60000.0, 0.0]], dtype=torch.float16, requires_grad=True)
    value = loss(logits, torch.tensor([[0.0, 1.0, 0.0]]))
    value.backward()
    assert value.isfinite()
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("loss", [softmax_cross_entropy, binary_cross_entropy])
@pytest.mark.parametrize("smoothing", [-0.1, 1.0])
def test_smoothing_outside_its_range_names_the_key(loss, smoothing, logits):
    with pytest.raises(ValueError, match=r"loss\.label_smoothing"):
        loss(logits, one_hot(LABELS), label_smoothing=smoothing)


def test_class_weights_are_those_of_torch():
    torch.manual_seed(0)
    logits, weights = torch.randn(6, 4), [0.5, 2.0, 0.0, 1.5]
    targets = torch.rand(6, 4).softmax(dim=1)
    for smoothing in (0.0, 0.1):
        ours = softmax_cross_entropy(logits, targets, label_smoothing=smoothing, class_weights=weights)
        theirs = F.cross_entropy(logits, targets, weight=torch.tensor(weights), label_smoothing=smoothing)
        torch.testing.assert_close(ours, theirs)
    for wrong in ([1.0, 2.0], [1.0, 1.0, -1.0, 1.0]):
        with pytest.raises(ValueError, match=r"loss\.class_weights must be balanced, or 4 numbers"):
            softmax_cross_entropy(logits, targets, class_weights=wrong)


def test_balanced_class_weights_are_those_of_scikit_learn():
    from sklearn.utils.class_weight import compute_class_weight

    labels = np.repeat([0, 1, 3], [50, 3, 11])
    weights = compute_class_weight("balanced", classes=np.array([0, 1, 3]), y=labels)
    logits = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0))
    targets = F.one_hot(torch.from_numpy(labels), 4).float()
    ours = softmax_cross_entropy(
        logits, targets, class_weights="balanced", class_counts=torch.tensor([50, 3, 0, 11])
    )
    each = F.cross_entropy(logits, torch.from_numpy(labels), reduction="none")
    own = torch.from_numpy(weights)[np.searchsorted([0, 1, 3], labels)]
    torch.testing.assert_close(ours, (own * each).mean().float())
    with pytest.raises(ValueError, match="needs a number of training images for each class"):
        softmax_cross_entropy(logits, targets, class_weights="balanced")
