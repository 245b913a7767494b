from __future__ import annotations

import pytest
import torch
from timm.optim import param_groups_weight_decay
from torch import nn

from mixer_lightning.optim.groups import parameter_groups


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 4, 2),
        nn.BatchNorm2d(4),
        nn.Flatten(),
        nn.LayerNorm(4),
        nn.Linear(4, 5),
        nn.Linear(5, 5, bias=False),
    )


def names(model: nn.Module, group: dict) -> set[str]:
    members = {id(parameter) for parameter in group["params"]}
    return {name for name, parameter in model.named_parameters() if id(parameter) in members}


def test_only_kernels_decay(model):
    decayed, undecayed = parameter_groups(model, weight_decay=0.3, decay_bias_and_norm=False)
    assert decayed["weight_decay"] == 0.3
    assert undecayed["weight_decay"] == 0.0
    assert names(model, decayed) == {"0.weight", "4.weight", "5.weight"}
    assert names(model, undecayed) == {"0.bias", "1.weight", "1.bias", "3.weight", "3.bias", "4.bias"}


def test_agrees_with_timm(model):
    theirs = {g["weight_decay"]: names(model, g) for g in param_groups_weight_decay(model, weight_decay=0.3)}
    ours = parameter_groups(model, weight_decay=0.3, decay_bias_and_norm=False)
    assert {g["weight_decay"]: names(model, g) for g in ours} == theirs


def test_everything_decays_when_asked(model):
    (group,) = parameter_groups(model, weight_decay=0.3, decay_bias_and_norm=True)
    assert group["weight_decay"] == 0.3
    assert names(model, group) == {name for name, _ in model.named_parameters()}


def test_a_shared_parameter_is_listed_once(model):
    model[5].weight = model[4].weight = nn.Parameter(torch.zeros(5, 5))
    decayed, _ = parameter_groups(model, weight_decay=0.1, decay_bias_and_norm=False)
    assert len(decayed["params"]) == 2


def test_frozen_parameters_are_left_out_and_a_group_without_members_too(model):
    model.requires_grad_(False)
    model[3].requires_grad_(True)
    (group,) = parameter_groups(model, weight_decay=0.3, decay_bias_and_norm=False)
    assert names(model, group) == {"3.weight", "3.bias"}
    assert group["weight_decay"] == 0.0


def test_a_wholly_frozen_model_is_refused(model):
    with pytest.raises(ValueError, match="requires_grad"):
        parameter_groups(model.requires_grad_(False), weight_decay=0.1, decay_bias_and_norm=False)
