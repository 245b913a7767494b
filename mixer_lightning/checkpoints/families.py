"""What each family of models calls its tensors and expects of its images: one entry of FAMILIES each.

Importing this module does not import torch: what needs it stands in functions.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple

from mixer_lightning.models.presets import list_models, model_node

if TYPE_CHECKING:
    from torch import nn

#: What a checkpoint may say of its images: the parameters of data/transforms.py's Augment that evaluation reads.
PREPROCESSING = (
    "mean",
    "std",
    "eval_crop",
    "eval_resize",
    "eval_interpolation",
    "eval_rounding",
    "exif_orientation",
    "shuffle",
    "shuffle_patch",
    "shuffle_seed",
)
#: Those that are off unless they are stated: no published weights were trained with them.
UNUSUAL = ("exif_orientation", "shuffle", "shuffle_patch", "shuffle_seed")
#: What stands before a name of timm where weights are named: timm:mixer_b16_224.goog_in21k.
TIMM_SCHEME = "timm:"

Shapes = Mapping[str, Sequence[int]]


class Recognised(NamedTuple):
    """What the shapes of its tensors tell of a model."""

    sizes: dict[str, int]  # parameters of its class
    image_size: int | None  # None: the weights fit any size
    num_classes: int  # 0: no head


class TimmCall(NamedTuple):
    """timm's function or class, dotted, and its arguments."""

    function: str
    arguments: dict[str, Any]


class Layout(NamedTuple):
    """The state dict of another program: what to call it, how it is recognised, and timm's name of each tensor.

    `leading_axes` are the ends of timm's names of vectors that have two axes of length 1 more there.
    """

    kind: str
    first_tensor: str
    recognise: Callable[[Collection[str]], bool]
    rename: Callable[[Iterable[str]], dict[str, str]]
    leading_axes: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True, eq=False)
class Family:
    """How the models of one class of models/ look in files, in timm, and what images their published weights take."""

    #: The class, which files of conf/model name as `_target_`.
    name: str
    #: Recognises the family by names and shapes of tensors; None, KeyError, ValueError or IndexError if it is another.
    recognise: Callable[[Shapes], Recognised | None]
    #: The name of a tensor that every model of the family has, and none of another.
    first_tensor: str
    #: A model of these parameters, num_classes and image_size.
    build: Callable[[Mapping[str, Any], int, int], nn.Module]
    #: Whether there is an activation to choose, of which tensors tell nothing.
    has_activation: bool = False
    #: The one of `sizes` that grows with the square of the parts of a larger image (models/resolution.py).
    widened_size: str | None = None
    #: Whether the official code is Flax, whose layout checkpoints/flax.py knows.
    has_flax_layout: bool = False
    other_layouts: tuple[Layout, ...] = ()
    #: How published files call a model of conf/model, as (pattern, replacement) on the lower-case name.
    file_names: tuple[tuple[str, str], ...] = ()

    #: What timm's names of these models begin with.
    timm_prefix: str
    #: Files of conf/model -> the name of the same model in timm.
    timm_names: Mapping[str, str]
    #: The image size of timm's named models; None: any.
    timm_image_size: int | None = None
    #: Arguments with which timm's model computes what our class computes.
    timm_options: Callable[[], dict[str, Any]] = dict
    #: timm's class for any sizes, image_size and activation.
    timm_class: Callable[[Mapping[str, int], int, str | None], TimmCall]

    #: What images the published weights take, as parameters of Augment (see PREPROCESSING).
    preprocessing: Mapping[str, Any]
    #: The same where a part of the weights' name says that they take others.
    preprocessing_of_weights: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)


# ------------------------------------------------------------------------------------------------- Mixer


