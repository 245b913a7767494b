"""Shards that lie elsewhere: fetched once, whole, as often as needed, into a cache that keeps its bound."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import http.server
import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import fsspec
import numpy as np
import pytest
from test_shards_source import picture, prepared_set, write

from mixer_lightning.data.checks import refuse_random_reads
from mixer_lightning.data.sources import StorageError, remote
from mixer_lightning.data.sources.cache import Cache
from mixer_lightning.data.sources.remote import File, expand
from mixer_lightning.data.sources.shards import shards
from mixer_lightning.data.splits import Joined, Subset

FLOCK = fcntl.flock


def flock_of_nfs(descriptor: int, operation: int) -> None:
    """As flock(2) has it of NFS: what is locked exclusively must be open for writing, what is shared for reading."""
    mode = fcntl.fcntl(descriptor, fcntl.F_GETFL) & os.O_ACCMODE
    if mode == (os.O_RDONLY if operation & fcntl.LOCK_EX else os.O_WRONLY):
        raise OSError(errno.EBADF, os.strerror(errno.EBADF))
    FLOCK(descriptor, operation)


@pytest.fixture(autouse=True)
def places(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(fcntl, "flock", flock_of_nfs)
    monkeypatch.setattr(remote, "RETRY_WAITS_SECONDS", (0.0, 0.0, 0.0, 0.0))
    yield
    fsspec.filesystem("memory").store.clear()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A set on this machine, to be served to others."""
    base = tmp_path / "flowers"
    base.mkdir()
    write(base / "train-000.tar", range(4))
    write(base / "train-001.tar", range(4, 9))
    write(base / "val-000.tar", range(9, 11))
    (base / "dataset.json").write_text(json.dumps({"classes": ["aster", "broom", "clover"]}))
    return base


