"""What would go wrong at the first step, or in silence until the last, found before a run starts."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call

from mixer_lightning.config.groups import numbers_for_other_choices, numbers_of_other_data
from mixer_lightning.config.recipe import Recipe
from mixer_lightning.data.sources import Dataset, Streamed
from mixer_lightning.data.splits import refuse_one_class
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.screen import last_line

#: So much of an average's weight may lie on the state after the first step when a run ends.
MAX_WEIGHT_OF_BEGINNING = 0.1


def check_training(
    recipe: Recipe, module: Classifier, source: Dataset, *, total_steps: int, say: Callable[[str], object]
) -> None:
    """Make all checks of this file; `say` says what may be meant and hardly is, and what is not exact.

    Raises:
        ValueError: there is one class only, a part does not take its numbers, or BatchNorm would have one value.
    """
    refuse_one_class(source)
    if isinstance(train := source.splits["train"], Streamed):
        say(train.exactness())
    try_parts(module, num_classes=len(source.classes))
    refuse_one_value(
        module.model, image_size=recipe.image_size, device_batch=module.micro_batches.device_batch
    )
    other = numbers_of_other_data(recipe.choices)
    if other is not None:
        say(other)
    for each in numbers_for_other_choices(recipe.to_dict(), recipe.choices):
        say(each)
    slow = slow_average(decay=recipe.ema_decay, total_steps=total_steps)
    if slow is not None:
        say(slow)


def try_parts(module: Classifier, *, num_classes: int) -> None:
    """Call once what the first step would call, on next to nothing.

    Raises:
        ValueError: a part does not take its numbers.
    """
    try:
        module.make_optimizer(module.model)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"optimizer: {last_line(error)}") from error
    targets = torch.full((2, num_classes), 1 / num_classes)
    try:
        module.loss(torch.zeros_like(targets), targets)
    except (ValueError, RuntimeError) as error:
        raise ValueError(f"loss: {last_line(error)}") from error


def refuse_one_value(model: nn.Module, *, image_size: int, device_batch: int) -> None:
    """See that no BatchNorm would have to normalise a single value, which torch refuses at the first step.

    One image a forward pass is the only case. The pass is made without numbers, on torch's meta device.

    Raises:
        ValueError: one would.
    """
    if device_batch > 1 or not any(
        isinstance(each, nn.modules.batchnorm._BatchNorm) for each in model.modules()
    ):
        return
    state = {name: tensor.to("meta") for name, tensor in model.state_dict(keep_vars=False).items()}
    was_training = model.training
    try:
        with torch.no_grad():
            functional_call(model.train(), state, (torch.empty(1, 3, image_size, image_size, device="meta"),))
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise ValueError(
            f"device_batch=1 at image_size={image_size} leaves BatchNorm one value to normalise: set device_batch (and "
            "batch_size) to 2 or more, or a larger image_size"
        ) from error
    except (RuntimeError, NotImplementedError):  # an operation that is for real numbers only
        pass
    finally:
        model.train(was_training)


def slow_average(*, decay: float | None, total_steps: int) -> str | None:
    """What to say of an average that will hardly have left the beginning when the run ends; None of another.

    Of the weights after T steps, an average of decay d holds those after the first step with weight d^(T - 1).
    """
    if decay is None or decay ** (total_steps - 1) <= MAX_WEIGHT_OF_BEGINNING:
        return None
    fitting = f"ema_decay={1 - float(f'{10 / total_steps:.1g}'):.9g}, or " if total_steps > 20 else ""
    return (
        f"ema_decay={decay:g} is slow for {total_steps:,} steps: of the averaged weights, which are evaluated and "
        f"kept, {100 * decay ** (total_steps - 1):.0f} % will be those of the first step. Use {fitting}ema_decay=null"
    )
