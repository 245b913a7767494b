"""The reader of tar headers beside Python's own `tarfile`, and on tars that are cut, damaged or none at all."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest

from mixer_lightning.data.sources.tar import Member, file_header, members

FORMS = [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT]


def listed(path: Path, start: int = 0) -> list[Member]:
    with path.open("rb") as file:
        return list(members(file.fileno(), start=start))


def truth(path: Path) -> list[Member]:
    with tarfile.open(path) as tar:
        return [Member(info.name, info.offset_data, info.size) for info in tar if info.isreg()]


def write(path: Path, files: dict[str, bytes], form: int = tarfile.PAX_FORMAT) -> Path:
    with tarfile.open(path, "w", format=form) as tar:
        for i, (name, content) in enumerate(files.items()):
            info = tarfile.TarInfo(name)
            info.size, info.mtime = len(content), i % 2 and 1.5  # a fraction makes an extended header in PAX
            tar.addfile(info, io.BytesIO(content))
    return path


@pytest.mark.parametrize("form", FORMS)
def test_it_lists_what_tarfile_lists(tmp_path, form):
    path = tmp_path / "x.tar"
    names = ["a.jpg", "folder/b.jpg", f"{'deep/' * 18}{'n' * 60}.jpg", "empty.jpg"]
    if form != tarfile.USTAR_FORMAT:
        names += ["ä/ö.jpg", f"{'n' * 300}.jpg", "last.jpg"]
    with tarfile.open(path, "w", format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 0 if name == "empty.jpg" else 500 + 300 * i
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1
            tar.addfile(info, io.BytesIO(bytes([i]) * info.size))
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE):
            link = tarfile.TarInfo("link.jpg")
            link.type, link.linkname = kind, f"{'target/' * 30}a.jpg" if form != tarfile.USTAR_FORMAT else "a"
            tar.addfile(link)
        end = tarfile.TarInfo("end.cls")
        end.size = 3
        tar.addfile(end, io.BytesIO(b"abc"))
    found = listed(path)
    assert found == truth(path)
    assert len(found) == len(names) + 1


def test_a_size_that_only_the_extended_header_tells(tmp_path):
    """As tars have it for files from 8 GiB on; the header itself says 0."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        info = tarfile.TarInfo("big.jpg")
        info.pax_headers = {"size": "700"}
        tar.addfile(info)
    whole = path.read_bytes()
    path.write_bytes(whole[:1536] + bytes([7]) * 700 + bytes(324) + bytes(10240))
    assert listed(path) == truth(path) == [Member("big.jpg", 1536, 700)]


@pytest.mark.parametrize("form", FORMS)
def test_it_starts_at_any_header(tmp_path, form):
    names = {f"{'n' * 40}/{i:060}.jpg": bytes(i) for i in range(0, 2000, 300)}
    path = write(tmp_path / "x.tar", names, form)
    every = truth(path)
    for before, start in [(0, 0), *((i + 1, end_of(each)) for i, each in enumerate(every))]:
        assert listed(path, start) == every[before:]


def end_of(member: Member) -> int:
    return -(-(member.offset + member.size) // 512) * 512


@pytest.mark.parametrize("form", FORMS)
def test_a_tar_cut_anywhere_is_noticed(tmp_path, form):
    path = write(
        tmp_path / "x.tar", {"a.jpg": b"a" * 700, f"{'b' * 90}.jpg": b"b" * 513, "c.cls": b"1"}, form
    )
    whole = path.read_bytes()
    harmless = end_of(truth(path)[-1]) + 1024  # the two blocks of zeros; padding follows
    assert harmless < len(whole)
    for end in [*range(0, harmless, 97), *range(0, harmless, 512), harmless - 1]:
        path.write_bytes(whole[:end])
        with pytest.raises(ValueError, match=f"it is cut after {end:,} bytes"):
            listed(path)
    path.write_bytes(whole[:harmless])
    assert len(listed(path)) == 3


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "cut after 0 bytes"),
        (b"<html>not found</html>" * 200, "no tar header at byte 0"),
        (b"\x1f\x8b" + b"zipped" * 999, r"no tar header at byte 0 \(it is compressed"),
        (bytes(10240), "from byte 0 on it is empty"),
    ],
)
def test_what_is_no_tar(tmp_path, content, complaint):
    path = tmp_path / "x.tar"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=complaint):
        listed(path)


