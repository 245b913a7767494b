"""What models ask of the size of their images, and of arguments that not all of them have."""

from __future__ import annotations

from torch import Tensor, fx


def grid_size(*, image_size: int, patch_size: int) -> int:
    """Patches along a side of the image; ValueError where they do not fill it exactly."""
    if image_size < patch_size or image_size % patch_size:
        works = what_works(image_size, patch_size)
        raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}: {works}")
    return image_size // patch_size


def what_works(image_size: int, multiple: int, *, smallest: int = 1) -> str:
    """'224 and 240 work': the next multiples on both sides of a size that is none, and no smaller one than allowed."""
    below, above = image_size // multiple * multiple, (image_size // multiple + 1) * multiple
    return f"{below} and {above} work" if below >= smallest else f"{max(above, smallest)} works"


def check_blocks_fill(*, image_size: int, block_size: int) -> None:
    """ValueError unless blocks of attention fill the maps of all stages, the smallest of which is 1/32 of the image."""
    if image_size % (32 * block_size):
        raise ValueError(
            f"image_size {image_size} is not a multiple of 32 x block_size {block_size}, and blocks must fill every "
            f"feature map: {what_works(image_size, 32 * block_size)}"
        )


def check_square(images: Tensor | fx.Proxy, *, image_size: int) -> None:
    """ValueError unless images [B, 3, H, W] have the side that a model with a weight for each place was built for.

    What torch.fx traces has no sides yet: the graph takes any that the weights do.
    """
    if not isinstance(images, fx.Proxy) and images.shape[-2:] != (image_size, image_size):
        found = "x".join(map(str, images.shape[-2:]))
        raise ValueError(f"this model takes images of {image_size}x{image_size}, found {found}")


def refuse_stochastic_depth(name: str, stochastic_depth: float) -> None:
    """ValueError where a model has no residual branch that could be dropped."""
    if stochastic_depth:
        raise ValueError(f"{name} has no stochastic depth: use stochastic_depth=0, not {stochastic_depth}")
