"""DeepDream: images changed in Spark tasks so that layers of a network are driven up.

The method is that of Mordvintsev, Olah and Tyka (2015). The objective is the layers' mean squared activation, less a
continuity term (total variation with exponent 1.25) and the squared image. Octaves go from small to the image's own
size; after each, the detail that the smaller size had lost is put back. By gradients it goes up as in the authors'
notebook (github.com/google/deepdream), by L-BFGS as in Keras's example, deep_dream.py, whose layers of VGG16,
block5_conv1 at 0.05 and block5_conv2 at 0.02, continuity of 0.1 and L2 of 0.02 are `dream.layers`,
`dream.weights_of_layers`, `dream.continuity` and `dream.l2`; its five rounds of seven evaluations are `dream.rounds`
and `dream.iterations`, with `dream.octaves` = 1.

Differences: jitter shifts the image, as in the notebook, before each step or round, where that example adds noise to
its pixels; a layer's edges count, of which the example leaves out 2 pixels; the terms of continuity and L2, and the
bounds of L-BFGS, are of images in [-1, 1], where the example has 256 values and no bounds.
"""

import functools
import logging
from collections.abc import Callable, Iterator

import numpy as np
import pandas as pd
import tensorflow as tf
from pyspark import Broadcast

from .. import lake, networks, process, progress
from ..config import Config, Dream, UserError
from ..data import batches, images, schema, splits
from ..lake import tables
from ..models.blocks import layers_of
from ..runs import loading
from ..runs.store import Run

log = logging.getLogger(__name__)
FORMER = (
    "network string, input string, image binary, height int, width int, channels int, objective_before double,"
    " objective_after double"
)
TABLE = f"{FORMER}, rounds array<binary>"  # PNGs, where there are several rounds; the last is the image
_SHOWN = 16


def dream(spark, config: Config) -> dict:
    """Writes `<lake>/generated/<run>-dream`, a row an image of the dataset's split, and a grid of images before and
    after; with several rounds, a grid of images before and after each round beside it.
    """
    options, url = config.dream, lake.dataset_url(config)
    manifest = schema.read_manifest(url)
    table = lake.table_url(config) + "-dream"
    former = tables.column_names(FORMER)
    lake.check_replaceable(table, "dreams", former)
    has_rounds = options.method == "lbfgs" and options.rounds > 1
    pictures = {"grid": f"{table}.png"} | ({"rounds": f"{table}.rounds.png"} if has_rounds else {})
    for picture in pictures.values():
        lake.check_file(picture, "picture")
    if not options.layers:
        raise UserError("dream.layers is empty: no layer is named that should be driven up")
    source = _source(spark, config)
    activations(source, options.layers)  # what is wrong with the network or its layers is told before any task starts
    if source[0] == "keras":  # Only the driver fetches its weights.
        source = (*source[:2], spark.sparkContext.broadcast(_network(*source).get_weights()))
    if options.weights_of_layers and len(options.weights_of_layers) != len(options.layers):
        raise UserError(
            f"dream.weights_of_layers: expected one for each of the {len(options.layers)} layers, found"
            f" {len(options.weights_of_layers)}"
        )
    partitions = min(options.images, spark.sparkContext.defaultParallelism)
    dataset = splits.frame(spark, url, options.split).select("id", "image")
    rows = splits.lowest_hashes(dataset, options.images).repartition(partitions)
    dreams = rows.mapInPandas(functools.partial(_dream, source, options, manifest), TABLE)
    with (
        progress.part("dreaming", spark, options.images),
        batches.at_most(spark, batches.rows_of(manifest)),
        tables.replacing(dreams, table, "dreams", former) as written,
    ):
        first_rows = written.orderBy("input").limit(_SHOWN).collect()
        means = written.selectExpr(
            "avg(objective_before) as before", "avg(objective_after) as after", "count(*) as count"
        ).first()
    before = _before(first_rows, rows, manifest)
    lake.write_picture(pictures["grid"], images.encode_png(_grid(first_rows, before)))
    if has_rounds:
        lake.write_picture(pictures["rounds"], images.encode_png(_grid_of_rounds(first_rows, before)))
    return {
        "images": means["count"],
        "table": table,
        **pictures,
        "objective_before": means["before"],
        "objective_after": means["after"],
    }


def _before(dreams: list, rows, manifest: schema.Manifest) -> dict[str, np.ndarray]:
    """By id, the images that the dreams were made from, which are some of `rows`."""
    stored = rows.where(rows["id"].isin([row["input"] for row in dreams])).collect()
    return {row["id"]: schema.unpack([row["image"]], manifest.shape, manifest.encoding)[0] for row in stored}


