"""Files and folders in the lake are put in place whole, and an interrupted replacement is undone."""

import json
import os
import uuid

import fsspec
import pytest

from gan_spark import lake
from gan_spark.config import UserError


@pytest.fixture(params=["file", "memory"])
def root(request, tmp_path):
    """A folder on the disk, and one in memory, which stands for the stores that have no rename."""
    if request.param == "file":
        yield lake.to_url(str(tmp_path))
    else:
        url = f"memory://lake-{uuid.uuid4().hex}"
        yield url
        lake.remove(url)


def content(url: str) -> dict[str, bytes]:
    """Every file under `url`, hidden ones too, by its relative name."""
    fs, path = lake.filesystem(url)
    return {name.removeprefix(path).lstrip("/"): fs.cat_file(name) for name in fs.find(path)}


@pytest.mark.parametrize(
    "path, url",
    [
        ("/a/b", "file:///a/b"),
        ("/a/b/", "file:///a/b"),
        ("/a/../b", "file:///b"),
        ("file:/a/b", "file:///a/b"),
        ("file:///a/b/", "file:///a/b"),
        ("s3a://bucket/key/", "s3a://bucket/key"),
        ("hdfs://name:8020/a", "hdfs://name:8020/a"),
        ("dbfs:/mnt/a/", "dbfs:/mnt/a"),
    ],
)
def test_to_url(path, url):
    assert lake.to_url(path) == url
    assert lake.to_url(url) == url


