"""How patches fill an image."""

from __future__ import annotations


def grid_size(*, image_size: int, patch_size: int) -> int:
    """Patches along a side of the image; ValueError where they do not fill it exactly."""
    if image_size < patch_size or image_size % patch_size:
        below, above = image_size // patch_size * patch_size, (image_size // patch_size + 1) * patch_size
        nearest = f"{below} and {above} work" if below else f"{above} works"
        raise ValueError(f"image_size {image_size} is not a multiple of patch_size {patch_size}: {nearest}")
    return image_size // patch_size
