"""LeNet by BigDL: trained on Spark by BigDL's own distributed optimizer, kept in BigDL's format, scored in Spark tasks.

The network is BigDL's LeNet-5 example (after LeCun, Bottou, Bengio and Haffner, 1998): 6 and 12 filters of 5x5, each
with max-pooling, 100 hidden units, tanh, log-softmax. Its jars come with the Python package; a session has them by
`spark.jars`.
"""

import contextlib
import functools
import glob
import logging
import os
import tempfile
import time
from collections.abc import Iterator

import numpy as np
from pyspark.sql import functions as F
from tqdm import tqdm

from .. import lake
from ..config import Config, LeNet, UserError, resolved
from ..data import schema, splits
from ..lake import tables
from ..runs.record import describe
from ..runs.store import Run
from ..training.driver import dataset_to_train_on
from . import columns

log = logging.getLogger(__name__)
MODEL = "bigdl_lenet"
TABLE = "id string, label int, prediction int, log_probabilities array<double>"


def jars() -> list[str]:
    """Paths of BigDL's jars, from the package that is installed."""
    try:
        import bigdl
    except ImportError:
        raise UserError(
            "BigDL is not installed: expected the package bigdl-dllib-spark3; install gan-spark[bigdl]"
        ) from None
    paths = sorted(
        path for root in bigdl.__path__ for path in glob.glob(os.path.join(root, "share", "*", "lib", "*.jar"))
    )
    if not paths:
        raise UserError(f"no jars of BigDL under {', '.join(bigdl.__path__)}/share: install bigdl-dllib-spark3 again")
    return paths


def start(spark) -> None:
    """Starts BigDL's engine in the session's JVM. `UserError` where the session has no jars of BigDL."""
    if type(spark._jvm.com.intel.analytics.bigdl.dllib.utils.Engine).__name__ != "JavaClass":
        raise UserError(
            f"this Spark session was started without BigDL's jars; start it with --jars {','.join(jars())} (python -m"
            " gan_spark bigdl-jars prints them)"
        )
    # BigDL prints what it registers; stdout is the result's.
    spark._jvm.java.lang.System.setOut(spark._jvm.java.lang.System.err)
    with _quiet():
        from bigdl.dllib.utils.common import init_engine

        init_engine()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """BigDL's Python prints every object that it makes."""
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        yield


