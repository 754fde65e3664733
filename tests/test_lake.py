"""Files and folders in the lake are put in place whole, and an interrupted replacement is undone."""

import contextlib
import json
import os
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import fsspec
import pytest

from gan_spark import lake
from gan_spark.config import UserError
from gan_spark.lake import files, swap


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


@pytest.mark.fault(
    "lake",
    "a job dies between the renames by which a folder is replaced",
    "the old folder is put back, or the new one is in place: never neither",
)
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


def both(root: str) -> tuple[str, str]:
    return lake.join(root, "d.rejected"), lake.join(root, "d")


def stage_both(root: str) -> dict[str, str]:
    return {staged(url, a=b"new"): url for url in both(root)}


def shown(root: str) -> dict[str, bytes]:
    """`content` but for what is staged."""
    return {name: data for name, data in content(root).items() if name.startswith(("d", ".d.old", ".d.rejected.old"))}


# Two folders are displaced, two put in place, and what was displaced is removed.
@pytest.mark.fault(
    "lake",
    "a job dies while a dataset and its rejects are replaced",
    "both are the old ones, or both are the new ones",
)
@pytest.mark.parametrize(
    "method, call, left", [*(("mv", call, b"old") for call in range(1, 5)), ("rm", 1, b"new"), ("rm", 2, b"new")]
)
def test_two_folders_whose_replacement_dies_are_recovered_together(tmp_path, monkeypatch, method, call, left):
    root = lake.to_url(str(tmp_path))
    for url in both(root):
        put(url, a=b"old")
    moves = stage_both(root)
    with monkeypatch.context() as patch:
        dies_at(patch, lake.filesystem(root)[0], method, call)
        with pytest.raises(Died):
            lake.replace_all(moves)
    lake.recover(*both(root))
    assert shown(root) == {"d/sub/a": left, "d.rejected/sub/a": left}


@pytest.mark.parametrize("method, call", [("rm", 1), ("mv", 1), ("mv", 2)])
def test_a_recovery_that_dies_is_recovered(tmp_path, monkeypatch, method, call):
    """Both were displaced and the first was put in place; that is removed, and both are moved back."""
    root = lake.to_url(str(tmp_path))
    first, second = both(root)
    for url in (first, lake.displaced(first), lake.displaced(second)):
        put(url, a=b"new" if url == first else b"old")
    with monkeypatch.context() as patch:
        dies_at(patch, lake.filesystem(root)[0], method, call)
        with pytest.raises(Died):
            lake.recover(first, second)
    lake.recover(first, second)
    assert shown(root) == {"d/sub/a": b"old", "d.rejected/sub/a": b"old"}


def test_a_new_folder_does_not_stay_where_the_other_could_not_be_put_in_place(root, monkeypatch):
    """There was none of the first; the second is displaced, the first put in place, and the second cannot be."""
    _, second = both(root)
    put(second, a=b"old")
    moves = stage_both(root)
    with monkeypatch.context() as patch:
        dies_at(patch, lake.filesystem(root)[0], "mv", 3, OSError("disk full"))
        with pytest.raises(OSError, match="disk full"):
            lake.replace_all(moves)
    assert shown(root) == {"d/sub/a": b"old"}


@pytest.mark.fault(
    "lake",
    "two jobs replace one dataset at once",
    "what the other put there stays, and nothing of this one; it is refused by name",
)
@pytest.mark.parametrize(
    "there, left",
    [
        ("d.rejected", {"d.rejected/sub/b": b"theirs", ".d.rejected.old/sub/a": b"old", "d/sub/a": b"old"}),
        ("d", {"d.rejected/sub/a": b"old", "d/sub/b": b"theirs", ".d.old/sub/a": b"old"}),
        (".d.old", {"d.rejected/sub/a": b"old", "d/sub/a": b"old", ".d.old/sub/b": b"theirs"}),
    ],
)
def test_what_another_job_puts_there_meanwhile_stays_and_nothing_of_this_one(tmp_path, monkeypatch, there, left):
    """The other's folder appears after the first is displaced: before the second is, or after where it is the second
    itself.
    """
    root, displace = lake.to_url(str(tmp_path)), swap._displace
    for url in both(root):
        put(url, a=b"old")

    def meanwhile(url):
        if there == "d":
            displace(url)
        if url == both(root)[1]:
            put(lake.join(root, there), b=b"theirs")
        if there != "d":
            displace(url)

    moves = stage_both(root)
    monkeypatch.setattr(swap, "_displace", meanwhile)
    with pytest.raises(
        UserError,
        match=(
            f"/{there} is there, and was not a moment ago: another job writes it at the same time.*run this one again"
        ),
    ):
        lake.replace_all(moves)
    assert shown(root) == left


