"""Parts of jobs: what is shown of them while they run, and what is told at their end."""

import logging
import re
import time

import pytest

from gan_spark import progress


@pytest.fixture
def often(monkeypatch):
    """Lines come often enough for a test, and seconds are of this test alone."""
    monkeypatch.setattr(progress, "EVERY", 0.2)
    progress.start()


def test_rows_of_a_stage_are_shown_while_it_runs(spark, often, caplog):
    def slowly(rows):
        for row in rows:
            time.sleep(0.02)
            yield row

    caplog.set_level(logging.INFO, logger="gan_spark")
    with progress.part("counting slowly", spark, 160):
        spark.sparkContext.parallelize(range(160), 8).mapPartitions(slowly).count()
    lines = [record.getMessage() for record in caplog.records if "counting slowly" in record.getMessage()]
    shown = [re.match(r"counting slowly: (\d+) of 160 images \((\d+)%\), \S+/s", line) for line in lines]
    done = [int(match[1]) for match in shown if match]
    assert len(done) == len(lines) >= 3
    assert done == sorted(done) and 0 < done[-1] <= 160 and done[0] < 160
    assert all(int(match[2]) == 100 * int(match[1]) // 160 for match in shown)


@pytest.mark.long  # Executors tell what their tasks have done every ten seconds.
@pytest.mark.parametrize("kept", [False, True])
def test_rows_that_pythons_workers_gave_back_are_shown_while_few_tasks_run(spark, often, caplog, kept):
    def slowly(frames):
        for frame in frames:
            for number in frame["id"]:
                time.sleep(0.2)
                # As much as Python's workers gather before they send it.
                yield frame[frame["id"] == number].assign(image=bytes(2**16))

    caplog.set_level(logging.INFO, logger="gan_spark")
    frame = spark.range(0, 300, 1, 2).mapInPandas(slowly, "id long, image binary")
    frame = frame.persist() if kept else frame
    with progress.part("answering", spark, 300):
        assert frame.count() == 300
    frame.unpersist()
    lines = [record.getMessage() for record in caplog.records if "answering" in record.getMessage()]
    done = [int(re.match(r"answering: (\d+) of 300 images", line)[1]) for line in lines]
    assert done == sorted(done) and len({each for each in done if 0 < each < 300}) >= 2


def test_sparks_pages_call_stages_by_the_part_and_then_as_before(spark):
    context = spark.sparkContext
    context.setJobDescription("a user's own")
    try:
        with progress.part("outer", spark):
            with progress.part("inner", spark):
                within = description_of_a_stage(context)
            after = description_of_a_stage(context)
        outside = context.getLocalProperty("spark.job.description")
    finally:
        context.setLocalProperty("spark.job.description", None)
    assert (within, after, outside) == ("inner", "outer", "a user's own")


def description_of_a_stage(context) -> str:
    context.parallelize([1], 1).count()
    stages = (
        context._jsc.sc()
        .statusStore()
        .stageList(None, False, False, context._gateway.new_array(context._jvm.double, 0), None)
    )
    newest = max((stages.apply(place) for place in range(stages.size())), key=lambda stage: stage.stageId())
    return newest.description().get()


def test_a_part_without_spark_shows_what_it_is_told(often, caplog):
    caplog.set_level(logging.INFO, logger="gan_spark")
    with progress.part("fetching", total=1000, unit="bytes") as add:
        add(250)
        time.sleep(0.5)
    assert re.match(r"fetching: 250 of 1,000 bytes \(25%\), \S+/s, about \d+ s left", caplog.records[0].getMessage())


def test_a_short_part_says_nothing(spark, caplog):
    caplog.set_level(logging.INFO, logger="gan_spark")
    with progress.part("soon over", spark, 10):
        spark.sparkContext.parallelize(range(10), 2).count()
    assert not [record for record in caplog.records if "soon over" in record.getMessage()]


def test_seconds_of_parts_add_up_though_one_fails(often):
    for _ in range(2):
        with progress.part("twice"):
            time.sleep(0.1)
    with pytest.raises(ValueError, match="within"), progress.part("failing"):
        raise ValueError("within")
    assert list(progress.seconds()) == ["twice", "failing"]
    assert 0.2 <= progress.seconds()["twice"] < 2 and progress.seconds()["failing"] == 0
    progress.start()
    assert progress.seconds() == {}


def test_what_java_does_not_tell_stops_nothing(often, caplog):
    class Gone:
        class sparkContext:
            @staticmethod
            def getLocalProperty(_):
                return None

            @staticmethod
            def setLocalProperty(*_):
                pass

    caplog.set_level(logging.INFO, logger="gan_spark")
    with progress.part("without Java", Gone, 10):
        time.sleep(0.3)
    assert caplog.records[0].getMessage() == "without Java: 0 of 10 images (0%), 0/s"
