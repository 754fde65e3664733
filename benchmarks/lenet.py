"""LeNet: BigDL's, trained by BigDL on Spark, against the same layers in the Horovod trainer with two ranks.

Measured are images a second, and accuracy after as many passes. Both read the same dataset of Fashion-MNIST and have 6
and 12 filters of 5x5, 100 hidden units, tanh, SGD with momentum 0.9, and the same batch and rate; BigDL's applies its
activations beside the pooling otherwise. Start-up is not counted on either side.

    python benchmarks/lenet.py
"""

import common

INGEST = {"validation": 0.1}
MODEL = {
    "name": "lenet",
    "filters": [6, 12],
    "padding": "valid",
    "activation": "tanh",
    "features": 100,
    "dropout": 0.0,
    "optimizer": "sgd",
    "rate": 0.05,
}


def by_bigdl(spark, config) -> tuple[dict, float]:
    """(result of BigDL's training, images a second)."""
    from gan_spark import lake
    from gan_spark.data import schema
    from gan_spark.ml import bigdl
    from gan_spark.runs.store import Run

    result = bigdl.lenet(spark, config)
    seconds = [line["seconds"] for line in Run(result["run"]).metrics()]
    # The first pass carries BigDL's own start.
    rows = schema.read_manifest(lake.dataset_url(config)).rows["train"]
    return result, rows / (sum(seconds[1:]) / (len(seconds) - 1))


def by_horovod(spark, config) -> tuple[dict, float]:
    """(result of the Horovod trainer, accuracy on split test)."""
    from gan_spark import lake
    from gan_spark.data import schema
    from gan_spark.quality import measures
    from gan_spark.training import driver

    url = lake.dataset_url(config)
    result = driver.train(spark, config)
    figures = measures.held_out_means(
        spark.read.parquet(f"{url}/split=test"), result["run"], result["steps"], schema.read_manifest(url), 500
    )
    return result, figures["accuracy"]


def main() -> None:
    parser = common.parser(__doc__, repeats=0)
    parser.add_argument(
        "--epochs", type=int, default=5, help="passes over the 54,000 training images (default: %(default)s)"
    )
    parser.add_argument("--batch", type=int, default=250)
    parsed = common.arguments(parser)
    from gan_spark import job
    from gan_spark.data import schema
    from gan_spark.ml import bigdl

    with common.lake(parsed) as folder:
        spark = job.session("benchmark", bigdl.jars())
        lenet = {"epochs": parsed.epochs, "batch_size": parsed.batch, "rate": 0.05, "momentum": 0.9}
        config = common.config(folder, parsed.data, "bigdl", ingest=INGEST, lenet=lenet)
        manifest = schema.read_manifest(common.ingested(spark, config))
        bigdl_result, speed = by_bigdl(spark, config)

        steps = parsed.epochs * manifest.rows["train"] // parsed.batch
        train = {
            "steps": steps,
            "batch_size": parsed.batch,
            "workers": 2,
            "log_every": 100,
            "checkpoint_every": steps,
            "sample_every": steps,
        }
        config = common.config(folder, parsed.data, "horovod", ingest=INGEST, model=MODEL, train=train)
        horovod, accuracy = by_horovod(spark, config)
        spark.stop()
    common.finish(
        {
            "ratio": round(speed / horovod["images_per_second"], 4),
            "bound": None,
            "epochs": parsed.epochs,
            "bigdl_images_per_second": round(speed),
            "horovod_images_per_second": round(horovod["images_per_second"]),
            "bigdl_accuracy": round(bigdl_result["accuracy"], 4),
            "horovod_accuracy": round(accuracy, 4),
        }
    )


if __name__ == "__main__":
    main()