def test_a_folder_is_not_moved_into_another(root):
    put(lake.join(root, "d"), a=b"1")
    put(lake.join(root, "e"), a=b"2")
    with pytest.raises(UserError, match="/e is there"):
        swap._move(lake.join(root, "d"), lake.join(root, "e"))
    assert content(root) == {"d/sub/a": b"1", "e/sub/a": b"2"}


def test_what_killed_jobs_had_staged_is_removed_after_a_day(tmp_path):
    root = lake.to_url(str(tmp_path))
    url = lake.join(root, "d")
    put(url, a=b"1")
    old, young, other = staged(url, a=b"2"), staged(url, a=b"3"), staged(lake.join(root, "d.rejected"), a=b"4")
    empty = tmp_path / ".d.0123abcd"
    empty.mkdir()
    before = time.time() - 25 * 3600
    for made in (old, other):
        lake.claim(made, "dataset")
        for file in ("sub/a", lake.OWNER):
            os.utime(lake.filesystem(lake.join(made, file))[1], (before, before))
    for folder in (empty, lake.filesystem(young)[1]):  # of which the second has a young file
        os.utime(folder, (before, before))
    lake.tidy(url)
    assert not lake.exists(old) and not empty.exists()
    assert all(map(lake.exists, (url, young, other)))
    lake.tidy(lake.join(root, "d.rejected"))
    assert not lake.exists(other)


def test_what_was_staged_stays_where_the_filesystem_tells_no_time(root, monkeypatch):
    made = staged(lake.join(root, "d"), a=b"1")

    def untold(self, path):
        raise NotImplementedError

    monkeypatch.setattr(type(lake.filesystem(root)[0]), "modified", untold)
    lake.tidy(lake.join(root, "d"))
    assert lake.exists(made)
    lake.tidy(lake.join(root, "none", "d"))


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


def test_two_that_remove_a_folder_at_the_same_moment_both_do(tmp_path):
    url = lake.to_url(str(tmp_path / "d"))
    for _ in range(10):
        for number in range(300):
            place = tmp_path / "d" / str(number % 7)
            place.mkdir(parents=True, exist_ok=True)
            (place / str(number)).touch()
        with ThreadPoolExecutor(4) as threads:
            assert list(threads.map(lake.remove, [url] * 4)) == [None] * 4
        assert not (tmp_path / "d").exists()


def test_what_cannot_be_removed_is_told(tmp_path, monkeypatch):
    def gone(self, path, recursive):
        raise FileNotFoundError(path)

    (tmp_path / "d").mkdir()
    monkeypatch.setattr(fsspec.get_filesystem_class("file"), "rm", gone)
    with pytest.raises(FileNotFoundError):
        lake.remove(lake.to_url(str(tmp_path / "d")))


def test_the_memory_lake_is_fsspec_own(root):
    lake.write_bytes(lake.join(root, "a"), b"1")
    with fsspec.open(lake.join(root, "a"), "rb") as stream:
        assert stream.read() == b"1"


# --- object stores, which have no rename -----------------------------------------------


@pytest.fixture
def store(monkeypatch) -> str:
    """A folder in memory that the lake takes for one on an object store."""
    monkeypatch.setattr(files, "_OBJECT_STORES", ("memory",))
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


# Removed are the old folder's marker and the rest of it, the staged folder, the journal (from then on the new one
# counts), and the displaced folder.
@pytest.mark.fault(
    "lake",
    "a job dies while a store that has no rename copies a folder",
    "what has its marker is whole; recovered, it is the old folder or the new one",
)
@pytest.mark.parametrize(
    "method, call, left",
    [
        ("cp_file", 1, b"old"),
        ("cp_file", 2, b"old"),
        ("cp_file", 3, b"old"),
        ("cp_file", 4, b"old"),
        *(("rm", call, b"old") for call in range(1, 5)),
        ("rm", 5, b"new"),
    ],
)
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


# Two folders of two files are displaced (rm 1 to 4), put in place (rm 5 and 6), and then the journals go (rm 7 and 8)
# and what was displaced (rm 9 and 10).
@pytest.mark.parametrize(
    "method, call, left",
    [
        *(("cp_file", call, b"old") for call in range(1, 9)),
        *(("rm", call, b"old") for call in range(1, 8)),
        *(("rm", call, b"new") for call in range(8, 11)),
    ],
)
def test_two_folders_whose_replacement_dies_on_a_store_are_recovered_together(store, monkeypatch, method, call, left):
    """Where the recovery dies too, wherever it does, the next one ends it."""
    for again in (("rm", 0), *(("rm", call) for call in range(1, 7)), *(("cp_file", call) for call in range(1, 5))):
        root, moves = lake.join(store, "-".join(map(str, again))), {}
        for url in both(root):
            moves[made := lake.staging(url)] = url
            for folder, value in ((url, b"old"), (made, b"new")):
                lake.write_bytes(lake.join(folder, lake.SUCCESS), b"")
                lake.write_bytes(lake.join(folder, "a"), value)
        with monkeypatch.context() as patch:
            dies_at(patch, lake.filesystem(root)[0], method, call)
            with pytest.raises(Died):
                lake.replace_all(moves)
        with monkeypatch.context() as patch, contextlib.suppress(Died):
            dies_at(patch, lake.filesystem(root)[0], *again)
            lake.recover(*both(root))
        lake.recover(*both(root))
        assert shown(root) == {
            f"{name}/{file}": data for name in ("d", "d.rejected") for file, data in (("a", left), (lake.SUCCESS, b""))
        }, again