def _recognise_mixer(shapes: Shapes) -> Recognised | None:
    if "stem.proj.weight" not in shapes:
        return None
    dim, _, _, patch = shapes["stem.proj.weight"]
    tokens_dim, num_tokens = shapes["blocks.0.mlp_tokens.fc1.weight"]
    if tuple(shapes["blocks.0.mlp_tokens.fc2.weight"]) != (num_tokens, tokens_dim):
        return None  # a gated MLP's
    side = math.isqrt(num_tokens)
    sizes = {
        "patch_size": patch,
        "num_blocks": _num_blocks(shapes),
        "hidden_dim": dim,
        "tokens_mlp_dim": tokens_dim,
        "channels_mlp_dim": shapes["blocks.0.mlp_channels.fc1.weight"][0],
    }
    return Recognised(sizes, side * patch if side**2 == num_tokens else None, _num_classes(shapes))


def _build_mixer(parameters: Mapping[str, Any], num_classes: int, image_size: int) -> nn.Module:
    from mixer_lightning.models.mixer import Mixer

    return Mixer(**parameters, num_classes=num_classes, image_size=image_size)


def _tanh_gelu() -> dict[str, Any]:
    """The form of GELU that Google's weights were trained with; timm uses the exact one, with logits 1e-4 away."""
    from torch import nn

    return {"act_layer": partial(nn.GELU, approximate="tanh")}


def _timm_mixer(sizes: Mapping[str, int], image_size: int, activation: str | None) -> TimmCall:
    hidden_dim = sizes["hidden_dim"]
    wanted = [sizes[key] for key in ("tokens_mlp_dim", "channels_mlp_dim")]
    # timm rounds the product with a ratio down; where that misses, a half more than the number wanted hits it.
    ratios = [
        n / hidden_dim if int(n / hidden_dim * hidden_dim) == n else (n + 0.5) / hidden_dim for n in wanted
    ]
    arguments = {
        "img_size": image_size,
        "patch_size": sizes["patch_size"],
        "num_blocks": sizes["num_blocks"],
        "embed_dim": hidden_dim,
        "mlp_ratio": tuple(ratios),
    }
    return TimmCall("timm.models.mlp_mixer.MlpMixer", arguments)


# --------------------------------------------------------------------------------------------- ConvMixer


def _recognise_convmixer(shapes: Shapes) -> Recognised | None:
    # BatchNorm, and no residual around the pointwise convolution: else it is models/convmixer_ablation.py
    if not {"stem.0.weight", "stem.2.running_mean", "blocks.0.1.weight"} <= shapes.keys():
        return None
    dim, _, _, patch = shapes["stem.0.weight"]
    kernel = shapes["blocks.0.0.fn.0.weight"][-1]
    sizes = {"dim": dim, "depth": _num_blocks(shapes), "patch_size": patch, "kernel_size": kernel}
    return Recognised(sizes, None, _num_classes(shapes))


def _build_convmixer(parameters: Mapping[str, Any], num_classes: int, image_size: int) -> nn.Module:
    from mixer_lightning.models.convmixer import ConvMixer

    return ConvMixer(**parameters, num_classes=num_classes, image_size=image_size)


def _timm_convmixer(sizes: Mapping[str, int], image_size: int, activation: str | None) -> TimmCall:
    from torch import nn

    act_layer = {"gelu": nn.GELU, "relu": nn.ReLU}[str(activation)]
    return TimmCall("timm.models.convmixer.ConvMixer", {**sizes, "act_layer": act_layer})


def _is_sequential(names: Collection[str]) -> bool:
    return "0.weight" in names and any(name.startswith("3.0.fn.") for name in names)


def _rename_sequential(names: Iterable[str]) -> dict[str, str]:
    """locuslab/convmixer counts its layers: stem 0 to 2, blocks 3 to 2+d, pooling, flattening, head 5+d."""
    names = list(names)
    last = max(int(name.split(".")[0]) for name in names if name.split(".")[0].isdigit())
    renamed = {}
    for name in names:
        index, _, rest = name.partition(".")
        if not index.isdigit():
            renamed[name] = name
        elif int(index) <= 2:
            renamed[name] = f"stem.{name}"
        elif int(index) == last:
            renamed[name] = f"head.{rest}"
        else:
            renamed[name] = f"blocks.{int(index) - 3}.{rest}"
    return renamed


# ------------------------------------------------------------------------------------------------ ResMLP


