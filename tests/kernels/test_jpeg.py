"""Crops of JPEG files by native code, against Pillow's full decoding and resizing."""

from __future__ import annotations

import base64
import ctypes
import io
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from sanitized import sanitized
from sklearn.datasets import load_sample_image

from mixer_lightning.data import decode
from mixer_lightning.data.crops import FILTERS, Crops
from mixer_lightning.kernels import compiler, jpeg

pytestmark = pytest.mark.skipif(jpeg.native() is None, reason="no C++ compiler")

RESAMPLING = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
PHOTO = Image.fromarray(load_sample_image("china.jpg")[60:330, 150:550])  # 400 x 270
#: 27 x 22 pixels sampled 4:4:0, written by OpenCV 5.0 with tables of its own: Pillow writes none.
SAMPLED_440 = base64.b85decode(
    """
|JeWF01!$>Nk#wx0RR9200961|JwjV00smF1_cBL1_cHO2L=cV5DE$j2?`Vr4-
60&6c`v66c!d59VH(c8zUSR79cDjBPJ&)Dk&KsEif%8FeNA{DF534LjeZ|2MP!Z6AB6wC>j<TC@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@3f>C@
3f>C@3f>C@3f>C@3f>C@3f>C@BBH01*fP762Oq0TKWL5di}c0sq7R82|tR0|5X40000000000000070|f>M|HJ?!5C8%J1OfpB0{{R30000000
9C600adQ1`;6?A~9isk)i*@02cuP0RaI30000000000000061qTHG!~iD|009I70RsXD00000000000RRF61O*Wx1`;s`aUwENp~2zs|Jncy0|
5X65d#qbKLFL@E+Co}-o7bWh2+f;P|r*9mD!Aph9FRM#Gvh|uYZh+<xfx!>Z6b6(&dyh16a;yDROxWSV~Px8D_UC3Am4_+f@EjR|OmwF|PIIx-
hh?7YE7`%6Tc^&?!<lqpyyK^;cQjI4|<|S1J^vzLbDQ)OZKa&=suLhA|UE-J|r^?M1cfxUVy!iXQfkJG-^NZ-nu`2YmTl^>GV9C$*@f+3Qlh<T
=XrC<g(xqvJQS#VY%a6+abLDId4DX-i>@jzVkO@>%RKH!`4p;W~n?q6-ka2kU$MQBNVM2rU7l_#?eg#=(o4NXCwU-
@AZ6Vt)#nEaRBe^*<C*n{qfz?p7!&!>^Tp|Je""".replace("\n", "")
)


def encoded(image: Image.Image, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **{"quality": 90, **options})
    return file.getvalue()


def cropped(
    file: bytes, box: tuple[int, ...], size: int, filter: str = "bilinear"
) -> npt.NDArray[np.uint8] | None:
    """The crop [3, size, size] of a box (left, top, width, height), as large as that, to_width, to_height, x, y."""
    row = [*box, FILTERS.index(filter)]  # type: ignore[arg-type]
    out = torch.zeros(3, size, size, dtype=torch.uint8)
    is_done = jpeg.crop_files([file], np.array([row]), [out])
    return out.numpy() if is_done[0] else None


def square(file: bytes, side: int, left: int = 0, top: int = 0) -> npt.NDArray[np.uint8] | None:
    """Pixels as they are in the file."""
    return cropped(file, (left, top, side, side, side, side, 0, 0), side)


def pillows(file: bytes) -> Image.Image:
    return Image.open(io.BytesIO(file)).convert("RGB")


def planar(image: Image.Image) -> npt.NDArray[np.uint8]:
    return np.asarray(image).transpose(2, 0, 1)


def decibels(found: npt.NDArray[np.uint8], true: npt.NDArray[np.uint8]) -> float:
    return float(10 * np.log10(255**2 / np.square(found.astype(float) - true).mean()))


OPTIONS: dict[str, dict[str, Any]] = {
    "standard tables": {},
    "tables of its own": {"optimize": True},
    "restart markers": {"restart_marker_blocks": 3},
    "a restart marker per row": {"restart_marker_rows": 1},
    "coarse": {"quality": 15},
    "fine": {"quality": 100},
}


