"""Which native code there is here: results may differ by rounding where it is missing."""

from __future__ import annotations

from mixer_lightning.kernels import activation_norm, augment, depthwise, jpeg, mlp


def compiled() -> dict[str, bool]:
    """Whether each kernel could be compiled, by name."""
    return {
        "depthwise": depthwise.native_weight_gradients() is not None,
        "activation_norm": activation_norm.native() is not None,
        "mlp": mlp.native() is not None,
        "jpeg": jpeg.native() is not None,
        "augment": augment.native() is not None,
    }