def network(shape: tuple[int, int, int], classes: int, hidden: int = 100):
    """BigDL's Sequential: float32 [n, channels, height, width] in [-1, 1] -> log-probabilities [n, classes]."""
    from bigdl.dllib.nn import layer

    height, width, channels = shape
    if min(height, width) < 16:
        raise UserError(f"images of {height} x {width}: two convolutions of 5x5 and two poolings need at least 16 x 16")
    flat = 12 * (((height - 4) // 2 - 4) // 2) * (((width - 4) // 2 - 4) // 2)
    with _quiet():
        model = layer.Sequential()
        for module in (
            layer.Reshape([channels, height, width]),
            layer.SpatialConvolution(channels, 6, 5, 5).set_name("conv1"),
            layer.Tanh(),
            layer.SpatialMaxPooling(2, 2, 2, 2),
            layer.Tanh(),
            layer.SpatialConvolution(6, 12, 5, 5).set_name("conv2"),
            layer.SpatialMaxPooling(2, 2, 2, 2),
            layer.Reshape([flat]),
            layer.Linear(flat, hidden).set_name("hidden"),
            layer.Tanh(),
            layer.Linear(hidden, classes).set_name("scores"),
            layer.LogSoftMax(),
        ):
            model.add(module)
    return model


def samples(frame):
    """RDD of BigDL's Samples from rows with `image`, a dataset's column, and `label` where it is there; BigDL counts
    labels from 1.
    """
    has_label = "label" in frame.columns

    def convert(rows):
        from bigdl.dllib.utils.common import Sample

        for row in rows:
            pixels = np.ascontiguousarray(columns.pixels(row["image"]).transpose(2, 0, 1))
            yield Sample.from_ndarray(
                pixels.astype(np.float32) / np.float32(127.5) - np.float32(1),
                np.array([row["label"] + 1.0 if has_label else 1.0], np.float32),
            )

    return frame.rdd.mapPartitions(convert)


def train(spark, config: Config) -> dict:
    """Trains on split train of `config.dataset` up to `config.lenet.epochs`, resuming where the run has a checkpoint
    (SGD's momentum begins anew).

    After each epoch: accuracy on split validation, a line in the run's metrics, a checkpoint in BigDL's format, and
    BigDL's summaries under events/.
    """
    options, run, url = config.lenet, Run.of(config), dataset_to_train_on(config)
    manifest = _labelled(url)
    start(spark)
    cores = spark.sparkContext.defaultParallelism
    if options.batch_size % cores:
        raise UserError(
            f"lenet.batch_size = {options.batch_size} does not divide by the session's {cores} cores, which take an"
            " equal share each"
        )
    model_table = {
        "name": MODEL,
        "shape": list(manifest.shape),
        "classes": len(manifest.classes),
        "hidden": options.hidden,
    }
    record = describe(config, url, manifest, {"model": model_table, "lenet": resolved(options)})
    run.check(record, {"lenet": resolved(LeNet())})
    token = run.start(record)

    model, first = _restored(run, manifest, options.hidden)
    rates = rate_after(options, first * manifest.rows["train"] // options.batch_size)
    with (
        _quiet(),
        tempfile.TemporaryDirectory() as events,
        tqdm(total=options.epochs, initial=first, unit="epoch", desc=config.run) as bar,
    ):
        optimizer, summaries = _optimizer(spark, model, url, options, rates, events)
        for epoch in range(first + 1, options.epochs + 1):
            line = _epoch(optimizer, summaries, run, token, epoch, epoch - first, events)
            bar.set_postfix_str(f"loss {line['loss']:.3f}, validation accuracy {line['accuracy']:.4f}", refresh=False)
            bar.update()
    lines = [line for line in run.metrics() if "scalars" in line]
    return {
        "run": run.url,
        "epochs": lines[-1]["step"],
        "loss": lines[-1]["loss"],
        "validation_accuracy": lines[-1]["accuracy"],
        "seconds_per_epoch": float(np.median([line["seconds"] for line in lines])),
    }


def _labelled(url: str) -> schema.Manifest:
    """The manifest of the dataset at `url`; `UserError` where it is not one to train and validate a classifier on."""
    manifest = schema.read_manifest(url)
    if not manifest.classes or manifest.parts:
        raise UserError(
            f"dataset {url}: expected images with labels and without parts; found"
            f" {'parts ' + ', '.join(manifest.parts) if manifest.parts else 'no labels'}"
        )
    for split in ("train", "validation"):
        if not manifest.rows.get(split):
            raise UserError(
                f"dataset {url}: its split {split!r} has no images; ingest it with ingest.validation above 0"
            )
    return manifest


def _optimizer(spark, model, url: str, options: LeNet, rates: tuple[float, float], events: str) -> tuple:
    """(BigDL's optimizer of the model, its summaries of training and of validation under `events`).

    `rates` are as `rate_after` gives them.
    """
    from bigdl.dllib.nn.criterion import ClassNLLCriterion
    from bigdl.dllib.optim import optimizer as bigdl

    rate, decay = rates
    momentum = {"momentum": options.momentum, "dampening": 0.0} if options.momentum else {}
    optimizer = bigdl.Optimizer.create(
        model=model,
        training_set=samples(splits.frame(spark, url, "train")),
        criterion=ClassNLLCriterion(),
        batch_size=options.batch_size,
        optim_method=bigdl.SGD(learningrate=rate, learningrate_decay=decay, **momentum),
        end_trigger=bigdl.MaxEpoch(1),
    )
    optimizer.set_validation(
        options.batch_size,
        samples(splits.frame(spark, url, "validation")),
        bigdl.EveryEpoch(),
        [bigdl.Top1Accuracy()],
    )
    summaries = bigdl.TrainSummary(events, "lenet"), bigdl.ValidationSummary(events, "lenet")
    optimizer.set_train_summary(summaries[0])
    optimizer.set_val_summary(summaries[1])
    return optimizer, summaries


def _epoch(optimizer, summaries: tuple, run: Run, token: str, epoch: int, last: int, events: str) -> dict:
    """Trains up to the optimizer's own epoch `last`, which is `epoch` of the run, and stores it; its line of
    metrics.
    """
    from bigdl.dllib.optim.optimizer import MaxEpoch

    training, validation = summaries
    began = time.monotonic()
    optimizer.set_end_when(MaxEpoch(last))
    model = optimizer.optimize()
    run.check_owner(token)  # It may have been removed, or taken over, meanwhile.
    line = {
        "step": epoch,
        "loss": training.read_scalar("Loss")[-1][1],
        "accuracy": validation.read_scalar("Top1Accuracy")[-1][1],
        "seconds": round(time.monotonic() - began, 1),
    }
    run.append_metrics({**line, "scalars": ["loss", "accuracy"]})
    run.save_checkpoint(epoch, functools.partial(save, model), 1)
    for split in ("train", "validation"):
        run.put_events(os.path.join(events, "lenet", split), split)
    return line


def rate_after(options: LeNet, steps: int) -> tuple[float, float]:
    """(rate, decay) that go on where `rate / (1 + decay t)` is after so many steps: BigDL counts a resumed optimizer's
    from 0.
    """
    divisor = 1 + options.decay * steps
    return options.rate / divisor, options.decay / divisor


def _restored(run: Run, manifest: schema.Manifest, hidden: int):
    """(the run's newest model, its epoch), or (a new one, 0)."""
    with run.checkpoint() as checkpoint:
        if checkpoint is None:
            return network(manifest.shape, len(manifest.classes), hidden), 0
        epoch, prefix = checkpoint
        return load(prefix), epoch


def save(model, prefix: str) -> None:
    """Writes `prefix`.bigdl, the layers, and `prefix`.bin, the weights: BigDL's own format (protocol buffers), local
    paths.
    """
    with _quiet():
        model.saveModel(f"{prefix}.bigdl", f"{prefix}.bin", over_write=True)


def load(prefix: str):
    """The model in `prefix`.bigdl and `prefix`.bin, paths or URLs."""
    from bigdl.dllib.nn.layer import Model

    with tempfile.TemporaryDirectory() as folder:
        for kind in ("bigdl", "bin"):
            url = lake.to_url(f"{prefix}.{kind}")
            if not lake.exists(url):
                raise UserError(f"{url}: no such file; a model of BigDL is two, .bigdl and .bin")
            fs, path = lake.filesystem(url)
            fs.get_file(path, os.path.join(folder, f"model.{kind}"))
        try:
            with _quiet():
                return Model.loadModel(os.path.join(folder, "model.bigdl"), os.path.join(folder, "model.bin"))
        except Exception as error:  # py4j's, with a page of Java.
            raise UserError(f"{prefix}.bigdl: not a model in BigDL's format: {_reason(error)}") from None


def _reason(error: Exception) -> str:
    lines = [line for line in str(error).splitlines() if line.strip()]
    return next(
        (line for line in reversed(lines) if line.startswith("Caused by")),
        lines[min(1, len(lines) - 1)] if lines else type(error).__name__,
    )


def score(spark, config: Config) -> dict:
    """The run's model on split `config.generate.split`: a table (id, label, prediction, log_probabilities) at
    `<lake>/predictions/<run>`, and its accuracy.
    """
    run, url = Run.of(config), lake.dataset_url(config)
    manifest = schema.read_manifest(url)
    start(spark)
    run.record()
    epoch = run.checkpoint_step()
    with run.checkpoint(epoch) as (_, prefix):
        model = load(prefix)
    target = lake.predictions_url(config)
    scored = predict(model, splits.frame(spark, url, config.generate.split), manifest.shape, len(manifest.classes))
    with tables.replacing(scored, target, "predictions") as written:
        figures = written.select(
            F.count("*").alias("images"),
            F.avg((F.col("label") == F.col("prediction")).cast("double")).alias("accuracy"),
        ).first()
    return {
        "run": run.url,
        "epoch": epoch,
        "split": config.generate.split,
        "images": figures["images"],
        "accuracy": figures["accuracy"],
        "predictions": target,
    }


def predict(model, frame, shape: tuple[int, int, int], classes: int):
    """DataFrame id, label, prediction (int), log_probabilities (array<double>), computed by BigDL in Spark tasks, from
    a dataset's rows.
    """
    height, width, channels = shape
    try:
        outputs = model.forward(np.zeros([1, channels, height, width], np.float32)).shape[-1]
    except Exception as error:
        raise UserError(f"the model does not take images of {shape}: {_reason(error)}") from None
    if outputs != classes:
        raise UserError(f"the model gives {outputs} scores; the dataset has {classes} classes")
    rows = frame.select("id", "label", "image").rdd
    with _quiet():
        scores = model.predict(samples(frame.select("image")), 512)
    predictions = (
        rows.map(lambda row: (row["id"], row["label"]))
        .zip(scores)
        .map(lambda pair: (*pair[0], int(np.argmax(pair[1])), [float(value) for value in pair[1]]))
    )
    return predictions.toDF(TABLE)


def lenet(spark, config: Config) -> dict:
    """Trains, then scores."""
    # Before a training is paid for.
    lake.check_replaceable(lake.predictions_url(config), "predictions", tables.column_names(TABLE))
    trained = train(spark, config)
    return {**trained, **score(spark, config)}
