"""BigDL's LeNet, trained by BigDL on Spark, against a network of the same layers in the Horovod trainer with two ranks:
images a second, and accuracy after as many passes.

Both read the same dataset of Fashion-MNIST and have 6 and 12 filters of 5x5, 100 hidden units, tanh, SGD with momentum
0.9, and the
same batch and rate; BigDL's applies its activations beside the pooling otherwise. Start-up is not counted on either
side.

    python benchmarks/lenet.py
"""

import common


def main() -> None:
    made = common.parser(__doc__, repeats=0)
    made.add_argument(
        "--epochs", type=int, default=5, help="passes over the 54,000 training images (default: %(default)s)"
    )
    made.add_argument("--batch", type=int, default=250)
    parsed = common.arguments(made)
    from gan_spark import job
    from gan_spark.data import schema
    from gan_spark.ml import bigdl
    from gan_spark.quality import evaluate
    from gan_spark.runs.store import Run
    from gan_spark.training import driver

    with common.lake(parsed) as folder:
        spark = job.session("benchmark", bigdl.jars())
        ingest = {"validation": 0.1}
        config = common.config(
            folder,
            parsed.data,
            "bigdl",
            ingest=ingest,
            lenet={"epochs": parsed.epochs, "batch_size": parsed.batch, "rate": 0.05, "momentum": 0.9},
        )
        url = common.ingested(spark, config)
        manifest = schema.read_manifest(url)
        bigdl = bigdl.lenet(spark, config)
        seconds = [line["seconds"] for line in Run(bigdl["run"]).metrics()]
        # The first pass carries BigDL's own start.
        speed = manifest.rows["train"] / (sum(seconds[1:]) / (len(seconds) - 1))

        steps = parsed.epochs * manifest.rows["train"] // parsed.batch
        model = {
            "name": "lenet",
            "filters": [6, 12],
            "padding": "valid",
            "activation": "tanh",
            "features": 100,
            "dropout": 0.0,
            "optimizer": "sgd",
            "rate": 0.05,
        }
        config = common.config(
            folder,
            parsed.data,
            "horovod",
            ingest=ingest,
            model=model,
            train={
                "steps": steps,
                "batch_size": parsed.batch,
                "workers": 2,
                "log_every": 100,
                "checkpoint_every": steps,
                "sample_every": steps,
            },
        )
        horovod = driver.train(spark, config)
        accuracy = evaluate.held_out(
            spark.read.parquet(f"{url}/split=test"), horovod["run"], horovod["steps"], manifest, 500
        )["accuracy"]
        spark.stop()
    common.finish(
        {
            "ratio": round(speed / horovod["images_per_second"], 4),
            "bound": None,
            "epochs": parsed.epochs,
            "bigdl_images_per_second": round(speed),
            "horovod_images_per_second": round(horovod["images_per_second"]),
            "bigdl_accuracy": round(bigdl["accuracy"], 4),
            "horovod_accuracy": round(accuracy, 4),
        }
    )


if __name__ == "__main__":
    main()