def _recognise_resmlp(shapes: Shapes) -> Recognised | None:
    if "blocks.0.linear_tokens.weight" not in shapes:
        return None
    dim, _, _, patch = shapes["stem.proj.weight"]
    side = math.isqrt(shapes["blocks.0.linear_tokens.weight"][0])
    sizes = {"patch_size": patch, "num_blocks": _num_blocks(shapes), "hidden_dim": dim}
    return Recognised(sizes, side * patch, _num_classes(shapes))


def _is_release_of_resmlp(names: Collection[str]) -> bool:
    return {"patch_embed.proj.weight", "blocks.0.gamma_1", "blocks.0.norm1.alpha"} <= set(names)


def _rename_release_of_resmlp(names: Iterable[str]) -> dict[str, str]:
    """facebookresearch/deit, resmlp_models.py."""
    parts = {
        "patch_embed": "stem",
        "attn": "linear_tokens",
        "mlp": "mlp_channels",
        "gamma_1": "ls1",
        "gamma_2": "ls2",
    }
    return {name: ".".join(parts.get(part, part) for part in name.split(".")) for name in names}


def _build_resmlp(parameters: Mapping[str, Any], num_classes: int, image_size: int) -> nn.Module:
    from mixer_lightning.models.resmlp import ResMLP

    # What the scales start from is nothing that tensors tell, and they are about to be loaded.
    return ResMLP(**parameters, layer_scale=0.1, num_classes=num_classes, image_size=image_size)


def _timm_resmlp(sizes: Mapping[str, int], image_size: int, activation: str | None) -> TimmCall:
    from timm.models.mlp_mixer import Affine, ResBlock

    arguments = {
        "img_size": image_size,
        "patch_size": sizes["patch_size"],
        "num_blocks": sizes["num_blocks"],
        "embed_dim": sizes["hidden_dim"],
        "mlp_ratio": 4,
        "block_layer": ResBlock,
        "norm_layer": Affine,
    }
    return TimmCall("timm.models.mlp_mixer.MlpMixer", arguments)


# ------------------------------------------------------------------------------------------------- table


def _num_blocks(shapes: Shapes) -> int:
    return len({name.split(".")[1] for name in shapes if name.startswith("blocks.")})


def _num_classes(shapes: Shapes) -> int:
    return shapes["head.weight"][0] if "head.weight" in shapes else 0


FAMILIES = (
    Family(
        name="Mixer",
        recognise=_recognise_mixer,
        first_tensor="stem.proj.weight",
        build=_build_mixer,
        widened_size="tokens_mlp_dim",
        has_flax_layout=True,
        file_names=((r"^mixer-([sblh])_(\d+)", r"mixer_\1\2"),),  # Mixer-B_16.npz
        timm_prefix="mixer_",
        timm_names={
            f"mixer_{size}": f"mixer_{size}_224" for size in ("s32", "s16", "b32", "b16", "l32", "l16")
        },
        timm_image_size=224,
        timm_options=_tanh_gelu,
        timm_class=_timm_mixer,
        # Google's; 224 px: short side to 256, centre 224 (arXiv 2105.01601, App. C, (ii)), by big_vision's resize_small
        # and central_crop (configs/mlp_mixer_i1k.py)
        preprocessing={
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "eval_crop": 0.875,
            "eval_resize": "short_side",
            "eval_interpolation": "area",
            "eval_rounding": "big_vision",
        },
        preprocessing_of_weights={
            "miil": {  # Alibaba's
                "mean": [0.0, 0.0, 0.0],
                "std": [1.0, 1.0, 1.0],
                "eval_interpolation": "bilinear",
                "eval_rounding": "torchvision",
            }
        },
    ),
    Family(
        name="ConvMixer",
        recognise=_recognise_convmixer,
        first_tensor="stem.0.weight",
        build=_build_convmixer,
        has_activation=True,
        other_layouts=(Layout("locuslab's ConvMixer", "0.weight", _is_sequential, _rename_sequential),),
        timm_prefix="convmixer_",
        timm_names={
            "convmixer_1536_20": "convmixer_1536_20",
            "convmixer_768_32": "convmixer_768_32",
            "convmixer_1024_20": "convmixer_1024_20_ks9_p14",
        },
        timm_class=_timm_convmixer,
        preprocessing={  # locuslab's, on ImageNet: crop_pct .96, bicubic
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "eval_crop": 0.96,
            "eval_resize": "short_side",
            "eval_interpolation": "bicubic",
            "eval_rounding": "torchvision",
        },
    ),
    Family(
        name="ResMLP",
        recognise=_recognise_resmlp,
        first_tensor="blocks.0.linear_tokens.weight",
        build=_build_resmlp,
        other_layouts=(
            Layout(
                "facebookresearch's ResMLP",
                "blocks.0.gamma_1",
                _is_release_of_resmlp,
                _rename_release_of_resmlp,
                leading_axes=(".alpha", ".beta"),
            ),
        ),
        timm_prefix="resmlp_",
        timm_names={
            "resmlp_s12": "resmlp_12_224",
            "resmlp_s24": "resmlp_24_224",
            "resmlp_b24_8": "resmlp_big_24_224",
        },
        timm_image_size=224,
        timm_class=_timm_resmlp,
        # facebookresearch/deit, README_resmlp.md; timm's own configuration of the same weights has a crop of .875
        preprocessing={
            "mean": [0.485, 0.456, 0.406],
            "std": [0.229, 0.224, 0.225],
            "eval_crop": 0.9,
            "eval_resize": "short_side",
            "eval_interpolation": "bicubic",
            "eval_rounding": "torchvision",
        },
    ),
)


