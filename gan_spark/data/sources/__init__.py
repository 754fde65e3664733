"""Readers of what is in the lake, a module each.

Each gives a `Source`: a DataFrame with one row an image *reference*, decoded later in
Spark tasks. A file in a folder stays a URL until then; rows of an archive carry their pixels.
What is already known to be unusable carries a `reason` instead. The driver lists names;
it never holds images (but for the 1,797 packaged digits of 64 bytes).
"""

from ...config import Ingest, UserError, imported
from ..downloads import download
from . import cifar10, digits, folder, idx, shapes, table
from .rows import Source, are_numbers
from .table import from_frame

__all__ = ["Source", "are_numbers", "download", "from_frame", "open_source"]


def open_source(spark, config: Ingest) -> Source:
    """The source that `config.source` names, looked at but not yet read: one of these, or "package.module:function" of
    the user's own, which is imported and called alike.
    """
    if ":" in config.source:
        return _outside(spark, config)
    if config.source not in ("digits", "shapes") and not config.path:
        raise UserError(f"ingest.path is empty: source {config.source!r} needs the folder, file or table to read")
    if config.source == "kafka":
        raise UserError("ingest.source = 'kafka': messages arrive; read them with jobs/stream.py")
    readers = {"digits": digits, "idx": idx, "folder": folder, "cifar10": cifar10, "table": table, "shapes": shapes}
    return readers[config.source].source(spark, config)


def _outside(spark, config: Ingest) -> Source:
    function = imported("ingest.source", config.source)
    if not callable(function):
        raise UserError(
            f"ingest.source = {config.source!r}: expected a function of (spark, config.ingest), found an object of type"
            f" {type(function).__name__}"
        )
    source = function(spark, config)
    if not isinstance(source, Source):
        raise UserError(
            f"ingest.source = {config.source!r}: expected a gan_spark.data.sources.Source, got an object of type"
            f" {type(source).__name__}"
        )
    return source
