"""last.ckpt and best.ckpt: what they hold, when they are written, and how a run goes on from one."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import time
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from mixer_lightning import results
from mixer_lightning.checkpoints import run_format, sharded, torch_file
from mixer_lightning.engine import sharding
from mixer_lightning.engine.callbacks import MetricsLog, StepCallback
from mixer_lightning.engine.classifier import Classifier
from mixer_lightning.engine.lightning_callbacks import DrivenCallbacks
from mixer_lightning.engine.metrics import NonFiniteLoss
from mixer_lightning.files import atomic_write

log = logging.getLogger(__name__)


#: What a checkpoint says at least, to go on from it.
STATE_KEYS = ("recipe", "step", "state_dict", "optimizer", "precision", "window", "best", "metrics")


def read_last(run_dir: Path) -> tuple[Path, dict[str, Any]] | None:
    """The last good checkpoint of a run, and its file: last.ckpt, or where that is damaged the one before it.

    None where the run has not saved yet.

    Raises:
        ValueError: neither can be read.
    """
    damage = None
    for path in (run_dir / results.LAST, run_dir / results.PREVIOUS):
        if not path.exists():
            continue
        try:
            state = sharded.load(path)
            if missing := [key for key in STATE_KEYS if key not in state]:
                raise ValueError(f"{path} is no checkpoint of a run: it does not hold {', '.join(missing)}")
        except (ValueError, OSError) as error:
            damage = damage or error
            continue
        if damage is not None:
            log.warning(
                "%s. Going on from the one before it, %s of step %s", damage, path.name, f"{state['step']:,}"
            )
        return path, state
    if damage is not None:
        raise ValueError(f"{damage}. Or delete {run_dir}, to train anew") from damage
    return None


class Checkpoints(StepCallback):
    """Keeps last.ckpt, and best.ckpt by the main metric of the val split; without one best.ckpt is the final state.

    A checkpoint is written to a temporary file that then takes the old one's place: killed at any moment, the run
    directory holds a whole one. The old one stays as previous.ckpt, until the run has finished, should a disk damage
    the new one. `record` is what every checkpoint says of its run besides. With what `read_last` gave of an earlier
    session, fitting goes on where that one stood.
    """

    def __init__(
        self,
        run_dir: Path,
        *,
        every_steps: int,
        every_minutes: float | None,
        total_steps: int,
        record: Mapping[str, Any],
        metrics: MetricsLog,
        driven: DrivenCallbacks,
        earlier: tuple[Path, Mapping[str, Any]] | None,
    ) -> None:
        self.run_dir, self.every_steps, self.total_steps = run_dir, every_steps, total_steps
        self.every_minutes, self._saved_at = every_minutes, time.perf_counter()
        self.record, self.metrics, self.driven = dict(record), metrics, driven
        path, state = earlier or (run_dir / results.LAST, None)
        self.state = state
        self._last_is_good = path.name == results.LAST  # or it must not become the previous one
        self.best: dict[str, Any] | None = None  # metric, value, step
        self.saved_step = -1
        self._evaluation_was_due = False  # in what was saved
        self._parts = sharded.Writer(run_dir)
        self._writing: Future[None] | None = None  # in the background
        self._began = time.perf_counter()
        self._seconds_before = 0.0
        if state is not None:
            self.best, self.saved_step = _kept_best(run_dir, state["best"]), state["step"]
            self._evaluation_was_due = state.get("evaluation_due", False)
            self._seconds_before = state["wall_seconds"]
            metrics.train_seconds, metrics.steps_timed = state["train_seconds"], state["steps_timed"]
            of_one = metrics.train_seconds * metrics.num_devices  # of versions that did not count devices
            metrics.device_seconds = state.get("device_seconds", of_one)
            metrics.latest = dict(state["metrics"])

    @property
    def wall_seconds(self) -> float:
        """Wall time of the run over all its sessions."""
        return self._seconds_before + time.perf_counter() - self._began

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The module is on its device: load the state of the earlier session."""
        assert isinstance(pl_module, Classifier)
        pl_module.checkpoint_content = lambda: self._best_content(pl_module)
        if self.state is not None:
            restore_session(pl_module, self.state)
            self.state = None

    def on_metrics(self, trainer: Trainer, module: Classifier, values: Mapping[str, float]) -> None:
        """Keep the weights when the metric is the best so far; a test split chooses nothing."""
        chosen = results.main_metric(name for name in values if name.startswith("val/"))
        metric = chosen if self.best is None else self.best.get("metric", "val/top1")
        if metric is None or metric not in values:
            return
        value, sign = values[metric], -1 if results.is_better_lower(metric) else 1
        is_best = self.best is None or sign * value > sign * self.best["value"]
        if math.isfinite(value) and is_best:
            content = self._best_content(module)
            self.best = {"metric": metric, "value": value, "step": module.step}
            self._write(trainer, results.BEST, content)

    def on_step(self, trainer: Trainer, module: Classifier) -> None:
        """Save if it is time."""
        is_last = module.step == self.total_steps or module.ended is not None
        if is_last or module.step % self.every_steps == 0 or self._is_time(trainer):
            self.save(trainer, module, in_background=not is_last)

    def _is_time(self, trainer: Trainer) -> bool:
        """Whether the last checkpoint is `every_minutes` old, by the clock of the first process."""
        if self.every_minutes is None:
            return False
        return bool(
            trainer.strategy.broadcast(time.perf_counter() - self._saved_at >= 60 * self.every_minutes)
        )

    def _best_content(self, module: Classifier) -> dict[str, Any]:
        """What best.ckpt holds, of finite weights alone."""
        _check_weights(module)
        return self.record | best_state(module)

    def save(self, trainer: Trainer, module: Classifier, *, in_background: bool = False) -> None:
        """Write last.ckpt. All processes call it; the first writes, or each its part where tensors are shared out.

        Such parts may be written `in_background`: the next save, or `settle`, waits for them, and raises what they do.
        """
        self.metrics.pause()
        self.settle()
        if self.saved_step == module.step and self._evaluation_was_due == module.evaluation_due:
            self.metrics.resume()
            return
        state = self.record | snapshot(module)
        state["best"], state["metrics"] = self.best, self.metrics.latest
        state["wall_seconds"], state["train_seconds"] = self.wall_seconds, self.metrics.train_seconds
        state["steps_timed"], state["device_seconds"] = (
            self.metrics.steps_timed,
            self.metrics.device_seconds,
        )
        state["callbacks"], state["ended"] = self.driven.states(), module.ended
        # best.ckpt first: a last.ckpt of the last step says that all is done.
        is_last = module.step == self.total_steps or module.ended is not None
        if is_last and self.best is None:
            self._write(trainer, results.BEST, self.record | best_state(module))
        if trainer.global_rank == 0:
            results.flush_metrics(self.run_dir)  # a power cut must not take what a checkpoint has seen
        if sharded.is_sharded(state):
            self._write_parts(trainer, state, in_background=in_background)
        else:
            self._replace_last(trainer, state)
        self._saved_at = time.perf_counter()
        self.metrics.resume()

    def _replace_last(self, trainer: Trainer, state: Mapping[str, Any]) -> None:
        if trainer.global_rank == 0 and self._last_is_good:
            _keep_previous(self.run_dir)
        self._write(trainer, results.LAST, state)
        self.saved_step, self._evaluation_was_due = state["step"], state["evaluation_due"]
        self._last_is_good = True

    def _write_parts(self, trainer: Trainer, state: Mapping[str, Any], *, in_background: bool) -> None:
        finish = self._parts.begin(state)

        def write() -> None:
            self._replace_last(trainer, finish())
            if trainer.global_rank == 0:
                sharded.remove_unused(self.run_dir)

        executor = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing = executor.submit(write)
        executor.shutdown(wait=False)
        if not in_background:
            self.settle()

    def settle(self) -> None:
        """Wait for what is written in the background.

        Raises:
            OSError: some process could not write its part.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    @contextlib.contextmanager
    def settled(self) -> Iterator[None]:
        """At the end nothing is being written any more; what broke in between goes before what broke in writing."""
        try:
            yield
        except BaseException:
            with contextlib.suppress(OSError, RuntimeError):  # gloo's, where another process has gone
                self.settle()
            raise
        self.settle()

    def _write(self, trainer: Trainer, name: str, state: Mapping[str, Any]) -> None:
        if trainer.global_rank == 0:
            path = self.run_dir / name
            try:
                atomic_write(path, lambda file: torch.save(state, file))
            except (OSError, RuntimeError) as error:  # torch reports a full disk as a RuntimeError
                raise OSError(
                    f"cannot write {path}: {error}. The file that stood there before is intact"
                ) from error


def _kept_best(run_dir: Path, best: dict[str, Any] | None) -> dict[str, Any] | None:
    """What a run says of its best.ckpt; None where that is lost, so that the next evaluation writes one anew.

    A session that was killed may have written a better one after its last.ckpt.
    """
    if best is None:
        return None
    path = run_dir / results.BEST
    try:
        step = torch_file.load(path).get("step")
    except (ValueError, OSError) as error:
        lost = str(error) if path.exists() else f"{path} is gone"
    else:
        if step == best["step"]:
            return best
        lost = f"{path} is of another step, of a session that was killed before it saved"
    log.warning(
        "%s. The best from here on is kept instead; there was %s %.4g at step %s",
        lost,
        best.get("metric", "val/top1"),
        best["value"],
        f"{best['step']:,}",
    )
    return None


def _keep_previous(run_dir: Path) -> None:
    """Give last.ckpt a second name, under which it stays when the next one takes its place."""
    last, previous = run_dir / results.LAST, run_dir / results.PREVIOUS
    if last.exists():
        new = previous.with_name(f".{previous.name}.part")
        new.unlink(missing_ok=True)
        try:
            os.link(last, new)
        except OSError:  # a file system without hard links: for a moment there is the previous one alone
            last.replace(previous)
        else:
            new.replace(previous)


# ------------------------------------------------------------------------------------- what a checkpoint holds


def snapshot(module: Classifier) -> dict[str, Any]:
    """Everything of a module that the next session needs, in plain containers and tensors.

    Raises:
        NonFiniteLoss: a loss or a weight is not finite: no such state is kept.
    """
    assert module.optimizer is not None
    module.accumulator.check()
    _check_weights(module)
    state: dict[str, Any] = {
        "step": module.step,
        "evaluation_due": module.evaluation_due,
        **run_format.with_weights(module.model.state_dict()),
        "optimizer": module.optimizer.state_dict(),
        "precision": module.trainer.precision_plugin.state_dict(),
        "window": module.accumulator.sums(module.step, module.machine.device),
    }
    if module.ema is not None:
        state["ema"] = module.ema.module.state_dict()
        state["ema_updates"] = int(module.ema.n_averaged)
    return state


def best_state(module: Classifier) -> dict[str, Any]:
    """The weights that were evaluated, without what only training needs."""
    weights = {name: sharding.whole(tensor) for name, tensor in module.weights.state_dict().items()}
    return {"step": module.step, **run_format.with_weights(weights)}


def refuse_other_groups(module: Classifier, state: Mapping[str, Any]) -> None:
    """See that an earlier session let the same parameters decay, or its moments fit no more.

    Raises:
        ValueError: it was of a version that grouped them otherwise.
    """
    groups_here, groups_saved = (
        module.make_optimizer(module.model).param_groups,
        state["optimizer"]["param_groups"],
    )
    sizes, sizes_saved = (
        [len(group["params"]) for group in groups] for groups in (groups_here, groups_saved)
    )
    if sizes != sizes_saved:
        raise ValueError(
            f"this run was begun by another version, which grouped the parameters of this model as {sizes_saved} by "
            f"their weight decay; here it is {sizes} (tokens, position tables and scales stay undecayed). Finish it "
            "with that version, or begin anew under another name=<word>, with checkpoint=<this run> to keep its "
            "weights."
        )


def restore_session(module: Classifier, state: Mapping[str, Any]) -> None:
    """Put a module where `snapshot` stood."""
    module.step = state["step"]
    module.evaluation_due = state.get("evaluation_due", False)  # not in checkpoints of earlier versions
    weights, here = run_format.trained_weights(state), module.model.state_dict()
    module.model.load_state_dict(
        {
            name: sharding.like(tensor, here[name]) if name in here else tensor
            for name, tensor in weights.items()
        }
    )
    optimizer = module.configure_optimizers()
    optimizer.load_state_dict(_shared_out(state["optimizer"], optimizer))
    for parameter, slots in optimizer.state.items():
        for name, value in slots.items():
            # Fused kernels walk over memory: the layout must be the parameter's.
            if (
                isinstance(value, Tensor)
                and value.shape == parameter.shape
                and not sharding.is_shared_out(value)
            ):
                slots[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
    if state["precision"]:  # empty unless the earlier session scaled its loss
        module.trainer.precision_plugin.load_state_dict(state["precision"])
    if module.ema is not None:
        module.ema.module.load_state_dict(state["ema"])
        module.ema.n_averaged.fill_(state["ema_updates"])
    if module.machine.rank == 0:  # the sums are those of all processes
        module.accumulator.restore(state["window"])


def _shared_out(state: Mapping[str, Any], optimizer: Optimizer) -> dict[str, Any]:
    """An optimiser's whole state, its tensors shared out as the parameters are that they belong to."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    slots = {
        number: {
            name: sharding.like(value, parameters[number]) if isinstance(value, Tensor) else value
            for name, value in each.items()
        }
        for number, each in state["state"].items()
    }
    return {**state, "state": slots}


def _check_weights(module: Classifier) -> None:
    """A finite loss may still have made a step to infinity; statistics and averages of such a step are no better."""
    tensors = [*module.model.state_dict().values()]
    if module.ema is not None:
        tensors += module.ema.module.state_dict().values()
    mine = [sharding.local(tensor).detach() for tensor in tensors if tensor.is_floating_point()]
    bad = ~torch.isfinite(torch.stack(torch._foreach_norm(mine))).all()
    if any(map(sharding.is_shared_out, tensors)):  # each process sees its part alone
        bad = bad.int()
        torch.distributed.all_reduce(bad, torch.distributed.ReduceOp.MAX)
    if bad:
        raise NonFiniteLoss(
            f"step {module.step:,} made weights that are not finite. Lower optimizer.lr, lengthen the warm-up, "
            "or set clip_grad_norm"
        )