def family_of_model(model: str) -> Family | None:
    """The family of a file of conf/model; None for an unknown name or one without an entry in FAMILIES."""
    return family_of_target(model_node(model)["_target_"]) if model in list_models() else None


def family_of_target(target: str) -> Family | None:
    """The family of a dotted `_target_`; None for a class without an entry in FAMILIES."""
    class_name = target.rpartition(".")[2]
    return next((family for family in FAMILIES if family.name == class_name), None)


def family_of_timm(name: str) -> Family | None:
    """The family of one of timm's names, such as mixer_b16_224.goog_in21k; None for one without an entry."""
    return next((family for family in FAMILIES if name.startswith(family.timm_prefix)), None)


def preprocessing_of(model: str, weights: str = "") -> dict[str, Any]:
    """What images the published weights of a model take, as parameters of Augment; empty where nobody knows.

    `model` is a file of conf/model; `weights` is the name of the weights, timm's or a file's.
    """
    family = family_of_model(model)
    return {} if family is None else {**family.preprocessing, **preprocessing_of_name(family, weights)}


def preprocessing_of_name(family: Family, weights: str) -> dict[str, Any]:
    """What the name of some weights, timm's or a file's, says of their images that is not usual for the family."""
    name = weights.rpartition("/")[2]
    others = (each for part, each in family.preprocessing_of_weights.items() if part in name)
    return dict(next(others, {}))


def timm_models() -> dict[str, str]:
    """timm's names of the files of conf/model that are timm's own models -> those files."""
    nodes = {name: model_node(name) for name in list_models()}
    return {
        node["timm_name"]: name for name, node in nodes.items() if node.keys() == {"_target_", "timm_name"}
    }


def model_named(weights: str, models: Collection[str]) -> str | None:
    """Which of `models` a name of timm (timm:mixer_b16_224.goog_in21k) or a published file (Mixer-B_16.npz) means."""
    name = weights.removeprefix(TIMM_SCHEME).rpartition("/")[2].lower()
    for family in FAMILIES:
        for pattern, replacement in family.file_names:
            name = re.sub(pattern, replacement, name)
    found = {model: model for model in models if name == model or re.match(rf"{model}[._-]", name)}
    timm_names = timm_models()
    for family in FAMILIES:
        timm_names |= {theirs: ours for ours, theirs in family.timm_names.items()}
    for timm_name, model in timm_names.items():
        if model in models and (name == timm_name or re.match(rf"{timm_name}[.-]", name)):
            found[timm_name] = model
    return found[max(found, key=len)] if found else None
