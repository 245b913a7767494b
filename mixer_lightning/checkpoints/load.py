"""Weights from and to files: the official Flax and PyTorch releases, timm, and this project's own runs.

`read` takes a file apart without knowing the model, `load` copies it into one, `restore` makes the model that a file
holds, `save_timm`, `save_flax` and `save_own` write. Whatever the file, tensors have timm's names, which are those of
our models. Nothing that a file holds is ever executed: pickled objects are refused, and a recipe in it names no code.

The GELU of a Mixer is no tensor: Google's weights were trained with its tanh form, which our Mixer computes; timm
computes the exact form for every Mixer (logits differ by about 1e-4 of their size).
"""

from __future__ import annotations

import argparse
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mixer_lightning import results
from mixer_lightning.checkpoints import hub
from mixer_lightning.models.convmixer import ConvMixer
from mixer_lightning.models.mixer import Mixer
from mixer_lightning.models.presets import build_model, default_image_size, list_models, model_node
from mixer_lightning.models.resolution import enlarge, widen

TORCH_SUFFIXES = (".pth", ".pt", ".ckpt", ".bin", ".tar")
SUFFIXES = (".npz", ".safetensors", *TORCH_SUFFIXES)

#: What a checkpoint may say of its images: the parameters of data/transforms.py's Augment that evaluation reads.
PREPROCESSING = ("mean", "std", "eval_crop", "eval_resize", "eval_interpolation")
USUAL_PREPROCESSING = {  # of published weights that say nothing themselves
    "Mixer": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},  # Google's
    "ConvMixer": {"mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]},  # locuslab's, on ImageNet
}
Head = Literal["auto", "keep", "new"]
OWN_KEY = "mixer_lightning"  # in the metadata of a .safetensors file

# ------------------------------------------------------------------------------------------ what a file is


@dataclass(frozen=True)
class Description:
    """What the shapes of its tensors say of a model. `sizes` are parameters of Mixer or ConvMixer."""

    family: str  # "Mixer" or "ConvMixer"
    sizes: dict[str, int]
    image_size: int | None  # None: the weights fit any size
    num_classes: int  # 0: no head
    activation: str | None = None  # of a ConvMixer; None: unknown, since the tensors do not tell

    @property
    def name(self) -> str | None:
        """The file of conf/model with these sizes; a Mixer's token mixing may have been widened since."""
        return next(iter(self._known), None)

    @property
    def names(self) -> list[str]:
        """All files of conf/model with these sizes."""
        return list(self._known)

    @property
    def parts(self) -> int:
        """Into how many parts a side the token mixing of a Mixer was widened from conf/model (models/resolution.py)."""
        return next(iter(self._known.values()), 1)

    @property
    def _known(self) -> dict[str, int]:
        """Names of models, and the parts into which the token mixing of each was widened."""
        found: dict[str, int] = {}
        for name in list_models():
            node = model_node(name)
            if self.sizes.keys() <= node.keys():
                parts = _widening({key: node[key] for key in self.sizes}, self)
                if parts is not None:
                    found[name] = parts
        return found

    def __str__(self) -> str:
        sizes = ", ".join(f"{key} {size}" for key, size in self.sizes.items())
        name, parts = self.name, self.parts
        at = f" at {self.image_size}" if self.image_size else ""
        mixing = f" (token mixing of {parts}x{parts} parts)" if parts > 1 else ""
        classes = f"{self.num_classes} classes" if self.num_classes else "no head"
        return f"{name or f'{self.family} ({sizes})'}{at}{mixing}, {classes}"


@dataclass(frozen=True)
class Checkpoint:
    """A file of weights: its kind in words, its tensors under timm's names, and what is known of the model.

    `model` is None where the tensors are neither a Mixer's nor a ConvMixer's. `classes` and `recipe` come with the
    checkpoints of our own runs. `preprocessing` says what images the weights take, as parameters of Augment in
    data/transforms.py (see PREPROCESSING): the file's own word, or that of the JSON file beside it, else what is usual
    for the family. `assumed` are those of PREPROCESSING that nothing states.
    """

    path: Path
    kind: str
    tensors: dict[str, Tensor]
    model: Description | None
    classes: list[str] | None = None
    recipe: dict[str, Any] | None = field(default=None, repr=False)
    preprocessing: dict[str, Any] = field(default_factory=dict)
    assumed: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return f"{self.path.name} ({self.kind}: {self.model or 'neither a Mixer nor a ConvMixer'})"


