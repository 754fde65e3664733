"""Messages of a Kafka topic become more of a dataset, each once; with a real broker, on loopback."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import sklearn.datasets
from broker import Broker, Unavailable
from conftest import ROOT, make_config, write_config
from pyspark import __version__

from gan_spark import lake as lakes
from gan_spark.config import Ingest, UserError
from gan_spark.data import images, schema, sources, stream
from gan_spark.data.sources import messages
from gan_spark.lake import tables

CONNECTOR = f"org.apache.spark:spark-sql-kafka-0-10_2.12:{__version__}"
PRODUCE = """
import base64, json, sys
from gan_spark import job

spark = job.session("producer")
lines = [json.loads(line) for line in open(sys.argv[3])]
of = lambda text: None if text is None else bytearray(base64.b64decode(text))
rows = [(of(key), of(value), [(name, of(text)) for name, text in headers]) for key, value, headers in lines]
kind = "key binary, value binary, headers array<struct<key string, value binary>>"
frame = spark.createDataFrame(rows, kind).coalesce(1)
frame.write.format("kafka").option("kafka.bootstrap.servers", sys.argv[1]).option("topic", sys.argv[2]).save()
"""


@pytest.fixture
def broker(tmp_path):
    folder = tmp_path / "kafka"
    folder.mkdir()
    try:
        with Broker(folder) as broker:
            yield broker
    except Unavailable as error:
        pytest.skip(str(error))


@pytest.fixture
def environment(tmp_path) -> dict[str, str]:
    """Of jobs whose session has the connector."""
    folder = tmp_path / "conf"
    folder.mkdir()
    settings = (ROOT / "conf" / "spark-defaults.conf").read_text()
    (folder / "spark-defaults.conf").write_text(f"{settings}\nspark.jars.packages {CONNECTOR}\n")
    (folder / "log4j2.properties").write_text((ROOT / "conf" / "log4j2.properties").read_text())
    return {**os.environ, "SPARK_CONF_DIR": str(folder), "PYTHONPATH": str(ROOT)}


def digit(index: int) -> tuple[bytes, str]:
    """(a PNG file, its label)."""
    digits = sklearn.datasets.load_digits()
    pixels = (digits.images[index] * 15.9375).astype("uint8")[:, :, None]
    return images.encode_png(pixels), str(digits.target[index])


def message(index: int, key: bytes | None = None, **headers: bytes) -> tuple:
    value, label = digit(index)
    return key, value, [("label", label.encode()), *headers.items()]


def run(command: list[str], environment: dict[str, str]) -> str:
    job = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
    if "unresolved dependency" in job.stderr:
        pytest.skip(f"Spark cannot fetch {CONNECTOR} from here")
    assert job.returncode == 0, job.stderr[-3000:]
    return job.stdout


def produce(broker: Broker, environment, tmp_path, rows: list[tuple]) -> None:
    from base64 import b64encode

    def text(data: bytes | None) -> str | None:
        return None if data is None else b64encode(data).decode()

    lines = [[text(key), text(value), [(name, text(data)) for name, data in headers]] for key, value, headers in rows]
    (tmp_path / "rows").write_text("\n".join(map(json.dumps, lines)))
    run([sys.executable, "-c", PRODUCE, broker.servers, "images", str(tmp_path / "rows")], environment)


@pytest.mark.long
def test_messages_arrive_once_and_bad_ones_by_name(spark, broker, environment, tmp_path):
    """Rows and rejects are the messages, through one SIGKILL of the job."""
    good = [message(index, b"camera/%d" % index) for index in range(100)] + [
        message(index) for index in range(100, 120)
    ]
    value, _ = digit(0)
    bad = [
        (b"none", None, [("label", b"0")]),
        (b"text", b"no image", [("label", b"0")]),
        (b"cut", value[:60], [("label", b"0")]),
        (b"unlabelled", value, []),
        (b"unreadable", value, [("label", b"\xff\xfe")]),
        (b"camera/0", digit(1)[0], [("label", b"0")]),
        (b"\xff\x00", digit(0)[0], [("label", b"0")]),  # Good: any bytes may be a key.
    ]
    produce(broker, environment, tmp_path, good + bad)
    ingest = {"source": "kafka", "path": "images", "label_column": "label", "height": 8, "width": 8}
    arriving = {"files_a_batch": 30, "servers": broker.servers, "trigger": "1 seconds"}
    config = make_config(str(tmp_path / "lake"), ingest=ingest, stream=arriving)
    command = [sys.executable, str(ROOT / "jobs" / "stream.py"), "--config", write_config(tmp_path, config)]
    url = lakes.dataset_url(config)
    with open(tmp_path / "log", "w") as log:
        job = subprocess.Popen(command, stdout=log, stderr=log, env=environment, start_new_session=True)
    deadline = time.time() + 300
    while job.poll() is None and not lakes.exists(lakes.join(url, schema.MANIFEST)) and time.time() < deadline:
        time.sleep(0.2)
    time.sleep(2)
    os.killpg(job.pid, signal.SIGKILL)
    job.wait()
    assert lakes.exists(lakes.join(url, schema.MANIFEST)), (tmp_path / "log").read_text()[-3000:]

    def rest() -> dict:
        return json.loads(run([*command, "--set", "stream.trigger=availableNow"], environment).splitlines()[-1])

    answer = rest()
    rows = tables.read_parquet(spark, *(lakes.join(url, name) for name in schema.read_manifest(url).files)).collect()
    ids = [row["id"] for row in rows]
    assert len(ids) == len(set(ids)) == answer["rows"] == 121
    assert set(ids) >= {f"camera/{index}" for index in range(1, 100)} | {"0xFF00"}
    assert sum(id.startswith("images-") for id in ids) == 20
    classes, digits = schema.read_manifest(url).classes, sklearn.datasets.load_digits()
    assert all(
        classes[row["label"]] == str(digits.target[int(row["id"][7:])]) for row in rows if row["id"][:8] == "camera/1"
    )
    rejects = {row["id"]: row["reason"] for row in tables.load(spark, f"{url}.rejected").collect()}
    assert rejects.keys() == {"none", "text", "cut", "unlabelled", "unreadable", "camera/0"}
    assert rejects["none"] == "no image (null)" and rejects["unlabelled"] == "no label (null)"
    assert rest()["batches"] == 0
    again = [message(index, b"camera/%d" % index) for index in range(120, 125)]
    produce(broker, environment, tmp_path, [*again, (b"camera/7", *digit(8)[:1], [("label", b"7")]), *again])
    answer = rest()
    assert (answer["added"], answer["rows"]) == (5, 126)
    assert (
        "changed since"
        in {row["id"]: row["reason"] for row in tables.load(spark, f"{url}.rejected").collect()}["camera/7"]
    )


@pytest.mark.long
def test_a_topic_that_cannot_be_read_is_one_error(broker, environment, tmp_path):
    ingest = {"source": "kafka", "path": "nowhere", "height": 8, "width": 8}
    for servers, message in ((broker.servers, "'nowhere': the topic cannot be read"), ("127.0.0.1:1", "127.0.0.1:1")):
        config = make_config(str(tmp_path / "lake"), ingest=ingest, stream={"servers": servers})
        command = [sys.executable, str(ROOT / "jobs" / "stream.py"), "--config", write_config(tmp_path, config)]
        job = subprocess.run(command, capture_output=True, text=True, timeout=600, env=environment)
        assert job.returncode == 2 and "Traceback" not in job.stderr, job.stderr[-3000:]
        assert message in job.stderr.splitlines()[-1]


@pytest.mark.parametrize(
    "path, options, expected",
    [
        ("images", {}, "stream.servers is empty: expected the brokers"),
        ("a topic", {"servers": "localhost:9092"}, "ingest.path = 'a topic': expected the name of a Kafka topic"),
        ("images", {"servers": "localhost:9092"}, "Spark's connector is not in the session: start it with --packages"),
        ("images", {"servers": "localhost:9092", "client": "/nowhere"}, "stream.client = '/nowhere': expected a file"),
    ],
)
def test_a_stream_of_messages_that_cannot_begin_says_why(spark, tmp_path, path, options, expected):
    config = make_config(str(tmp_path / "lake"), ingest={"source": "kafka", "path": path}, stream=options)
    with pytest.raises(UserError, match=expected):
        stream.stream(spark, config)


def test_an_ingest_of_messages_names_the_job_that_reads_them(spark):
    with pytest.raises(UserError, match="read them with jobs/stream.py"):
        sources.open_source(spark, Ingest(source="kafka", path="images"))


def test_properties_of_a_client(tmp_path):
    file = tmp_path / "client.properties"
    file.write_text("# ours\nsecurity.protocol = SASL_SSL\nsasl.jaas.config=a b=c;\n\n")
    assert messages._client(str(file)) == {
        "kafka.security.protocol": "SASL_SSL",
        "kafka.sasl.jaas.config": "a b=c;",
    }
    file.write_text("a=1\nsecurity.protocol\n")
    with pytest.raises(UserError, match="expected lines of name=value, found another: number 2"):
        messages._client(str(file))


def test_ids_and_labels_of_messages(spark):
    """From bytes as the broker gives them: text is text, other keys are their bytes, no key is a place."""
    kind = "key binary, value binary, topic string, partition int, offset long, "
    kind += "headers array<struct<key string, value binary>>"
    value, _ = digit(3)
    rows = [
        (bytearray(b"a"), bytearray(value), "t", 0, 7, [("label", bytearray(b"x")), ("label", bytearray(b"y"))]),
        (None, bytearray(value), "t", 1, 8, [("other", bytearray(b"x"))]),
        (bytearray(), bytearray(value), "t", 1, 9, None),
        (bytearray(b"\xc3("), None, "t", 2, 0, [("label", bytearray(b"\xc3("))]),
    ]
    batch = spark.createDataFrame(rows, kind)
    found = {row["id"]: row for row in messages.source(batch, Ingest(label_column="label"), ()).frame.collect()}
    assert found.keys() == {"a", "t-1-8", "t-1-9", "0xC328"}
    assert found["a"]["label"] == "y" and found["a"]["content"] == value
    assert {found[id]["reason"] for id in ("t-1-8", "t-1-9")} == {"no label (null)"}
    assert found["0xC328"]["reason"] == "no image (null)"
    told = [("text", bytearray("grün".encode())), ("part", bytearray(b"Test"))]
    batch_told = spark.createDataFrame([(None, bytearray(value), "t", 3, 4, told)], kind)
    (row,) = messages.source(batch_told, Ingest(caption_column="text", split_column="part"), ()).frame.collect()
    assert (row["caption"], row["split"], row["reason"]) == ("grün", "test", None)
    by_header = messages.source(batch, Ingest(id_column="other"), ()).frame.collect()
    assert {row["id"] for row in by_header if row["reason"] is None} == {"x"}