@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("mode", ["RGB", "L"])
def test_pixels_are_libjpegs_to_the_bit_where_chroma_has_all_of_them(
    mode: str, options: dict[str, Any]
) -> None:
    """So Huffman codes, the inverse transform and the conversion of colours are right, in any part of the image."""
    for width, height in ((400, 270), (177, 91), (64, 64)):
        image = PHOTO.resize((width, height)).convert(mode)
        file = encoded(image, subsampling=0, **options)
        whole = planar(pillows(file))
        side = min(width, height) // 2
        for left, top in ((0, 0), (width - side, height - side), (side // 3, side // 2)):
            part = whole[:, top : top + side, left : left + side]
            np.testing.assert_array_equal(square(file, side, left, top), part)


@pytest.mark.parametrize("filter", RESAMPLING)
def test_a_grey_image_is_resized_as_by_pillow_to_the_bit(filter: str) -> None:
    file = encoded(PHOTO.convert("L"))
    image = Image.open(io.BytesIO(file))
    for left, top, width, height, size in (
        (0, 0, 400, 270, 224),
        (31, 17, 202, 251, 96),
        (390, 260, 7, 9, 32),
        (5, 9, 300, 200, 5),
    ):
        true = image.crop((left, top, left + width, top + height)).resize((size, size), RESAMPLING[filter])
        found = cropped(file, (left, top, width, height, size, size, 0, 0), size, filter)
        assert found is not None
        for channel in found:
            np.testing.assert_array_equal(channel, np.asarray(true))


def test_a_window_is_that_part_of_the_resized_box() -> None:
    file = encoded(PHOTO.convert("L"))
    true = Image.open(io.BytesIO(file)).crop((20, 30, 320, 250)).resize((150, 120), Image.Resampling.BICUBIC)
    found = cropped(file, (20, 30, 300, 220, 150, 120, 41, 22), 64, "bicubic")
    assert found is not None
    np.testing.assert_array_equal(found[0], np.asarray(true)[22 : 22 + 64, 41 : 41 + 64])


@pytest.mark.parametrize("filter", RESAMPLING)
@pytest.mark.parametrize("subsampling", [0, 1, 2], ids=["4:4:4", "4:2:2", "4:2:0"])
def test_colours_are_pillows_but_for_rounding(subsampling: int, filter: str) -> None:
    file = encoded(PHOTO, subsampling=subsampling, optimize=True)
    image, random = pillows(file), np.random.default_rng(0)
    for _ in range(8):
        width, height = (int(random.integers(20, most)) for most in image.size)
        left, top = int(random.integers(400 - width + 1)), int(random.integers(270 - height + 1))
        true = image.crop((left, top, left + width, top + height)).resize((128, 128), RESAMPLING[filter])
        found = cropped(file, (left, top, width, height, 128, 128, 0, 0), 128, filter)
        assert found is not None
        assert decibels(found, planar(true)) > 45


def test_all_samplings_of_chroma_are_interpolated_as_by_libjpeg() -> None:
    """Pixels as they are in the file. libjpeg rounds once more between the two directions: 2 levels at most."""
    files = [encoded(PHOTO.resize((75, 53)), subsampling=each) for each in (1, 2)]
    for file, side in ((files[0], 53), (files[1], 53), (SAMPLED_440, 22)):
        found, true = square(file, side), planar(pillows(file))[:, :side, :side]
        assert found is not None
        difference = np.abs(found.astype(int) - true)
        assert difference.max() <= 2
        assert difference.mean() < 0.35


def damaged(file: bytes, random: np.random.Generator) -> bytes:
    """With one to three bytes of the scan's data changed."""
    begin = file.index(b"\xff\xda") + 14
    changed = bytearray(file)
    for _ in range(random.integers(1, 4)):
        changed[random.integers(begin, len(file) - 2)] = random.integers(256)
    return bytes(changed)


@pytest.mark.parametrize(
    "options", [{}, {"restart_marker_blocks": 4}], ids=["one segment", "restart markers"]
)
def test_a_damaged_file_gives_libjpegs_pixels_or_none(options: dict[str, Any]) -> None:
    file, random = encoded(PHOTO.resize((96, 96)), subsampling=0, **options), np.random.default_rng(0)
    decoded, differing = 0, 0
    for _ in range(200):
        each = damaged(file, random)
        found = square(each, 96)
        if found is not None:
            decoded += 1
            equal = found == decode.pixels(each).numpy()
            differing += not equal.all()
            assert equal.mean() > 0.99
    assert 0 < decoded < 200
    # coefficients far beyond those of any image overflow otherwise in libjpeg's 16 bits
    assert differing <= 2


def test_a_file_cut_anywhere_is_left_to_the_decoder_that_says_so() -> None:
    for options in ({}, {"restart_marker_blocks": 2}):
        file = encoded(PHOTO.resize((40, 24)), **options)
        assert square(file, 8) is not None
        assert all(square(file[:length], 8) is None for length in range(len(file)))


def test_fill_bytes_before_markers_are_passed_over() -> None:
    file = encoded(PHOTO.resize((96, 96)), subsampling=0, quality=97, restart_marker_blocks=4)
    begin = file.index(b"\xff\xda") + 14
    head, scan = file[:begin], file[begin:]
    filled = head + re.sub(rb"\xff([\xd0-\xd9])", b"\xff\xff\xff\\1", scan)
    assert len(filled) > len(file) + 50
    np.testing.assert_array_equal(planar(pillows(filled)), planar(pillows(file)))
    np.testing.assert_array_equal(square(filled, 96), planar(pillows(file)))
    # within data they are odd enough to leave the file alone
    assert b"\xff\x00" in scan
    assert square(head + scan.replace(b"\xff\x00", b"\xff\xff\x00", 1), 96) is None


def other_kinds() -> Iterator[tuple[str, bytes]]:
    image = PHOTO.resize((64, 48))
    yield "progressive", encoded(image, progressive=True)
    yield "cmyk", encoded(image.convert("CMYK"))
    yield "rgb", encoded(image, keep_rgb=True)
    yield "a png", b"\x89PNG\r\n\x1a\n" + bytes(64)
    yield "nothing", b""
    file = encoded(image)
    frame = file.index(b"\xff\xc0")
    yield "12 bits", file[: frame + 4] + b"\x0c" + file[frame + 5 :]
    yield "4:1:0", file[: frame + 11] + b"\x41" + file[frame + 12 :]
    # more blocks than there can be bits for: no memory is taken for them
    yield "a size that is not true", file[: frame + 5] + b"\xff\xff\xff\xff" + file[frame + 9 :]


@pytest.mark.parametrize("file", [pytest.param(file, id=name) for name, file in other_kinds()])
def test_other_kinds_are_left_alone(file: bytes) -> None:
    assert square(file, 8) is None


def test_what_it_leaves_is_decoded_all_the_same_and_beside_the_rest() -> None:
    image = PHOTO.resize((64, 48))
    files = [
        encoded(image),
        encoded(image, progressive=True),
        encoded(image)[:-300],
        encoded(image.convert("L")),
    ]
    box = {
        "left": 4,
        "top": 3,
        "width": 40,
        "height": 30,
        "to_width": 32,
        "to_height": 32,
        "x": 0,
        "y": 0,
        "filter": 0,
    }

    def crops_of(positions: Any, *_: Any) -> Crops:
        return Crops(**{name: np.full(len(positions), value) for name, value in box.items()})

    out = [torch.zeros(3, 32, 32, dtype=torch.uint8) for _ in files]
    bad = decode.decode_crops(files, crops_of, out)
    assert [position for position, _ in bad] == [2]
    assert "truncated" in bad[0][1]
    assert decibels(out[1].numpy(), out[0].numpy()) > 40
    assert out[3].float().std() > 10


def test_boxes_beyond_the_image_and_other_filters_are_left_alone() -> None:
    file = encoded(PHOTO.resize((64, 48)))
    assert square(file, 16, left=48, top=32) is not None
    for width, is_taken in (
        (4, False),
        (5, True),
    ):  # libjpeg does not interpolate between two columns of chroma
        narrow = encoded(PHOTO.resize((width, 40)), subsampling=2)
        assert (cropped(narrow, (0, 0, width, 40, 16, 16, 0, 0), 16) is not None) == is_taken
    assert square(file, 16, left=49, top=32) is None
    assert (
        cropped(file, (0, 0, 48, 48, 16, 16, 1, 0), 16) is None
    )  # the window reaches beyond the resized box
    assert cropped(file, (0, 0, 48, 48, 16, 16, 0, 0), 16, "area") is None


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
def test_bits_are_the_same_for_any_processor(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    levels = ["x86-64"] + ["x86-64-v3"] * (" avx2 " in cpuinfo and " fma " in cpuinfo)
    levels += ["x86-64-v4"] * (" avx512bw " in cpuinfo and " avx512vl " in cpuinfo)
    files = [encoded(PHOTO, subsampling=0), encoded(PHOTO, quality=70), encoded(PHOTO.convert("L"))]
    boxes = np.array([[31, 17, 202, 131, 77, 77, 0, 0, filter] for filter in (0, 1, 0)])

    def crops() -> list[torch.Tensor]:
        out = [torch.zeros(3, 77, 77, dtype=torch.uint8) for _ in files]
        assert jpeg.crop_files(files, boxes, out).all()
        return out

    here = crops()
    for level in levels:
        library = tmp_path / f"{level}.so"
        compiler.compile_library(compiler.CSRC / "jpeg.cpp", library, march=level)
        function = ctypes.CDLL(str(library)).jpeg_crops
        function.argtypes = jpeg.native().argtypes  # type: ignore[union-attr]
        monkeypatch.setattr(jpeg, "native", lambda function=function: function)
        assert all(torch.equal(a, b) for a, b in zip(here, crops(), strict=True))
        monkeypatch.undo()


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no g++")
@pytest.mark.parametrize("name", ["jpeg_mutations", "jpeg_restart_mutations"])
def test_damaged_files_do_no_harm_under_sanitizers(name: str, tmp_path: Path) -> None:
    """Crops of damaged files, and the same files written anew with restart markers."""
    image, files = PHOTO.resize((90, 70)), [SAMPLED_440]
    for subsampling in (0, 1, 2):
        files += [
            encoded(image, subsampling=subsampling, **each) for each in ({}, {"restart_marker_blocks": 2})
        ]
    files += [
        encoded(image.convert("L"), optimize=True),
        encoded(image.resize((1, 1))),
        encoded(image, progressive=True),
    ]
    paths = [tmp_path / f"{i}.jpg" for i in range(len(files))]
    for path, file in zip(paths, files, strict=True):
        path.write_bytes(file)
    program = sanitized(name, tmp_path)
    done = subprocess.run([program, "5000", "0", *paths], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    counts = [int(each.split()[0]) for each in done.stdout.split(", ")]
    assert min(counts) > 300


@pytest.mark.parametrize("every", [1, 4, 1000])
@pytest.mark.parametrize("options", [{}, {"subsampling": 0, "restart_marker_blocks": 3}, {"quality": 100}])
def test_restart_markers_leave_all_pixels_as_they_are(options: dict[str, Any], every: int) -> None:
    for image in (PHOTO, PHOTO.convert("L"), PHOTO.resize((1, 1)), Image.new("RGB", (50, 40), "red")):
        file = encoded(image, **options)
        marked = jpeg.with_restart_markers(file, every)
        assert marked is not None
        assert Image.open(io.BytesIO(marked)).size == image.size
        assert pillows(marked).tobytes() == pillows(file).tobytes()
        np.testing.assert_array_equal(
            cropped(marked, (0, 0, *image.size, 16, 16, 0, 0), 16),
            cropped(file, (0, 0, *image.size, 16, 16, 0, 0), 16),
        )
        assert jpeg.with_restart_markers(marked, every) == marked


def test_restart_markers_are_where_they_are_asked_for_and_take_few_bytes() -> None:
    file = encoded(PHOTO, optimize=True)  # 16 x 16 pixels to an MCU
    marked = jpeg.with_restart_markers(file, 4)
    assert marked is not None
    scan = marked[marked.index(b"\xff\xda") :]
    markers = [scan[i + 1] for i in range(len(scan) - 1) if scan[i] == 0xFF and 0xD0 <= scan[i + 1] <= 0xD7]
    mcus = (400 // 16) * -(-270 // 16)
    assert markers == [0xD0 + i % 8 for i in range(-(-mcus // 4) - 1)]
    assert len(marked) < 1.05 * len(file)
    assert jpeg.with_restart_markers(encoded(PHOTO, progressive=True), 4) is None
    assert jpeg.with_restart_markers(file[:-100], 4) is None
