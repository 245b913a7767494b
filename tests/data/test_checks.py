"""Images of an evaluation are looked at before they are needed: damage that shows at either end is named."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mixer_lightning.data import checks, decode
from mixer_lightning.data.checks import refuse_damaged
from mixer_lightning.data.sources import BadImage, Dataset
from mixer_lightning.data.sources.folder import FolderImages
from mixer_lightning.data.splits import Joined, Subset


def encoded(number: int, form: str) -> bytes:
    noise = np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, form)
    return file.getvalue()


FORMS = {"jpg": "JPEG", "png": "PNG", "webp": "WEBP", "bmp": "BMP", "tif": "TIFF"}


@pytest.fixture
def files(tmp_path: Path) -> FolderImages:
    for number, (suffix, form) in enumerate(FORMS.items()):
        (tmp_path / f"{number}.{suffix}").write_bytes(encoded(number, form))
    return FolderImages(tmp_path, [f"{i}.{suffix}" for i, suffix in enumerate(FORMS)], [0] * len(FORMS))


def of(images) -> Dataset:
    return Dataset("photos", ["one"], {"train": images, "val": images})


def test_whole_images_pass_and_most_are_not_decoded(files, monkeypatch):
    pixels, seen = decode.pixels, []
    monkeypatch.setattr(decode, "pixels", lambda each: seen.append(1) or pixels(each))
    refuse_damaged(of(files), threads=2, say=pytest.fail)
    assert len(seen) == 3  # JPEG and PNG say where they end


@pytest.mark.parametrize("index", range(len(FORMS)))
@pytest.mark.parametrize("damage", ["cut", "empty", "page", "gone"])
def test_damage_is_named_before_the_start(files, tmp_path, index, damage):
    path = Path(files.name(index))
    whole = path.read_bytes()
    path.write_bytes({"cut": whole[:-40], "page": b"<html>"}.get(damage, b""))
    if damage == "gone":
        path.unlink()
    with pytest.raises(BadImage, match=rf"cannot read {path}: .*\n.*\(val\).* remove them"):
        refuse_damaged(of(files), threads=2, say=pytest.fail)
    others = np.setdiff1d(np.arange(len(files)), index)
    refuse_damaged(of(Joined([Subset(files, others), Subset(files, others)])), threads=2, say=pytest.fail)


def test_many_are_counted(files, tmp_path):
    for index in range(len(FORMS)):
        Path(files.name(index)).write_bytes(b"")
    with pytest.raises(BadImage, match=r"and 5 more"):
        refuse_damaged(of(Joined([files, files])), threads=2, say=pytest.fail)


def test_a_look_that_takes_a_while_is_said(files, monkeypatch):
    monkeypatch.setattr(checks, "MANY_IMAGES", len(FORMS))
    said: list[str] = []
    refuse_damaged(of(files), threads=2, say=said.append)
    assert said == [f"looking whether the {len(FORMS)} images to evaluate on (val) are whole"]
