"""Any classifier of timm as a backbone: the models that papers compare with.

A file of conf/model names one: `_target_: mixer_lightning.models.baselines.timm_backbone`, `timm_name: resnet50`.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from mixer_lightning.models.patches import check_blocks_fill, grid_size, refuse_stochastic_depth
from mixer_lightning.ranges import BelowOne, NonNegativeInt, PositiveInt, check_ranges
from mixer_lightning.screen import did_you_mean

STRIDE = 32  # of the last feature map, of all models here that have several


@check_ranges
def timm_backbone(
    *,
    timm_name: str,
    num_classes: NonNegativeInt,
    image_size: PositiveInt,
    stochastic_depth: BelowOne = 0.0,
    head_bias: float = 0.0,
) -> nn.Module:
    """timm's own module with new weights and with all that protocol.Backbone asks for.

    Args:
        timm_name: one of `timm.list_models()`, such as deit_small_patch16_224 or resnet50.
        num_classes: outputs of the head.
        image_size: side in pixels; a convolutional network takes any, a transformer is built for this one.
        stochastic_depth: timm's drop_path_rate.
        head_bias: added to the initial bias of the head.

    Raises:
        ValueError: timm has no such model, it has more than one head, it cannot be built for `image_size`, or it has
            no stochastic depth or bias where one is asked for.
    """
    return _backbone(timm_name, num_classes, image_size, stochastic_depth, head_bias)


@check_ranges
def timm_transformer(
    *,
    timm_name: str,
    patch_size: PositiveInt,
    num_classes: NonNegativeInt,
    image_size: PositiveInt,
    stochastic_depth: BelowOne = 0.0,
    head_bias: float = 0.0,
) -> nn.Module:
    """A transformer of timm on patches of another side, in pixels, than its name says; the rest as in `timm_backbone`.

    Raises:
        ValueError: as there, and for a model that cuts its images into no such patches.
    """
    return _backbone(timm_name, num_classes, image_size, stochastic_depth, head_bias, patch_size=patch_size)


@check_ranges
def vision_transformer(
    *,
    timm_name: str,
    dropout: BelowOne,
    num_classes: NonNegativeInt,
    image_size: PositiveInt,
    stochastic_depth: BelowOne = 0.0,
    head_bias: float = 0.0,
) -> nn.Module:
    """A ViT of timm with dropout, as ViT is trained from scratch on ImageNet; the rest as in `timm_backbone`.

    `dropout` follows every dense layer but those to queries, keys and values, and the sum of patches and position
    embeddings (arXiv 2010.11929, App. B.1). It adds no parameter.
    """
    rates = {"pos_drop_rate": dropout, "proj_drop_rate": dropout}
    return _backbone(timm_name, num_classes, image_size, stochastic_depth, head_bias, **rates)


def _backbone(
    timm_name: str,
    num_classes: int,
    image_size: int,
    stochastic_depth: float,
    head_bias: float,
    **options: Any,
) -> nn.Module:
    import timm  # late: it brings wandb along where that is installed

    if not timm.is_model(timm_name):
        raise ValueError(f"timm has no model '{timm_name}'{did_you_mean(timm_name, timm.list_models())}")
    model = _create(timm_name, num_classes, image_size, stochastic_depth, options)
    head_name = model.pretrained_cfg["classifier"]
    if not isinstance(head_name, str):
        raise ValueError(f"{timm_name} has several heads ({', '.join(head_name)}), a backbone has one")
    there = dict(model.named_modules())
    while (
        num_classes == 0 and head_name not in there
    ):  # the last layer of a head that is not there: CAFormer's
        head_name = head_name.rpartition(".")[0]
    if head_bias and getattr(model.get_submodule(head_name), "bias", None) is None:
        raise ValueError(f"the head of {timm_name} has no bias: use head_bias=0, not {head_bias}")
    model.timm_arguments = {"model_name": timm_name, "num_classes": num_classes, **options}
    if timm.get_pretrained_cfg(timm_name).fixed_input_size:
        model.timm_arguments["img_size"] = image_size
    return as_backbone(model, head_name=head_name, image_size=image_size, head_bias=head_bias)


def as_backbone(model: Any, *, head_name: str, image_size: int, head_bias: float) -> nn.Module:
    """A module of one of timm's classes, to which what else protocol.Backbone asks for is added."""
    bias = getattr(model.get_submodule(head_name), "bias", None)
    if bias is not None:
        with torch.no_grad():
            bias.add_(head_bias)
    model.num_features = model.head_hidden_size  # of what forward_head(pre_logits=True) returns
    model.image_size, model.head_name, model.head_bias = image_size, head_name, head_bias
    model.channels_last = convolves(model)
    gains = [name for name, _ in model.named_parameters() if name.endswith(".gain")]
    if gains:  # of NFNets: deepmind-research, nfnets/experiment.py, lets no gain decay
        model.no_weight_decay = partial(set, gains)
    assert isinstance(model, nn.Module)
    return model


