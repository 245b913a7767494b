"""Tars read from front to end list what tarfile lists, and are never taken for whole when they are cut."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest

from mixer_lightning.data.sources.archives import ArchiveMember, ArchiveStream, archive_members
from mixer_lightning.data.sources.tar import BLOCK

NAMES = ("a.jpg", "folder/b.jpg", "empty.jpg", f"{'deep/' * 18}{'n' * 60}.jpg")
LONGER = ("ä/ö.jpg", f"{'n' * 300}.jpg")


def archive(names, *, form=tarfile.GNU_FORMAT, mode="w") -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode=mode, format=form) as tar:
        folder = tarfile.TarInfo("folder")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        for i, name in enumerate(names):
            info = tarfile.TarInfo(name)
            info.size = 0 if name == "empty.jpg" else 500 + 300 * i
            info.mtime = 1.5 if form == tarfile.PAX_FORMAT else 1  # a fraction makes an extended header
            tar.addfile(info, io.BytesIO(bytes([i + 1]) * info.size))
            link = tarfile.TarInfo(f"link{i}")
            link.type, link.linkname = tarfile.SYMTYPE, "a.jpg"
            tar.addfile(link)
    return file.getvalue()


def listed(path: Path) -> list[tuple[str, bytes]]:
    stream = ArchiveStream(path)
    try:
        return [(file.name, file.read()) for file in archive_members(stream, str(path))]
    finally:
        stream.close()


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
@pytest.mark.parametrize("compress", [False, True])
def test_it_lists_what_tarfile_lists(tmp_path, form, compress):
    path = tmp_path / "x.tar"
    data = archive(NAMES if form == tarfile.USTAR_FORMAT else NAMES + LONGER, form=form)
    path.write_bytes(gzip.compress(data) if compress else data)
    with tarfile.open(path) as tar:
        expected = [(info.name, tar.extractfile(info).read()) for info in tar if info.isreg()]
    assert listed(path) == expected


@pytest.mark.parametrize("compress", [False, True])
def test_files_that_are_left_are_skipped_also_inside_another_tar(tmp_path, compress):
    inner = archive(["1.jpg", "2.jpg", "3.jpg"])
    outer = io.BytesIO()
    with tarfile.open(fileobj=outer, mode="w") as tar:
        for name in ("n1.tar", "n2.tar"):
            info = tarfile.TarInfo(name)
            info.size = len(inner)
            tar.addfile(info, io.BytesIO(inner))
    (tmp_path / "x.tar").write_bytes(gzip.compress(outer.getvalue()) if compress else outer.getvalue())
    stream = ArchiveStream(tmp_path / "x.tar")
    found = []
    for tar in archive_members(stream, "x.tar"):
        for file in archive_members(tar, tar.where, nested=True):
            if file.name != "2.jpg":
                found.append((tar.name, file.name, len(file.read(100)) + len(file.read())))
            if (tar.name, file.name) == ("n1.tar", "2.jpg"):
                break  # the rest of this tar is passed over
    assert found == [("n1.tar", "1.jpg", 500), ("n2.tar", "1.jpg", 500), ("n2.tar", "3.jpg", 1100)]
    assert stream.position() <= (tmp_path / "x.tar").stat().st_size


def test_wherever_a_tar_is_cut_it_says_so(tmp_path):
    """At every boundary of a block, and beside; tarfile takes cuts between two files for the end."""
    data = archive(["1.jpg", "2.jpg"])
    with tarfile.open(fileobj=io.BytesIO(data)) as tar:
        end = max(info.offset_data + -(-info.size // BLOCK) * BLOCK for info in tar)
    path = tmp_path / "cut.tar"
    for length in sorted({*range(0, end + 1, BLOCK), *range(100, end, 333)}):
        path.write_bytes(data[:length])
        with pytest.raises(ValueError, match=r"cut"):
            listed(path)
    path.write_bytes(data[: end + BLOCK] + bytes(2**20 + BLOCK))  # made to size, not filled
    with pytest.raises(ValueError, match=r"empty in the middle"):
        listed(path)
    path.write_bytes(data[: end + BLOCK] + bytes(BLOCK) + data)
    with pytest.raises(ValueError, match=r"empty in the middle"):
        listed(path)
    path.write_bytes(data[: end + BLOCK])
    assert [name for name, _ in listed(path)] == ["1.jpg", "2.jpg"]


def test_a_cut_is_noticed_when_files_are_skipped(tmp_path):
    (tmp_path / "x.tar").write_bytes(archive(["1.jpg"])[:1200])
    with pytest.raises(ValueError, match=r"x\.tar is cut after 1,200 bytes"):
        list(archive_members(ArchiveStream(tmp_path / "x.tar"), "x.tar"))


def test_cut_gzip_and_other_files_are_refused(tmp_path):
    path = tmp_path / "x.tar.gz"
    path.write_bytes(gzip.compress(archive(["1.jpg"]))[:-20])
    with pytest.raises(ValueError, match=r"x\.tar\.gz is damaged or cut"):
        listed(path)
    path.write_bytes(b"<html>not found</html>" * 100)
    with pytest.raises(ValueError, match=r"is not a tar"):
        listed(path)


def test_a_tar_inside_another_may_lack_its_zeros_but_not_its_data():
    class Bytes(io.BytesIO):
        def skip(self, count):
            self.seek(count, 1)

    data = archive(["1.jpg"])
    whole = ArchiveMember(
        "n1.tar", 3 * BLOCK, Bytes(data[: 3 * BLOCK]), "x.tar"
    )  # folder, file, its 500 bytes
    assert [file.name for file in archive_members(whole, "n1.tar", nested=True)] == ["1.jpg"]
    short = ArchiveMember("n1.tar", 3 * BLOCK - 100, Bytes(data[: 3 * BLOCK]), "x.tar")
    with pytest.raises(ValueError, match=r"cut"):
        list(archive_members(short, "n1.tar", nested=True))


def test_a_damaged_extended_header_is_refused(tmp_path):
    whole = bytearray(archive(["1.jpg"], form=tarfile.PAX_FORMAT))
    start = whole.index(b" mtime=1.5\n") - 2
    for record in (b"0  mtime=1.5\n", b"99 mtime=1.5\n", b"12 size=-512\n"):
        whole[start : start + len(record)] = record
        (tmp_path / "x.tar").write_bytes(whole)
        with pytest.raises(ValueError, match=r"x\.tar is not a tar, or damaged \(an extended header"):
            listed(tmp_path / "x.tar")