def describe(tensors: Mapping[str, Tensor]) -> Description | None:
    """Recognises a Mixer or a ConvMixer by the names and shapes of its tensors; None for anything else."""
    try:
        num_classes = tensors["head.weight"].shape[0] if "head.weight" in tensors else 0
        depth = len({key.split(".")[1] for key in tensors if key.startswith("blocks.")})
        if "stem.proj.weight" in tensors:
            dim, _, _, patch = tensors["stem.proj.weight"].shape
            tokens_dim, num_tokens = tensors["blocks.0.mlp_tokens.fc1.weight"].shape
            side = math.isqrt(num_tokens)
            sizes = {
                "patch_size": patch,
                "num_blocks": depth,
                "hidden_dim": dim,
                "tokens_mlp_dim": tokens_dim,
                "channels_mlp_dim": tensors["blocks.0.mlp_channels.fc1.weight"].shape[0],
            }
            image_size = side * patch if side**2 == num_tokens else None
            return Description("Mixer", sizes, image_size, num_classes)
        if "stem.0.weight" in tensors:
            dim, _, _, patch = tensors["stem.0.weight"].shape
            kernel = tensors["blocks.0.0.fn.0.weight"].shape[-1]
            sizes = {"dim": dim, "depth": depth, "patch_size": patch, "kernel_size": kernel}
            return Description("ConvMixer", sizes, None, num_classes)
    except (KeyError, ValueError, IndexError):  # some tensors of that name, not those of such a model
        pass
    return None


