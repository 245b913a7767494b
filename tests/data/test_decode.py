"""Every kind of stored image becomes 8-bit RGB, and every kind of damage a ValueError that says what is wrong."""

from __future__ import annotations

import io
import struct
import subprocess
import weakref

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps, UnidentifiedImageError

from mixer_lightning.data import decode as decoding
from mixer_lightning.data.crops import crop_one
from mixer_lightning.data.decode import (
    decode,
    decode_crops,
    header,
    jpeg_size,
    only_raster_formats,
    orientation,
    pixels,
    raster_formats,
    turned,
)
from mixer_lightning.data.sources.names import RASTER_FORMATS
from mixer_lightning.data.transforms import Augment
from mixer_lightning.kernels import jpeg

pytestmark = pytest.mark.filterwarnings("ignore:The given buffer is not writable")


def encoded(image: Image.Image, form: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


COLOURS = np.array([[[255, 0, 0], [0, 255, 0]], [[0, 0, 255], [10, 20, 30]]], dtype=np.uint8)


def test_rgb_is_unchanged():
    image = decode(encoded(Image.fromarray(COLOURS), "PNG"))
    assert image.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(image), COLOURS)


def test_a_path_reads_as_its_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(encoded(Image.fromarray(COLOURS), "PNG"))
    for path in (tmp_path / "a.png", str(tmp_path / "a.png")):
        np.testing.assert_array_equal(np.asarray(decode(path)), COLOURS)


def test_grey_fills_all_three_channels():
    grey = np.array([[0, 100], [200, 255]], dtype=np.uint8)
    np.testing.assert_array_equal(
        np.asarray(decode(encoded(Image.fromarray(grey), "PNG"))), np.stack([grey] * 3, axis=-1)
    )


def test_black_and_white_bits_become_0_and_255():
    bits = Image.fromarray(np.array([[0, 255]], dtype=np.uint8)).convert("1")
    assert np.asarray(decode(encoded(bits, "PNG"))).tolist() == [[[0] * 3, [255] * 3]]


def test_sixteen_bit_grey_keeps_the_high_byte():
    deep = Image.fromarray(np.array([[0, 0x12FF], [0x8000, 0xFFFF]], dtype=np.uint16))
    for form in ("PNG", "TIFF"):
        red = np.asarray(decode(encoded(deep, form)))[..., 0]
        assert red.tolist() == [[0, 0x12], [0x80, 0xFF]]


def test_palette_gives_the_palette_colours():
    image = Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    np.testing.assert_array_equal(np.asarray(decode(encoded(image, "PNG"))), COLOURS)


def test_transparent_palette_warns_nobody(recwarn):
    image = Image.fromarray(COLOURS).convert("P", palette=Image.Palette.ADAPTIVE, colors=4)
    decoded = decode(encoded(image, "PNG", transparency=b"\x00\x80\xff\xff"))
    assert decoded.mode == "RGB"
    np.testing.assert_array_equal(np.asarray(decoded), COLOURS)
    assert not list(recwarn)


def test_alpha_is_dropped_not_composited():
    clear = np.array([[[200, 100, 50, 0]]], dtype=np.uint8)
    assert np.asarray(decode(encoded(Image.fromarray(clear), "PNG"))).tolist() == [[[200, 100, 50]]]


def test_cmyk_jpeg_is_near_the_colour_it_was_made_from():
    red = Image.new("RGB", (16, 16), (220, 30, 40))
    decoded = np.asarray(decode(encoded(red.convert("CMYK"), "JPEG", quality=95))).astype(int)
    assert np.abs(decoded - [220, 30, 40]).max() < 12


def test_exif_orientation_is_not_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    assert decode(encoded(Image.new("RGB", (20, 10)), "JPEG", exif=exif)).size == (20, 10)


