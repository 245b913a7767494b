"""One image at a time: what is kept byte for byte, what is written anew, what is left out and why."""

from __future__ import annotations

import io

import numpy as np
import pytest
from pictures import picture
from PIL import Image, ImageDraw

from mixer_lightning.kernels import jpeg as jpeg_kernel
from mixer_lightning.prepare.cleaning import CleaningOptions, clean_image, difference_hash, read_hashes


def cleaned(encoded, suffix="jpg", **options):
    return clean_image(lambda: encoded, suffix, CleaningOptions(**options))


def opened(encoded):
    image = Image.open(io.BytesIO(encoded))
    image.load()
    return image


def drawing(number: int, size=(300, 200)) -> Image.Image:
    """Discs: something that looks alike after resizing and compression, as noise does not."""
    draws = np.random.default_rng(number)
    image = Image.new("RGB", size, tuple(draws.integers(0, 256, 3).tolist()))
    brush = ImageDraw.Draw(image)
    for _ in range(12):
        x, y, r = draws.integers(0, 300), draws.integers(0, 200), draws.integers(10, 60)
        brush.ellipse([x - r, y - r, x + r, y + r], fill=tuple(draws.integers(0, 256, 3).tolist()))
    return image


def jpeg(image: Image.Image, **how) -> bytes:
    file = io.BytesIO()
    image.save(file, "JPEG", **how)
    return file.getvalue()


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("form", "mode", "suffix"),
    [
        ("JPEG", "RGB", "jpg"),
        ("JPEG", "L", "jpg"),
        ("PNG", "RGBA", "png"),
        ("PNG", "P", "png"),
        ("WEBP", "RGB", "webp"),
    ],
)
def test_usual_images_keep_their_bytes(form, mode, suffix, verify):
    encoded = picture(1, form, mode=mode)
    found = cleaned(encoded, suffix, verify=verify)
    assert (found.encoded, found.suffix, found.notes) == (encoded, suffix, ())
    assert found.bytes_read == len(encoded)


@pytest.mark.parametrize("verify", [True, False])
def test_orientation_is_kept_as_stored(verify):
    exif = Image.Exif()
    exif[0x0112] = 6
    encoded = jpeg(drawing(0), exif=exif)
    assert cleaned(encoded, verify=verify).encoded == encoded


@pytest.mark.parametrize("verify", [True, False])
def test_a_png_named_jpeg_gets_its_right_name(verify):
    encoded = picture(2, "PNG")
    found = cleaned(encoded, "jpg", verify=verify)
    assert (found.encoded, found.suffix) == (encoded, "png")
    assert [note.kind for note in found.notes] == ["misnamed"]
    assert cleaned(encoded, "").notes == ()  # a source that does not say


def test_cmyk_becomes_an_rgb_jpeg_of_the_same_picture():
    rgb = drawing(3)
    encoded = jpeg(rgb.convert("CMYK"), quality=95)
    found = cleaned(encoded, verify=False)
    image = opened(found.encoded)
    assert (image.mode, image.format, found.suffix) == ("RGB", "JPEG", "jpg")
    assert [note.kind for note in found.notes] == ["CMYK"]
    before = np.asarray(opened(encoded).convert("RGB"), dtype=float)
    assert np.abs(np.asarray(image, dtype=float) - before).mean() < 2


@pytest.mark.parametrize("form", ["GIF", "BMP", "TIFF"])
def test_other_formats_become_png_without_loss(form):
    encoded = picture(4, form)
    found = cleaned(encoded, form.lower())
    np.testing.assert_array_equal(
        np.asarray(opened(found.encoded)), np.asarray(opened(encoded).convert("RGB"))
    )
    assert (opened(found.encoded).format, found.suffix) == ("PNG", "png")


def test_pixels_become_png_without_loss():
    pixels = np.random.default_rng(5).integers(0, 256, (6, 9, 3), dtype=np.uint8)
    found = cleaned(pixels, "")
    np.testing.assert_array_equal(np.asarray(opened(found.encoded)), pixels)
    assert (found.suffix, found.notes, found.bytes_read) == ("png", (), 162)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize(
    ("encoded", "kind"),
    [(b"", "empty"), (bytes(5000), "empty"), (b"<html>404</html>" * 9, "not an image")],
    ids=["no bytes", "zeros", "a page"],
)
def test_what_is_no_image_is_left_out(encoded, kind, verify):
    found = cleaned(encoded, verify=verify)
    assert not found.kept
    assert [(note.kind, note.done) for note in found.notes] == [(kind, "left out")]