def _grid(dreams: list, before: dict[str, np.ndarray]) -> np.ndarray:
    """Each of the dreams beside the image that it was made from."""
    pairs = [pixels for row in dreams for pixels in (before[row["input"]], images.decode_png(row["image"]))]
    return images.grid(np.stack(pairs), 8)


def _grid_of_rounds(dreams: list, before: dict[str, np.ndarray]) -> np.ndarray:
    """A row for each of the dreams: the image that it was made from, and what each round made of it."""
    rows = [[before[row["input"]], *map(images.decode_png, row["rounds"])] for row in dreams]
    return images.grid(np.concatenate([np.stack(row) for row in rows]), len(rows[0]))


def _source(spark, config: Config) -> tuple:
    """The network by reference, small enough for a task's closure."""
    options = config.dream
    if options.network == "run":
        run = Run.named(config.lake, options.run)
        record = run.record()
        if record["config"]["model"]["name"] != "lenet":
            raise UserError(
                f"dream.run = {options.run!r}: expected the run of a lenet, found {record['config']['model']['name']!r}"
            )
        name = lake.reference(config.lake, lake.table_url(config), run.url)
        return "run", name, loading.read_checkpoint(spark, run)
    if options.network.endswith((".keras", ".h5")):
        return "file", lake.to_url(options.network)
    return "keras", options.network, options.weights


def _network(kind: str, name: str, weights: str | Broadcast = "") -> tf.keras.Model:
    return process.cached(("dream", kind, name, weights), lambda: _loaded_network(kind, name, weights))


def _loaded_network(kind: str, name: str, weights: str | Broadcast) -> tf.keras.Model:
    process.limit_task_threads()
    if kind == "file":
        return networks.load_file(name)
    if isinstance(weights, str):
        tf.keras.utils.set_random_seed(0)  # for random weights, the same every time
        return networks.load(name, weights, include_top=False)
    network = networks.load(name, "", include_top=False)
    network.set_weights(weights.value)
    return network


def activations(source: tuple, layers: tuple[str, ...]) -> Callable[[tf.Tensor], list[tf.Tensor]]:
    """A function from images in [-1, 1] to the outputs of the layers. `UserError` where one does not exist."""
    if source[0] == "run":
        network = loading.carried_model(source[2]).network
        layers_of(network, layers, tf.zeros([1, *network.input_shape[1:]]))
        return lambda x: layers_of(network, layers, x)
    network = _network(*source)
    layer_names = [layer.name for layer in network.layers]
    missing = [name for name in layers if name not in layer_names]
    if missing:
        raise UserError(
            f"dream.layers: no such layer: {missing[0]!r} in {source[1]} (there are: {', '.join(layer_names)})"
        )
    truncated = tf.keras.Model(network.input, [network.get_layer(name).output for name in layers])
    scale = networks.preprocess(source[1]) if source[0] == "keras" else lambda x: x
    channels = network.input_shape[-1]

    def apply(x):
        x = tf.image.grayscale_to_rgb(x) if channels == 3 and x.shape[-1] == 1 else x
        outputs = truncated(scale((x + 1.0) * 127.5) if source[0] == "keras" else x, training=False)
        return outputs if isinstance(outputs, list) else [outputs]

    return apply


def total_variation(x: tf.Tensor) -> tf.Tensor:
    """Mean of (dx^2 + dy^2)^1.25 over images [n, h, w, c]."""
    right, down = x[:, :-1, 1:] - x[:, :-1, :-1], x[:, 1:, :-1] - x[:, :-1, :-1]
    return tf.reduce_mean((tf.square(right) + tf.square(down) + 1e-12) ** 1.25)


def objective(outputs_of: Callable, options: Dream) -> Callable[[tf.Tensor], tf.Tensor]:
    """Images [1, h, w, c] to the scalar that is driven up."""
    weights = options.weights_of_layers or (1.0,) * len(options.layers)

    def value(x):
        driven = tf.add_n(
            [weight * tf.reduce_mean(tf.square(output)) for weight, output in zip(weights, outputs_of(x), strict=True)]
        )
        return driven - options.continuity * total_variation(x) - options.l2 * tf.reduce_mean(tf.square(x))

    return value


def slope_of(value: Callable) -> Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]:
    """Images to the value and its gradient; traced once for all images of a size."""

    @tf.function(reduce_retracing=True)
    def slope(x):
        with tf.GradientTape() as tape:
            tape.watch(x)
            score = value(x)
        return score, tape.gradient(score, x)

    return slope