@pytest.mark.parametrize(
    "there, left", [("d", {"d/sub/b": b"theirs"}), (".d.old", {"d/sub/a": b"old", ".d.old/sub/b": b"theirs"})]
)
def test_a_store_does_not_mix_a_folder_into_that_of_another_job(store, monkeypatch, there, left):
    url, displace = lake.join(store, "d"), swap._displace
    put(url, a=b"old")

    def meanwhile(url):
        if there == "d":
            displace(url)
        put(lake.join(store, there), b=b"theirs")
        if there != "d":
            displace(url)

    made = staged(url, c=b"new")
    monkeypatch.setattr(swap, "_displace", meanwhile)
    with pytest.raises(UserError, match=f"/{there} is there, .*another job writes it"):
        lake.replace(made, url)
    found = shown(store)
    assert (
        {name: found[name] for name in left} == left
        and not any(name.endswith("/c") for name in found)
        and ("d/sub/a" in found) == ("d/sub/a" in left)
    )


@pytest.mark.parametrize(
    "path, message",
    [
        ("s3a:/bucket/lake", r"^'s3a:/bucket/lake': expected two slashes after the scheme: s3a://, a bucket or host"),
        ("hdfs:/lake", r"^'hdfs:/lake': expected two slashes after the scheme: hdfs://"),
        ("s3:bucket/lake", r"^'s3:bucket/lake': expected two slashes after the scheme: s3://"),
        ("$HOME/lake", r"^'\$HOME/lake': nothing is put in for \$HOME; expected a URL or a path written out"),
        ("${LAKE}/x", r"^'\$\{LAKE\}/x': nothing is put in for \$\{LAKE\}"),
        ("~nobody-of-that-name/lake", r"^'~nobody-of-that-name/lake': nothing is put in for ~nobody-of-that-name"),
    ],
)
def test_no_path_becomes_a_folder_of_an_odd_name_in_the_working_directory(path, message):
    with pytest.raises(UserError, match=message):
        lake.to_url(path)


def test_a_tilde_is_the_users_home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/somebody")
    assert lake.to_url("~/lake") == "file:///home/somebody/lake"
    assert lake.to_url("data/~x$y:z") == "file://" + os.path.abspath("data/~x$y:z")


@pytest.mark.parametrize("has_links", [True, False])
def test_of_many_that_create_a_file_one_does(tmp_path, monkeypatch, has_links):
    if not has_links:  # as on a mount of Databricks

        def refuses(*_):
            raise PermissionError("no links here")

        monkeypatch.setattr(os, "link", refuses)
    url = lake.to_url(str(tmp_path / "folder" / "file"))
    if has_links:
        with ThreadPoolExecutor(8) as threads:
            made = list(threads.map(lambda number: lake.create(url, b"%d" % number), range(40)))
        assert sum(made) == 1 and lake.read_bytes(url) == b"%d" % made.index(True)
    else:
        assert lake.create(url, b"first")
    before = lake.read_bytes(url)
    assert not lake.create(url, b"another") and lake.read_bytes(url) == before
    assert os.listdir(tmp_path / "folder") == ["file"]


@pytest.mark.parametrize(
    "url, folder, number",
    [
        ("file:///lake/datasets/d@2", "file:///lake/datasets/d", 2),
        ("file:///lake/datasets/d", "file:///lake/datasets/d", 0),
        ("abfss://c@host/lake/datasets/d", "abfss://c@host/lake/datasets/d", 0),
        ("abfss://c@host/lake/datasets/d@12", "abfss://c@host/lake/datasets/d", 12),
        ("file:///lake@3/datasets/d", "file:///lake@3/datasets/d", 0),
        ("file:///lake/datasets/d@x", "file:///lake/datasets/d@x", 0),
    ],
)
def test_a_snapshot_has_a_url(url, folder, number):
    assert lake.split_snapshot(url) == (folder, number)
    assert not number or lake.at_snapshot(folder, number) == url == lake.at_snapshot(url, number)
