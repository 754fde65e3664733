"""HDFS and YARN: what a lake takes for granted of a filesystem, the whole way with a death in it, and jobs in YARN's
containers; on Hadoop's own minicluster, on loopback.
"""

import io
import json
import multiprocessing
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from conftest import ROOT, make_config, write_config
from minicluster import Minicluster, Unavailable
from processes import ranks_under, wait_for
from pyspark import cloudpickle

from gan_spark import failures, lake
from gan_spark.config import UserError
from gan_spark.data import schema, snapshots, splits
from gan_spark.lake import hdfs as filesystems
from gan_spark.lake import swap
from gan_spark.runs.store import Run


@pytest.fixture(scope="module")
def hdfs(tmp_path_factory):
    """URL of an HDFS."""
    try:
        with Minicluster(tmp_path_factory.mktemp("hdfs")) as cluster:
            yield cluster.url
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def yarn(tmp_path_factory):
    """A minicluster with YARN."""
    try:
        with Minicluster(tmp_path_factory.mktemp("yarn"), yarn=True) as cluster:
            yield cluster
    except Unavailable as error:
        pytest.skip(str(error))


# --- a store that cannot be opened ---


def without_hdfs_native(url: str) -> bytes:
    """`lake.read_bytes`, where the package is not installed."""
    absent = {name: None for name in ("hdfs_native", "hdfs_native.fsspec", "gan_spark.lake.hdfs")}
    kept = {name: sys.modules.pop(name, None) for name in absent}
    sys.modules["hdfs_native"] = None  # type: ignore[assignment]
    vars(sys.modules["gan_spark.lake"]).pop("hdfs", None)
    try:
        return lake.read_bytes(url)
    finally:
        sys.modules.update({name: module for name, module in kept.items() if module is not None})
        if kept["hdfs_native"] is None:
            sys.modules.pop("hdfs_native")


MISSING = r'hdfs://h:1/a: no filesystem for this URL: .*hdfs_native.*; hdfs: takes pip install "gan-spark\[hdfs\]", for'


def test_what_to_install_is_said():
    with pytest.raises(UserError, match=MISSING):
        without_hdfs_native("hdfs://h:1/a")


@pytest.mark.slow
def test_what_to_install_is_said_where_an_executor_lacks_it(spark, capsys):
    cloudpickle.register_pickle_by_value(sys.modules[__name__])
    with pytest.raises(Exception) as failure:
        spark.sparkContext.parallelize(["hdfs://h:1/a"], 1).map(without_hdfs_native).collect()
    assert failures.report(failure.value) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: hdfs://h:1/a: no filesystem") and error.count("\n") == 1
    assert 'pip install "gan-spark[hdfs]"' in error


@pytest.mark.parametrize(
    "url, error",
    [
        ("hdfs://127.0.0.1:9/a", r"^hdfs://127.0.0.1:9: no NameNode answers there \(Connection refused\); expected"),
        ("hdfs://nowhere.invalid:8020/a", r"^hdfs://nowhere.invalid:8020: no NameNode answers there \("),
        ("hdfs://service/a", r"^hdfs://service: no NameNode by that name .*HADOOP_CONF_DIR names \(not set\)"),
        ("hdfs:///a", r"^hdfs://: no NameNode by that name .*fs.defaultFS"),
    ],
)
def test_a_namenode_that_is_not_there_is_one_error_in_seconds(monkeypatch, url, error):
    monkeypatch.delenv("HADOOP_CONF_DIR", raising=False)
    monkeypatch.delenv("HADOOP_HOME", raising=False)
    monkeypatch.setattr(filesystems, "_SECONDS_TO_ANSWER", 1)
    with pytest.raises(UserError, match=error):
        lake.exists(url)


@pytest.mark.parametrize(
    "url, parts",
    [
        ("hdfs://h:1/a b/c#d", ("hdfs://h:1", "/a b/c#d")),
        ("hdfs://h:1", ("hdfs://h:1", "/")),
        ("hdfs:///a/", ("hdfs://", "/a")),
    ],
)
def test_root_and_path(url, parts):
    assert filesystems.split(url) == parts


# --- what a lake takes for granted ---


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "a b", "50%", "a#b", "a?b", "a;b", "ö", "a[1]{2}*"])
def test_a_file_may_have_any_name(hdfs, name):
    folder = f"{hdfs}/names"
    lake.write_bytes(f"{folder}/{name}/x", b"1")
    lake.write_bytes(f"{folder}/{name}/x", b"22")  # in place of the first
    assert lake.read_bytes(f"{folder}/{name}/x") == b"22" and lake.exists(f"{folder}/{name}")
    fs, path = lake.filesystem(f"{folder}/{name}")
    assert fs.find(path) == [f"{path}/x"] == [f"/names/{name}/x"] and fs.isdir(path)
    lake.remove(f"{folder}/{name}")
    assert not lake.exists(f"{folder}/{name}")