@pytest.mark.parametrize("form", ["JPEG", "PNG"])
def test_truncated_images_are_found_by_decoding(form):
    encoded = picture(6, form, size=(80, 60))
    cut = encoded[: len(encoded) // 2]
    assert [note.kind for note in cleaned(cut).notes] == ["truncated"]
    assert not cleaned(cut).kept
    assert cleaned(cut, form.lower().replace("jpeg", "jpg"), verify=False).encoded == cut  # as asked for


def test_a_missing_file_is_left_out_and_a_failing_disk_stops_all(tmp_path):
    found = clean_image((tmp_path / "none.jpg").read_bytes, "jpg", CleaningOptions())
    assert [(note.kind, note.reason) for note in found.notes] == [("unreadable", "No such file or directory")]

    def fail():
        raise OSError(5, "Input/output error")

    with pytest.raises(OSError, match="Input/output"):
        clean_image(fail, "jpg", CleaningOptions())


# ---- sizes


@pytest.mark.parametrize(("size", "expected"), [((300, 200), (150, 100)), ((200, 301), (100, 150))])
def test_larger_images_shrink_to_the_short_side(size, expected):
    image = opened(cleaned(jpeg(drawing(7, size)), short_side=100, quality=90).encoded)
    assert image.size == expected
    small = drawing(7, size).resize(expected, Image.Resampling.BOX)
    assert np.abs(np.asarray(image, float) - np.asarray(small, float)).mean() < 6


def test_resizing_is_antialiased():
    """A pattern finer than the new pixels becomes grey, instead of some other pattern."""
    stripes = np.zeros((400, 400, 3), dtype=np.uint8)
    stripes[:, ::2] = 255
    levels = np.asarray(opened(cleaned(stripes, short_side=50).encoded).convert("L"), float)
    assert 120 < levels.mean() < 135
    assert levels[5:-5, 5:-5].std() < 4


def test_smaller_images_keep_their_bytes():
    encoded = jpeg(drawing(8, (100, 300)))
    assert cleaned(encoded, short_side=100).encoded == encoded


def test_quality_is_what_was_asked_for_and_grey_stays_grey():
    encoded = jpeg(drawing(9).convert("L"))
    found = [cleaned(encoded, short_side=100, quality=quality).encoded for quality in (50, 95)]
    assert len(found[0]) < len(found[1])
    assert opened(found[0]).mode == "L"
    reference = io.BytesIO()
    drawing(9).resize((150, 100), Image.Resampling.LANCZOS).save(reference, "JPEG", quality=50)
    own = opened(cleaned(jpeg(drawing(9)), short_side=100, quality=50).encoded)
    assert own.quantization == opened(reference.getvalue()).quantization


# ---- near-duplicates


def test_copies_are_near_and_others_far():
    hashes = [difference_hash(drawing(i)) for i in range(30)]
    for i in range(30):
        copy = opened(jpeg(drawing(i).resize((150, 100), Image.Resampling.BICUBIC), quality=60))
        assert (hashes[i] ^ difference_hash(copy)).bit_count() <= 4
    apart = [(a ^ b).bit_count() for i, a in enumerate(hashes) for b in hashes[:i]]
    assert min(apart) > 6


def test_the_hash_compares_neighbours():
    ramp = np.tile(np.arange(90, dtype=np.uint8), (80, 1))
    assert difference_hash(Image.fromarray(ramp)) == 2**64 - 1
    assert difference_hash(Image.fromarray(ramp[:, ::-1].copy())) == 0
    half = np.concatenate([ramp[:40], ramp[:40, ::-1]])  # upper rows rise, lower rows fall
    assert difference_hash(Image.fromarray(half)) == (2**32 - 1) << 32


def test_an_image_near_one_of_a_list_is_left_out():
    near = np.array([difference_hash(drawing(i)) for i in range(5)], dtype=np.uint64)
    copy = jpeg(drawing(3).resize((240, 160)), quality=60)
    found = cleaned(copy, near=near, max_distance=6)
    assert not found.kept
    assert found.notes[0].kind == "near-duplicate"
    assert f"{int(near[3]):016x}" in found.notes[0].reason
    assert cleaned(jpeg(drawing(17)), near=near, max_distance=6).kept
    almost = np.array([difference_hash(opened(copy)) ^ 0b111], dtype=np.uint64)
    assert cleaned(copy, near=almost, max_distance=2).kept
    assert not cleaned(copy, near=almost, max_distance=3).kept
    assert cleaned(copy, near=np.zeros(0, np.uint64)).kept


def test_lists_of_hashes_are_read_and_checked(tmp_path):
    path = tmp_path / "hashes.txt"
    path.write_text("00000000000000ff\nffffffffffffffff\n\n")
    np.testing.assert_array_equal(read_hashes(path), np.array([255, 2**64 - 1], dtype=np.uint64))
    path.write_text("00000000000000ff\nff\n")
    with pytest.raises(ValueError, match=r"line 2 .* is 'ff', not 16 hexadecimal digits"):
        read_hashes(path)


@pytest.mark.parametrize("form", ["JPEG", "AVIF", "CMYK"])
def test_what_is_written_anew_is_turned_as_before(form):
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "a camera"
    file = io.BytesIO()
    image = drawing(0).convert("CMYK" if form == "CMYK" else "RGB")
    image.save(file, "JPEG" if form == "CMYK" else form, exif=exif)
    for options in ({"short_side": 100}, {} if form != "JPEG" else {"short_side": 50}):
        found = opened(cleaned(file.getvalue(), **options).encoded)
        assert dict(found.getexif()) == {0x0112: 6}
        assert found.size[0] > found.size[1]  # the pixels are as stored


def test_whatever_a_decoder_raises_leaves_one_image_out(monkeypatch):
    def fails(self):
        raise TypeError("'str' object cannot be interpreted as an integer")

    monkeypatch.setattr("PIL.PngImagePlugin.PngImageFile.load", fails)
    found = cleaned(picture(1, "PNG"), "png")
    assert not found.kept
    assert [note.kind for note in found.notes] == ["damaged"]
    assert "TypeError" in found.notes[0].reason


def test_an_image_too_long_for_a_jpeg_is_left_out_with_the_reason():
    file = io.BytesIO()
    Image.new("RGB", (70_000, 4)).save(file, "PNG")
    found = cleaned(file.getvalue(), "png", short_side=3)  # [3, 52,500] would do, so let it not
    assert found.kept
    file = io.BytesIO()
    Image.new("RGB", (90_000, 4)).save(file, "PNG")
    found = cleaned(file.getvalue(), "png", short_side=3)
    assert not found.kept
    assert [note.kind for note in found.notes] == ["damaged"]


def test_postscript_is_left_out_unopened(monkeypatch):
    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", lambda *_, **__: pytest.fail("a program"))
    encoded = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 20 20\n%%EndComments\nshowpage\n%%EOF\n"
    assert [note.kind for note in cleaned(encoded).notes] == ["not an image"]


@pytest.mark.skipif(jpeg_kernel.native_restart() is None, reason="no C++ compiler")
def test_restart_markers_are_written_into_jpegs_alone_and_change_no_pixel():
    for encoded in (
        jpeg(drawing(3)),
        jpeg(drawing(3), progressive=True),
        picture(1, "PNG"),
        jpeg(drawing(3).convert("CMYK")),
    ):
        plain, marked = cleaned(encoded), cleaned(encoded, restart=4)
        assert opened(marked.encoded).tobytes() == opened(plain.encoded).tobytes()
        assert marked.notes == plain.notes
        has_markers = b"\xff\xdd\x00\x04\x00\x04" in marked.encoded
        assert has_markers == (encoded[:2] == b"\xff\xd8" and "progressive" not in opened(encoded).info)


def test_a_rewritten_jpeg_with_other_pixels_is_left_out(monkeypatch):
    monkeypatch.setattr(jpeg_kernel, "with_restart_markers", lambda *_: jpeg(drawing(4)))
    outcome = cleaned(jpeg(drawing(3)), restart=4)
    assert not outcome.kept
    assert "other pixels" in outcome.notes[0].reason
