from __future__ import annotations

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay, param_groups_weight_decay
from torch import nn

from mixer_lightning.api import create_model
from mixer_lightning.models.baselines import timm_backbone
from mixer_lightning.optim.groups import freeze, layer_numbers, parameter_groups


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


@pytest.mark.parametrize(
    ("name", "overrides"),
    [
        ("resmlp_s12", {"num_blocks": 2}),
        ("nfnet_f4_plus", {"num_blocks": [1, 1, 1, 1], "widths": [24, 32, 32, 32], "group_width": 8}),
        ("nfnet_f4", {}),
    ],
)
def test_scales_of_several_axes_do_not_decay(name, overrides):
    """ResMLP's alpha and beta are vectors in facebookresearch/deit, resmlp_models.py; of NFNets, deepmind-research,
    nfnets/experiment.py, keeps gains and biases apart."""
    with torch.device("meta"):
        model = create_model(name, overrides=overrides, num_classes=7)
    decayed, _ = parameter_groups(model, weight_decay=0.2, decay_bias_and_norm=False)
    assert names(model, decayed) == {key for key, _ in model.named_parameters() if key.endswith(".weight")}


@pytest.mark.parametrize("name", ["deit_tiny_patch16_224", "swin_tiny_patch4_window7_224", "halonet26t"])
def test_what_a_model_keeps_from_decay_does_not(name):
    """timm's own groups, as its train.py makes them: DeiT's tokens and positions, Swin's position biases."""
    with torch.device("meta"):
        size = timm.get_pretrained_cfg(name).input_size[-1]
        model = timm_backbone(timm_name=name, num_classes=7, image_size=size)
        original = timm.create_model(name, num_classes=7)
    given = original.no_weight_decay() if hasattr(original, "no_weight_decay") else ()
    theirs = {
        g["weight_decay"]: names(original, g)
        for g in param_groups_weight_decay(original, weight_decay=0.3, no_weight_decay_list=given)
    }
    ours = parameter_groups(model, weight_decay=0.3, decay_bias_and_norm=False)
    assert {g["weight_decay"]: names(model, g) for g in ours} == theirs
    if name == "deit_tiny_patch16_224":  # facebookresearch/deit, models.py
        assert {"pos_embed", "cls_token"} <= theirs[0.0]
    if name == "swin_tiny_patch4_window7_224":  # microsoft/Swin-Transformer, models/swin_transformer.py
        assert "layers.0.blocks.0.attn.relative_position_bias_table" in theirs[0.0]
    (group,) = parameter_groups(model, weight_decay=0.3, decay_bias_and_norm=True)
    assert len(group["params"]) == len(list(model.parameters()))


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


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        ("mixer_s16", "mixer_s16_224"),
        ("convmixer_768_32", "convmixer_768_32"),
        ("resnet50", "resnet50"),
        ("halonet_h1", "halonet_h1"),
    ],
)
def test_layer_decay_agrees_with_timm(ours, theirs):
    """The rate of every parameter, by name, as timm's param_groups_layer_decay has it for its own model."""
    with torch.device("meta"):
        if ours == "resnet50":
            model = timm_backbone(timm_name=ours, num_classes=10, image_size=224)
        else:
            model = create_model(ours, num_classes=10)
        original = timm.create_model(theirs, num_classes=10)
    expected = {}
    for group in param_groups_layer_decay(original, weight_decay=0.1, layer_decay=0.8):
        expected |= dict.fromkeys(names(original, group), (group["lr_scale"], group["weight_decay"]))
    groups = parameter_groups(model, weight_decay=0.1, decay_bias_and_norm=False, lr=0.5, layer_decay=0.8)
    found = {
        name: (group["lr"] / 0.5, group["weight_decay"]) for group in groups for name in names(model, group)
    }
    assert found.keys() == expected.keys()
    for name, pair in expected.items():
        assert found[name] == pytest.approx(pair), name


def test_layers_of_a_model_in_stages_whose_class_in_timm_does_not_say_them():
    """CAFormer-S18 (arXiv 2210.13452): a stem, 3 + 3 + 9 + 3 blocks and the head; a stage's first block brings its
    downsampling along, as in timm's ConvNeXt."""
    with torch.device("meta"):
        numbers = layer_numbers(create_model("caformer_s18", num_classes=10))
    assert numbers["stem.conv.weight"] == 0
    assert numbers["stages.0.blocks.0.norm1.weight"] == 1
    assert numbers["stages.1.downsample.conv.weight"] == numbers["stages.1.blocks.0.norm1.weight"] == 4
    assert numbers["stages.3.blocks.2.norm1.weight"] == 18
    assert {number for name, number in numbers.items() if name.startswith("head.")} == {19}


@pytest.mark.parametrize(
    "name",
    [
        "alexnet_2012",
        "bit_r50x1",
        "convformer_s18",
        "convnext_t",
        "fastvit_t8",
        "gmlp_s16",
        "halonet_h3",
        "lecun_1989",
        "mixer_digits",
        "mobilenetv3_isometric_p16",
        "poolformerv2_s24",
        "resmlp_s12",
        "starnet_s1",
        "swin_t",
        "wrn_28_2",
    ],
)
def test_a_model_of_every_family_says_its_layers(name):
    """The stem is the lowest, the head the highest, at least one between; none is left out."""
    with torch.device("meta"):
        model = create_model(name, num_classes=10)
    numbers = layer_numbers(model)
    heads = {number for key, number in numbers.items() if key.startswith(f"{model.head_name}.")}
    assert numbers.keys() == {key for key, _ in model.named_parameters()}
    assert len(set(numbers.values())) > 2
    assert heads <= {max(numbers.values())}
    assert numbers[next(iter(dict(model.named_parameters())))] <= 1


def test_layer_decay_of_a_model_of_unknown_layers_is_refused():
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(2, 2), "b": torch.nn.Linear(2, 2)})
    with pytest.raises(ValueError, match=r"ModuleDict does not say .* use optimizer.layer_decay=null"):
        parameter_groups(model, weight_decay=0.1, decay_bias_and_norm=False, layer_decay=0.8)


@pytest.mark.parametrize(("name", "head"), [("convnext_t", "head.fc"), ("alexnet", "classifier.6")])
def test_backbone_is_all_but_the_head_wherever_the_head_stands(name, head):
    """A ConvNeXt has a norm beside its head, AlexNet two hidden layers: in a linear probe they stay."""
    with torch.device("meta"):
        model = create_model(name, num_classes=10)
    frozen = freeze(model, ["backbone"])
    trained = {key for key, parameter in model.named_parameters() if parameter.requires_grad}
    assert trained == {f"{head}.weight", f"{head}.bias"}
    inside = {id(module) for part in frozen for module in part.modules()}
    assert id(model.get_submodule(head)) not in inside
    assert id(model.get_submodule("head.norm" if name == "convnext_t" else "classifier.3")) in inside


def test_a_linear_probe_of_a_model_whose_head_is_fixed_is_refused():
    """The codes of LeNet-5's output are not trained."""
    model = create_model("lenet_5", num_classes=10)
    with pytest.raises(
        ValueError, match=r"head .* has nothing to train, .* name parts \(c1, s2, c3, s4, c5, f6\)"
    ):
        freeze(model, ["backbone"])
    frozen = freeze(create_model("lenet_5", num_classes=10), ["c1", "s2", "c3", "s4", "c5"])
    assert len(frozen) == 5
