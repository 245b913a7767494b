"""Every kind of stored image becomes 8-bit RGB, and every kind of damage a ValueError that says what is wrong."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from mixer_lightning.data.decode import decode


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
    pixels = np.array([[[200, 100, 50, 0]]], dtype=np.uint8)
    assert np.asarray(decode(encoded(Image.fromarray(pixels), "PNG"))).tolist() == [[[200, 100, 50]]]


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


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow comments on cut TIFFs
@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "PPM", "TIFF", "GIF"])
def test_no_cut_ends_in_anything_but_an_image_or_a_value_error(form):
    noise = np.random.default_rng(1).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    whole = encoded(Image.fromarray(noise), form)
    reasons = []
    for end in range(0, len(whole), 7):
        try:
            assert decode(whole[:end]).mode == "RGB"
        except ValueError as error:
            reasons.append(str(error))
    assert len(reasons) > 0.8 * len(whole) / 7
    assert all(reasons)


def test_floating_point_pixels_are_refused():
    with pytest.raises(ValueError, match="floating point"):
        decode(encoded(Image.fromarray(np.ones((2, 2), dtype=np.float32)), "TIFF"))
