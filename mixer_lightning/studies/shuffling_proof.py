"""Why a Mixer does not notice that patches, and the pixels in them, were shuffled: its weights can be shuffled too.

Let X [S, 3 P^2] be the patches of an image and X' those of the shuffled one: X'[t, q] = X[s(t), p(q)] for one order s
of patches and one order p of the pixels in each. Then

    the stem        sum over q of K[:, p(q)] X'[t, q]  =  sum over q of K[:, q] X[s(t), q]: with its pixels in the
                    order p, tokens of X' are those of X in the order s;
    token mixing    W1[:, s] X'  =  W1 X for tokens in the order s, and W2[s], b2[s] give their order to what is added
                    (b2 adds the same to all channels of a token, which LayerNorm takes away: it is permuted for the
                    sake of the tokens between);
    all the rest    (LayerNorm, channel mixing, the mean over tokens) does not know the order of tokens.

So a Mixer whose K, W1, W2 and b2 are permuted has the logits of the original on shuffled images, with all weights that
it could learn. A network of overlapping convolutions has no such weights.
"""

from __future__ import annotations

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mixer_lightning.data.shuffling import Shuffle
from mixer_lightning.models.mixer import Mixer

NUM_IMAGES = 4  # random ones, on which logits are compared
TOLERANCE = 1e-5  # of the largest logit: rounding of float32


class Proof(NamedTuple):
    """Largest differences between logits of shuffled and of original images, as shares of the largest logit.

    `unpermuted` is that of the weights as they are, `permuted` that of the `tensors` in the new order, in float32, and
    `permuted_float64` the same in float64, where only rounding is smaller.
    """

    tensors: list[str]
    unpermuted: float
    permuted: float
    permuted_float64: float

    @property
    def is_equal(self) -> bool:
        """Whether permuted weights undo the shuffling."""
        return self.permuted <= TOLERANCE  # False for NaN

    def __str__(self) -> str:
        """A sentence or two."""
        as_they_are = (
            f"with the weights as they are, logits of shuffled images differ by {self.unpermuted:.2g} of the "
            "largest logit"
        )
        if not self.tensors:
            return f"{as_they_are}, and no permutation of weights undoes that"
        verdict = "the logits are the same" if self.is_equal else "the logits are others"
        return (
            f"{as_they_are}; with {', '.join(self.tensors)} permuted by {self.permuted:.2g} in float32 and "
            f"{self.permuted_float64:.2g} in float64: {verdict}"
        )


def permute_weights(model: nn.Module, shuffle: Shuffle) -> list[str]:
    """Permute, in place, what can undo the shuffling of patches: of a Mixer all, else the pixels of a patch embedding.

    The names of the tensors, with a * for the blocks; none for a network that cuts no patches of this size.
    """
    assert shuffle.kind == "patches"
    patches = torch.from_numpy(shuffle.patch_order)
    pixels = torch.from_numpy(shuffle.pixel_order)
    stem = _patch_embedding(model, shuffle.patch_size)
    if stem is None:
        return []
    name, conv = stem
    with torch.no_grad():
        conv.weight.copy_(conv.weight.flatten(2)[..., pixels].reshape(conv.weight.shape))
        if not isinstance(model, Mixer):
            return [f"{name}.weight"]
        for block in model.blocks:
            mlp = block.mlp_tokens
            assert isinstance(mlp, nn.Module)
            fc1, fc2 = mlp.get_submodule("fc1"), mlp.get_submodule("fc2")
            assert isinstance(fc1, nn.Linear)
            assert isinstance(fc2, nn.Linear)
            fc1.weight.copy_(fc1.weight[:, patches])  # W1
            fc2.weight.copy_(fc2.weight[patches])  # W2
            fc2.bias.copy_(fc2.bias[patches])  # b2
    mixing = "blocks.*.mlp_tokens"
    return [f"{name}.weight", f"{mixing}.fc1.weight", f"{mixing}.fc2.weight", f"{mixing}.fc2.bias"]


def prove(model: nn.Module, shuffle: Shuffle) -> Proof:
    """Compare logits on random images; the model is left as it is."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(NUM_IMAGES, 3, shuffle.image_size, shuffle.image_size, generator=generator)
    original, permuted = copy.deepcopy(model).eval(), copy.deepcopy(model).eval()
    tensors = permute_weights(permuted, shuffle)
    unpermuted = _difference(original, images, original, shuffle)
    float32 = _difference(original, images, permuted, shuffle)
    float64 = _difference(original.double(), images.double(), permuted.double(), shuffle)
    return Proof(tensors, unpermuted, float32, float64)


def patch_size_of(model: nn.Module) -> int | None:
    """P of a network that begins with a cut into patches; None of others."""
    stem = _patch_embedding(model, None)
    return None if stem is None else int(stem[1].kernel_size[0])


@torch.no_grad()
def _difference(original: nn.Module, images: Tensor, permuted: nn.Module, shuffle: Shuffle) -> float:
    expected, found = original(images), permuted(shuffle(images))
    return float((found - expected).abs().max() / expected.abs().max().clamp_min(1e-30))


def _patch_embedding(model: nn.Module, patch_size: int | None) -> tuple[str, nn.Conv2d] | None:
    """The first convolution, by name, if it cuts images into patches, of this size if one is given."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            side = module.kernel_size[0]
            cuts = module.in_channels == 3 and module.kernel_size == module.stride == (side, side)
            return (name, module) if cuts and patch_size in (None, side) else None
    return None
