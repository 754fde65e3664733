"""Downloads from a server on this machine: whole, resumed, refused."""

import hashlib
import http.server
import os
import re
import socket
import threading
import uuid
from types import SimpleNamespace

import pytest

from gan_spark import lake
from gan_spark.config import UserError
from gan_spark.data import downloads
from gan_spark.data.downloads import Remote, download, fetch

DATA = bytes(range(256)) * 300


class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        state, wanted = self.server.state, self.headers["Range"]
        state.ranges.append(wanted)
        data = state.files.get(self.path)
        if data is None:
            return self.send_error(404)
        start = int(re.fullmatch(r"bytes=(\d+)-", wanted)[1]) if wanted and state.resumable else 0
        if start and start >= len(data):
            return self.send_error(416)
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        self.wfile.write(data[start : state.cut])

    def log_message(self, *arguments):
        pass


@pytest.fixture
def server(monkeypatch):
    """`state` says how the server behaves and which Range headers came, None for a request without one."""
    monkeypatch.setenv("no_proxy", "*")
    serving = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    serving.state = SimpleNamespace(
        files={"/set.bin": DATA}, resumable=True, cut=None, ranges=[], url=f"http://127.0.0.1:{serving.server_port}/"
    )
    thread = threading.Thread(target=serving.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield serving.state
    serving.shutdown()
    thread.join()
    serving.server_close()


def remote(server, name: str = "set.bin", kind: str = "sha256") -> Remote:
    return Remote(server.url + name, hashlib.new(kind, DATA).hexdigest())


@pytest.mark.parametrize("kind", ["sha256", "md5"])
def test_a_file_is_fetched_whole(server, tmp_path, kind):
    url = fetch(remote(server, kind=kind), str(tmp_path / "new" / "folder"))
    assert url == f"file://{tmp_path}/new/folder/set.bin"
    assert lake.read_bytes(url) == DATA
    assert os.listdir(tmp_path / "new" / "folder") == ["set.bin"]
    assert server.ranges == [None]


def test_another_store_than_the_disk(server):
    folder = f"memory://{uuid.uuid4().hex}"
    url = fetch(remote(server), folder)
    assert lake.read_bytes(url) == DATA
    assert fetch(remote(server), folder) == url
    assert server.ranges == [None]
    lake.remove(folder)


def test_a_part_is_resumed(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(DATA[:1000])
    assert lake.read_bytes(fetch(remote(server), str(tmp_path))) == DATA
    assert server.ranges == ["bytes=1000-"]
    assert os.listdir(tmp_path) == ["set.bin"]


def test_a_whole_part_needs_no_more_bytes(server, tmp_path):
    (tmp_path / "set.bin.part").write_bytes(DATA)
    assert lake.read_bytes(fetch(remote(server), str(tmp_path))) == DATA
    assert server.ranges == [f"bytes={len(DATA)}-"]


def test_a_server_without_ranges_starts_over(server, tmp_path):
    server.resumable = False
    (tmp_path / "set.bin.part").write_bytes(DATA[:1000])
    assert lake.read_bytes(fetch(remote(server), str(tmp_path))) == DATA
    assert server.ranges == ["bytes=1000-"]


def test_a_lost_connection_is_resumed_by_the_next_call(server, tmp_path):
    server.cut = 5000
    with pytest.raises(UserError, match=r"/set\.bin: .*run the same command again to resume"):
        fetch(remote(server), str(tmp_path))
    assert (tmp_path / "set.bin.part").read_bytes() == DATA[:5000]
    server.cut = None
    assert lake.read_bytes(fetch(remote(server), str(tmp_path))) == DATA
    assert server.ranges == [None, "bytes=5000-"]


@pytest.mark.parametrize("part", [None, b"other bytes"])
def test_a_wrong_checksum_is_refused_and_the_part_removed(server, tmp_path, part):
    server.files["/set.bin"] = DATA[:-1] + b"?"
    if part:
        (tmp_path / "set.bin.part").write_bytes(part)
    with pytest.raises(
        UserError,
        match=rf"/set\.bin: checksum [0-9a-f]{{64}}, expected {remote(server).digest}; the partial file was removed",
    ):
        fetch(remote(server), str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_a_missing_file_is_a_user_error(server, tmp_path):
    with pytest.raises(UserError, match=r"/other\.bin: the server answered 404 Not Found"):
        fetch(remote(server, "other.bin"), str(tmp_path))
    assert os.listdir(tmp_path) == []


def test_no_server_is_a_user_error(server, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    (tmp_path / "set.bin.part").write_bytes(DATA[:1000])
    with pytest.raises(
        UserError,
        match=r"/set\.bin: not reached \(.*\); .*set\.bin\.part keeps what came, run the same command again to resume",
    ):
        fetch(Remote(f"http://127.0.0.1:{port}/set.bin", remote(server).digest), str(tmp_path))
    assert (tmp_path / "set.bin.part").read_bytes() == DATA[:1000]


def test_a_file_that_is_there_is_not_asked_for(server, tmp_path):
    (tmp_path / "set.bin").write_bytes(DATA)
    assert fetch(remote(server), str(tmp_path)) == f"file://{tmp_path}/set.bin"
    assert server.ranges == []


def test_a_damaged_file_is_fetched_again(server, tmp_path):
    (tmp_path / "set.bin").write_bytes(DATA[:-5])
    assert lake.read_bytes(fetch(remote(server), str(tmp_path))) == DATA
    assert server.ranges == [None]


def test_a_set_is_all_its_files(server, tmp_path, monkeypatch):
    server.files["/second.bin"] = DATA
    monkeypatch.setitem(downloads.SETS, "local", (remote(server), remote(server, "second.bin")))
    assert download("local", str(tmp_path)) == [f"file://{tmp_path}/set.bin", f"file://{tmp_path}/second.bin"]
    assert sorted(os.listdir(tmp_path)) == ["second.bin", "set.bin"]


def test_an_unknown_set_is_a_user_error(tmp_path):
    with pytest.raises(UserError, match=r"^download 'mnits': unknown set \(known: mnist, fashion-mnist, "):
        download("mnits", str(tmp_path))


def test_every_set_has_names_and_checksums():
    for remotes in downloads.SETS.values():
        assert len({each.name for each in remotes}) == len(remotes)
        for each in remotes:
            assert re.fullmatch("[0-9a-f]{32}|[0-9a-f]{64}", each.digest)
