"""Spark ML stages over networks: those of Keras by name, models in files, and what was trained here."""

from .classifier import ImageClassifier
from .featurizer import DeepImageFeaturizer, DeepImagePredictor
from .keras import KerasImageFileTransformer, KerasTransformer, register_keras_image_udf

__all__ = [
    "DeepImageFeaturizer",
    "DeepImagePredictor",
    "ImageClassifier",
    "KerasImageFileTransformer",
    "KerasTransformer",
    "register_keras_image_udf",
]
