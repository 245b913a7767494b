"""Names of images: which endings stand for one, and where."""

from __future__ import annotations

import pytest
from PIL import Image

from mixer_lightning.data.sources.names import (
    IMAGE_SUFFIXES,
    PLUGINS,
    RASTER_FORMATS,
    SHARD_SUFFIXES,
    ending_of,
    is_hidden,
    left_out,
    stem,
    suffix_of,
)

#: Formats of Pillow that start a program (EPS: Ghostscript), open what they hold by any format (IPTC), need a program
#: or Windows to be drawn (WMF, BUFR, GRIB, HDF5), or hold no photograph: films, fonts, cursors, textures, X bitmaps.
NOT_READ = {
    *("EPS", "IPTC", "WMF", "BUFR", "GRIB", "HDF5"),
    *(
        "BLP",
        "CUR",
        "DCX",
        "DDS",
        "FITS",
        "FLI",
        "FTEX",
        "GBR",
        "ICNS",
        "IM",
        "IMT",
        "MCIDAS",
        "MPEG",
        "MSP",
        "PCD",
    ),
    *("PIXAR", "SPIDER", "XBM", "XPM", "XVTHUMB"),
}


def test_every_format_of_pillow_is_read_or_named_here():
    Image.init()
    known = {form.upper() for form in Image.OPEN}
    assert known - NOT_READ <= set(RASTER_FORMATS) | {"HEIF", "AVIF"}
    assert not NOT_READ & set(RASTER_FORMATS)
    assert set(RASTER_FORMATS) - known <= {*PLUGINS, "MPO"}  # MPO is found by JPEG's reader


def test_every_ending_of_pillow_for_these_formats_is_read():
    Image.init()
    theirs = {suffix[1:]: form for suffix, form in Image.registered_extensions().items()}
    for form, suffixes in RASTER_FORMATS.items():
        if form not in PLUGINS:
            assert {suffix for suffix, its in theirs.items() if its == form} - {"pfm"} <= set(suffixes)
    assert len(IMAGE_SUFFIXES) == len(set(IMAGE_SUFFIXES))
    assert set(SHARD_SUFFIXES) < set(IMAGE_SUFFIXES)


def test_what_is_left_out_is_counted_by_ending():
    assert [ending_of(each) for each in ("a/x.TXT", "x", "png", ".x", "a.b/x", "x.tar.gz")] == [
        ".txt",
        *["without an ending"] * 4,
        ".gz",
    ]
    assert left_out({".txt": 1}) == "1 file is not read, by ending: 1 .txt"
    counts = {".txt": 2, ".xml": 1200, **{f".{i}": 1 for i in range(7)}}
    assert (
        left_out(counts)
        == "1,209 files are not read, by ending: 1,200 .xml, 2 .txt, 1 .0, 1 .1, 1 .2, 1 .3, 3 others"
    )


def test_a_plugin_is_named_where_it_would_help(monkeypatch):
    monkeypatch.setattr(
        "mixer_lightning.data.sources.names.IMAGE_SUFFIXES", tuple(s for s in IMAGE_SUFFIXES if s != "heic")
    )
    assert left_out({".heic": 30}).endswith("30 .heic (pip install 'mixer-lightning[heic]' reads HEIF)")
    assert "pip" not in left_out({".txt": 30})


@pytest.mark.parametrize(
    ("name", "hidden"), [("._x.jpg", True), ("a/.DS_Store", True), ("x.jpg", False), (".a/x.jpg", False)]
)
def test_hidden(name, hidden):
    assert is_hidden(name) is hidden


@pytest.mark.parametrize(
    ("name", "suffix", "base"),
    [
        ("photos/x.JPEG", "jpg", "photos/x"),
        ("a.b.jpe", "jpg", "a.b"),
        ("x.tiff", "tiff", "x"),
        ("x.JFIF", "jpg", "x"),
        ("jpg", "", "jpg"),
        ("set.v1/cat/png", "", "set.v1/cat/png"),
        ("a.jpg/notes.txt", "", "a.jpg/notes.txt"),
        ("x.tar", "", "x.tar"),
    ],
)
def test_suffix_and_stem(name, suffix, base):
    assert (suffix_of(name), stem(name)) == (suffix, base)
