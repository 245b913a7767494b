"""Dashboards, never in the way of training: one file each."""

from __future__ import annotations

from typing import NamedTuple


class Labels(NamedTuple):
    """By what a run is found among others: runs that belong together, the kind of work, and tags."""

    group: str
    job_type: str
    tags: tuple[str, ...]


#: The kinds of work.
PRETRAINING, TRANSFER = "pretraining", "transfer"
