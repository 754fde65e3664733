"""Training: one rank on Spark against a bare loop in memory, and two ranks against one.

Images a second after the first step, of the DCGAN at 64 images a rank and one TensorFlow thread a rank.
  one rank     gan_spark.training on Spark with Horovod, reading with Petastorm; it samples and saves only at the end
  bare loop    a process of its own: all images a float array in memory, batches by fancy indexing, the same step
  two ranks    as one rank, with 64 images on each rank (weak scaling)
  two bare loops   two such processes at once, that share nothing: what two cores of this machine can give
  two, 64 in all   as one rank, with 32 images on each rank (strong scaling)
`start_seconds` is what a job takes besides its training loop.

    python benchmarks/train.py
"""

import json
import sys
import time

import common

BATCH = 64
BOUND, BOUND_TWO_RANKS = 0.95, 1.8


def bare(job: dict) -> dict:
    """The loop that one would write without a cluster."""
    import numpy as np
    import tensorflow as tf

    from gan_spark import process
    from gan_spark.data import images
    from gan_spark.runs import loading

    process.set_threads(1)
    pixels = images.to_unit(common.read_idx(job["data"], "train")[0])
    model = loading.build(common.config("lake", job["data"]).model)
    rng = np.random.default_rng(0)

    @tf.function
    def step(batch):
        values = model.train_step([{"image": batch}])
        model.step.assign_add(1)
        return values

    for number in range(job["steps"]):
        values = step(tf.constant(pixels[rng.integers(len(pixels), size=BATCH)]))
        if number == 0:
            start = time.perf_counter()
    float(values["d_loss"])
    return {"images_per_second": (job["steps"] - 1) * BATCH / (time.perf_counter() - start)}


def on_spark(spark, lake: str, path: str, workers: int, batch: int, steps: int) -> dict:
    from gan_spark import lake as paths
    from gan_spark.runs.store import Run
    from gan_spark.training import driver

    train = {
        "steps": steps,
        "batch_size": batch,
        "workers": workers,
        "threads": 1,
        "log_every": steps,
        "sample_every": steps,
        "checkpoint_every": steps,
    }
    config = common.config(lake, path, run="benchmark", train=train)
    paths.remove(Run.of(config).url)  # Or the trainer would go on from its checkpoint.
    return driver.train(spark, config)


def main() -> None:
    parser = common.parser(__doc__)
    parser.add_argument("--steps", type=int, default=300, help="of every loop (default: %(default)s)")
    arguments = common.arguments(parser)
    from gan_spark import job

    started = {"one rank": [], "two ranks": []}
    with common.lake(arguments) as lake:
        spark = job.session("benchmark: train")
        path = common.training_only(arguments.data, lake)
        common.ingested(spark, common.config(lake, path))

        def ranks(name: str, workers: int, batch: int):
            def side() -> float:
                result = on_spark(spark, lake, path, workers, batch, arguments.steps)
                started.setdefault(name, []).append(result["start_seconds"])
                return result["images_per_second"]

            return side

        sides = {
            "one rank": ranks("one rank", 1, BATCH),
            "bare loop": lambda: common.child(__file__, "bare", {"data": arguments.data, "steps": arguments.steps})[
                "images_per_second"
            ],
            "two ranks": ranks("two ranks", 2, 2 * BATCH),
            "two bare loops": lambda: common.side_by_side(
                __file__, "bare", {"data": arguments.data, "steps": arguments.steps}
            ),
            "two ranks, 64 in all": ranks("two ranks, 64 in all", 2, BATCH),
        }
        figures = common.alternate(sides, arguments.repeats)
        spark.stop()
    common.finish(
        {
            "benchmark": "train",
            "ratio": common.ratio(figures["one rank"], figures["bare loop"]),
            "bound": BOUND,
            "ratio_two_ranks": common.ratio(figures["two ranks"], figures["one rank"]),
            "bound_two_ranks": BOUND_TWO_RANKS,
            "ratio_two_ranks_to_two_bare_loops": common.ratio(figures["two ranks"], figures["two bare loops"]),
            "ratio_two_bare_loops": common.ratio(figures["two bare loops"], figures["bare loop"]),
            "ratio_two_ranks_64_in_all": common.ratio(figures["two ranks, 64 in all"], figures["one rank"]),
            "images_per_second": figures,
            "start_seconds": started,
            "steps": arguments.steps,
            "batch_per_rank": BATCH,
            "repeats": arguments.repeats,
        }
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["bare"]:
        common.finish(bare(json.loads(sys.argv[2])))
    else:
        main()
