"""Measures of images as Spark jobs: moments of features, KID, precision and recall, classes, errors of pairs.

FID and the Inception-style score need only sums: each task folds its images into a `Moments`, and a
tree of tasks merges them, so no feature of an image reaches the driver. KID, precision
and recall need pairs of images: they look at a bounded sample, chosen by a hash of the id.
"""

import functools
import math
from collections.abc import Callable, Iterator

import numpy as np
from pyspark.sql import functions as F

from .. import features, models
from ..data import images, schema, splits
from ..runs import loading
from ..runs.store import Run
from .statistics import KernelSums, Moments, Sample, squared_distances

_KERNEL_ROWS = 500  # of a task


def feature_moments(
    frame, network: features.Network, shape: tuple, encoding: str, batch_size: int, sample: int
) -> tuple[dict[str, Moments], np.ndarray]:
    """Moments of the features of all images and of two halves of them, of the classes that the network gives them (one
    of each row is 1), of the probabilities and of their entropies; and the features [about `sample`, d] of the images
    whose ids hash lowest, in the order of their ids: the same ones every time.
    """

    def partial(rows: Iterator) -> Iterator[dict]:
        apply, total = features.function(network), {}
        for chunk in splits.chunks(rows, batch_size):
            feature, probability = apply(schema.unpack([row["image"] for row in chunk], shape, encoding))
            half = np.array([schema.split_of(f"half of {row['id']}", 0.0, 0.5) == "test" for row in chunk])
            entropy = np.sum(probability * np.log(np.clip(probability, 1e-300, None)), axis=1, keepdims=True)
            classes = np.eye(probability.shape[1])[probability.argmax(1)]
            batch = {
                **{"half0": feature[~half], "half1": feature[half], "classes": classes},
                **{"probabilities": probability, "entropy": entropy},
            }
            chosen = np.array([row["sampled"] for row in chunk])
            total = _merge(total, {name: Moments.of(values) for name, values in batch.items() if len(values)})
            total = _merge(
                total,
                {
                    "sample": Sample(
                        [row["id"] for row in chunk if row["sampled"]], [feature[chosen].astype(np.float32)]
                    )
                },
            )
        yield total

    rows = frame.select("id", "image", sampled_rows(frame, sample).alias("sampled"))
    total = _merged(rows.rdd.mapPartitions(partial), _merge)
    halves = [total[name] for name in ("half0", "half1") if name in total]
    empty = Moments(0, halves[0].mean, np.zeros_like(halves[0].scatter))
    features_of_sample = total.pop("sample").in_order()
    return {"half0": empty, "half1": empty, **total, "all": functools.reduce(Moments.merge, halves)}, features_of_sample


def sampled_rows(frame, sample: int):
    """Column: whether an image of the frame is one of the about `sample` whose ids hash lowest."""
    share = sample / frame.count()
    highest = 2**63 - 1 if share >= 1 else int(2**64 * share) - 2**63
    return F.xxhash64("id") <= F.lit(highest)


def _merged(values, merge: Callable):
    """One value of an RDD of one for each partition, merged by eights in tasks: Spark's own treeReduce leaves the last
    merges to the driver, 32 MB each for InceptionV3's features.
    """
    while (count := values.getNumPartitions()) > 1:
        fewer = math.ceil(count / 8)
        keyed = values.mapPartitionsWithIndex(
            lambda index, partition, fewer=fewer: ((index % fewer, value) for value in partition)
        )
        values = keyed.reduceByKey(merge, fewer, int).values()
    return values.first()


def _merge(a: dict, b: dict) -> dict:
    return {
        name: a[name].merge(b[name]) if name in a and name in b else (a if name in a else b)[name]
        for name in a.keys() | b.keys()
    }