def _create(
    timm_name: str, num_classes: int, image_size: int, stochastic_depth: float, options: Mapping[str, Any]
) -> Any:
    import timm

    create = partial(timm.create_model, timm_name, num_classes=num_classes, **options)
    if timm.get_pretrained_cfg(timm_name).fixed_input_size:
        _refuse_size(partial(create, img_size=image_size), create, image_size)
        create = partial(create, img_size=image_size)
    else:
        _refuse_size(create, create, image_size)
    try:  # stated even if it is 0, because timm's own default is not 0 everywhere
        model = create(drop_path_rate=stochastic_depth)
    except TypeError as error:
        if "patch_size" in str(error):
            raise ValueError(f"{timm_name} takes no other patch_size") from None
        if "drop_path_rate" not in str(error):
            raise
        model = create()
    if stochastic_depth and not any(getattr(module, "drop_prob", 0) for module in model.modules()):
        refuse_stochastic_depth(timm_name, stochastic_depth)
    return model


def _refuse_size(create: Callable[[], Any], usual: Callable[[], Any], image_size: int) -> None:
    """See that a model of timm takes images of a size; `usual` makes it for the size in its name.

    Raises:
        ValueError: it does not; the message names the sizes that work.
    """
    from timm.layers import PatchEmbed
    from timm.layers.halo_attn import HaloAttn

    with torch.device("meta"):
        modules = list(usual().modules())
    for patches in (module for module in modules if isinstance(module, PatchEmbed)):
        grid_size(image_size=image_size, patch_size=patches.patch_size[0])
    for attention in (module for module in modules if isinstance(module, HaloAttn)):
        check_blocks_fill(image_size=image_size, block_size=attention.block_size)
    if image_size < STRIDE:
        try:
            with torch.device("meta"), torch.no_grad():
                create().eval()(torch.empty(1, 3, image_size, image_size))
        except RuntimeError:  # a kernel of more pixels than are left
            raise ValueError(f"image_size {image_size} is too small for this model: {STRIDE} works") from None


def fitted(model: nn.Module, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state dict for one of timm's models, under timm's names and at the model's sizes, as timm itself does it.

    Names of the authors' releases become timm's; a position table of another grid, and the relative positions of
    another window, are interpolated. Tensors that are not such a model's, and those of other models, stay as they are.
    """
    convert = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    if convert is None or not hasattr(model, "pretrained_cfg"):
        return dict(tensors)
    try:
        with warnings.catch_warnings(
            action="ignore", category=UserWarning
        ):  # torch's, of how timm interpolates
            found: dict[str, Tensor] = convert(dict(tensors), model)
    except Exception:  # of another model: what fits and what does not is said by whoever loads them
        return dict(tensors)
    return found


def convolves(model: nn.Module) -> bool:
    """Whether some convolution sees overlapping windows: it is more than a cut into patches."""
    convolutions = [module for module in model.modules() if isinstance(module, nn.Conv2d)]
    return any(conv.kernel_size != conv.stride for conv in convolutions)