def dreamt(image: np.ndarray, slope: Callable, options: Dream, seed: int = 0) -> np.ndarray:
    """Image [h, w, c] in [-1, 1] to the one that it turns into; `slope` as `slope_of` makes it."""
    return dreamt_by_rounds(image, slope, options, seed)[-1]


def dreamt_by_rounds(image: np.ndarray, slope: Callable, options: Dream, seed: int = 0) -> list[np.ndarray]:
    """`dreamt`, after each round of the last octave; by gradients there is one."""
    rng = np.random.default_rng(seed)
    shape = np.array(image.shape[:2])
    sizes = [
        np.maximum(1, np.rint(shape / options.octave_scale**k)).astype(int) for k in reversed(range(options.octaves))
    ]
    original = tf.constant(image[None], tf.float32)
    x = tf.image.resize(original, sizes[0], antialias=True) if options.octaves > 1 else original
    for size, following in zip(sizes, [*sizes[1:], None], strict=True):
        made = _lbfgs(x, slope, options, rng) if options.method == "lbfgs" else [_ascend(x, slope, options, rng)]
        x = made[-1]
        if following is not None:
            detail = tf.image.resize(original, following, antialias=True) - tf.image.resize(
                tf.image.resize(original, size, antialias=True), following
            )
            x = tf.image.resize(x, following) + detail
    return [tf.clip_by_value(x, -1.0, 1.0)[0].numpy() for x in made]


def _ascend(x: tf.Tensor, slope: Callable, options: Dream, rng: np.random.Generator) -> tf.Tensor:
    for _ in range(options.iterations):
        shift = rng.integers(-options.jitter, options.jitter + 1, 2)
        _, gradient = slope(tf.roll(x, shift, [1, 2]))
        gradient = tf.roll(gradient, -shift, [1, 2])
        x = tf.clip_by_value(x + options.step * gradient / (tf.reduce_mean(tf.abs(gradient)) + 1e-8), -1.0, 1.0)
    return x


def _lbfgs(x: tf.Tensor, slope: Callable, options: Dream, rng: np.random.Generator) -> list[tf.Tensor]:
    """The image after each round, which begins anew where the last one ended: also where a line search gave up."""
    made = []
    for _ in range(options.rounds):
        jitter = options.jitter if options.rounds > 1 else 0
        shift = rng.integers(-jitter, jitter + 1, 2)
        x = tf.roll(_minimised(tf.roll(x, shift, [1, 2]), slope, options.iterations), -shift, [1, 2])
        made.append(x)
    return made


def _minimised(x: tf.Tensor, slope: Callable, evaluations: int) -> tf.Tensor:
    from scipy.optimize import fmin_l_bfgs_b

    if not evaluations:
        return x

    def negative(values: np.ndarray) -> tuple[float, np.ndarray]:
        score, gradient = slope(tf.constant(values.reshape(x.shape), tf.float32))
        return -float(score), -gradient.numpy().astype(np.float64).ravel()

    values, _, _ = fmin_l_bfgs_b(
        negative,
        x.numpy().astype(np.float64).ravel(),
        bounds=[(-1.0, 1.0)] * int(np.prod(x.shape)),
        maxfun=evaluations,
    )
    return tf.constant(values.reshape(x.shape), tf.float32)


def _dream(
    source: tuple, options: Dream, manifest: schema.Manifest, frames: Iterator[pd.DataFrame]
) -> Iterator[pd.DataFrame]:
    slope = slope_of(objective(activations(source, options.layers), options))
    for frame in frames:
        for id, stored in zip(frame["id"], frame["image"], strict=True):
            before = images.to_unit(schema.unpack([stored], manifest.shape, manifest.encoding)[0])
            made = dreamt_by_rounds(before, slope, options, int.from_bytes(id.encode()[-6:], "big"))
            after = made[-1]
            scores = [float(slope(tf.constant(pixels[None]))[0]) for pixels in (before, after)]
            yield pd.DataFrame(
                {
                    "network": [source[1]],
                    "input": [id],
                    "image": [images.encode_png(images.to_pixels(after))],
                    "height": [after.shape[0]],
                    "width": [after.shape[1]],
                    "channels": [after.shape[2]],
                    "objective_before": [scores[0]],
                    "objective_after": [scores[1]],
                    "rounds": [[images.encode_png(images.to_pixels(pixels)) for pixels in made if len(made) > 1]],
                }
            )