def test_a_hole_of_zeros_is_noticed(tmp_path):
    path = write(tmp_path / "x.tar", {f"{i}.jpg": b"x" * 600 for i in range(9)})
    whole = path.read_bytes()
    start = end_of(truth(path)[2])
    path.write_bytes(whole[:start] + bytes(2**21))
    with pytest.raises(ValueError, match=f"from byte {start:,} on it is empty"):
        listed(path)
    path.write_bytes(whole[:start] + bytes(1536) + whole[start + 1536 :])
    with pytest.raises(
        ValueError, match=f"it ends at byte {start:,}, but more follows at byte {start + 1536:,}"
    ):
        listed(path)


def test_tars_put_behind_each_other_are_noticed(tmp_path):
    """Programs stop at the end of the first and lose the rest in silence."""
    whole = write(tmp_path / "x.tar", {"a.jpg": b"a"}).read_bytes()
    path = tmp_path / "y.tar"
    path.write_bytes(whole + whole)
    assert len(truth(path)) == 1
    with pytest.raises(ValueError, match="more follows at byte 10,240"):
        listed(path)


def test_a_hostile_extended_header_does_not_hang(tmp_path):
    path = write(tmp_path / "x.tar", {"a.jpg": b"a", "b.jpg": b"b"})
    whole = bytearray(path.read_bytes())
    start = whole.index(b" mtime=1.5\n") - 2
    for record in (b"0  mtime=1.5\n", b"1  mtime=1.5\n", b"99 mtime=1.5\n"):
        whole[start : start + len(record)] = record
        path.write_bytes(whole)
        with pytest.raises(ValueError, match="extended header is damaged"):
            listed(path)


def test_every_bit_of_a_header_counts(tmp_path):
    path = write(tmp_path / "x.tar", {"a.jpg": b"a", "b.jpg": b"b" * 600})
    whole = path.read_bytes()
    for byte in range(0, 512, 7):
        damaged = bytearray(whole)
        damaged[byte] ^= 0x10
        path.write_bytes(damaged)
        with pytest.raises(ValueError, match="no tar header at byte 0"):
            listed(path)


def test_long_names_get_an_extended_file_header():
    assert len(file_header("short.jpg", 5)) == 512
    long = file_header(f"{'n' * 300}.jpg", 5)
    assert len(long) % 512 == 0
    with tarfile.open(fileobj=io.BytesIO(long + bytes(512) + bytes(1024))) as tar:
        assert tar.getnames() == [f"{'n' * 300}.jpg"]


def test_folders_of_tars_older_than_posix_are_no_files(tmp_path):
    """They have no type, only a slash at the end."""
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.USTAR_FORMAT) as tar:
        for name in ("folder/", "folder/a.jpg"):
            info = tarfile.TarInfo(name)
            info.type = tarfile.AREGTYPE
            tar.addfile(info)
    assert listed(path) == truth(path) == [Member("folder/a.jpg", 1024, 0)]


def test_checksums_of_signed_bytes_are_read_too(tmp_path):
    path = tmp_path / "x.tar"
    with tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as tar:
        tar.addfile(tarfile.TarInfo("ä.jpg"))
    whole = bytearray(path.read_bytes())
    block = bytes(whole[:148]) + b" " * 8 + bytes(whole[156:512])
    signed = sum(byte - 256 if byte > 127 else byte for byte in block)
    whole[148:156] = f"{signed:06o}\0 ".encode()
    path.write_bytes(whole)
    assert listed(path) == truth(path) == [Member("ä.jpg", 512, 0)]
