"""Reading: the training input pipeline against Petastorm's row reader, and against the training that it feeds.

Both sides read the 60,000 training images of Fashion-MNIST from the same dataset, over and over, after a start that is
not counted. The pipeline is `gan_spark.data.reader.batches` for one rank: shuffled float batches of 64 with labels. The
row reader is `petastorm.make_reader` with its defaults (10 threads) on the same two columns: rows of uint8, in no
batches, not scaled. TensorFlow has one thread, as a rank has.

    python benchmarks/read.py
"""

import itertools
import time

import common

BATCH = 64


def pipeline(url: str, images: int) -> float:
    """Images a second."""
    from gan_spark.data import reader

    stream = iter(reader.batches(url, "train", BATCH))
    for _ in itertools.islice(stream, 100):
        pass
    start = time.perf_counter()
    for batch in itertools.islice(stream, images // BATCH):
        batch["image"]
    return images // BATCH * BATCH / (time.perf_counter() - start)


def row_reader(url: str, images: int, pool: str) -> float:
    from petastorm import make_reader

    with make_reader(url, schema_fields=["image", "label"], num_epochs=None, reader_pool_type=pool) as reader:
        # More than the row groups that its threads have in hand when the first row comes out.
        for _ in itertools.islice(reader, 20_000):
            pass
        start = time.perf_counter()
        for row in itertools.islice(reader, images):
            _ = row.image
        return images / (time.perf_counter() - start)


def training(config, url: str, steps: int = 30) -> float:
    """Images a second of the DCGAN's step, on one batch that is in memory already."""
    import tensorflow as tf

    from gan_spark.data import reader
    from gan_spark.runs import loading

    model = loading.build(config.model)
    batch = next(iter(reader.batches(url, "train", BATCH)))
    step = tf.function(lambda: model.train_step([batch]))
    step()
    start = time.perf_counter()
    for _ in range(steps):
        values = step()
    float(values["d_loss"])
    return steps * BATCH / (time.perf_counter() - start)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--images",
        type=int,
        default=600_000,
        help="that the pipeline is timed on; the row reader is timed on a tenth (default: %(default)s)",
    )
    arguments = common.arguments(parser)
    from gan_spark import job, process

    process.set_threads(1)
    with common.lake(arguments) as lake:
        config = common.config(lake, common.training_only(arguments.data, lake))
        spark = job.session("benchmark: read")
        url = common.ingested(spark, config)
        spark.stop()
        sides = {
            "pipeline": lambda: pipeline(url, arguments.images),
            "make_reader": lambda: row_reader(url, arguments.images // 10, "thread"),
            "make_reader, dummy pool": lambda: row_reader(url, arguments.images // 10, "dummy"),
            "training": lambda: training(config, url),
        }
        figures = common.alternate(sides, arguments.repeats)
    common.finish(
        {
            "benchmark": "read",
            "ratio": common.ratio(figures["pipeline"], figures["make_reader"]),
            "bound": 10,
            "ratio_dummy_pool": common.ratio(figures["pipeline"], figures["make_reader, dummy pool"]),
            "times_step_rate": common.ratio(figures["pipeline"], figures["training"]),
            "images_per_second": figures,
            "images": {"pipeline": arguments.images, "make_reader": arguments.images // 10},
            "repeats": arguments.repeats,
        }
    )


if __name__ == "__main__":
    main()
