"""Spark ML stages over networks that were trained here."""

from .classifier import ImageClassifier

__all__ = ["ImageClassifier"]