def test_a_relative_path_is_made_absolute(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert lake.to_url("a/b") == f"file://{os.path.realpath(tmp_path)}/a/b"


@pytest.mark.parametrize("url", ["dbfs:/mnt/a.bin", "dbfs:///mnt/a.bin"])
def test_dbfs_goes_through_its_mount(url):
    fs, path = lake.filesystem(url)
    assert path == "/dbfs/mnt/a.bin"
    assert "file" in fs.protocol
    assert lake.mounted(url) == "file:///dbfs/mnt/a.bin"


def test_an_unknown_scheme_is_a_user_error():
    with pytest.raises(UserError, match="^nosuch://bucket/key: no filesystem for this URL: "):
        lake.filesystem("nosuch://bucket/key")


@pytest.mark.parametrize("name", ["a b", "50%25", "a#b", "a?b", "a*[b]", "añ", "a::b", "a\\b"])
def test_a_file_may_have_any_name(tmp_path, name):
    (tmp_path / name).write_bytes(b"content")
    assert lake.read_bytes(lake.to_url(str(tmp_path / name))) == b"content"


def test_write_makes_folders_and_replaces(root):
    url = lake.join(root, "deep", "er", "name.bin")
    assert not lake.exists(url)
    for data in (b"first", b"second, longer", b""):
        lake.write_bytes(url, data)
        assert lake.exists(url)
        assert lake.read_bytes(url) == data
    assert content(root) == {"deep/er/name.bin": b""}


def test_a_missing_file_is_not_found(root):
    with pytest.raises(FileNotFoundError):
        lake.read_bytes(lake.join(root, "missing"))


def test_json(root):
    url = lake.join(root, "a.json")
    lake.write_json(url, {"a": [1, 2.5, "é"]})
    assert lake.read_json(url) == {"a": [1, 2.5, "é"]}
    assert json.loads(lake.read_bytes(url).decode()) == {"a": [1, 2.5, "é"]}


@pytest.mark.parametrize("step", ["pipe_file", "mv"])
@pytest.mark.parametrize("old", [None, b"old"])
def test_a_write_that_fails_leaves_what_was_there(root, monkeypatch, step, old):
    url = lake.join(root, "name.bin")
    if old is not None:
        lake.write_bytes(url, old)

    def fail(*arguments, **options):
        raise OSError("disk full")

    with monkeypatch.context() as patch:
        patch.setattr(type(lake.filesystem(root)[0]), step, fail)
        with pytest.raises(OSError, match="disk full"):
            lake.write_bytes(url, b"new")
    assert lake.exists(url) == (old is not None)
    if old is not None:
        assert lake.read_bytes(url) == old


def put(url: str, **files: bytes) -> None:
    for name, data in files.items():
        lake.write_bytes(lake.join(url, "sub", name), data)


def staged(url: str, **files: bytes) -> str:
    made = lake.staging(url)
    put(made, **files)
    return made


def test_staging_is_beside_hidden_and_new():
    first, second = lake.staging("s3a://b/datasets/d"), lake.staging("s3a://b/datasets/d/")
    assert first != second
    assert first.startswith("s3a://b/datasets/.d.")
    assert second.startswith("s3a://b/datasets/.d.")


def test_replace_puts_the_whole_folder_in_place(root):
    url = lake.join(root, "d")
    lake.replace(staged(url, a=b"1", b=b"2"), url)
    assert content(root) == {"d/sub/a": b"1", "d/sub/b": b"2"}
    lake.replace(staged(url, b=b"3"), url)
    assert content(root) == {"d/sub/b": b"3"}


class Died(BaseException):
    """The process ends here."""


def dies_at(monkeypatch, fs, method: str, call: int, error=Died):
    """Lets `method` of the filesystem `fs` work but for its `call`-th call, which raises."""
    original, calls = getattr(type(fs), method), []

    def counted(self, *arguments, **options):
        calls.append(arguments)
        if len(calls) == call:
            raise error
        return original(self, *arguments, **options)

    monkeypatch.setattr(type(fs), method, counted)


@pytest.mark.parametrize("method, call, left", [("mv", 1, b"old"), ("mv", 2, b"old"), ("rm", 1, b"new")])
def test_a_replacement_that_dies_is_recovered(tmp_path, monkeypatch, method, call, left):
    url = lake.to_url(str(tmp_path / "d"))
    put(url, a=b"old")
    new = staged(url, a=b"new")
    with monkeypatch.context() as patch:
        dies_at(patch, lake.filesystem(url)[0], method, call)
        with pytest.raises(Died):
            lake.replace(new, url)
    lake.recover(url)
    lake.remove(new)
    assert content(lake.to_url(str(tmp_path))) == {"d/sub/a": left}


@pytest.mark.parametrize("call", [1, 2])
def test_a_replacement_that_fails_puts_the_old_folder_back(tmp_path, monkeypatch, call):
    url = lake.to_url(str(tmp_path / "d"))
    put(url, a=b"old")
    new = staged(url, a=b"new")
    with monkeypatch.context() as patch:
        dies_at(patch, lake.filesystem(url)[0], "mv", call, OSError("disk full"))
        with pytest.raises(OSError, match="disk full"):
            lake.replace(new, url)
    assert content(url) == {"sub/a": b"old"}


@pytest.mark.parametrize("present", [True, False])
def test_recover(root, present):
    """What was displaced comes back, but not over a new folder that is in place."""
    url = lake.join(root, "d")
    put(url, a=b"old")
    fs, path = lake.filesystem(url)
    fs.mv(path, lake.filesystem(lake.join(root, ".d.old"))[1], recursive=True)
    if present:
        put(url, a=b"new")
    lake.recover(url)
    assert content(root) == {"d/sub/a": b"new" if present else b"old"}
    lake.recover(url)
    assert content(root) == {"d/sub/a": b"new" if present else b"old"}


def test_replace_recovers_first(root):
    url = lake.join(root, "d")
    put(lake.join(root, ".d.old"), a=b"old")
    lake.replace(staged(url, a=b"new"), url)
    assert content(root) == {"d/sub/a": b"new"}


def test_remove_is_done_once_or_many_times(root):
    url = lake.join(root, "d")
    put(url, a=b"1")
    put(lake.join(root, "e"), a=b"2")
    lake.remove(url)
    lake.remove(url)
    assert content(root) == {"e/sub/a": b"2"}


def test_the_memory_lake_is_fsspec_own(root):
    lake.write_bytes(lake.join(root, "a"), b"1")
    with fsspec.open(lake.join(root, "a"), "rb") as stream:
        assert stream.read() == b"1"


# --- object stores, which have no rename -----------------------------------------------


@pytest.fixture
def store(monkeypatch) -> str:
    """A folder in memory that the lake takes for one on an object store."""
    monkeypatch.setattr(lake, "_OBJECT_STORES", ("memory",))
    url = f"memory://lake-{uuid.uuid4().hex}"
    yield url
    lake.remove(url)


def test_a_store_has_its_folders_replaced_and_its_files_written_in_one_go(store, monkeypatch):
    url = lake.join(store, "d")
    monkeypatch.setattr(type(lake.filesystem(url)[0]), "mv", None)  # never called
    lake.replace(staged(url, a=b"1", b=b"2"), url)
    lake.replace(staged(url, b=b"3"), url)
    lake.write_bytes(lake.join(store, "e"), b"4")
    assert content(store) == {"d/sub/b": b"3", "e": b"4"}


# Removed are the old folder's marker and the rest of it, the staged folder, the journal (from then on the new one counts), and the displaced folder.
@pytest.mark.parametrize("method, call, left", [
    ("cp_file", 1, b"old"), ("cp_file", 2, b"old"), ("cp_file", 3, b"old"), ("cp_file", 4, b"old"), *(("rm", call, b"old") for call in range(1, 5)), ("rm", 5, b"new"),
])  # fmt: skip
def test_a_replacement_that_dies_on_a_store_leaves_the_old_or_the_new_folder(store, monkeypatch, method, call, left):
    url = lake.join(store, "d")
    for folder, value in ((url, b"old"), (new := lake.join(store, ".d.new"), b"new")):
        lake.write_bytes(lake.join(folder, lake.SUCCESS), b"")
        lake.write_bytes(lake.join(folder, "a"), value)
    with monkeypatch.context() as patch:
        dies_at(patch, lake.filesystem(url)[0], method, call)
        with pytest.raises(Died):
            lake.replace(new, url)
    found = content(url)
    assert lake.SUCCESS not in found or len(found) == 2  # what has its marker is whole
    lake.recover(url)
    lake.remove(new)
    assert content(store) == {"d/a": left, f"d/{lake.SUCCESS}": b""}


@pytest.mark.parametrize("call", [1, 3])
def test_a_replacement_that_fails_on_a_store_puts_the_old_folder_back(store, monkeypatch, call):
    url = lake.join(store, "d")
    put(url, a=b"old", b=b"old")
    new = staged(url, a=b"new")
    with monkeypatch.context() as patch:
        dies_at(patch, lake.filesystem(url)[0], "cp_file", call, OSError("no network"))
        with pytest.raises(OSError, match="no network"):
            lake.replace(new, url)
    assert content(url) == {"sub/a": b"old", "sub/b": b"old"}
