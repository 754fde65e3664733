"""Ingest: gan_spark's against the writer recipe in Petastorm's documentation.

Both turn the 70,000 images of Fashion-MNIST's IDX files (training and test) into a Petastorm dataset with the same schema and
row-group size, in the same Spark session, after one small run each that is not counted. The recipe is
`materialize_dataset` around an RDD of `dict_to_spark_row`, its rows parsed from the IDX files inside the tasks.
gan_spark does more: it shuffles, checks for equal ids, splits, keeps the rows that it rejects, reads
everything back to count and to fingerprint it, and puts the dataset in place by a rename.

    python benchmarks/ingest.py
"""

import os
import time

import common

WARM_UP = 2000


def rows_of(job: tuple[str, str, int, int]):
    data, part, start, stop = job
    images, labels = common.read_idx(data, part)
    for i in range(start, min(stop, len(images))):
        yield {"id": f"{part}/{i:06d}", "image": images[i], "split": "train" if part == "train" else "test", "label": labels[i].astype("int32")}


def recipe(spark, data: str, url: str, row_group_mb: int, limit: int | None = None) -> None:
    from petastorm.etl.dataset_metadata import materialize_dataset
    from petastorm.unischema import dict_to_spark_row

    from gan_spark import schema

    images = schema.unischema((28, 28, 1), "raw", labelled=True)
    slices = spark.sparkContext.defaultParallelism
    jobs = []
    for part, count in zip(common.PARTS, (limit,) if limit else (60_000, 10_000)):
        step = -(-count // slices)
        jobs += [(data, part, start, min(start + step, count)) for start in range(0, count, step)]
    rows = spark.sparkContext.parallelize(jobs, len(jobs)).flatMap(rows_of).map(lambda row: dict_to_spark_row(images, row))
    with materialize_dataset(spark, url, images, row_group_mb):
        spark.createDataFrame(rows, images.as_spark_schema()).write.mode("overwrite").parquet(url)


def small_copy(data: str, folder: str) -> str:
    """A folder with the 10,000 test images under a name that makes them training images."""
    made = os.path.join(folder, "idx-small")
    os.makedirs(made, exist_ok=True)
    for kind in ("images-idx3", "labels-idx1"):
        link = os.path.join(made, f"small-{kind}-ubyte.gz")
        if not os.path.exists(link):
            os.symlink(os.path.join(data, f"t10k-{kind}-ubyte.gz"), link)
    return made


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    arguments = common.arguments(common.parser(__doc__))
    from gan_spark import ingest, job

    with common.lake(arguments) as lake:
        spark = job.session("benchmark: ingest")
        spark.sparkContext.addPyFile(common.__file__)
        whole, small = common.config(lake, arguments.data), common.config(lake, small_copy(arguments.data, lake))
        reference = f"file://{lake}/datasets/recipe"
        row_group_mb = 1  # What gan_spark's ingest chooses for these images.
        common.say("one small run of each")
        ingest.ingest(spark, small)
        recipe(spark, arguments.data, reference, row_group_mb, WARM_UP)
        sides = {
            "gan_spark": lambda: seconds(ingest.ingest, spark, whole),
            "recipe": lambda: seconds(recipe, spark, arguments.data, reference, row_group_mb),
        }
        figures = common.alternate(sides, arguments.repeats)
        images = {name: spark.read.parquet(f"{lake}/datasets/{name}").count() for name in ("fashion-mnist", "recipe")}
        assert images["fashion-mnist"] == images["recipe"] == 70_000, images
        spark.stop()
    common.finish({
        "benchmark": "ingest",
        "ratio": common.ratio(figures["recipe"], figures["gan_spark"]),
        "bound": 3,
        "seconds": figures,
        "images_per_second": {name: [round(70_000 / value) for value in values] for name, values in figures.items()},
        "images": 70_000,
        "repeats": arguments.repeats,
    })  # fmt: skip


if __name__ == "__main__":
    main()
