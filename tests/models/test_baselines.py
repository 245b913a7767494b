"""timm's models as backbones: logits and features are timm's own in every layout; what cannot be is refused."""

from __future__ import annotations

import pytest
import timm
import torch

from mixer_lightning.api import create_model, list_models
from mixer_lightning.models.baselines import timm_backbone, vision_transformer

SWIN = "swin_tiny_patch4_window7_224"
DEIT = "deit_tiny_patch16_224"


@pytest.mark.parametrize(("name", "image_size"), [(SWIN, 64), (DEIT, 32)])
@torch.no_grad()
def test_logits_and_features_are_timms_own(name: str, image_size: int) -> None:
    torch.manual_seed(0)
    theirs = timm.create_model(name, img_size=image_size, num_classes=7, drop_path_rate=0.0).eval()
    torch.manual_seed(0)
    ours = timm_backbone(timm_name=name, num_classes=7, image_size=image_size).eval()
    assert ours.state_dict().keys() == theirs.state_dict().keys()  # and the same random numbers
    images = torch.randn(2, 3, image_size, image_size)
    assert theirs(images).std() > 0.001
    assert torch.equal(ours(images), theirs(images))
    tokens = theirs.forward_features(images)
    # A Swin's features are the mean over both axes of its grid, a DeiT's are its class token.
    features = tokens.mean((1, 2)) if name == SWIN else tokens[:, 0]
    torch.testing.assert_close(ours.forward_head(ours.forward_features(images), pre_logits=True), features)
    theirs.reset_classifier(0)
    torch.testing.assert_close(
        ours.forward_head(ours.forward_features(images), pre_logits=True), theirs(images)
    )


def test_a_pre_logits_layer_counts_as_features() -> None:
    model = timm_backbone(timm_name="mobilenetv3_small_050", num_classes=7, image_size=32).eval()
    with torch.no_grad():
        features = model.forward_head(model.forward_features(torch.randn(2, 3, 32, 32)), pre_logits=True)
    assert features.shape == (2, model.num_features) == (2, 1024)


@pytest.mark.parametrize(
    ("name", "image_size", "channels_last"),
    [("resnet18", 32, True), ("convnext_atto", 32, True), (SWIN, 64, False), (DEIT, 32, False)],
)
def test_convolutional_networks_are_faster_channels_last(
    name: str, image_size: int, channels_last: bool
) -> None:
    with torch.device("meta"):
        model = timm_backbone(timm_name=name, num_classes=7, image_size=image_size)
    assert model.channels_last == channels_last


def test_fastvit_is_trained_in_contiguous_memory() -> None:
    """Its steps in channels_last corrupt the heap on a CPU."""
    with torch.device("meta"):
        models = [create_model(name) for name in list_models("fastvit*")]
        assert timm_backbone(timm_name="fastvit_t8", num_classes=7, image_size=64).channels_last
    assert len(models) == 3
    assert not any(model.channels_last for model in models)


@pytest.mark.parametrize(("name", "image_size"), [("resnet18", 32), (SWIN, 64), (DEIT, 32)])
def test_stochastic_depth_is_timms_drop_path_rate(name: str, image_size: int) -> None:
    for rate in (0.0, 0.3):  # timm's own default is 0.1 for a Swin
        model = timm_backbone(timm_name=name, num_classes=7, image_size=image_size, stochastic_depth=rate)
        rates = [module.drop_prob for module in model.modules() if hasattr(module, "drop_prob")]
        assert max(rates, default=0.0) == pytest.approx(rate)


@torch.no_grad()
def test_dropout_of_a_vision_transformer_is_where_vits_is() -> None:
    """arXiv 2010.11929, App. B.1; google-research/vision_transformer, models_vit.py: not inside the attention."""
    model = vision_transformer(timm_name="test_vit", dropout=0.25, num_classes=7, image_size=160)
    rates = {name: module.p for name, module in model.named_modules() if isinstance(module, torch.nn.Dropout)}
    on = {"pos_drop"} | {
        f"blocks.{i}.{part}"
        for i in range(len(model.blocks))
        for part in ("attn.proj_drop", "mlp.drop1", "mlp.drop2")
    }
    assert {name for name, rate in rates.items() if rate} == on
    assert {rates[name] for name in on} == {0.25}
    same = timm.create_model("test_vit", num_classes=7, img_size=160)
    same.load_state_dict(model.state_dict())
    images = torch.randn(2, 3, 160, 160)
    assert torch.equal(model.eval()(images), same.eval()(images))
    assert not torch.equal(model.train()(images), model(images))


def test_head_bias_is_added_to_the_initial_bias() -> None:
    biases = []
    for head_bias in (0.0, -6.9):
        torch.manual_seed(0)
        model = timm_backbone(timm_name="resnet18", num_classes=7, image_size=32, head_bias=head_bias)
        assert (model.head_bias, model.head_name) == (head_bias, "fc")
        biases.append(model.fc.bias)
    torch.testing.assert_close(biases[1], biases[0] - 6.9)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"timm_name": "resnet500"}, "timm has no model 'resnet500': did you mean 'resnet50"),
        ({"timm_name": "hf-hub:timm/resnet18"}, "timm has no model 'hf-hub:timm/resnet18'"),
        ({"timm_name": "vgg11", "stochastic_depth": 0.1}, "vgg11 has no stochastic depth: use stochastic_depth=0"),
        ({"timm_name": "deit_tiny_distilled_patch16_224"}, r"has several heads \(head, head_dist\)"),
        ({"timm_name": DEIT, "image_size": 40}, "image_size 40 is not a multiple of patch_size 16: 32 and 48"),
        ({"timm_name": "gmlp_s16_224", "image_size": 8}, "image_size 8 is not a multiple of patch_size 16: 16 works"),
        ({"timm_name": "halonet26t", "image_size": 384}, "multiple of 32 x block_size 8, .*: 256 and 512 work"),
        ({"timm_name": "convnext_tiny", "image_size": 28}, "image_size 28 is too small for this model: 32 works"),
    ],
)  # fmt: skip
def test_what_is_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message), torch.device("meta"):
        timm_backbone(**{"num_classes": 7, "image_size": 64, **settings})


@pytest.mark.parametrize(
    ("name", "image_size", "num_features"), [("deit_ti7", 28, 192), ("caformer_s18", 32, 512)]
)
def test_a_model_without_a_head_gives_features(name: str, image_size: int, num_features: int) -> None:
    """Also on patches of another side, and where a head has a hidden layer; widths of arXiv 2012.12877, 2210.13452."""
    with torch.device("meta"):
        model = create_model(name, num_classes=0, image_size=image_size)
        features = model(torch.empty(2, 3, image_size, image_size))
    assert features.shape == (2, model.num_features) == (2, num_features)


def test_a_model_without_stochastic_depth_is_built_without() -> None:
    with torch.device("meta"):
        assert timm_backbone(timm_name="vgg11", num_classes=7, image_size=64).num_features == 4096
