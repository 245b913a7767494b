"""BiT in other sizes than timm's names: equal to timm's where timm has the size, counted by hand where it has not."""

from __future__ import annotations

import pytest
import timm
import torch
import torch.nn.functional as F

from mixer_lightning.models.big_transfer import big_transfer


@torch.no_grad()
def test_equals_timm_where_timm_has_the_size() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("resnetv2_50x1_bit", num_classes=7).eval()
    ours = big_transfer(depth=50, width=1, num_classes=7, image_size=32).eval()
    ours.load_state_dict(theirs.state_dict())
    torch.nn.init.normal_(ours.head.fc.weight)
    theirs.head.fc.weight.copy_(ours.head.fc.weight)
    images = torch.randn(2, 3, 32, 32)
    assert ours(images).std() > 0.1
    assert torch.equal(ours(images), theirs(images))
    features = ours.forward_head(ours.forward_features(images), pre_logits=True)
    assert features.shape == (2, ours.num_features)
    expected = features @ ours.head.fc.weight.flatten(1).T + ours.head.fc.bias
    torch.testing.assert_close(ours(images), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("depth", "width", "name"), [(152, 4, "resnetv2_152x4_bit"), (101, 3, "resnetv2_101x3_bit")]
)
def test_tensors_are_those_of_timm(depth: int, width: int, name: str) -> None:
    with torch.device("meta"):
        ours = big_transfer(depth=depth, width=width, num_classes=1000, image_size=224).state_dict()
        theirs = timm.create_model(name, num_classes=1000).state_dict()
    assert {key: tensor.shape for key, tensor in ours.items()} == {key: t.shape for key, t in theirs.items()}


@pytest.mark.parametrize(("depth", "width"), [(50, 2), (152, 1), (152, 2), (200, 3)])
def test_parameters_follow_the_paper(depth: int, width: int) -> None:
    """Convolutions of 1x1, 3x3 and 1x1 without bias, a scale and a shift of the inputs before each, a projection."""
    units = {50: (3, 4, 6, 3), 152: (3, 8, 36, 3), 200: (3, 24, 36, 3)}[depth]
    assert 3 * sum(units) + 2 == depth
    wide = 64 * width
    count = 3 * 49 * wide
    for stage, repeats in enumerate(units):
        mid = wide * 2**stage
        for unit in range(repeats):
            inputs = (wide if stage == 0 else 2 * mid) if unit == 0 else 4 * mid
            count += inputs * mid + 9 * mid * mid + mid * 4 * mid + 2 * (inputs + mid + mid)
            count += inputs * 4 * mid if unit == 0 else 0
    features = 32 * wide
    count += 2 * features + (features + 1) * 1000
    with torch.device("meta"):
        model = big_transfer(depth=depth, width=width, num_classes=1000, image_size=224)
    assert sum(parameter.numel() for parameter in model.parameters()) == count


def test_every_parameter_gets_a_gradient() -> None:
    torch.manual_seed(0)
    model = big_transfer(
        depth=50, width=1, num_classes=5, image_size=32, stochastic_depth=0.1, head_bias=-1.0
    )
    assert model.head.fc.bias.tolist() == [-1.0] * 5
    torch.nn.init.normal_(model.head.fc.weight)  # zeros would stop the gradient at the head
    F.cross_entropy(model(torch.randn(4, 3, 32, 32)), torch.arange(4)).backward()
    missing = [name for name, parameter in model.named_parameters() if not parameter.grad.any()]
    assert missing == []


def test_other_depths_are_refused() -> None:
    with pytest.raises(ValueError, match="depth 34 is none of BiT's: 50, 101, 152, 200"):
        big_transfer(depth=34, width=1, num_classes=5, image_size=32)
