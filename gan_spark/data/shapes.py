"""Captioned pictures of one shape on a plain background, for text to image.

What is in a picture is known, and can be read back.
Picture `index` is a function of its index alone, whatever its size in pixels. Four pairs of colour and shape are
held out: no picture of theirs is for training or validation.
"""

import itertools
import re

import numpy as np

ATTRIBUTES = {
    "shape": ("circle", "square", "triangle", "cross"),
    "colour": ("red", "green", "blue", "yellow", "purple", "orange"),
    "place": ("left", "right", "top", "bottom", "centre"),
    "size": ("small", "large"),
    "background": ("white", "grey", "black"),
}
HELD_OUT = {("circle", "green"), ("square", "yellow"), ("triangle", "red"), ("cross", "blue")}
# A label is a whole combination; its index has the attributes' indices as its digits.
CLASSES = tuple(" ".join(values) for values in itertools.product(*ATTRIBUTES.values()))
PHRASINGS = 3  # of each picture
JUDGE = 2**40  # indices from here on are for readers that judge, so that none has seen a picture of the others

_COLOURS = {
    "red": (210, 45, 45),
    "green": (50, 150, 65),
    "blue": (45, 85, 200),
    "yellow": (235, 205, 50),
    "purple": (140, 65, 170),
    "orange": (240, 135, 40),
}
_GREYS = {"white": 240, "grey": 128, "black": 16}
_CENTRES = {"left": (0.29, 0.5), "right": (0.71, 0.5), "top": (0.5, 0.29), "bottom": (0.5, 0.71), "centre": (0.5, 0.5)}
_RADII = {"small": 0.19, "large": 0.28}
_SYNONYMS = {"small": ("small", "little", "tiny"), "large": ("large", "big", "huge"), "centre": ("centre", "middle")}
_TEMPLATES = (
    "a {size} {colour} {shape} at the {place} of a {background} background",
    "a {background} picture with a {size} {colour} {shape} in the {place}",
    "{place}: {colour} {shape}, {size}, on {background}",
    "on {background}, the {shape} at the {place} is {size} and {colour}",
    "there is one {size} {shape} in {colour} at the {place} of the {background} image",
)
_MEANING = {
    word: (name, value)
    for name, values in ATTRIBUTES.items()
    for value in values
    for word in _SYNONYMS.get(value, (value,))
}


def is_held_out(attributes: dict[str, str]) -> bool:
    return (attributes["shape"], attributes["colour"]) in HELD_OUT


def draw(index: int, side: int) -> tuple[np.ndarray, dict[str, str], list[str]]:
    """Picture `index`: uint8 [side, side, 3], its attributes, and phrasings of them."""
    rng = np.random.default_rng([index, 20161210])
    attributes = {name: values[rng.integers(len(values))] for name, values in ATTRIBUTES.items()}
    x, y = np.array(_CENTRES[attributes["place"]]) + rng.uniform(-0.02, 0.02, 2)
    radius = _RADII[attributes["size"]] * rng.uniform(0.93, 1.07)
    colour = np.array(_COLOURS[attributes["colour"]]) + rng.uniform(-12, 12, 3)
    background = _GREYS[attributes["background"]] + rng.uniform(-12, 12)
    middles = (np.arange(side) + 0.5) / side
    # Half a pixel to either side of the edge is covered in part.
    cover = np.clip(
        0.5
        - side * distance(attributes["shape"], (middles[None] - x) / radius, (middles[:, None] - y) / radius) * radius,
        0.0,
        1.0,
    )[..., None]
    pixels = np.clip(np.rint(cover * colour + (1.0 - cover) * background), 0, 255).astype(np.uint8)
    return pixels, attributes, phrasings(attributes, rng)


def distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distances from points to the edge of a shape of radius 1 at the origin, y downwards.

    Negative inside; a lower bound at corners.
    """
    if shape == "circle":
        return np.hypot(x, y) - 1.0
    if shape == "square":
        return np.maximum(abs(x), abs(y)) - 0.85
    if shape == "triangle":
        return np.maximum(y - 0.7, (abs(x) * 1.8 - y - 1.0) / np.hypot(1.8, 1.0))
    long, wide = 1.0, 0.33  # a cross: two bars
    return np.minimum(np.maximum(abs(x) - long, abs(y) - wide), np.maximum(abs(x) - wide, abs(y) - long))


def phrasings(attributes: dict[str, str], rng: np.random.Generator) -> list[str]:
    """`PHRASINGS` sentences, no two from one template, in random order and words."""
    chosen = rng.choice(len(_TEMPLATES), PHRASINGS, replace=False)
    return [
        _TEMPLATES[template].format(
            **{name: rng.choice(_SYNONYMS.get(value, (value,))) for name, value in attributes.items()}
        )
        for template in chosen
    ]


def understand(caption: str) -> dict[str, str]:
    """The attributes that a sentence names; only those."""
    return dict(_MEANING[word] for word in re.findall(r"[a-z]+", caption.lower()) if word in _MEANING)
