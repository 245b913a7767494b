"""The reader of tar headers beside Python's own `tarfile`, and on tars that are cut, damaged or none at all."""

from __future__ import annotations

import gzip
import io
import os
import tarfile
from pathlib import Path

import pytest

from mixer_lightning.data.sources.archives import ArchiveStream, archive_members
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
        (bytes(2**21), "from byte 0 on it is empty"),
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


# ------------------------------------------------------------------------------------------------- links


def with_links(path: Path, form: int = tarfile.PAX_FORMAT) -> Path:
    """Links of both kinds, near and far, before and behind what they lead to, to each other and out of the tar."""
    with tarfile.open(path, "w", format=form) as tar:
        for name, kind, target in (
            ("early.jpg", tarfile.SYMTYPE, "pool/a.jpg"),
            ("pool/a.jpg", None, b"a" * 700),
            ("x/hard.jpg", tarfile.LNKTYPE, "pool/a.jpg"),
            ("x/soft.jpg", tarfile.SYMTYPE, "../pool/./a.jpg"),
            ("x/soft2.jpg", tarfile.SYMTYPE, "soft.jpg"),
            (f"x/{'long' * 50}.jpg", tarfile.SYMTYPE, f"../pool/{'l' * 120}.jpg"),
            (f"pool/{'l' * 120}.jpg", None, b"l" * 9),
            ("x/out.jpg", tarfile.SYMTYPE, "/data/a.jpg"),
            ("x/up.jpg", tarfile.SYMTYPE, "../../a.jpg"),
            ("x/none.jpg", tarfile.LNKTYPE, "pool/b.jpg"),
            ("x/round.jpg", tarfile.SYMTYPE, "round2.jpg"),
            ("x/round2.jpg", tarfile.SYMTYPE, "round.jpg"),
            ("end.jpg", None, b"e"),
        ):
            info = tarfile.TarInfo(name)
            if isinstance(target, bytes):
                info.size = len(target)
                tar.addfile(info, io.BytesIO(target))
            else:
                info.type, info.linkname = kind, target
                tar.addfile(info)
    return path


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_links_are_the_files_that_tarfile_finds_behind_them(tmp_path, form):
    path = with_links(tmp_path / "x.tar", form)
    expected, lost = [], []
    with tarfile.open(path) as tar:
        for info in tar:
            try:
                file = tar.extractfile(info)
            except (KeyError, RecursionError):
                file = None
            if file is None:
                lost.append(info.name)
            else:
                expected.append((info.name, file.read()))
    left_out: list[str] = []
    with path.open("rb") as file:
        found = list(members(file.fileno(), left_out=left_out.append))
        assert [(each.name, os.pread(file.fileno(), each.size, each.offset)) for each in found] == expected
    assert left_out == lost == ["x/out.jpg", "x/up.jpg", "x/none.jpg", "x/round.jpg", "x/round2.jpg"]
    start = truth(path)[0]
    assert listed(path, end_of(start)) == found[2:]


# ------------------------------------------------------------------------------------------------- hostile headers


def with_pax(path: Path, **headers: str) -> Path:
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for name in ("a.jpg", "b.jpg"):
            info = tarfile.TarInfo(name)
            info.size, info.pax_headers = 600, headers if name == "b.jpg" else {}
            tar.addfile(info, io.BytesIO(bytes([7]) * 600))
    return path


@pytest.mark.parametrize("size", ["-1536", "-1", "1e9", "٣", "9" * 5000, " 600"])
def test_a_size_that_is_none_is_an_error_with_its_place(tmp_path, size):
    """tarfile reads the first of these for ever."""
    path = with_pax(tmp_path / "x.tar", size=size)
    with pytest.raises(ValueError, match=r"at byte 1,536: an extended header is damaged: size="):
        listed(path)
    stream = ArchiveStream(path)
    with pytest.raises(ValueError, match=r"x\.tar is not a tar, or damaged .*: size=.*; at its byte 1,536\)"):
        list(archive_members(stream, str(path)))
    stream.close()


def test_a_size_beyond_the_end_takes_no_memory(tmp_path):
    path = with_pax(tmp_path / "x.tar", size=str(10**15))
    with pytest.raises(ValueError, match=r"it is cut after .* inside b\.jpg"):
        listed(path)
    stream = ArchiveStream(path)
    with pytest.raises(ValueError, match=r"b\.jpg has 1,000,000,000,000,000 bytes: that is no image"):
        [file.read() for file in archive_members(stream, str(path))]
    stream.close()


@pytest.mark.parametrize("headers", [{"GNU.sparse.major": "1", "GNU.sparse.realsize": str(10**13)}])
def test_files_without_their_holes_are_refused_by_name(tmp_path, headers):
    path = with_pax(tmp_path / "x.tar", **headers)
    with pytest.raises(
        ValueError, match=r"at byte 2,560: b\.jpg is stored without its holes.*without --sparse"
    ):
        listed(path)


@pytest.mark.parametrize("kind", [b"x", b"L", b"K", b"g"])
def test_the_data_of_an_extended_header_are_bounded(tmp_path, kind):
    """Two megabytes of gzip may hold two gigabytes of it."""
    info = tarfile.TarInfo("a.jpg")
    info.type, info.size = kind, 2**31
    data = info.tobuf(tarfile.GNU_FORMAT)
    with gzip.open(tmp_path / "x.tar.gz", "wb", compresslevel=1) as file:
        file.write(data + bytes(2**20))
    stream = ArchiveStream(tmp_path / "x.tar.gz")
    with pytest.raises(ValueError, match=r"an extended header of 2,147,483,648 bytes"):
        list(archive_members(stream, "x.tar.gz"))
    stream.close()


def test_a_tar_without_a_file_is_read_as_one(tmp_path):
    """As tar -T /dev/null writes it."""
    tarfile.open(tmp_path / "x.tar", "w").close()
    assert (tmp_path / "x.tar").read_bytes() == bytes(10240)
    assert listed(tmp_path / "x.tar") == []
