"""A look at a cluster: what is in order, and what each thing that is not makes of it."""

import socket
from concurrent.futures import ThreadPoolExecutor

import pytest
from conftest import make_config

from gan_spark import doctor
from gan_spark.config import UserError

pytestmark = pytest.mark.slow
SEEN = {
    "host": "a",
    "python": doctor._python(),
    "versions": {**doctor._versions(), "gan_spark": doctor.__version__},
    "encoding": "utf-8",
    "unreached": [],
    "horovod": None,
    "nccl": False,
    "offered": [],
    "devices": 0,
    "resident": 2**29,
    "available": 2**33,
}


def mended(findings) -> dict[str, str]:
    return {finding.what: finding.mend for finding in findings if finding.mend}


def test_a_session_that_can_train_is_in_order(spark, tmp_path, capsys):
    config = make_config(str(tmp_path), train={"workers": 2, "launcher": "spark"})
    result = doctor.doctor(spark, config)
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == result["looked_at"] >= 15 and all(line.startswith("ok ") for line in lines)
    assert result["tasks"] >= 2 and not list(tmp_path.iterdir())
    table = dict(line[6:].split("  ", 1) for line in lines)
    assert "Gloo" in table["Horovod"] and "not ingested yet" in table["dataset"] and "tasks" in table["ports"]


def test_too_few_slots_are_told(spark, tmp_path, capsys):
    with pytest.raises(UserError, match=r"^slots: 64 ranks need 64 slots at once; ask for more cores"):
        doctor.doctor(spark, make_config(str(tmp_path), train={"workers": 64, "launcher": "spark", "batch_size": 64}))
    assert "MEND  slots" in capsys.readouterr().out


def test_a_lake_that_cannot_be_written_is_told(spark, capsys):
    with pytest.raises(UserError, match=r"^lake: .*(Not a directory|NotADirectory)"):
        doctor.doctor(spark, make_config("/dev/null/lake"))
    assert "MEND  lake" in capsys.readouterr().out


def test_a_port_that_nobody_answers_at_is_named():
    with socket.create_server(("127.0.0.1", 0)) as open_one, socket.create_server(("127.0.0.1", 0)) as closed_one:
        ports = [one.getsockname()[1] for one in (open_one, closed_one)]
        closed_one.close()
        assert doctor._silent([["127.0.0.1", port] for port in ports]) == [f"127.0.0.1:{ports[1]}"]


def test_tasks_that_meet_reach_one_another_and_one_that_waits_alone_says_so():
    with doctor.Meeting(3, 20) as meeting, ThreadPoolExecutor() as pool:
        place = ("127.0.0.1", meeting.port)
        with socket.create_connection(place) as stranger:
            stranger.sendall(b"GET / HTTP/1.1\n")
            together = [pool.submit(doctor._unreached, place, meeting.token, 20) for _ in range(3)]
            assert [future.result() for future in together] == [[], [], []]
    with doctor.Meeting(2, 0.2) as meeting:
        (alone,) = doctor._unreached(("127.0.0.1", meeting.port), meeting.token, 0.2)
    assert alone.endswith("or the other tasks there in 0.2 s")
    (nobody,) = doctor._unreached(("127.0.0.1", meeting.port), meeting.token, 0.2)
    assert nobody.startswith(f"the driver at 127.0.0.1:{meeting.port} (")


@pytest.mark.parametrize(
    "changes, what, message",
    [
        ({"python": "3.9.1"}, "executors' Python", "use one environment"),
        ({"versions": {**SEEN["versions"], "pyarrow": "1.0"}}, "executors' Python", "use one environment"),
        ({"encoding": "ascii"}, "executors' text", "LC_ALL"),
        ({"horovod": "Horovod was built without Gloo"}, "Horovod", "build it anew: HOROVOD_WITH_TENSORFLOW=1"),
    ],
)
def test_executors_that_differ_from_the_driver_are_named(changes, what, message):
    assert mended(doctor._agreement([SEEN, SEEN])) == {}
    found = list(doctor._agreement([SEEN, {**SEEN, "host": "b", **changes}]))
    assert message in mended(found)[what] and len(mended(found)) == 1


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"offered": ["0"]}, "TensorFlow sees none on a: install its CUDA libraries"),
        ({"offered": ["0"], "devices": 1}, "Horovod has no NCCL; build it with HOROVOD_GPU_OPERATIONS=NCCL"),
        ({"devices": 1, "nccl": True}, "Spark offers none, so that ranks of one machine cannot tell theirs apart"),
        ({"offered": ["0"], "devices": 1, "nccl": True}, None),
    ],
)
def test_gpus_that_cannot_be_used_are_told(changes, message):
    found = mended(doctor._devices([{**SEEN, **changes}]))
    assert (message is None and not found) or message in found["GPUs"]


def test_memory_is_that_of_all_tasks_of_a_machine():
    assert mended(doctor._memory([SEEN] * 4)) == {}
    (mend,) = mended(doctor._memory([{**SEEN, "available": 2**29}] * 4)).values()
    assert mend.startswith("4 tasks need 3.0 GiB and more for the model")
