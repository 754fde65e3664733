"""Ingest: gan_spark's against the writer recipe in Petastorm's documentation.

Both turn the 70,000 images of Fashion-MNIST's IDX files (training and test) into a Petastorm dataset with the same
schema and row-group size, in the same Spark session, after one small run each that is not counted. The recipe is the
one of Petastorm's README: `materialize_dataset` around an RDD of row_generator and `dict_to_spark_row`. That of its
MNIST example, where the driver makes all rows, is measured beside it. gan_spark does more: it shuffles, checks for
equal ids, splits, keeps the rows that it rejects, fingerprints everything, reads back the counts, and puts the dataset
in place by a rename.

    python benchmarks/ingest.py
"""

import itertools
import os
import time

import common
import numpy as np

WARM_UP = 2000
ROW_GROUP_MB = 1  # What gan_spark's ingest chooses for these images.


def unischema_of_fashion():
    from gan_spark.data import schema

    return schema.unischema(schema.Manifest(28, 28, 1, "raw", tuple("0123456789"), {}, 0, "", {}, ""))


def recipe(spark, data: str, url: str, limit: int | None = None) -> None:
    """The README's recipe: indices -> row_generator -> dict_to_spark_row -> createDataFrame -> coalesce -> write."""
    from petastorm.etl.dataset_metadata import materialize_dataset
    from petastorm.unischema import dict_to_spark_row

    unischema = unischema_of_fashion()
    parts = [(part, *common.read_idx(data, part)) for part in common.PARTS]
    rows = [(part, index) for part, images, _ in parts for index in range(len(images))][:limit]
    shared = spark.sparkContext.broadcast({part: (images, labels) for part, images, labels in parts})

    def row_generator(key: tuple[str, int]) -> dict:
        part, index = key
        images, labels = shared.value[part]
        return {
            "id": f"{part}/{index:06d}",
            "image": images[index],
            "split": "train" if part == "train" else "test",
            "label": np.int32(labels[index]),
        }

    with materialize_dataset(spark, url, unischema, ROW_GROUP_MB):
        encoded = (
            spark.sparkContext.parallelize(rows).map(row_generator).map(lambda row: dict_to_spark_row(unischema, row))
        )
        spark.createDataFrame(encoded, unischema.as_spark_schema()).coalesce(10).write.mode("overwrite").parquet(url)


def mnist_example(spark, data: str, url: str, limit: int | None = None) -> None:
    """The recipe of Petastorm's MNIST example: all rows are made on the driver."""
    from petastorm.etl.dataset_metadata import materialize_dataset
    from petastorm.unischema import dict_to_spark_row

    unischema = unischema_of_fashion()
    with materialize_dataset(spark, url, unischema, ROW_GROUP_MB):
        rows = (
            {
                "id": f"{part}/{index:06d}",
                "image": image,
                "split": "train" if part == "train" else "test",
                "label": np.int32(label),
            }
            for part in common.PARTS
            for index, (image, label) in enumerate(zip(*common.read_idx(data, part), strict=True))
        )
        encoded = [dict_to_spark_row(unischema, row) for row in itertools.islice(rows, limit)]
        spark.createDataFrame(encoded, unischema.as_spark_schema()).coalesce(10).write.mode("overwrite").parquet(url)


def small_copy(data: str, folder: str) -> str:
    """A folder with the 10,000 test images under a name that makes them training images."""
    links = os.path.join(folder, "idx-small")
    os.makedirs(links, exist_ok=True)
    for kind in ("images-idx3", "labels-idx1"):
        link = os.path.join(links, f"small-{kind}-ubyte.gz")
        if not os.path.exists(link):
            os.symlink(os.path.join(data, f"t10k-{kind}-ubyte.gz"), link)
    return links


def seconds(function, *arguments) -> float:
    start = time.perf_counter()
    function(*arguments)
    return time.perf_counter() - start


def main() -> None:
    arguments = common.arguments(common.parser(__doc__))
    from gan_spark import job
    from gan_spark.data import ingest

    with common.lake(arguments) as lake:
        spark = job.session("benchmark: ingest")
        spark.sparkContext.addPyFile(common.__file__)
        whole, small = common.config(lake, arguments.data), common.config(lake, small_copy(arguments.data, lake))
        reference = f"file://{lake}/datasets/recipe"
        common.say("one small run of each")
        ingest.ingest(spark, small)
        recipe(spark, arguments.data, reference, WARM_UP)
        mnist_example(spark, arguments.data, reference, WARM_UP)
        sides = {
            "gan_spark": lambda: seconds(ingest.ingest, spark, whole),
            "recipe": lambda: seconds(recipe, spark, arguments.data, reference),
            "mnist_example": lambda: seconds(mnist_example, spark, arguments.data, reference),
        }
        figures = common.alternate(sides, arguments.repeats)
        images = {name: spark.read.parquet(f"{lake}/datasets/{name}").count() for name in ("fashion-mnist", "recipe")}
        assert images["fashion-mnist"] == images["recipe"] == 70_000, images
        spark.stop()
    common.finish(
        {
            "benchmark": "ingest",
            "ratio": common.ratio(figures["recipe"], figures["gan_spark"]),
            "bound": 3,
            "ratio_to_mnist_example": common.ratio(figures["mnist_example"], figures["gan_spark"]),
            "seconds": figures,
            "images_per_second": {
                name: [round(70_000 / value) for value in values] for name, values in figures.items()
            },
            "images": 70_000,
            "repeats": arguments.repeats,
        }
    )


if __name__ == "__main__":
    main()