def kid(spark, real: np.ndarray, fake: np.ndarray) -> dict[str, float | None]:
    """The kernel distance of as many images of each side, and its standard error, computed in tasks."""
    count, rng = min(len(real), len(fake)), np.random.default_rng(0)
    # Ids may be in the order of classes, of which the first would be looked at alone.
    chosen = (values[rng.permutation(len(values))[:count]].astype(np.float64) for values in (real, fake))
    shared = spark.sparkContext.broadcast(tuple(chosen))
    starts = range(0, count, _KERNEL_ROWS)
    sums = spark.sparkContext.parallelize(starts, len(starts)).map(
        lambda start: KernelSums.of(*shared.value, start, min(start + _KERNEL_ROWS, count))
    )
    total = sums.reduce(KernelSums.merge)
    shared.destroy()
    return {"kid": total.distance(), "kid_error": total.error()}


def copies(
    train, network: features.Network, manifest: schema.Manifest, batch_size: int, held_out: np.ndarray, fake: np.ndarray
) -> float:
    """Share of the generated images that are nearer to an image of the DataFrame `train` than 99 of 100 held-out images
    are, by their features [n, d]; 0.01 is what images have that were not learnt by heart.
    """
    shared = train.sparkSession.sparkContext.broadcast((held_out, fake))

    def partial(rows: Iterator) -> Iterator[list[np.ndarray]]:
        apply = features.function(network)
        nearest = [np.full(len(queries), np.inf) for queries in shared.value]
        for chunk in splits.chunks((row["image"] for row in rows), batch_size):
            feature, _ = apply(schema.unpack(chunk, manifest.shape, manifest.encoding))
            for best, queries in zip(nearest, shared.value, strict=True):
                np.minimum(best, squared_distances(queries.astype(np.float64), feature).min(1), out=best)
        yield nearest

    merged = train.select("image").rdd.mapPartitions(partial)
    of_held_out, of_fake = merged.treeReduce(lambda a, b: [np.minimum(x, y) for x, y in zip(a, b, strict=True)])
    shared.destroy()
    return float((of_fake < np.quantile(of_held_out, 0.01)).mean())


def precision_recall(spark, real: np.ndarray, fake: np.ndarray, neighbours: int) -> dict[str, float]:
    """Improved precision and recall (arXiv 1904.06991): the share of each side that lies inside the other's
    k-nearest-neighbour balls. Both are of more than k images.
    """
    shared = spark.sparkContext.broadcast((real.astype(np.float64), fake.astype(np.float64)))
    blocks = [(side, start) for side in (0, 1) for start in range(0, len((real, fake)[side]), 500)]
    slices = max(2, spark.sparkContext.defaultParallelism)

    def radius(block: tuple[int, int]) -> tuple[tuple[int, int], np.ndarray]:
        side, start = block
        values = shared.value[side]
        # Position `neighbours` in sorted order: position 0 is the image itself.
        return (
            block,
            np.partition(squared_distances(values[start : start + 500], values), neighbours, axis=1)[:, neighbours],
        )

    radii = dict(spark.sparkContext.parallelize(blocks, slices).map(radius).collect())
    balls = [np.concatenate([radii[block] for block in blocks if block[0] == side]) for side in (0, 1)]

    def covered(block: tuple[int, int]) -> tuple[int, int]:
        side, start = block
        distances = squared_distances(shared.value[side][start : start + 500], shared.value[1 - side])
        return side, int((distances <= balls[1 - side]).any(1).sum())

    inside = [0, 0]
    for side, count in spark.sparkContext.parallelize(blocks, slices).map(covered).collect():
        inside[side] += count
    shared.destroy()
    return {"precision": inside[1] / len(fake), "recall": inside[0] / len(real)}


def class_agreement(frame, network: features.Network, manifest: schema.Manifest, batch_size: int) -> float:
    """Share of the images (PNG) that the network gives the class with the index in column `class_index`."""

    def partial(rows: Iterator) -> Iterator[tuple[int, int]]:
        apply, right, total = features.function(network), 0, 0
        for chunk in splits.chunks(rows, batch_size):
            _, probability = apply(schema.unpack([row["image"] for row in chunk], manifest.shape, "png"))
            right += int((probability.argmax(1) == [row["class_index"] for row in chunk]).sum())
            total += len(chunk)
        yield right, total

    right, total = frame.rdd.mapPartitions(partial).treeReduce(lambda a, b: (a[0] + b[0], a[1] + b[1]))
    return right / total