@pytest.mark.slow
def test_files_are_read_and_written_as_those_of_a_disk(hdfs):
    fs, _ = lake.filesystem(hdfs)
    data = np.random.default_rng(0).bytes(3 * 2**20 + 5)
    with fs.open("/files/big", "wb") as stream:
        for start in range(0, len(data), 100_000):
            assert stream.tell() == start
            stream.write(data[start : start + 100_000])
    with fs.open("/files/big", "rb") as stream:
        assert stream.read() == data and stream.read(1) == b""
        for place in (5, 2**20 - 1, 2**21, len(data) - 7):
            assert stream.seek(place) == place and stream.read(100) == data[place : place + 100]
        assert stream.seek(-7, io.SEEK_END) == len(data) - 7 and stream.read() == data[-7:]
    assert fs.cat_file("/files/big", start=2**20, end=2**20 + 9) == data[2**20 : 2**20 + 9]
    assert fs.cat_file("/files/big", start=len(data) - 3) == data[-3:] and fs.size("/files/big") == len(data)
    table = pa.table({"x": list(range(1000))})
    with fs.open("/files/_metadata", "wb") as stream:  # which asks where it is in the file
        pq.write_metadata(table.schema, stream)
    with fs.open("/files/t.parquet", "wb") as stream:
        pq.write_table(table, stream, row_group_size=100)
    with fs.open("/files/t.parquet", "rb") as stream:
        assert pq.ParquetFile(stream).read().equals(table)
    with pytest.raises(ValueError, match="opened here by mode rb or wb, not 'ab'"):
        fs.open("/files/big", "ab")


@pytest.mark.slow
def test_errors_are_those_of_a_disk(hdfs):
    lake.write_bytes(f"{hdfs}/errors/file", b"")
    with pytest.raises(FileNotFoundError) as missing:
        lake.read_bytes(f"{hdfs}/errors/none")
    assert "\n" not in str(missing.value) and "/errors/none" in str(missing.value)
    with pytest.raises(FileExistsError, match=r"^Path is not a directory: /errors/file\Z"):
        lake.write_bytes(f"{hdfs}/errors/file/in-it", b"")
    with pytest.raises(NotADirectoryError, match="/errors/file"):
        lake.filesystem(hdfs)[0].pipe_file("/errors/file/in-it", b"")
    assert not lake.exists(f"{hdfs}/errors/file/in-it") and not lake.exists(f"{hdfs}/errors/none")
    with pytest.raises(OSError, match=r"^InvalidPathException: Invalid path name /errors/.*a:b"):
        lake.write_bytes(f"{hdfs}/errors/a:b", b"")


@pytest.mark.slow
def test_whose_files_they_are(hdfs, monkeypatch):
    """In an executor it is Spark's user, whoever runs the process; another one's folder is refused by one error."""
    home = lake.filesystem(f"{hdfs}/home")[0]
    home.mkdir("/home")
    home.mkdir("/home/ada", permission=0o777)
    monkeypatch.delenv("HADOOP_USER_NAME", raising=False)
    monkeypatch.setenv("SPARK_USER", "ada")
    # The same NameNode by another name is another connection.
    other = hdfs.replace("127.0.0.1", "localhost")
    try:
        lake.write_bytes(f"{other}/home/ada/lake/x", b"1")
        assert {home.info(f"/home/ada/{name}")["owner"] for name in ("lake", "lake/x")} == {"ada"}
        with pytest.raises(
            UserError, match=r"^Permission denied: user=ada, access=WRITE, .*; ask who owns it"
        ) as error:
            lake.write_bytes(f"{other}/home/x", b"")
        assert isinstance(error.value, PermissionError)
    finally:
        os.environ.pop("HADOOP_USER_NAME", None)


@pytest.mark.slow
def test_a_forked_process_goes_on(hdfs):
    """Horovod's driver forks one: what fsspec forgets there must not wait for threads that are not there."""
    lake.write_bytes(f"{hdfs}/forked/file", b"1")
    child = multiprocessing.get_context("fork").Process(target=lake.write_bytes, args=(f"{hdfs}/forked/file", b"2"))
    child.start()
    child.join(60)
    code = child.exitcode
    child.kill()
    assert code == 0 and lake.read_bytes(f"{hdfs}/forked/file") == b"2"


