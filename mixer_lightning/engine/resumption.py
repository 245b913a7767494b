"""A run goes on from an earlier session's checkpoint: whether it is the same run, and where it stood."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mixer_lightning.config.from_checkpoint import digest_of, refuse_replaced
from mixer_lightning.config.recipe import Recipe, refuse_differences
from mixer_lightning.data import identity
from mixer_lightning.engine import bad_images
from mixer_lightning.engine.checkpoint import refuse_other_groups
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.datamodule import DataModule
from mixer_lightning.engine.length import Length, refuse_another_length
from mixer_lightning.screen import Screen


def refuse_another_run(
    recipe: Recipe, path: Path, state: Mapping[str, Any], of_data: Mapping[str, Any], length: Length
) -> None:
    """See that the checkpoint at `path` is of a run of this recipe, from the same weights, on these data.

    It may end where this one does.

    Raises:
        ValueError: it is not.
    """
    what = f"{path} is of a run of another recipe"
    refuse_differences(what, state["recipe"], recipe.to_dict(), free=("duration",))
    refuse_replaced(recipe.checkpoint, state.get("checkpoint_sha256"), path.parent)
    refuse_another_length(recipe, state, length, path.parent)
    identity.refuse_another(of_data, state, path.parent)


def record(
    recipe: Recipe, of_data: Mapping[str, Any], length: Length, state: Mapping[str, Any] | None
) -> dict[str, Any]:
    """What every checkpoint of a run says of it; `state` is of an earlier session."""
    if state is not None:
        digest = state.get("checkpoint_sha256")  # the checkpoint that it began with may be gone
    else:
        digest = None if recipe.checkpoint is None else digest_of(recipe.checkpoint)
    return {
        "recipe": recipe.to_dict(),
        "checkpoint_sha256": digest,
        **of_data,
        "device_batch": length.micro_batches.device_batch,
    }


def go_on(
    module: Classifier,
    data: DataModule,
    state: Mapping[str, Any],
    of_data: Mapping[str, Any],
    length: Length,
    screen: Screen,
) -> None:
    """Put the module and the order of the data where an earlier session stood."""
    for sentence in bad_images.newly_gone(of_data, state):
        screen.say(sentence)
    refuse_other_groups(module, state)
    module.step = data.start_step = state["step"]
    module.ended, module.evaluation_due = state.get("ended"), state.get("evaluation_due", False)
    module.only_evaluates = module.step == length.total_steps and module.evaluation_due
    if module.only_evaluates:
        data.start_step -= 1  # Lightning trains on no less than a batch, which is not used
    before = state["recipe"].get("max_bad_fraction", data.max_bad_fraction)
    if before != data.max_bad_fraction:
        screen.say(f"max_bad_fraction is {data.max_bad_fraction:g} from here on, {before:g} before")
    if state["device_batch"] != length.micro_batches.device_batch:
        screen.say(
            f"a forward pass saw {state['device_batch']} images before, {length.micro_batches.device_batch} from "
            "here on: BatchNorm, mixing and dropped branches will not be those of an undisturbed run"
        )
