"""Which sources are the same: what an earlier session recorded of one, beside what is there now."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mixer_lightning.data.sources import Dataset
from mixer_lightning.data.sources.arrays import Arrays
from mixer_lightning.prepare.journal import Journal, read_journal, refuse_differences
from mixer_lightning.prepare.options import Options
from mixer_lightning.prepare.readers import LABELS, Source, read_dataset

OPTIONS = Options(data="numbers", output=Path("out"))


def source(labels: list[int]) -> Source:
    images = Arrays("numbers", np.zeros((4, 2, 2, 3), np.uint8), labels)
    return read_dataset(Dataset("numbers", ["even", "odd"], {"train": images}), OPTIONS)


def compare(recorded: list[str], now: Source) -> None:
    refuse_differences(OPTIONS.record(), recorded, OPTIONS, now, "out holds a beginning of another set")


def test_a_journal_of_another_version_or_a_cut_one_is_named(tmp_path):
    path = tmp_path / "journal.json"
    Journal(options={}, source=[], num_shards={}).write(path)
    whole = path.read_text()
    for text in (whole[:-1] + ', "more": 1}', whole[:-9]):
        path.write_text(text)
        with pytest.raises(
            ValueError, match=rf"{path} is damaged or of another version .* delete {tmp_path} "
        ):
            read_journal(path)


def test_a_source_that_was_relabelled_is_another_source():
    before = source([0, 1, 0, 1]).fingerprint
    compare(before, source([0, 1, 0, 1]))
    with pytest.raises(
        ValueError, match=r"another set:\n  source: train: labels .* there, train: labels .* here"
    ):
        compare(before, source([0, 1, 1, 0]))


def test_beginnings_of_versions_that_recorded_no_labels_are_gone_on_with():
    before = [each for each in source([0, 1, 0, 1]).fingerprint if f" {LABELS} " not in each]
    assert len(before) == 2
    compare(before, source([0, 1, 0, 1]))
    moved = OPTIONS.record() | {"overrides": ["data.root=/old"]}
    refuse_differences(moved, before, OPTIONS, None, "out holds another set")
    with pytest.raises(ValueError, match="source: train: 5 "):
        compare([before[0], before[1].replace(" 4 ", " 5 ")], source([0, 1, 0, 1]))
