"""Signatures of an exported model: its answers as TensorFlow functions of any number of rows.

What is computed at once has a fixed number of rows, so that one seed is one image, to the bit, whatever it is asked
for with.
"""

import tensorflow as tf

from .decoding import decoded
from .functions import Answers, Call

# What a caller hands over, by the columns that a model takes.
NAMES = {"seed": "seed", "label": "label", "caption": "caption", "embedding": "embedding", "image": "image_bytes"}


class Exported(tf.Module):
    """A model's answers as `functions` by name, and the variables that these use, which are all that is saved.

    `generate` (or `generate_a` and `generate_b`, from which domain a model translates) takes `seed` (int64 [n]) and
    what the model takes: `label` (int32 [n], an index), `caption` (string [n]), `embedding` (float32 [n, d]),
    `image_bytes` (string [n], encoded). It answers `image`, uint8 [n, height, width, channels], and `png_bytes`,
    string [n]. `classify` takes `image_bytes`, and answers `probability` (float32 [n, classes]) and `label` (string
    [n], the likeliest class).
    """

    def __init__(self, answers: Answers, sizes: dict[str, list[int]]):
        """`sizes`: for each of the answers' `calls`, the numbers of rows that are exact, smallest first."""
        super().__init__()
        self._answers = answers
        self._sizes = sizes
        functions = {
            name: self._classify() if name == "classify" else self._generate(name, call)
            for name, call in answers.calls().items()
        }
        self.functions = {name: function.get_concrete_function() for name, function in functions.items()}
        variables = {id(one): one for function in self.functions.values() for one in function.variables}
        self.weights = list(variables.values())

    def _spec(self, column: str) -> tf.TensorSpec:
        kinds = {"seed": tf.int64, "label": tf.int32, "embedding": tf.float32}
        shape = [None, self._answers.embedding] if column == "embedding" else [None]
        return tf.TensorSpec(shape, kinds.get(column, tf.string), NAMES[column])

    def _generate(self, name: str, call: Call):
        columns = call.columns

        def generate(*values):
            rows = dict(zip(columns, values, strict=True))
            if "label" in rows:
                _check_labels(rows["label"], len(self._answers.classes))
            if "image" in rows:
                rows["image"] = decoded(rows["image"], self._answers.shape, self._answers.fit)
            image = _in_chunks(
                lambda chunk: _pixels(call.function(chunk)),
                rows,
                tf.TensorSpec(self._answers.shape, tf.uint8),
                [self._sizes[name][0], call.reference],
            )
            return {"image": image, "png_bytes": tf.map_fn(tf.io.encode_png, image, fn_output_signature=tf.string)}

        return tf.function(generate, input_signature=[self._spec(column) for column in columns])

    def _classify(self):
        def classify(image_bytes):
            image = decoded(image_bytes, self._answers.shape, self._answers.fit)
            sizes = self._sizes["classify"]
            classes = tf.TensorSpec([len(self._answers.classes)], tf.float32)
            probability = _in_chunks(self._answers.classify, {"image": image}, classes, [sizes[0], sizes[-1]])
            label = tf.gather(tf.constant(self._answers.classes), tf.argmax(probability, 1))
            return {"probability": probability, "label": label}

        return tf.function(classify, input_signature=[self._spec("image")])


def _pixels(unit: tf.Tensor) -> tf.Tensor:
    """[-1, 1] to uint8, as `images.to_pixels`."""
    return tf.cast(tf.clip_by_value(tf.round((unit + 1.0) * 127.5), 0.0, 255.0), tf.uint8)


def _check_labels(label: tf.Tensor, classes: int) -> None:
    message = f"label: expected an index from 0 to {classes - 1}"
    tf.debugging.assert_non_negative(label, message)
    tf.debugging.assert_less(label, classes, message)


def _in_chunks(call, rows: dict[str, tf.Tensor], row: tf.TensorSpec, sizes: list[int]) -> tf.Tensor:
    """`call` of all rows, by the larger of `sizes` as often as that is full, and of the rest by the smaller one.

    The last chunk is filled up with its last row. `row` describes what `call` gives of each.
    """
    small, large = min(sizes), max(sizes)
    count = tf.shape(next(iter(rows.values())))[0]
    full = count // large * large
    first = _by(call, {name: value[:full] for name, value in rows.items()}, row, large)
    rest = _by(call, {name: value[full:] for name, value in rows.items()}, row, small)
    return tf.concat([first, rest], 0)


def _by(call, rows: dict[str, tf.Tensor], row: tf.TensorSpec, size: int) -> tf.Tensor:
    count = tf.shape(next(iter(rows.values())))[0]
    places = tf.minimum(tf.range((count + size - 1) // size * size), count - 1)
    chunks = {name: tf.reshape(tf.gather(value, places), [-1, size, *value.shape[1:]]) for name, value in rows.items()}
    outputs = tf.map_fn(
        call, chunks, fn_output_signature=tf.TensorSpec([size, *row.shape], row.dtype), parallel_iterations=1
    )
    return tf.reshape(outputs, [-1, *row.shape])[:count]
