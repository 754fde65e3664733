"""Generating: two Spark tasks against a bare loop of one thread, both from a checkpoint to PNG bytes.

Start-up is not counted: before every timed Spark job a small one leaves two Python workers alive with the model
loaded, and the loop's clock starts after its first batch. Both make batches of 64 with the same DCGAN of one step.

    python benchmarks/generate.py
"""

import json
import sys
import time

import common

BATCH = 64
PARTITIONS = 2


def bare(job: dict) -> dict:
    import tensorflow as tf

    from gan_spark.data import images
    from gan_spark.runs import loading
    from gan_spark.runs.store import Run

    model = loading.load_model(job["run"], 1, Run(job["run"]).record())
    sample = tf.function(model.generate)

    def batch(first: int) -> int:
        pixels = images.to_pixels(sample({}, tf.range(first, first + BATCH, dtype=tf.int64)))
        return sum(len(images.encode_png(image)) for image in pixels)

    batch(0)
    start = time.perf_counter()
    size = sum(batch(first) for first in range(0, job["images"], BATCH))
    spent = time.perf_counter() - start
    return {"images_per_second": job["images"] / spent, "seconds": spent, "bytes": size}


def on_spark(spark, config, images: int) -> dict:
    from pyspark.sql import functions as F

    from gan_spark.runs.store import Run
    from gan_spark.sampling.generate import generated

    def action(count: int) -> int:
        seeds = spark.range(0, count, 1, PARTITIONS).withColumnRenamed("id", "seed")
        frame = generated(seeds, Run.of(config), config.generate)
        return frame.agg(F.sum(F.length("image"))).first()[0]

    action(8 * BATCH * PARTITIONS)
    start = time.perf_counter()
    size = action(images)
    spent = time.perf_counter() - start
    return {"images_per_second": images / spent, "seconds": spent, "bytes": size}


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument(
        "--images",
        type=int,
        default=100 * 1024,
        help="a multiple of 1,024, so that no batch is partly filled (default: %(default)s)",
    )
    arguments = common.arguments(parser)
    if arguments.images % 1024:
        parser.error(f"--images {arguments.images}: expected a multiple of 1,024")
    from gan_spark import job
    from gan_spark.runs.store import Run
    from gan_spark.training import driver

    with common.lake(arguments) as lake:
        spark = job.session("benchmark: generate")
        config = common.config(
            lake,
            common.training_only(arguments.data, lake),
            run="generate",
            train={"steps": 1, "launcher": "local", "threads": 1},
            generate={"batch_size": BATCH},
        )
        common.ingested(spark, config)
        driver.train(spark, config)
        seconds, sizes = {"two tasks": [], "bare loop": []}, set()

        def timed(name: str, result: dict) -> float:
            seconds[name].append(round(result["seconds"], 2))
            sizes.add(result["bytes"])
            return result["images_per_second"]

        sides = {
            "two tasks": lambda: timed("two tasks", on_spark(spark, config, arguments.images)),
            "bare loop": lambda: timed(
                "bare loop", common.child(__file__, "bare", {"run": Run.of(config).url, "images": arguments.images})
            ),
        }
        sides["two bare loops"] = lambda: common.side_by_side(
            __file__, "bare", {"run": Run.of(config).url, "images": arguments.images // 2}
        )
        figures = common.alternate(sides, arguments.repeats)
        spark.stop()
    common.finish(
        {
            "benchmark": "generate",
            "ratio": common.ratio(figures["two tasks"], figures["bare loop"]),
            "bound": 1.8,
            "ratio_two_bare_loops": common.ratio(figures["two bare loops"], figures["bare loop"]),
            "images_per_second": figures,
            "seconds": seconds,
            "same_bytes": len(sizes) == 1,
            "images": arguments.images,
            "repeats": arguments.repeats,
        }
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        common.finish(bare(json.loads(sys.argv[2])))
    else:
        main()