class Server(http.server.ThreadingHTTPServer):
    """Files of a folder; `faults[name]` are done, one after the other, before the file is given."""

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.gets: Counter[str] = Counter()
        self.faults: dict[str, list[int | str]] = {}
        self.seconds = 0.0  # that a file takes
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class Handler(http.server.BaseHTTPRequestHandler):
    server: Server

    def do_HEAD(self) -> None:
        self.answer(with_content=False)

    def do_GET(self) -> None:
        self.server.gets[self.path[1:]] += 1
        time.sleep(self.server.seconds)
        self.answer(with_content=True)

    def answer(self, *, with_content: bool) -> None:
        path = self.server.folder / self.path[1:]
        faults = self.server.faults.get(path.name, [])
        fault = faults.pop(0) if faults and with_content else None
        if isinstance(fault, int) or not path.is_file():
            self.send_error(fault or 404)
            return
        content = path.read_bytes()
        self.send_response(200)
        self.send_header("Content-Length", str(len(content)))
        self.send_header("ETag", hashlib.md5(content).hexdigest())
        self.end_headers()
        if with_content:
            self.wfile.write(content[: len(content) // 2] if fault == "cut" else content)

    def log_message(self, *words: object) -> None:
        pass


@pytest.fixture
def server(root):
    with Server(root) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def upload(root: Path, to: str = "memory://flowers") -> str:
    for path in root.iterdir():
        if path.is_file() and not path.name.startswith("."):
            with fsspec.open(f"{to}/{path.name}", "wb") as file:
                file.write(path.read_bytes())
    return to


def check_train(images) -> None:
    assert [images.read(i) for i in (8, 0, 4, 3)] == [picture(i) for i in (8, 0, 4, 3)]
    assert images.labels(np.arange(9)).tolist() == [i % 3 for i in range(9)]
    assert images.key(5) == "photo/00005"


def cached(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("**/*") if path.suffix in (".tar", ".part"))


# -------------------------------------------------------------------------------------------- whole sets


def test_a_set_of_others_far_away(root, tmp_path):
    url = upload(root)
    for _ in range(2):
        data = shards(root=url)
        assert data.classes == ["aster", "broom", "clover"]
        assert {split: len(images) for split, images in data.splits.items()} == {"train": 9, "val": 2}
        check_train(data.splits["train"])
    assert (
        data.splits["train"].name(5).startswith("memory:///flowers/train-001.tar: photo/00005.png (at byte ")
    )
    assert len(cached(tmp_path / "cache")) == 3
    write(root / "train-001.tar", range(4, 7))
    upload(root)
    assert len(shards(root=url).splits["train"]) == 7


@pytest.mark.parametrize("several", [False, True])
def test_a_prepared_set_over_http(root, server, tmp_path, several):
    prepared_set(root, several=several)
    place = tmp_path / "fast"
    for _ in range(2):
        data = shards(root=server.url, cache=str(place))
        assert {split: len(images) for split, images in data.splits.items()} == {"train": 9, "val": 2}
    assert server.gets["train-index.npy"] == server.gets["val-index.npy"] == 1
    assert server.gets["train-labels.npy"] == several
    assert server.gets["train-000.tar"] == 0  # its size was enough
    train = data.splits["train"]
    assert train.name(5).startswith(f"{server.url}/train-001.tar: ? (at byte ")  # not worth fetching it
    assert [train.read(i) for i in range(9)] == [picture(i) for i in range(9)]
    assert train.name(5).startswith(f"{server.url}/train-001.tar: photo/00005.png (at byte ")
    assert train.labels(np.arange(9)).shape == ((9, 2) if several else (9,))
    assert server.gets["train-000.tar"] == server.gets["train-001.tar"] == 1
    assert not cached(tmp_path / "cache")


def test_a_prepared_set_far_away_that_is_not_as_it_should_be(root, server):
    prepared_set(root)
    whole = (root / "train-001.tar").read_bytes()
    (root / "train-001.tar").write_bytes(whole[:-1])
    (root / "val-000.tar").unlink()
    with pytest.raises(ValueError, match="2 of 3 shards under http") as caught:
        shards(root=server.url)
    assert f"train-001.tar has {len(whole) - 1:,} bytes instead of {len(whole):,}" in str(caught.value)
    assert "val-000.tar is missing" in str(caught.value)
    write(root / "val-000.tar", range(9, 11))
    (root / "train-001.tar").write_bytes(whole)
    prepared_set(root)
    index = (root / "train-index.npy").read_bytes()
    about = json.loads((root / "dataset.json").read_text())
    for damaged, fault in ((index[:-16], ""), (index[:-1] + b"\7", r"npy has another sha256")):
        (root / "train-index.npy").write_bytes(damaged)
        with pytest.raises(ValueError, match=rf"{fault}.*Copy it again"):
            shards(root=server.url)
        (root / "train-index.npy").write_bytes(index)
        assert len(shards(root=server.url).splits["train"]) == 9  # the bad copy was not kept
        sha256 = hashlib.sha256(index).hexdigest()
        about["splits"]["train"]["arrays"] = [{"name": "train-index.npy", "sha256": sha256}]
        (root / "dataset.json").write_text(json.dumps(about))
    prepared_set(root, several=True)
    (root / "train-index.npy").unlink()
    with pytest.raises(ValueError, match=r"http.*/train-index\.npy does not exist\. Copy it again, or make"):
        shards(root=server.url)


def test_checksums_of_what_is_fetched(root, server, tmp_path):
    prepared_set(root)
    path = root / "train-001.tar"
    whole = path.read_bytes()
    path.write_bytes(whole.replace(b"picture 5", b"picture X", 1))
    before = shards(root=server.url).splits["train"]
    assert before.read(5).startswith(b"picture X")  # of the right size
    train = shards(root=server.url, verify="full").splits["train"]  # throws the copy away
    with pytest.raises(
        OSError, match=r"train-001\.tar could not be read in 5 tries: its sha256 is not that of dataset"
    ):
        train.read(5)
    path.write_bytes(whole)
    check_train(train)
    assert len(cached(tmp_path / "cache")) == 2


def test_shards_of_others_by_pattern(root, server, tmp_path):
    pattern = f"{server.url}/train-{{000..001}}.tar"
    data = shards(root=str(tmp_path / "none"), train=pattern, val=[f"{server.url}/val-000.tar"])
    check_train(data.splits["train"])
    assert data.classes == ["0", "1", "2"]
    assert not (tmp_path / "none").exists()
    assert server.gets["train-000.tar"] == 1  # once for the index, and that was all
    mixed = shards(root=str(root), train=["train-000.tar", f"{server.url}/train-001.tar"])
    check_train(mixed.splits["train"])
    with pytest.raises(
        FileNotFoundError, match=r"names http.*train-002\.tar, which does not exist \(nor do 1 more\)"
    ):
        shards(root=str(root), train=f"{server.url}/train-{{001..003}}.tar")


def test_shards_from_a_command(root, tmp_path, monkeypatch):
    monkeypatch.chdir(root)
    pattern = f"pipe: cat {root}/train-{{000..001}}.tar"
    for _ in range(2):
        data = shards(root=str(tmp_path / "none"), train=pattern)
        check_train(data.splits["train"])
    assert len(cached(tmp_path / "cache")) == 2
    next((tmp_path / "cache").glob("**/*.tar")).unlink()
    write(root / "train-000.tar", range(2))
    write(root / "train-001.tar", range(2))
    with pytest.raises(
        OSError, match=r"pipe: cat .* could not be read in 5 tries: it gave [\d,]+ of [\d,]+ bytes"
    ):
        [shards(root=str(tmp_path / "none"), train=pattern).splits["train"].read(i) for i in range(9)]


def test_a_command_that_fails_or_is_cut(root, tmp_path):
    with pytest.raises(
        OSError, match=r"pipe:echo x; echo no such bucket .* the command ended with 3: no such bucket"
    ):
        shards(root=str(tmp_path), train="pipe:echo x; echo no such bucket >&2; exit 3")
    with pytest.raises(ValueError, match=r"pipe:head -c 3000 .*: it is cut after 3,000 bytes"):
        shards(root=str(tmp_path), train=f"pipe:head -c 3000 {root}/train-000.tar")
    assert not list((tmp_path / "cache").glob("**/*.part"))


def test_missing_sets_far_away(root, server):
    for url in ("memory://nowhere", f"{server.url}/nowhere"):
        with pytest.raises(FileNotFoundError) as caught:
            shards(root=f"{url}/", name="blooms")
        assert str(caught.value) == (
            f"blooms: no shards under {url}. Expected {url}/train-*.tar and dataset.json. Make them with: "
            "mixer prepare data=folder source=<source> output=<folder>, and copy them there"
        )


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(ValueError, match=r"s3://photos/dataset\.json .*: pip install s3fs"):
        shards(root="s3://photos")
    with pytest.raises(ValueError, match=r"Protocol not known: nfs9"):
        shards(root="nfs9://photos")


# -------------------------------------------------------------------------------------------- addresses


def test_patterns_far_away():
    url = "https://host/a?key=[1]/x-{08..10}.tar"
    assert expand(url, "/data") == [f"https://host/a?key=[1]/x-{number}.tar" for number in ("08", "09", "10")]
    assert expand("x-{a,b}.tar", "s3://photos/set") == ["s3://photos/set/x-a.tar", "s3://photos/set/x-b.tar"]
    assert expand("{/a,file:///b}.tar", "s3://photos") == ["/a.tar", "/b.tar"]
    assert expand("pipe:cat *.tar{,.old}", "/data") == ["pipe:cat *.tar", "pipe:cat *.tar.old"]
    for name in ("t-2.tar", "t-10.tar", "other.tar"):
        fsspec.filesystem("memory").pipe(f"/deep/{name}", b"")
    assert expand("memory://deep/t-*.tar", "/data") == ["memory:///deep/t-10.tar", "memory:///deep/t-2.tar"]
    assert expand("t-*.tar", "memory://deep") == expand("memory://deep/t-*.tar", "")
    assert expand("memory://empty/*.tar", "") == []


# -------------------------------------------------------------------------------------------- the network


def fetched(cache: Cache, file: File) -> bytes:
    descriptor = cache.open(file)
    try:
        return os.pread(descriptor, 10**6, 0)
    finally:
        os.close(descriptor)


@pytest.mark.parametrize("fault", [503, 500, "cut"])
def test_what_fails_is_tried_again_after_a_while(root, server, tmp_path, monkeypatch, fault):
    monkeypatch.setattr(remote, "RETRY_WAITS_SECONDS", (1.0, 2.0, 4.0, 8.0))
    waits: list[float] = []
    cache = Cache(tmp_path / "copies", max_bytes=10**9, sleep=waits.append)
    path = root / "train-000.tar"
    file = File(f"{server.url}/{path.name}", path.stat().st_size)
    server.faults[path.name] = [fault] * 4
    assert fetched(cache, file) == path.read_bytes()
    assert waits == [1.0, 2.0, 4.0, 8.0]
    waits.clear()
    other = File(f"{server.url}/val-000.tar", (root / "val-000.tar").stat().st_size)
    server.faults["val-000.tar"] = [fault] * 5
    with pytest.raises(OSError, match=rf"{server.url}/val-000\.tar could not be read in 5 tries: .*\d"):
        cache.open(other)
    assert waits == [1.0, 2.0, 4.0, 8.0]
    assert len(cached(tmp_path / "copies")) == 1
    assert fetched(cache, other)  # a later try is a new one


def test_sizes_are_asked_for_again_too(root, server):
    pattern = f"{server.url}/train-{{000..001}}.tar"
    server.faults["dataset.json"] = [503, 503]
    assert shards(root=server.url, train=pattern).classes == ["aster", "broom", "clover"]
    server.shutdown()
    server.server_close()
    with pytest.raises(
        OSError, match=rf"{server.url}/dataset\.json could not be read in 5 tries: .*[Cc]onnect"
    ):
        shards(root=server.url, train=pattern)
    with pytest.raises(
        OSError, match=rf"{server.url}/train-000\.tar could not be read in 5 tries: .*[Cc]onnect"
    ):
        shards(root=str(root), train=pattern)


def test_a_slow_download_has_no_deadline(server):
    """aiohttp's own is five minutes for a file, which a shard of a gigabyte may well take."""
    files, _ = remote._file_system(f"{server.url}/train-000.tar")
    assert files.client_kwargs["timeout"].total is None
    assert files.client_kwargs["timeout"].sock_read == 60


@pytest.mark.parametrize(
    ("fault", "kind"), [(404, FileNotFoundError), (403, PermissionError), (401, PermissionError)]
)
def test_what_will_not_mend_is_not_tried_again(server, tmp_path, fault, kind):
    cache = Cache(tmp_path / "copies", max_bytes=10**9, sleep=pytest.fail)
    server.faults["train-000.tar"] = [fault]
    with pytest.raises(kind, match=rf"{server.url}/train-000\.tar "):
        cache.open(File(f"{server.url}/train-000.tar", None))


def test_a_full_disk_is_named(server, tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    cache = Cache(tmp_path / "copies", max_bytes=10**9, sleep=pytest.fail)
    monkeypatch.setattr(remote, "_run", full)
    with pytest.raises(
        OSError,
        match=rf"{tmp_path}/copies is full: free some space, set data\.cache to a folder on another disk",
    ):
        cache.open(File("pipe:cat x", None))
    assert not cached(tmp_path / "copies")


# -------------------------------------------------------------------------------------------- the cache


def numbered(count: int, size: int = 1000) -> list[File]:
    """Files in memory, each of one digit repeated."""
    for i in range(count):
        fsspec.filesystem("memory").pipe(f"/numbers/{i}", str(i).encode() * size)
    return [File(f"memory://numbers/{i}", size) for i in range(count)]


def held(cache: Cache) -> str:
    """The digits of the files in the cache."""
    return "".join(sorted(path.read_bytes()[:1].decode() for path in cache.folder.glob("*.tar")))


def test_what_was_not_opened_for_longest_makes_room(tmp_path):
    cache = Cache(tmp_path / "copies", max_bytes=3500)
    files = numbered(6)
    for i in (0, 1, 2, 0, 3):
        assert fetched(cache, files[i]) == str(i).encode() * 1000
    assert held(cache) == "023"
    assert (
        fetched(Cache(tmp_path / "copies", max_bytes=2500), files[4]) == b"4" * 1000
    )  # another process, say
    assert held(cache) == "34"


def test_what_is_open_stays(tmp_path, caplog):
    cache = Cache(tmp_path / "copies", max_bytes=2500)
    files = numbered(6)
    first = cache.open(files[0])
    for i in (1, 2, 3):
        fetched(cache, files[i])
    assert held(cache) == "03"
    second = cache.open(files[3])
    assert not caplog.records
    fetched(cache, files[4])  # more than fits
    assert held(cache) == "034"
    assert "the shards that are open do not fit into data.cache_bytes=2500" in caplog.text
    assert os.pread(first, 5, 0) == b"00000"
    os.close(first)
    os.close(second)
    fetched(cache, files[5])
    assert held(cache) == "45"


@pytest.mark.parametrize("has_nfs", [False, True])
def test_copies_of_another_user_go_where_they_can_be_locked(tmp_path, monkeypatch, has_nfs):
    def not_for_writing(path, flags, *args, opens=os.open):
        if flags & os.O_RDWR and str(path).endswith(".tar"):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), path)
        return opens(path, flags, *args)

    monkeypatch.setattr(os, "open", not_for_writing)
    monkeypatch.setattr(fcntl, "flock", flock_of_nfs if has_nfs else FLOCK)
    cache = Cache(tmp_path / "copies", max_bytes=2500)
    for file in numbered(3):
        fetched(cache, file)
    assert held(cache) == ("012" if has_nfs else "12")


@contextlib.contextmanager
def as_user(number: int) -> Iterator[None]:
    os.seteuid(number)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.mark.skipif(os.getuid() != 0, reason="root alone can be other users")
def test_users_share_a_folder_where_they_may(tmp_path):
    with tempfile.TemporaryDirectory() as place:  # pytest's folders are open to their user alone
        Path(place).chmod(0o777)
        folder, files = Path(place) / "copies", numbered(3)
        fetched(Cache(tmp_path / "own", max_bytes=2500), files[0])  # imports what it takes
        cache = Cache(folder, max_bytes=2500)
        with as_user(2001):
            fetched(cache, files[0])
        with (
            as_user(2002),
            pytest.raises(PermissionError, match="not yours to write into: set data"),
        ):
            fetched(cache, files[1])
        folder.chmod(0o777)
        left = folder / f"{cache._path(files[1]).stem}-{files[1].bytes or 0}.part"
        left.write_bytes(b"half")  # of a user whose process has ended
        os.chown(left, 2001, 2001)
        left.chmod(0o666)
        with as_user(2002):
            fetched(cache, files[1])
        with as_user(2001):
            for file in files:  # the last makes room
                fetched(cache, file)
        assert len(cached(folder)) == 2
        assert all(path.stat().st_mode & 0o777 == 0o644 for path in folder.glob("*.tar"))


def test_files_of_unknown_size_keep_the_bound(tmp_path):
    cache = Cache(tmp_path / "copies", max_bytes=2500)
    for i in range(5):
        command = File(f"pipe:printf '{i}%.0s' $(seq 1000)", None)
        assert fetched(cache, command) == str(i).encode() * 1000
    assert held(cache) == "34"
    big = File("pipe:head -c 5000 /dev/zero", None)
    assert fetched(cache, big) == bytes(5000)


def test_a_reader_keeps_half_of_the_room_open_at_most(root, tmp_path):
    size = max(path.stat().st_size for path in root.glob("*.tar"))
    url = upload(root)
    write(root / "train-002.tar", range(9, 11))
    write(root / "train-003.tar", range(11, 13))
    upload(root)
    train = shards(root=url, cache=str(tmp_path / "fast"), cache_bytes=2 * size).splits["train"]
    for i in np.random.default_rng(0).integers(0, 13, 60):
        assert train.read(int(i)) == picture(int(i))
        copies = list((tmp_path / "fast" / "shards").glob("*.tar"))
        assert sum(path.stat().st_size for path in copies) <= 2 * size
    assert 0 < len(copies) < 4


def test_a_copy_that_was_cut_is_fetched_again(tmp_path):
    cache = Cache(tmp_path / "copies", max_bytes=10**6)
    (file,) = numbered(1)
    fetched(cache, file)
    (copy,) = cache.folder.glob("*.tar")
    copy.write_bytes(b"0" * 10)
    assert fetched(cache, file) == b"0" * 1000


def test_another_version_is_another_file(tmp_path):
    cache = Cache(tmp_path / "copies", max_bytes=10**6)
    fsspec.filesystem("memory").pipe("/x", b"old")
    assert fetched(cache, File("memory://x", 3, "1")) == b"old"
    fsspec.filesystem("memory").pipe("/x", b"new")
    assert fetched(cache, File("memory://x", 3, "1")) == b"old"
    assert fetched(cache, File("memory://x", 3, "2")) == b"new"


OPEN = """
import os, sys
from pathlib import Path
from mixer_lightning.data.sources.cache import Cache
from mixer_lightning.data.sources.remote import File
cache = Cache(Path(sys.argv[2]), max_bytes=10**9)
print("ready", flush=True)
sys.stdin.readline()
print(len(os.pread(cache.open(File(sys.argv[1], None)), 10**6, 0)))
"""


def opener(*words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", OPEN, *words], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_two_processes_and_many_threads_fetch_a_shard_once(root, server, tmp_path):
    server.seconds = 0.5
    url, size = f"{server.url}/train-000.tar", (root / "train-000.tar").stat().st_size
    both = [opener(url, str(tmp_path / "copies")) for _ in range(2)]
    assert [process.stdout.readline() for process in both] == ["ready\n"] * 2
    cache = Cache(tmp_path / "copies", max_bytes=10**9)
    lengths: list[int] = []
    threads = [
        threading.Thread(target=lambda: lengths.append(len(fetched(cache, File(url, None)))))
        for _ in range(6)
    ]
    for thread in threads:
        thread.start()
    assert [process.communicate("\n", timeout=300)[0] for process in both] == [f"{size}\n"] * 2
    for thread in threads:
        thread.join()
    assert lengths == [size] * 6
    assert server.gets["train-000.tar"] == 1


def test_a_process_killed_while_it_fetches_leaves_no_trace(root, server, tmp_path):
    url, folder = f"{server.url}/train-000.tar", tmp_path / "copies"
    server.seconds = 30
    killed = opener(url, str(folder))
    killed.stdin.write("\n")
    killed.stdin.flush()
    while not cached(folder) or not server.gets:
        time.sleep(0.01)
    cache = Cache(folder, max_bytes=10**9)
    killed.send_signal(signal.SIGKILL)
    killed.communicate()
    assert [Path(name).suffix for name in cached(folder)] == [".part"]
    server.seconds = 0
    assert fetched(cache, File(f"{server.url}/val-000.tar", None)) == (root / "val-000.tar").read_bytes()
    assert fetched(cache, File(url, None)) == (root / "train-000.tar").read_bytes()
    assert [Path(name).suffix for name in cached(folder)] == [".tar", ".tar"]


# -------------------------------------------------------------------------------------------- looking ahead


def wait_for(condition) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def test_expected_shards_are_fetched_in_the_background(root, server):
    prepared_set(root)
    train = shards(root=server.url).splits["train"]
    server.seconds = 0.05
    train.prefetch([1])
    wait_for(lambda: server.gets["train-001.tar"] == 1)
    assert train.read(8) == picture(8)
    assert train.read(4) == picture(4)
    assert server.gets["train-001.tar"] == 1
    assert server.gets["train-000.tar"] == 0
    train.prefetch([1, 0])
    check_train(train)
    assert max(server.gets[f"train-00{i}.tar"] for i in range(2)) == 1


def test_no_more_is_fetched_ahead_than_fits(tmp_path, caplog):
    cache = Cache(tmp_path / "copies", max_bytes=3500)
    files = numbered(8)

    def prefetch(wanted: list[File]) -> str:
        cache.prefetch(wanted)
        wait_for(lambda: not any(thread.name == "fetch" for thread in threading.enumerate()))
        return held(cache)

    assert prefetch(files[:6]) == "012"
    assert (
        prefetch([files[5], files[1], files[0], files[7]]) == "015"
    )  # what is expected soon made no room for it
    assert not caplog.records
    assert prefetch(files) == "012"
    assert "8 shards are read side by side, of which 3 fit into data.cache_bytes=3500" in caplog.text


def test_splits_that_are_joined_are_fetched_ahead_side_by_side(tmp_path):
    """They have one cache, and each is told of its own shards, some of none."""
    cache = Cache(tmp_path / "copies", max_bytes=9000)
    files, (train, val, test) = numbered(8), (object(), object(), object())
    cache.prefetch(files[:6], of=train)  # more than threads fetch at once
    cache.prefetch(files[7:], of=val)
    cache.prefetch([], of=test)
    wait_for(lambda: not any(thread.name == "fetch" for thread in threading.enumerate()))
    assert held(cache) == "0123457"


def test_what_cannot_be_fetched_ahead_is_an_error_only_when_it_is_read(root, server):
    prepared_set(root)
    train = shards(root=server.url).splits["train"]
    server.faults["train-000.tar"] = [404, 404]
    train.prefetch([0, 1])
    wait_for(lambda: server.gets["train-000.tar"] and server.gets["train-001.tar"])
    with pytest.raises(StorageError, match=r"train-000\.tar does not exist"):
        train.read(0)
    check_train(train)


@pytest.mark.parametrize("fits", [True, False])
def test_balanced_sampling_of_shards_elsewhere_takes_a_cache_that_holds_them(root, fits):
    """Each image would fetch its shard again: more than the whole set for each batch."""
    url = upload(root)
    size = sum(path.stat().st_size for path in root.glob("train-*.tar"))
    images = shards(root=url, cache_bytes=size if fits else size - 1).splits["train"]
    joined = Joined([Subset(images, np.arange(3)), Subset(images, np.arange(3, 9))])
    if fits:
        refuse_random_reads(joined)
    else:
        with pytest.raises(
            ValueError, match=rf"sampling=balanced .* Set data\.cache_bytes={size} .* or use loss"
        ):
            refuse_random_reads(joined)
    refuse_random_reads(shards(root=str(root), cache_bytes=1).splits["train"])
