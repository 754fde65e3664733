"""Featurizing: two Spark tasks of DeepImageFeaturizer against a bare Keras loop of one thread, and against a Python UDF
that calls `model.predict` on every row.

All of them resize the same images and have the same random weights. Start-up is not counted: before every timed Spark
job a small one leaves two Python workers alive with the network built, and the loop's clock starts after its first
batch.

    python benchmarks/featurize.py
"""

import json
import sys
import time

import common

PARTITIONS = 2


def bare(job: dict) -> dict:
    import numpy as np

    from gan_spark import process
    from gan_spark.ml import carry

    process.set_threads(1)
    network = carry.KerasNetwork(job["network"], weights="")
    apply = carry._apply(network, network.whole("").get_weights())
    images = common.read_idx(job["data"], "t10k")[0][: job["images"]]

    def run(part):
        return [
            apply(np.stack([carry.fitted(job["network"], image) for image in part[start : start + carry.BATCH]]))
            for start in range(0, len(part), carry.BATCH)
        ]

    run(images[: carry.BATCH])
    began = time.perf_counter()
    run(images)
    return {"images_per_second": len(images) / (time.perf_counter() - began)}


def by_row(network: str):
    """The UDF of a first attempt: one row, one `predict`."""
    from pyspark.sql import functions as F

    loaded = {}

    @F.udf("array<float>")
    def apply(image):
        from gan_spark import networks, process
        from gan_spark.ml import carry, columns

        if "model" not in loaded:
            process.set_threads(1)
            loaded["model"] = carry.KerasNetwork(network, weights="").whole("")
        pixels = carry.fitted(network, columns.pixels(image)).astype("float32")
        return loaded["model"].predict(networks.preprocess(network)(pixels[None]), verbose=0)[0].tolist()

    return apply


def main() -> None:
    if len(sys.argv) == 3 and sys.argv[1] == "bare":
        common.finish(bare(json.loads(sys.argv[2])))
        return
    parser = common.parser(__doc__)
    parser.add_argument("--network", default="InceptionV3", help="(default: %(default)s)")
    parser.add_argument("--images", type=int, default=384, help="(default: %(default)s)")
    parsed = common.arguments(parser)
    from gan_spark import job
    from gan_spark.ml import DeepImageFeaturizer

    with common.lake(parsed) as folder:
        spark = job.session("benchmark")
        url = common.ingested(spark, common.config(folder, parsed.data))
        frame = (
            spark.read.parquet(f"{url}/split=train")
            .select("image")
            .limit(parsed.images)
            .repartition(PARTITIONS)
            .persist()
        )
        small = frame.limit(2 * PARTITIONS).repartition(PARTITIONS).persist()
        for cached in (frame, small):
            cached.count()
        stage, apply = DeepImageFeaturizer(modelName=parsed.network, weights=""), by_row(parsed.network)

        def timed(transform, rows) -> float:
            transform(small).write.format("noop").mode("overwrite").save()
            began = time.perf_counter()
            transform(rows).write.format("noop").mode("overwrite").save()
            return rows.count() / (time.perf_counter() - began)

        few = frame.limit(max(16, parsed.images // 8)).repartition(PARTITIONS).persist()
        few.count()
        loop = {"network": parsed.network, "data": parsed.data, "images": parsed.images}
        figures = common.alternate(
            {
                "spark": lambda: timed(stage.transform, frame),
                "bare": lambda: common.child(__file__, "bare", loop)["images_per_second"],
                "two bare": lambda: common.side_by_side(__file__, "bare", loop),
                "by row": lambda: timed(lambda rows: rows.select(apply("image").alias("features")), few),
            },
            parsed.repeats,
        )
        spark.stop()
    common.finish(
        {
            "ratio": common.ratio(figures["spark"], figures["bare"]),
            "bound": 1.8,
            "two_bare_loops": common.ratio(figures["two bare"], figures["bare"]),
            "against_a_udf_by_row": common.ratio(figures["spark"], figures["by row"]),
            "network": parsed.network,
            "images_per_second": figures,
        }
    )


if __name__ == "__main__":
    main()
