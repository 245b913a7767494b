"""What several processes of a run do together; a single process does nothing."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def is_distributed() -> bool:
    """Whether this process is one of several."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def leave_process_group() -> None:
    """Part from the other processes, or the next run of this process could not meet them."""
    if is_distributed():
        torch.distributed.destroy_process_group()


def gather_objects(value: Any) -> list[Any]:
    """The value of each process, in the order of their numbers, on all of them."""
    found: list[Any] = [value]
    if is_distributed():
        found *= torch.distributed.get_world_size()
        torch.distributed.all_gather_object(found, value)
    return found


def average_batch_norm(model: nn.Module) -> None:
    """Give every process the mean of all processes' BatchNorm statistics (timm's `--dist-bn reduce`)."""
    if not is_distributed():
        return
    statistics = [buffer for buffer in model.buffers() if buffer.is_floating_point()]
    if statistics:
        flat = torch.cat([buffer.flatten() for buffer in statistics])
        torch.distributed.all_reduce(flat)
        flat /= torch.distributed.get_world_size()
        means = torch.split(flat, [buffer.numel() for buffer in statistics])
        torch._foreach_copy_(
            statistics, [mean.view_as(buffer) for mean, buffer in zip(means, statistics, strict=True)]
        )


def all_gather_interleaved(batches: Iterable[Tensor], device: torch.device) -> Tensor:
    """Values of all processes' images in the order of the images: [N, ...], on the CPU of every process.

    `batches` [B, ...] are those of this process, which has the images rank, rank + W, rank + 2 W, ... of N.
    """
    mine = list(batches)
    if not is_distributed():
        return torch.cat(mine).cpu()
    # A process that has no image at all knows neither the shape nor the type: others tell.
    shapes: list[tuple[int, Any, Any]] = [(0, None, None)] * torch.distributed.get_world_size()
    known = (mine[0].shape[1:], mine[0].dtype) if mine else (None, None)
    torch.distributed.all_gather_object(shapes, (sum(map(len, mine)), *known))
    lengths = [length for length, _, _ in shapes]
    shape, dtype = next((shape, dtype) for _, shape, dtype in shapes if dtype is not None)
    padded = torch.zeros(max(lengths), *shape, dtype=dtype, device=device)
    padded[: sum(map(len, mine))] = torch.cat([padded[:0], *mine])
    parts = [torch.empty_like(padded) for _ in lengths]
    torch.distributed.all_gather(parts, padded)
    return torch.stack(parts, dim=1).flatten(0, 1)[: sum(lengths)].cpu()  # image i is process i mod W's