def paired(real, fake, part: str):
    """Rows of `image` (PNG), and the `truth` (as stored) with its `label`, where the dataset holds the image
    `<part>/<id>` that `<other part>/<id>` should become.
    """
    label = F.col("label") if "label" in real.columns else F.lit(None).cast("int").alias("label")
    truth = real.select(F.col("id").alias("of"), F.col("image").alias("truth"), label)
    translated = fake.select(F.concat(F.lit(f"{part}/"), F.expr("substring(input, 3)")).alias("of"), "image")
    return translated.join(truth, "of").drop("of")


def pair_errors(pairs, manifest: schema.Manifest) -> dict[str, float]:
    """Mean absolute error and PSNR against the truth; values in [0, 1]. Empty where there are no pairs."""

    def partial(rows: Iterator) -> Iterator[tuple[int, float, float]]:
        count, absolute, psnr = 0, 0.0, 0.0
        for row in rows:
            truth = schema.unpack([row["truth"]], manifest.shape, manifest.encoding)[0].astype(np.float64) / 255
            error = images.decode_png(row["image"]) / 255 - truth
            count, absolute = count + 1, absolute + np.abs(error).mean()
            psnr += -10 * np.log10(max(np.square(error).mean(), 1e-10))
        yield count, absolute, psnr

    count, absolute, psnr = pairs.rdd.mapPartitions(partial).fold(
        (0, 0.0, 0.0), lambda a, b: tuple(x + y for x, y in zip(a, b, strict=True))
    )
    return {"pairs": count, "pair_l1": float(absolute / count), "pair_psnr": float(psnr / count)} if count else {}


def held_out_means(frame, run_url: str, step: int, manifest: schema.Manifest, batch_size: int) -> dict[str, float]:
    """Means over all images of the values that the run's model computes on held-out images, if it does."""
    run = Run(run_url)
    if models.find(run.record()["config"]["model"]["name"]).held_out is models.GenerativeModel.held_out:
        return {}
    checkpoint = loading.read_checkpoint(frame.sparkSession, run, step)
    means = checkpoint_means(frame, checkpoint, manifest, batch_size)
    checkpoint.files.destroy()
    return means


def checkpoint_means(
    frame, checkpoint: loading.Checkpoint, manifest: schema.Manifest, batch_size: int
) -> dict[str, float]:
    """`held_out_means` of a checkpoint that has been read."""
    columns = splits.columns(manifest)
    run_classes = checkpoint.record["dataset"].get("classes", [])
    # The run's own indices of these classes; -1 for those it does not know, and for images without one, whose index is
    # the last.
    places = np.array(
        [run_classes.index(name) if name in run_classes else -1 for name in manifest.classes] + [-1], np.int32
    )

    def partial(rows: Iterator) -> Iterator[tuple[int, dict[str, float]]]:
        import tensorflow as tf

        compute = loading.compiled(loading.carried_model(checkpoint).held_out)
        count, sums = 0, {}
        for chunk in splits.chunks(rows, batch_size):
            batch = splits.unpack({name: [row[name] for row in chunk] for name in columns}, manifest)
            batch["image"] = images.to_unit(batch["image"])
            if "label" in batch:
                batch["label"] = places[batch["label"]]
            count += len(chunk)
            for name, values in compute(batch).items():
                sums[name] = sums.get(name, 0.0) + float(tf.reduce_sum(values))
        yield count, sums

    def add(a, b):
        return a[0] + b[0], {name: a[1].get(name, 0.0) + b[1].get(name, 0.0) for name in a[1].keys() | b[1].keys()}

    count, sums = frame.select(columns).rdd.mapPartitions(partial).treeReduce(add)
    return {name: total / count for name, total in sorted(sums.items())}