@pytest.mark.slow
def test_a_folder_is_replaced_by_renames(hdfs):
    place = f"{hdfs}/swap/table"
    for content in (b"old", b"new"):
        staged = lake.staging(place)
        lake.claim(staged, "dataset")
        lake.write_bytes(f"{staged}/part-0", content)
        lake.replace(staged, place)
        assert lake.read_bytes(f"{place}/part-0") == content
    fs, path = lake.filesystem(f"{hdfs}/swap")
    assert fs.ls(path, detail=False) == ["/swap/table"]
    # A job that died between its two renames.
    fs.mv("/swap/table", "/swap/.table.old", recursive=True)
    lake.recover(place)
    assert lake.read_bytes(f"{place}/part-0") == b"new"


@pytest.mark.slow
def test_of_two_that_replace_a_folder_at_once_one_is_refused(hdfs, monkeypatch):
    """The rename itself refuses, where nothing was there when this job looked."""
    place = f"{hdfs}/race/table"
    staged = lake.staging(place)
    lake.claim(staged, "dataset")
    lake.claim(place, "dataset")
    monkeypatch.setattr(swap, "_is_there", lambda url: False)
    with pytest.raises(UserError, match="another job writes it at the same time"):
        swap._move(staged, place)
    fs, path = lake.filesystem(place)
    fs.makedirs("/race/empty")
    with pytest.raises(FileExistsError):
        fs.mv(path, "/race/empty", recursive=True)
    assert fs.find(path) == [f"{path}/{lake.OWNER}"] and lake.exists(staged)  # and not the one inside the other


def contend(place: str, name: str, gate, wins) -> None:
    """In a process of its own: four threads try to create each of ten files, all at the same moment."""
    with ThreadPoolExecutor(4) as threads:
        for number in range(10):
            gate.wait(120)
            contents = [f"{name} {thread}" for thread in range(4)]
            made = threads.map(lambda text, url=f"{place}/{number}": lake.create(url, text.encode()), contents)
            wins.put([text for text, is_made in zip(contents, made, strict=True) if is_made])


@pytest.mark.long
@pytest.mark.timeout(600)
def test_of_many_that_commit_at_the_same_moment_one_does(hdfs):
    """Two processes of four threads each, ten times: the file is that of the one which was told so."""
    place, context = f"{hdfs}/commits", multiprocessing.get_context("spawn")
    gate, wins = context.Barrier(2), context.Queue()
    contenders = [context.Process(target=contend, args=(place, name, gate, wins)) for name in "ab"]
    for each in contenders:
        each.start()
    winners = [name for _ in range(20) for name in wins.get(timeout=300)]
    for each in contenders:
        each.join(60)
        assert each.exitcode == 0
    assert len(winners) == 10
    held = [lake.read_bytes(f"{place}/{number}").decode() for number in range(10)]
    assert sorted(held) == sorted(winners)
    fs, path = lake.filesystem(place)
    assert len(fs.ls(path, detail=False)) == 10  # and nothing half-written beside them
    assert not lake.create(f"{place}/0", b"late") and lake.read_bytes(f"{place}/0").decode() == held[0]
    assert lake.create(f"{place}/new/folder/x", b"1")


@pytest.mark.slow
def test_a_run_is_kept(hdfs, tmp_path):
    run = Run(f"{hdfs}/lake/runs/kept")
    for step in (1, 2, 3):
        run.append_metrics({"step": step}, {"event": "x"})
        run.save_checkpoint(step, lambda prefix: open(prefix, "wb").write(b"w" * 10**6), keep=2)  # noqa: SIM115
    assert run.checkpoints() == [2, 3] and run.read_checkpoint()[1] == {"checkpoint": b"w" * 10**6}
    assert [line["step"] for line in run.metrics() if "step" in line] == [1, 2, 3]
    (tmp_path / "events.1").write_bytes(b"e")
    run.put_events(str(tmp_path))
    assert lake.read_bytes(run.path("events", "events.1")) == b"e"


# --- jobs ---


def configured(root: str, run: str, steps: int):
    train = {"steps": steps, "workers": 2, "launcher": "spark", "log_every": 50, "checkpoint_every": 50}
    evaluate = {"classifier_steps": 20}
    train["sample_every"] = steps
    return make_config(root, run=run, train=train, generate={"images": 40}, evaluate=evaluate)


