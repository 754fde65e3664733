"""Rows that wait for the lake are on this machine's disk, from where another process takes those of a dead one."""

import os
import signal
import subprocess
import sys
import tempfile

import pytest

from gan_spark import lake as lakes
from gan_spark.serving import records, spool

DYING = """
import sys, time
from gan_spark.serving import records
records.EVERY = 600
sink = records.Records(sys.argv[1])
for number in range(50):
    more = {"label": ["3"], "features": [[0.25] * 64], "sent": [bytes([number])]}
    sink.add(kind="request", request_id=f"r{number}", version=1, **more)
print("added", flush=True)
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def own_tmp(tmp_path, monkeypatch):
    (tmp_path / "tmp").mkdir()
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(tempfile, "tempdir", None)


def test_rows_of_a_process_that_was_killed_are_written_by_the_next_and_once(tmp_path):
    place = f"file://{tmp_path}/served/m"
    process = subprocess.Popen([sys.executable, "-c", DYING, place], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "added\n"
    living = records.Records(place)
    living.close()
    assert records.read(place).num_rows == 0, "rows of a process that lives"
    process.send_signal(signal.SIGKILL)
    process.wait()
    [waiting] = (name for name in os.listdir(spool.folder(place)))
    records.Records(place).close()
    table = records.read(place)
    assert sorted(table["request_id"].to_pylist()) == sorted(f"r{number}" for number in range(50))
    row = next(row for row in table.to_pylist() if row["request_id"] == "r7")
    assert row["sent"] == [b"\x07"] and row["features"] == [[0.25] * 64] and row["at"].tzinfo is not None
    assert not os.listdir(spool.folder(place)) and (tmp_path / "served" / "m" / f"{waiting}.parquet").exists()


def test_a_file_that_was_written_but_not_removed_is_not_there_twice(tmp_path, monkeypatch):
    place = f"file://{tmp_path}/served/m"
    first = records.Records(place)
    first.add(kind="request", request_id="once", version=1)
    with monkeypatch.context() as patch:  # It dies in between.
        patch.setattr(spool.Spool, "remove", lambda self: os.close(self._file))
        patch.setattr(records.Records, "_adopt", lambda self: None)
        first.close()
    assert len(os.listdir(spool.folder(place))) == 1
    records.Records(place).close()
    assert records.read(place)["request_id"].to_pylist() == ["once"] and not os.listdir(spool.folder(place))


def test_a_request_that_a_worker_died_over_counts_as_the_one_that_answered_it(tmp_path):
    place = f"file://{tmp_path}/served/m"
    for version in (1, 2):
        sink = records.Records(place)
        sink.add(kind="request", request_id="retried", version=version)
        sink.add(kind="feedback", request_id="retried", kept=True)
        sink.close()
    rows = records.read(place).to_pylist()
    assert [row["version"] for row in rows if row["kind"] == "request"] == [2]
    assert len(rows) == 3 and records.read_files(place).num_rows == 4


def test_half_a_line_is_left_out_and_the_store_may_be_silent_meanwhile(tmp_path, monkeypatch):
    place = f"file://{tmp_path}/served/m"
    waiting = spool.Spool(spool.folder(place))
    waiting.add({"kind": "request", "request_id": "whole", "version": 1, "at": records.datetime.datetime.now()})
    os.write(waiting._file, b'{"kind": "requ')
    os.close(waiting._file)

    def failing(url, data):
        raise OSError("no answer")

    with monkeypatch.context() as patch:
        patch.setattr(lakes, "write_bytes", failing)
        records.Records(place).close()
    assert records.read(place).num_rows == 0 and os.listdir(spool.folder(place)) == [waiting.name]
    records.Records(place).close()
    assert records.read(place)["request_id"].to_pylist() == ["whole"]


def test_a_folder_of_somebody_elses_is_not_used_and_rows_are_written_all_the_same(tmp_path, caplog):
    mine = tmp_path / "tmp" / f"gan_spark-{os.getuid()}"
    mine.mkdir(mode=0o777)
    mine.chmod(0o777)
    place = f"file://{tmp_path}/served/m"
    sink = records.Records(place)
    sink.add(kind="request", request_id="r", version=1)
    sink.close()
    assert "held in memory alone" in caplog.text and not list(mine.iterdir())
    assert records.read(place)["request_id"].to_pylist() == ["r"]


def test_a_disk_that_is_full_is_told(tmp_path, caplog):
    waiting = spool.Spool(spool.folder(f"file://{tmp_path}/served/m"))
    os.close(waiting._file)
    waiting._file = os.open("/dev/full", os.O_WRONLY)
    waiting.add({"at": records.datetime.datetime.now()})
    assert "No space left" in caplog.text and waiting._file < 0
    waiting.add({"at": records.datetime.datetime.now()})