def _widening(narrow: Mapping[str, int], wide: Description) -> int | None:
    """How many parts a side took a Mixer of sizes `narrow` to `wide`; 1 for equal sizes, None for other models."""
    if {**narrow, "tokens_mlp_dim": 0} != {**wide.sizes, "tokens_mlp_dim": 0}:
        return None
    if "tokens_mlp_dim" not in wide.sizes:
        return 1
    ratio, rest = divmod(wide.sizes["tokens_mlp_dim"], narrow["tokens_mlp_dim"])
    parts = math.isqrt(ratio)
    if rest or parts**2 != ratio or parts == 0:
        return None
    if parts > 1 and (wide.image_size is None or wide.image_size // wide.sizes["patch_size"] % parts):
        return None
    return parts


# ------------------------------------------------------------------------------------------------ reading


def read(path: str | Path) -> Checkpoint:
    """Reads a file of weights on the CPU, whatever model it holds.

    Takes: official Mixer .npz (google-research/vision_transformer; also the older layout that
    google-research/big_vision converts), state dicts of timm and of locuslab/convmixer (also inside training
    checkpoints and with the prefixes of DDP and torch.compile), checkpoints of our own runs (their averaged weights
    where there are some), as .safetensors or as torch files (.pth, .pth.tar, .pt, .ckpt, .bin). Instead of a file, a
    run directory stands for its best.ckpt, or last.ckpt without one, and timm:<name> for timm's published weights.

    Raises:
        FileNotFoundError: there is no such file, or timm's cannot be fetched.
        ValueError: the file is not what its name says, holds pickled objects, or holds no weights.
    """
    name = str(path)
    if name.startswith(hub.PREFIX):
        name = name.removeprefix(hub.PREFIX)
        fetched = read(hub.fetch(name))
        return replace(fetched, kind=hub.PREFIX + name, preprocessing=hub.preprocessing(name), assumed=[])
    path = Path(path).expanduser()
    if path.is_dir():
        path = _in_run(path)
    if not path.is_file():
        raise FileNotFoundError(f"there is no checkpoint file {path}")
    if path.suffix == ".npz":
        return _from_flax(path, _read_npz(path))
    if path.suffix == ".safetensors":
        return _from_state_dict(path, *_read_safetensors(path))
    if path.suffix in TORCH_SUFFIXES:
        content = _read_torch(path)
        return _from_state_dict(path, _find_state_dict(path, content), content)
    if path.suffix == ".onnx":
        raise ValueError(
            f"{path} is for ONNX Runtime, and {results.sidecar_path(path).name} beside it tells how images are seen: "
            "here give the .npz, the file of timm's or ConvMixer's weights, or the run directory that it was made of"
        )
    raise ValueError(f"{path} is no known kind of checkpoint: its name must end in {', '.join(SUFFIXES)}")


def _in_run(run_dir: Path) -> Path:
    for name in (results.BEST, results.LAST):
        if (run_dir / name).is_file():
            return run_dir / name
    raise FileNotFoundError(
        f"{run_dir} holds neither {results.BEST} nor {results.LAST}: give a run directory, or a file of weights"
    )


def _read_npz(path: Path) -> dict[str, NDArray[Any]]:
    try:
        with path.open("rb") as file:  # np.load would hide a missing zip end behind talk of pickles
            content = np.load(file, allow_pickle=False)
            arrays = {key: content[key] for key in content.files}
    except Exception as error:  # numpy, zipfile and zlib have a dozen ways to fail on a broken file
        if "Object arrays" in str(error):
            raise ValueError(_pickled(path, "Python objects")) from error
        raise ValueError(_broken(path, "NumPy .npz archive")) from error
    return {key: _from_bfloat16(array) if array.dtype == "V2" else array for key, array in arrays.items()}


def _from_bfloat16(array: NDArray[Any]) -> NDArray[Any]:
    """NumPy stores bfloat16 as two bytes without a type: the upper half of a float32."""
    return (array.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Tensors, and what `save_own` wrote beside them."""
    from safetensors import safe_open
    from safetensors.torch import load_file

    try:
        tensors = dict(load_file(path, device="cpu"))
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except Exception as error:  # its own SafetensorError, OSError, or a KeyError for an unknown dtype
        raise ValueError(_broken(path, "safetensors file")) from error
    try:
        facts = json.loads(metadata.get(OWN_KEY, "{}"))
    except ValueError as error:
        raise ValueError(f"{path} has metadata '{OWN_KEY}' that is no JSON: {error}") from error
    return tensors, {OWN_KEY: facts} if isinstance(facts, dict) and facts else {}


def _read_torch(path: Path) -> dict[str, Any]:
    try:
        # timm's trainer, which the ConvMixer authors used, keeps its options in a Namespace: harmless.
        with torch.serialization.safe_globals([argparse.Namespace]):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a broken pickle can fail with any exception
        refused = re.search(r"GLOBAL ([\w.]+)", str(error))  # a class or function that the pickle asks for
        if refused:
            raise ValueError(_pickled(path, refused[1])) from error
        raise ValueError(_broken(path, "torch file")) from error
    if not isinstance(content, Mapping):
        raise ValueError(f"{path} holds a {type(content).__name__}, not a dictionary of weights")
    return {str(key): value for key, value in content.items()}


def _broken(path: Path, what: str) -> str:
    return f"{path} is no readable {what}: {_looks_like(path) or 'it is damaged or cut short; copy it again'}"


def _pickled(path: Path, what: str) -> str:
    return (
        f"{path} holds pickled objects ({what}), and to load those would let the file run code. "
        "Save the weights alone where you trust it: torch.save(model.state_dict(), path)"
    )


def _looks_like(path: Path) -> str | None:
    """What the first bytes of a broken file betray about how it came here."""
    with path.open("rb") as file:
        start = file.read(256)
    text = start.lstrip().lower()
    if not text:
        return "it is empty"
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page; the download needs another address or a login"
    if start.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer; fetch the file itself with git lfs pull"
    torch_magic = b"\x80\x02\x8a\x0a"  # torch before 1.6 wrote pickles too, of a number first
    if start.startswith(b"\x80") and not start.startswith(torch_magic):
        return "it is a plain pickle, and to load one would let it run code"
    return None


def _find_state_dict(path: Path, content: Mapping[str, Any]) -> dict[str, Any]:
    """The weights among what a training checkpoint holds: averaged ones first."""
    if "recipe" in content and isinstance(content.get("state_dict"), Mapping):  # one of our own runs
        state = content["state_dict"]
        own = {key.removeprefix("model."): state[key] for key in state if key.startswith("model.")}
        return {**own, **(content.get("ema") or {})}
    for key in ("state_dict_ema", "model_ema", "state_dict", "model"):
        if isinstance(content.get(key), Mapping) and content[key]:
            return dict(content[key])
    if not any(isinstance(value, Tensor) for value in content.values()):
        raise ValueError(f"{path} holds no weights: its keys are {_some(list(content))}")
    return dict(content)


def _from_state_dict(path: Path, state: Mapping[str, Any], content: Mapping[str, Any]) -> Checkpoint:
    tensors = {_strip(key): value for key, value in state.items() if isinstance(value, Tensor)}
    if not tensors:
        raise ValueError(f"{path} holds no weights")
    kind = "timm's names"
    if "recipe" in content:
        kind = "run of this project"
    elif "0.weight" in tensors and any(key.startswith("3.0.fn.") for key in tensors):
        kind = "locuslab's ConvMixer"
        tensors = _from_sequential(tensors)
    model = describe(tensors)
    recipe = content["recipe"] if isinstance(content.get("recipe"), dict) else None
    own = content.get(OWN_KEY) or results.read_sidecar(path)
    if own:
        kind = "export of this project"
    if recipe is not None:
        node, augment = recipe.get("model"), recipe.get("augment")
        own = {
            **(augment if isinstance(augment, Mapping) else {}),
            "image_size": recipe.get("image_size"),
            "activation": node.get("activation", "gelu") if isinstance(node, Mapping) else None,
            "classes": content.get("classes"),
        }
    if own and model is not None and model.family == "ConvMixer":  # more than the tensors tell
        size = own.get("image_size")
        size = size if isinstance(size, int) else None
        model = replace(model, image_size=size, activation=own.get("activation"))
    stated = own or hub.beside(path)
    assumed = _unstated(stated) if recipe is None else []  # a run's other values were the defaults
    return Checkpoint(
        path, kind, tensors, model, _classes(own), recipe, _preprocessing(stated, model), assumed
    )


def _classes(own: Mapping[str, Any]) -> list[str] | None:
    named = own.get("classes")
    return [str(name) for name in named] if isinstance(named, list) else None


def _preprocessing(stated: Mapping[str, Any], model: Description | None) -> dict[str, Any]:
    """What a file states of its images; without a mean, what is usual for the family comes first."""
    usual = USUAL_PREPROCESSING.get(model.family, {}) if model is not None else {}
    return usual | {key: stated[key] for key in PREPROCESSING if key in stated}


def _unstated(stated: Mapping[str, Any]) -> list[str]:
    return [key for key in PREPROCESSING if key not in stated]


def _strip(key: str) -> str:
    """Takes off what DistributedDataParallel ("module.") and torch.compile ("_orig_mod.") put before a name."""
    return re.sub(r"^(module\.|_orig_mod\.)+", "", key)


def _from_sequential(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """locuslab/convmixer counts its layers: stem 0 to 2, blocks 3 to 2+d, pooling, flattening, head 5+d."""
    last = max(int(key.split(".")[0]) for key in tensors if key.split(".")[0].isdigit())
    renamed = {}
    for key, tensor in tensors.items():
        index, _, rest = key.partition(".")
        if not index.isdigit():
            renamed[key] = tensor
        elif int(index) <= 2:
            renamed[f"stem.{key}"] = tensor
        elif int(index) == last:
            renamed[f"head.{rest}"] = tensor
        else:
            renamed[f"blocks.{int(index) - 3}.{rest}"] = tensor
    return renamed


# --------------------------------------------------------------------------------------- the Flax layout

# vit_jax/models_mixer.py names its modules so; a kernel is stored as [in, out], a stem kernel as [P, P, 3, C].
FLAX_TO_TIMM = {
    "stem": "stem.proj",
    "LayerNorm_0": "norm1",
    "token_mixing/Dense_0": "mlp_tokens.fc1",
    "token_mixing/Dense_1": "mlp_tokens.fc2",
    "LayerNorm_1": "norm2",
    "channel_mixing/Dense_0": "mlp_channels.fc1",
    "channel_mixing/Dense_1": "mlp_channels.fc2",
    "pre_head_layer_norm": "norm",
    "head": "head",
}
TIMM_TO_FLAX = {timm: flax for flax, timm in FLAX_TO_TIMM.items()}


def _from_flax(path: Path, arrays: Mapping[str, NDArray[Any]]) -> Checkpoint:
    tensors = {}
    for key, array in arrays.items():
        key = re.sub(r"^(params|opt/target)/", "", key)
        try:
            name, array = _timm_name(*_from_older(key, array))
        except (KeyError, ValueError):
            raise ValueError(
                f"{path} is no Mixer of the official code: it holds {_some(list(arrays))}"
            ) from None
        tensors[name] = torch.from_numpy(np.array(array, dtype=np.float32, order="C"))
    if not tensors:
        raise ValueError(f"{path} holds no weights")
    older = any("Mixer/" in key for key in arrays)  # the name of its root
    kind = "official Flax Mixer, older layout" if older else "official Flax Mixer"
    model = describe(tensors)
    own = results.read_sidecar(path)
    return Checkpoint(
        path,
        kind,
        tensors,
        model,
        _classes(own),
        preprocessing=_preprocessing(own, model),
        assumed=_unstated(own),
    )


def _from_older(key: str, array: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """The layout before the public code, as big_vision/models/mlp_mixer.py converts it; others pass unchanged."""
    key = key.replace("Mixer/encoder_norm/", "pre_head_layer_norm/").replace("Mixer/embedding/", "stem/")
    key = re.sub(r"Mixer/encoderblock_(\d+)/", r"MixerBlock_\1/", key)
    mlp = re.fullmatch(r"(.*)/(token|channel)_mixing_phase_0/(kernel|bias)([12])", key)
    if not mlp:
        return key, array
    block, kind, leaf, number = mlp.groups()
    return f"{block}/{kind}_mixing/Dense_{int(number) - 1}/{leaf}", array.squeeze()


def _timm_name(key: str, array: NDArray[Any]) -> tuple[str, NDArray[Any]]:
    """Flax's name and array -> timm's; KeyError or ValueError for a name that no Mixer has."""
    block = re.match(r"MixerBlock_(\d+)/", key)
    module, leaf = (key[block.end() :] if block else key).rsplit("/", 1)
    prefix = f"blocks.{block[1]}." if block else ""
    name = f"{prefix}{FLAX_TO_TIMM[module]}.{ {'kernel': 'weight', 'scale': 'weight', 'bias': 'bias'}[leaf] }"
    return name, array.transpose(3, 2, 0, 1) if array.ndim == 4 else array.T


def _flax_name(name: str, tensor: Tensor) -> tuple[str, NDArray[Any]]:
    """timm's name and tensor -> Flax's."""
    block = re.match(r"blocks\.(\d+)\.", name)
    module, leaf = (name[block.end() :] if block else name).rsplit(".", 1)
    prefix = f"MixerBlock_{block[1]}/" if block else ""
    if leaf == "weight":
        leaf = "scale" if tensor.ndim == 1 else "kernel"
    array = tensor.detach().float().cpu().numpy()
    array = array.transpose(2, 3, 1, 0) if array.ndim == 4 else array.T
    return f"{prefix}{TIMM_TO_FLAX[module]}/{leaf}", np.ascontiguousarray(array)


# ------------------------------------------------------------------------------------------------ loading


@dataclass(frozen=True)
class Report:
    """What `load` did: the checkpoint, the tensors copied, those that are new, and what became of the rest.

    `head` says in words why the head is new, or what nobody could check about one that was kept. `parts` is into how
    many parts a side token mixing was divided for larger images, `trained_at` their size.
    """

    checkpoint: Checkpoint
    loaded: list[str]
    fresh: list[str]
    head: str | None = None
    parts: int = 1
    trained_at: int | None = None

    def __str__(self) -> str:
        text = f"{len(self.loaded)} tensors from {self.checkpoint}"
        if self.parts > 1:
            text += (
                f"; token mixing starts block-diagonal, in {self.parts}x{self.parts} parts of {self.trained_at} px "
                "(arXiv 2105.01601, appendix C)"
            )
        return f"{text}; the head {self.head}" if self.head else text


def load(
    model: nn.Module,
    checkpoint: str | Path | Checkpoint,
    *,
    head: Head = "auto",
    classes: Sequence[str] | None = None,
) -> Report:
    """Copies a checkpoint into a model, all of it or, on an error, nothing.

    A Mixer built for images of K times the side (K whole) gets block-diagonal token mixing, K^2 times as wide: its
    `mlp_tokens` are replaced, so make the optimiser afterwards. A ConvMixer takes its weights to any size.

    Args:
        model: a Mixer or ConvMixer.
        checkpoint: what `read` takes, or gave.
        head: "auto" keeps the checkpoint's head if it is for as many classes and, where both sides name theirs, for
            the same in the same order; "keep" raises if it is not; "new" never takes it. A new head has zero weights
            and the model's `head_bias`, as in the transfer of arXiv 2105.01601 (vit_jax/checkpoint.py).
        classes: names of the model's classes, if they are known.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is unreadable (see `read`), its tensors are not this model's, or its head may not be kept.
    """
    if head not in ("auto", "keep", "new"):
        raise ValueError(f"head must be auto, keep or new, found {head!r}")
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read(checkpoint)
    expected = model.state_dict()
    growth = _growth(describe(expected), checkpoint)
    found = dict(checkpoint.tensors)
    if growth.parts > 1:
        found = enlarge(found, grid=growth.grid, parts=growth.parts)
    shapes = {key: tensor.shape for key, tensor in expected.items()}
    if growth.widening > 1:
        shapes |= {key: found[key].shape for key in shapes if ".mlp_tokens." in key and key in found}

    heads = [key for key in expected if key.startswith("head.")]
    why_new = _why_new_head(checkpoint, found, shapes, heads, classes)
    if head == "keep" and why_new:
        raise ValueError(f"head=keep, but {checkpoint.path} has another head: {why_new}. Take head=new")
    if head == "new":
        why_new = why_new or "as asked for"
    fresh = heads if why_new else []
    for key in fresh:
        found.pop(key, None)

    wrong = []
    for key, shape in shapes.items():
        if key in fresh or (key not in found and key.endswith("num_batches_tracked")):
            continue
        if key not in found:
            wrong.append(f"{key} is missing, expected {list(shape)}")
        elif found[key].shape != shape:
            wrong.append(f"{key} is {list(found[key].shape)}, expected {list(shape)}")
    wrong += [f"{key} {list(found[key].shape)} has no place" for key in found if key not in expected]
    activation = checkpoint.model.activation if checkpoint.model else None
    if activation is not None and activation != getattr(model, "activation", activation):
        wrong.append(f"it was trained with {activation}, the model has {getattr(model, 'activation', None)}")
    if wrong:
        raise ValueError(_misfit(model, checkpoint, wrong))

    if growth.widening > 1:
        assert isinstance(model, Mixer)
        widen(model, parts=growth.widening)
        expected = model.state_dict()
    with torch.no_grad():
        for key in found:
            expected[key].copy_(found[key])  # shares memory with the model
        for key in fresh:
            expected[key].fill_(getattr(model, "head_bias", 0.0) if key.endswith("bias") else 0.0)
    about_head = f"stays fresh: {why_new}" if why_new else _unchecked_head(checkpoint, heads, classes)
    trained_at = checkpoint.model.image_size if checkpoint.model else None
    return Report(checkpoint, list(found), fresh, about_head, growth.parts, trained_at)


class _Growth(NamedTuple):
    """How a Mixer's checkpoint, trained on a `grid` of patches a side, comes into a model for larger images.

    Its tensors are enlarged to `parts` parts a side, the model is widened by `widening` parts a side.
    """

    grid: int = 0
    parts: int = 1
    widening: int = 1


def _growth(here: Description | None, checkpoint: Checkpoint) -> _Growth:
    """Nothing to be done is the answer for models, too, that differ in more than this."""
    there = checkpoint.model
    if here is None or there is None or here.family != "Mixer" or not here.image_size or not there.image_size:
        return _Growth()
    others = {"tokens_mlp_dim": 0}
    if here.sizes | others != there.sizes | others:
        return _Growth()
    parts, rest = divmod(here.image_size, there.image_size)
    if rest or not parts:
        sizes = [there.image_size * times for times in range(max(parts, 1), max(parts, 1) + 2)]
        raise ValueError(
            f"{checkpoint.path} holds a {there}. A Mixer's weights go to whole multiples of the size that it was "
            f"trained at, which image_size={here.image_size} is not: {sizes[0]} and {sizes[1]} work"
        )
    wide = there.sizes | {"tokens_mlp_dim": parts**2 * there.sizes["tokens_mlp_dim"]}
    widening = _widening(here.sizes, replace(there, sizes=wide, image_size=here.image_size))
    return _Growth(there.image_size // there.sizes["patch_size"], parts, widening) if widening else _Growth()


def _why_new_head(
    checkpoint: Checkpoint,
    found: Mapping[str, Tensor],
    shapes: Mapping[str, torch.Size],
    heads: Sequence[str],
    classes: Sequence[str] | None,
) -> str | None:
    """Why a checkpoint's head is not the model's; None if it can be."""
    if any(key not in found for key in heads):
        return "the file has none"
    if any(found[key].shape[:1] != shapes[key][:1] for key in heads):
        return f"{found[heads[0]].shape[0]} classes there, {shapes[heads[0]][0]} here"
    if classes is None or checkpoint.classes is None or list(classes) == checkpoint.classes:
        return None
    if len(classes) != len(checkpoint.classes):  # then the names are not those of this head
        return f"{len(checkpoint.classes)} names of classes there, {len(classes)} here"
    there, here = next((a, b) for a, b in zip(checkpoint.classes, classes, strict=True) if a != b)
    return f"other classes ('{there}' there, '{here}' here)"


def _unchecked_head(
    checkpoint: Checkpoint, heads: Sequence[str], classes: Sequence[str] | None
) -> str | None:
    if not heads or classes is None or checkpoint.classes is not None:
        return None
    return f"is kept: {len(classes)} classes on both sides, of which the file says no names"


def _misfit(model: nn.Module, checkpoint: Checkpoint, wrong: list[str]) -> str:
    here = describe(model.state_dict())
    text = f"{checkpoint.path} does not fit {here or type(model).__name__}: {_some(wrong, separator='; ')}."
    if checkpoint.model is None:
        return f"{text} This file holds neither a Mixer nor a ConvMixer."
    text += f" This file holds a {checkpoint.model}"
    name, size = checkpoint.model.name, checkpoint.model.image_size
    if name is None:
        return f"{text}."
    return f"{text}: use model={name}{f' image_size={size}' if size else ''}."


def _some(items: list[str], *, separator: str = ", ", limit: int = 4) -> str:
    more = f"{separator}and {len(items) - limit} more" if len(items) > limit else ""
    return separator.join(items[:limit]) + more


# ---------------------------------------------------------------------------------------------- restoring


@dataclass(frozen=True)
class Restored:
    """A model with its weights, in evaluation mode, and what is known of it. `name` is a file of conf/model.

    `classes` are the names of its outputs, if they are known; `preprocessing` as in Checkpoint.
    """

    model: nn.Module
    name: str | None
    image_size: int
    classes: list[str] | None
    preprocessing: dict[str, Any]
    report: Report

    @property
    def num_classes(self) -> int:
        """Outputs of the model."""
        return int(self.model.num_classes)  # type: ignore[arg-type]


def restore(
    checkpoint: str | Path | Checkpoint,
    *,
    model: str | None = None,
    image_size: int | None = None,
    num_classes: int | None = None,
) -> Restored:
    """The model that a checkpoint holds.

    Args:
        checkpoint: what `read` takes, or gave.
        model: one of `list_models()`, where the file does not say enough.
        image_size: side in pixels; None: the file's, or what the model is made for.
        num_classes: None: the file's. Another number makes a new head (see `load`).

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is unreadable, does not tell its model or size, or holds another than was named.
    """
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = read(checkpoint)
    there = checkpoint.model
    if num_classes is None:
        num_classes = there.num_classes if there is not None else 1000
        if num_classes == 0:
            raise ValueError(f"{checkpoint.path} has no head: say num_classes=<number> for a new one")
    if image_size is None and there is not None:
        image_size = there.image_size
    if model is not None:
        image_size = default_image_size(model) if image_size is None else image_size
        made = build_model(model, num_classes=num_classes, image_size=image_size)
    elif there is None:
        raise ValueError(
            f"{checkpoint.path} does not tell what model it holds: say model=<name>, one of {', '.join(list_models())}"
        )
    else:
        if image_size is None:
            if there.name is None:
                raise ValueError(
                    f"{checkpoint.path} does not tell the size of its images: say image_size=<pixels>"
                )
            image_size = default_image_size(there.name)
        made = _made(checkpoint.path, there, num_classes=num_classes, image_size=image_size)
    report = load(made, checkpoint)
    classes = checkpoint.classes if not report.fresh else None
    return Restored(
        model=made.eval(),
        name=model or (there.name if there is not None else None),
        image_size=image_size,
        classes=classes if classes is not None and len(classes) == num_classes else None,
        preprocessing=checkpoint.preprocessing,
        report=report,
    )


def _made(path: Path, there: Description, *, num_classes: int, image_size: int) -> nn.Module:
    """A model of a description's family and sizes. Nothing else in a file decides what is built."""
    if there.family == "Mixer":
        return Mixer(**there.sizes, num_classes=num_classes, image_size=image_size)
    activation = there.activation or (model_node(there.name).get("activation") if there.name else None)
    if activation is None:
        raise ValueError(f"{path} does not tell the activation of its {there}: say model=<name>")
    activation = cast(Literal["gelu", "relu"], activation)  # ConvMixer refuses others
    return ConvMixer(**there.sizes, activation=activation, num_classes=num_classes, image_size=image_size)


# ------------------------------------------------------------------------------------------------- saving


def save_timm(model: nn.Module, path: str | Path) -> None:
    """Writes a model's state dict, which has timm's names, as .safetensors, .pth or .pt (else ValueError)."""
    path = Path(path)
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if path.suffix == ".safetensors":
        _write_safetensors(path, tensors, {"format": "pt"})
    elif path.suffix in (".pth", ".pt"):
        torch.save(tensors, path)
    else:
        raise ValueError(
            f"timm's weights are written to a file ending in .safetensors, .pth or .pt, not to {path}"
        )


def save_flax(model: nn.Module, path: str | Path) -> None:
    """Writes a Mixer as the official .npz (float32), which vit_jax and big_vision load; ValueError for other models."""
    path = Path(path)
    if path.suffix != ".npz":
        raise ValueError(f"Flax weights are written to a file ending in .npz, not to {path}")
    state = model.state_dict()
    description = describe(state)
    if description is None or description.family != "Mixer":
        raise ValueError(
            f"only a Mixer has an official Flax layout, not {description or type(model).__name__}"
        )
    arrays: dict[str, Any] = dict(_flax_name(key, tensor) for key, tensor in state.items())
    np.savez(path, **arrays)


def save_own(path: str | Path, restored: Restored) -> None:
    """Writes a model as .safetensors with all that prediction needs; `restore` takes it without a further word."""
    path = Path(path)
    if path.suffix != ".safetensors":
        raise ValueError(f"such a file ends in .safetensors, not {path}")
    tensors = {key: value.detach().cpu().contiguous() for key, value in restored.model.state_dict().items()}
    _write_safetensors(path, tensors, {"format": "pt", OWN_KEY: json.dumps(facts(restored))})


def _write_safetensors(path: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    from safetensors.torch import save

    path.write_bytes(save(tensors, metadata))  # save_file would let nobody but its owner read the file


def facts(restored: Restored) -> dict[str, Any]:
    """What a file, or the JSON file beside it, should say of a model besides its tensors, as plain containers."""
    found = {
        "model": restored.name,
        "image_size": restored.image_size,
        "activation": getattr(restored.model, "activation", None),
        "classes": restored.classes,
        **restored.preprocessing,
    }
    return {key: value for key, value in found.items() if value is not None}