@pytest.mark.long
@pytest.mark.timeout(1800)
@pytest.mark.fault(
    "training",
    "the driver is killed (SIGKILL), with the lake on HDFS",
    "the same command goes on from the newest checkpoint, and the run ends whole",
)
def test_the_whole_way_with_a_death_in_it(hdfs, tmp_path):
    """Ingest, two ranks, SIGKILL of the driver, the same command again, generate, evaluate."""
    root = f"{hdfs}/whole/lake"
    config = write_config(tmp_path, configured(root, "far", 500))
    command = [sys.executable, str(ROOT / "jobs" / "pipeline.py"), "--config", config]
    run = Run(f"{root}/runs/far")
    with open(tmp_path / "errors", "w") as errors:
        first = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors)
        wait_for(lambda: run.checkpoints() or first.poll() is not None, "checkpoint", 900)
        assert first.poll() is None, (tmp_path / "errors").read_text()[-3000:]
        orphans = list(ranks_under(first.pid).values())
        os.kill(first.pid, signal.SIGKILL)
        first.communicate()
        psutil.wait_procs(orphans, timeout=120)
    reached = run.checkpoints()[-1]
    second = subprocess.run(command, capture_output=True, text=True, timeout=1200)
    assert second.returncode == 0, second.stderr[-3000:]
    result = json.loads(second.stdout.splitlines()[-1])
    print(second.stdout.splitlines()[-1])
    assert result["steps"] == run.checkpoints()[-1] == 500 > reached
    assert [line["step"] for line in run.metrics() if line.get("event") == "start"] == [0, reached]
    assert result["generated_images"] == 40 and result["fid_self"] == 0 and result["fid"] > result["fid_floor"]
    assert lake.exists(result["grid"]) and lake.exists(run.path("events"))
    check_petastorm_reads(result["dataset"])


def check_petastorm_reads(url: str) -> None:
    """Petastorm's own reader gives every row of split train once."""
    from petastorm import make_batch_reader

    names = splits.files(url, "train")
    with make_batch_reader(
        names, num_epochs=1, reader_pool_type="dummy", filesystem=snapshots.petastorm_filesystem(url)
    ) as rows:
        ids = [row_id for batch in rows for row_id in batch.id]
    assert len(ids) == len(set(ids)) == schema.read_manifest(url).rows["train"]


def submit(cluster: Minicluster, folder, name: str, mode: str, *changes: str) -> str:
    """What `spark-submit` printed for a job on YARN, as docs/clusters.md has it; it has to succeed."""
    import pyspark

    home = os.path.dirname(pyspark.__file__)
    environment = {
        **os.environ,
        "SPARK_HOME": home,
        "SPARK_LOCAL_IP": "127.0.0.1",
        "HADOOP_CONF_DIR": str(cluster.conf),
        "JAVA_HOME": str(cluster.java),
        "PYSPARK_PYTHON": sys.executable,
    }
    settings = {
        "spark.yarn.jars": f"local:{home}/jars/*",
        "spark.executorEnv.PYTHONPATH": str(ROOT),
        "spark.yarn.appMasterEnv.PYTHONPATH": str(ROOT),
        "spark.executor.instances": "2",
        "spark.executor.memory": "1g",
        "spark.executor.memoryOverhead": "2g",
        "spark.driver.memory": "1g",
        "spark.driver.memoryOverhead": "2g",
    }
    command = [f"{home}/bin/spark-submit", "--master", "yarn", "--deploy-mode", mode]
    command += ["--properties-file", str(ROOT / "conf" / "spark-defaults.conf"), "--files", "run.toml"]
    for key, value in settings.items():
        command += ["--conf", f"{key}={value}"]
    command += [str(ROOT / "jobs" / f"{name}.py"), "--config", "run.toml"]
    for change in changes:
        command += ["--set", change]
    answer = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=900, cwd=folder)
    logs = "".join(path.read_text()[-1500:] for path in cluster.folder.rglob("container_*/std*"))
    assert answer.returncode == 0, answer.stdout[-1500:] + answer.stderr[-1500:] + logs
    return answer.stdout


@pytest.mark.long
@pytest.mark.timeout(2400)
def test_jobs_in_containers_of_yarn(yarn, tmp_path):
    """Ingest in cluster mode, training on two containers in client mode, generate in cluster mode."""
    root = f"{yarn.url}/lake"
    write_config(tmp_path, configured(root, "yarn", 20))
    submit(yarn, tmp_path, "ingest", "cluster")
    assert sum(schema.read_manifest(f"{root}/datasets/digits").rows.values()) == 1797
    trained = json.loads(submit(yarn, tmp_path, "train", "client").splitlines()[-1])
    assert trained["steps"] == 20 and trained["workers"] == 2 and Run(trained["run"]).checkpoints() == [20]
    submit(yarn, tmp_path, "generate", "cluster")
    fs, path = lake.filesystem(f"{root}/generated/yarn")
    tables = [pq.read_table(fs.open(name, "rb")) for name in fs.find(path) if name.endswith(".parquet")]
    assert sum(table.num_rows for table in tables) == 40 and lake.exists(f"{root}/generated/yarn.png")
