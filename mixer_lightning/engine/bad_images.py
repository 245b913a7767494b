"""The images that a run has named as bad, in bad_images.jsonl: it goes on without them once they are removed."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from mixer_lightning import results
from mixer_lightning.data import identity
from mixer_lightning.data.sources import Dataset, Images


class BadImagesLog:
    """Adds each bad image once to the run's bad_images.jsonl; any thread and any process may call it.

    `known` are the rows of that file which stay.
    """

    def __init__(self, run_dir: Path, known: Iterable[Mapping[str, Any]]) -> None:
        self.run_dir = run_dir
        self._known = {(each["split"], each["key"]) for each in known}
        self._lock = threading.Lock()

    def __call__(self, split: str, images: Images, index: int, reason: str) -> None:
        """An image of a split, or of some of it, cannot be read or decoded."""
        row = {"split": split, **identity.describe(images, index)}
        with self._lock:
            if (split, row["key"]) not in self._known:
                self._known.add((split, row["key"]))
                results.append_bad_image(self.run_dir, {"image": images.name(index), "reason": reason, **row})


def record(source: Dataset, run_dir: Path, stored: Mapping[str, Any] | None) -> dict[str, Any]:
    """`identity.record` of the data now; with what a run has `stored`, also which images it named are gone."""
    if stored is None:
        return identity.record(source)
    return identity.record(source, bad=[*identity.without(stored), *results.read_bad_images(run_dir)])


def num_images(of_data: Mapping[str, Any], split: str) -> int:
    """How many images a split had when the run began."""
    gone = sum(bool(each["split"] == split) for each in identity.without(of_data))
    return int(of_data["images"][split]) + gone


def newly_gone(of_data: Mapping[str, Any], stored: Mapping[str, Any]) -> Iterator[str]:
    """What to say of images that were there when the run stored this: a sentence for each split."""
    before = Counter(each["split"] for each in identity.without(stored))
    now = Counter(each["split"] for each in identity.without(of_data))
    for split, count in (now - before).items():
        images = f"{count:,} {split} image{'s' if count > 1 else ''}"
        rest = "an epoch keeps its steps" if split == "train" else "figures from here on are without"
        yield f"{images} named in {results.BAD_IMAGES} {'are' if count > 1 else 'is'} gone: {rest}"
