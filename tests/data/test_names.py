"""Names of images: which endings stand for one, and where."""

from __future__ import annotations

import pytest
from PIL import Image

from mixer_lightning.data.sources.names import (
    ARCHIVE_SUFFIXES,
    FOLDER_ENDINGS,
    SHARD_SUFFIXES,
    stem,
    suffix_of,
)


@pytest.mark.parametrize("suffix", ARCHIVE_SUFFIXES)
def test_every_suffix_is_one_that_pillow_decodes(suffix):
    Image.init()
    assert Image.registered_extensions()[f".{suffix}"] in Image.OPEN


def test_what_each_place_takes_for_an_image():
    assert set(SHARD_SUFFIXES) == {"jpg", "jpeg", "png", "webp"}
    assert set(FOLDER_ENDINGS) == {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff"}
    assert len(ARCHIVE_SUFFIXES) == len(set(ARCHIVE_SUFFIXES)) == 12


@pytest.mark.parametrize(
    ("name", "suffix", "base"),
    [
        ("photos/x.JPEG", "jpg", "photos/x"),
        ("a.b.jpe", "jpg", "a.b"),
        ("x.tiff", "tiff", "x"),
        ("jpg", "", "jpg"),
        ("a.jpg/notes.txt", "", "a.jpg/notes.txt"),
        ("x.tar", "", "x.tar"),
    ],
)
def test_suffix_and_stem(name, suffix, base):
    assert (suffix_of(name), stem(name)) == (suffix, base)