def test_damage_is_named():
    noise = np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), "JPEG")
    with pytest.raises(ValueError, match="empty"):
        decode(b"")
    with pytest.raises(ValueError, match="not an image"):
        decode(b"<html>404</html>")
    with pytest.raises(ValueError, match="truncated"):
        decode(whole[: len(whole) // 2])


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        decode(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))


# ---- the fast way to pixels


def picture(width: int = 37, height: int = 29) -> Image.Image:
    small = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def turned_exif() -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = 6  # rotate by 90 degrees
    return exif


DEEP = Image.fromarray(np.random.default_rng(0).integers(0, 2**16, (29, 37)).astype(np.uint16))

#: Every kind of file that data sets hold.
FILES: dict[str, bytes] = {
    "baseline": encoded(picture(), "JPEG"),
    "full colour": encoded(picture(), "JPEG", subsampling="4:4:4", quality=95),
    "half colour": encoded(picture(), "JPEG", subsampling="4:2:2"),
    "progressive": encoded(picture(), "JPEG", progressive=True),
    "restarts": encoded(picture(), "JPEG", restart_marker_blocks=1),
    "not YCbCr": encoded(picture(), "JPEG", keep_rgb=True),
    "rotated": encoded(picture(), "JPEG", exif=turned_exif()),
    "one pixel": encoded(picture(1, 1), "JPEG"),
    "a row": encoded(picture(33, 1), "JPEG"),
    "a column": encoded(picture(1, 33), "JPEG"),
    "large": encoded(picture(641, 483), "JPEG"),
    "grey JPEG": encoded(picture().convert("L"), "JPEG"),
    "CMYK": encoded(picture().convert("CMYK"), "JPEG"),
    "PNG": encoded(picture(), "PNG"),
    "grey PNG": encoded(picture().convert("L"), "PNG"),
    "grey and alpha": encoded(picture().convert("LA"), "PNG"),
    "palette": encoded(picture().convert("P"), "PNG"),
    "16 bit": encoded(DEEP, "PNG"),
    "WebP": encoded(picture(), "WEBP"),
    "lossless WebP": encoded(picture().convert("RGBA"), "WEBP", lossless=True),
    "TIFF": encoded(picture(), "TIFF"),
    "BMP": encoded(picture(), "BMP"),
    "PPM": encoded(picture(), "PPM"),
    "GIF": encoded(picture().convert("P"), "GIF"),
}


def in_planes(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("kind", FILES)
def test_pixels_are_those_of_pillow(kind):
    found = pixels(FILES[kind])
    assert found.dtype == torch.uint8
    assert torch.equal(found, in_planes(decode(FILES[kind])))
    if kind != "16 bit":  # which Pillow would cut off at 255
        assert torch.equal(found, in_planes(Image.open(io.BytesIO(FILES[kind])).convert("RGB")))


def test_plain_jpegs_do_not_go_through_pillow(monkeypatch):
    monkeypatch.setattr(decoding, "decode", lambda _: pytest.fail("this is slower"))
    for kind in (
        "baseline",
        "full colour",
        "half colour",
        "progressive",
        "rotated",
        "one pixel",
        "grey JPEG",
    ):
        pixels(FILES[kind])


def test_pixels_in_memory_are_taken_as_they_are():
    found = pixels(COLOURS)
    assert found.shape == (3, 2, 2)
    assert found.permute(1, 2, 0).tolist() == COLOURS.tolist()


@pytest.mark.parametrize("kind", FILES)
def test_the_size_stands_in_a_jpegs_header(kind):
    with Image.open(io.BytesIO(FILES[kind])) as image:
        assert jpeg_size(FILES[kind]) == (image.size if image.format == "JPEG" else None)


def test_too_large_an_image_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setattr(decoding, "MAX_PIXELS", 37 * 29 - 1)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", (37 * 29 - 1) // 2)
    for kind in ("baseline", "PNG"):
        with pytest.raises(ValueError, match="exceeds limit"):
            pixels(FILES[kind])


# ---- damage


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow comments on cut TIFFs
@pytest.mark.parametrize("kind", [kind for kind in FILES if kind != "large"])
def test_no_cut_ends_in_anything_but_an_image_or_a_value_error(kind):
    whole = FILES[kind]
    reasons = []
    for end in range(0, len(whole), max(1, len(whole) // 60)):
        try:
            expected = in_planes(decode(whole[:end]))
        except ValueError as error:
            reasons.append(str(error))
            with pytest.raises(ValueError):  # noqa: PT011  (the same, below)
                pixels(whole[:end])
        else:
            assert torch.equal(pixels(whole[:end]), expected)
    assert len(reasons) > 40 or kind == "one pixel"
    assert all(reasons)


@pytest.mark.parametrize("kind", ["baseline", "progressive", "grey JPEG", "CMYK"])
def test_no_cut_jpeg_is_filled_up_with_grey(kind):
    """As some decoders do: such an image would be trained on."""
    for missing in (1, 2, 3, 50, 300):
        with pytest.raises(ValueError, match=r"[Tt]runcated"):
            pixels(FILES[kind][:-missing])


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::RuntimeWarning")
@settings(max_examples=300, deadline=None)
@given(kind=st.sampled_from([kind for kind in FILES if kind != "large"]), data=st.data())
def test_no_damage_ends_in_anything_but_an_image_or_a_value_error(kind, data):
    damaged = bytearray(FILES[kind])
    for _ in range(data.draw(st.integers(1, 5))):
        place = data.draw(st.integers(0, len(damaged) - 1))
        damaged[place : place + data.draw(st.integers(0, 3))] = data.draw(st.binary(max_size=3))
    try:
        found = pixels(bytes(damaged))
    except ValueError as error:
        reason = str(error)
    else:
        reason = "none"
        assert found.dtype == torch.uint8
        assert found.shape[0] == 3
        assert found.numel() > 0
    assert reason


@given(st.binary(max_size=200))
@settings(max_examples=200, deadline=None)
def test_noise_is_no_image(noise):
    for head in (b"", b"\xff\xd8", b"\xff\xd8\xff\xe0", b"\x89PNG\r\n\x1a\n"):
        jpeg_size(head + noise)
        with pytest.raises(ValueError, match=r"."):
            pixels(head + noise)


# ---- crops of a part of a batch


@pytest.fixture
def by_libjpeg(monkeypatch):
    """Without native code: the same bits however an image is cropped."""
    monkeypatch.setattr(jpeg, "native", lambda: None)


def test_crops_writes_the_crops_of_what_can_be_decoded_and_names_the_rest():
    kinds = ["baseline", "CMYK", "PNG", "16 bit", "one pixel"]
    files = [FILES[kind] for kind in kinds]
    files[1:1] = [b""]
    files[4:4] = [files[0][:300], COLOURS]
    asked = []

    def crops_of(positions, widths, heights):
        asked.append((positions.tolist(), widths.tolist(), heights.tolist()))
        return Augment(eval_crop=0.875).eval_crops(widths, heights, 8)

    out = torch.full((8, 3, 8, 8), 7, dtype=torch.uint8)
    bad = decode_crops(files, crops_of, list(out))
    assert [position for position, _ in bad] == [1, 4]
    assert "empty" in bad[0][1]
    assert "truncated" in bad[1][1].lower()
    assert (out[[1, 4]] == 7).all()
    good = [0, 2, 3, 5, 6, 7]
    told = [0, 2, 3, 4, 5, 6, 7]  # a cut file has a header
    assert asked == [(told, [37, 37, 37, 37, 2, 37, 1], [29, 29, 29, 29, 2, 29, 1])]
    for i in good:
        image = pixels(files[i])
        crop = Augment(eval_crop=0.875).eval_crops(np.array([image.shape[2]]), np.array([image.shape[1]]), 8)
        difference = (out[i].int() - crop_one(image, crop, 0, 8)).abs().max()
        assert difference <= (6 if i == 0 else 0)  # crops of plain JPEGs are rounded in another order


def test_crops_holds_one_decoded_jpeg_at_a_time(monkeypatch, by_libjpeg):
    alive, most = weakref.WeakSet(), []

    def counted(encoded):
        image = pixels(encoded)
        alive.add(image)
        most.append(len(alive))
        return image

    monkeypatch.setattr(decoding, "pixels", counted)
    out = torch.zeros(6, 3, 8, 8, dtype=torch.uint8)
    files = [FILES["baseline"], FILES["progressive"]] * 3
    assert not decode_crops(
        files, lambda _, widths, heights: Augment().eval_crops(widths, heights, 8), list(out)
    )
    assert len(most) == 6
    assert max(most) <= 2  # the last one's name is taken when the next is there


def test_crops_asks_again_where_a_header_lies(monkeypatch, by_libjpeg):
    """As a decoder would see it that takes the last of several headers."""
    out = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    files = [FILES["baseline"], FILES["progressive"]]

    def crops_of(positions, widths, heights):
        return Augment().eval_crops(widths, heights, 8)

    with monkeypatch.context() as lying:
        lying.setattr(decoding, "jpeg_size", lambda _: (500, 400))
        assert not decode_crops(files, crops_of, list(out))
    right = torch.zeros(2, 3, 8, 8, dtype=torch.uint8)
    assert not decode_crops(files, crops_of, list(right))
    assert torch.equal(out, right)
    assert right.any()


def test_crops_of_nothing_that_can_be_decoded():
    out = torch.full((2, 3, 4, 4), 7, dtype=torch.uint8)
    bad = decode_crops(
        [b"", b"?"], lambda _, widths, heights: Augment().eval_crops(widths, heights, 4), list(out)
    )
    assert [position for position, _ in bad] == [0, 1]
    assert (out == 7).all()


# ---- formats


POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.fixture
def no_programs(monkeypatch):
    """Whoever starts a program is found out."""
    started: list[object] = []
    monkeypatch.setattr(
        subprocess, "Popen", lambda *args, **_: started.append(args) or pytest.fail("a program")
    )
    monkeypatch.setattr("PIL.EpsImagePlugin.gs_binary", "gs")
    return started


def test_postscript_is_no_image_and_starts_no_program(no_programs, tmp_path):
    (tmp_path / "evil.jpg").write_bytes(POSTSCRIPT)
    for read in (decode, pixels, header):
        with pytest.raises(ValueError, match="not an image of a known format"):
            read(POSTSCRIPT)
    out = torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    bad = decode_crops(
        [POSTSCRIPT], lambda _, w, h: Augment().eval_crops(w, h, 8), list(out), exif_orientation=True
    )
    assert [position for position, _ in bad] == [0]
    with only_raster_formats(), pytest.raises(UnidentifiedImageError):
        Image.open(tmp_path / "evil.jpg").load()
    assert not no_programs
    assert "EPS" in Image.ID  # as before, for others


@pytest.mark.parametrize("form", [form for form in RASTER_FORMATS if form not in ("MPO", "HEIF")])
def test_every_format_is_decoded(form):
    plain = picture().convert("P") if form in ("GIF", "PCX") else picture()
    if form in ("PSD", "SUN"):
        pytest.skip("Pillow reads but does not write it")
    options = (
        {"lossless": True} if form in ("WEBP", "JPEG2000") else {"sizes": [(37, 29)]} if form == "ICO" else {}
    )
    found = decode(encoded(plain, form, **options))
    assert found.size == (37, 29)
    near = np.abs(np.asarray(found).astype(int) - np.asarray(plain.convert("RGB"))).mean()
    assert near < 8


def test_heic_is_decoded_where_its_plugin_is_there():
    pytest.importorskip("pillow_heif")
    raster_formats()
    found = decode(encoded(picture(64, 48), "HEIF", quality=95))
    assert np.abs(np.asarray(found).astype(int) - np.asarray(picture(64, 48))).mean() < 8


@pytest.mark.parametrize(
    "error",
    [
        TypeError("x"),
        struct.error("x"),
        SyntaxError("x"),
        MemoryError(),
        KeyError("x"),
        RecursionError("x"),
        AttributeError(),
    ],
)
def test_whatever_a_decoder_raises_is_the_images_fault(monkeypatch, error):
    def raises(self):
        raise error

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", raises)
    with pytest.raises(ValueError, match=r"memory|x|AttributeError") as found:
        pixels(FILES["PNG"])
    assert str(found.value)


def test_a_tiff_whose_tags_are_texts_is_damaged():
    """Pillow raises TypeError then."""
    whole = FILES["TIFF"]
    begin, *_ = struct.unpack_from("<I", whole, 4)
    (entries,) = struct.unpack_from("<H", whole, begin)
    causes = []
    for entry in range(entries):
        damaged = bytearray(whole)
        struct.pack_into("<H", damaged, begin + 2 + 12 * entry + 2, 2)  # ASCII
        try:
            pixels(bytes(damaged))
        except ValueError as error:
            causes.append(type(error.__cause__))
    assert TypeError in causes


# ---- orientation


@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("code", range(1, 10))
def test_an_image_is_turned_as_pillow_turns_it(form, code, by_libjpeg):
    exif = Image.Exif()
    exif[0x0112] = code
    file = encoded(picture(37, 29), form, exif=exif)
    with Image.open(io.BytesIO(file)) as image:
        expected = in_planes(ImageOps.exif_transpose(image).convert("RGB"))
    assert torch.equal(turned(pixels(file), orientation(file)), expected)
    out = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    augment = Augment(eval_crop=0.9)
    sizes: list[tuple[int, int]] = []

    def crops_of(positions, widths, heights):
        sizes.extend(zip(widths.tolist(), heights.tolist(), strict=True))
        return augment.eval_crops(widths, heights, 16)

    assert not decode_crops([file, COLOURS], crops_of, list(out), exif_orientation=True)
    width, height = expected.shape[2], expected.shape[1]
    crop = augment.eval_crops(np.array([width]), np.array([height]), 16)
    assert sizes == [(width, height), (2, 2)]
    assert torch.equal(out[0], crop_one(expected, crop, 0, 16))


def test_damaged_metadata_turn_nothing():
    whole = encoded(picture(), "JPEG", exif=turned_exif())
    assert orientation(whole) == 6
    assert orientation(whole.replace(b"Exif", b"Exix")) == 1
    assert orientation(b"<html>") == orientation(COLOURS) == 1
