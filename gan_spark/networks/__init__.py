"""Networks from elsewhere: Keras's own, and models in files."""

from .applications import from_bytes, load, load_file, preprocess, read_file

__all__ = ["from_bytes", "load", "load_file", "preprocess", "read_file"]
