"""Source of any Spark table, or DataFrame."""

from ... import failures, lake
from ...config import Ingest, UserError
from .rows import Source, padded

_EMBEDDINGS = ("array<float>", "array<double>", "array<array<float>>", "array<array<double>>")


def _column(name: str):
    """The column of this very name, dots and all."""
    from pyspark.sql import functions as F

    return F.col("`" + name.replace("`", "``") + "`")


def source(spark, config: Ingest) -> Source:
    """A Parquet folder (a path or URL) or a catalog table (a bare name) with a column of encoded images."""
    is_path = "/" in config.path
    try:
        frame = spark.read.parquet(lake.to_url(config.path)) if is_path else spark.table(config.path)
    except Exception as error:
        raise UserError(
            f"ingest.path = {config.path!r}: cannot be read as a table: {failures.summary(error)}"
        ) from error
    return from_frame(
        frame,
        config.id_column,
        config.image_column,
        config.label_column,
        config.caption_column,
        config.embedding_column,
        config.max_file_mb,
    )


def from_frame(
    frame,
    id_column: str,
    image_column: str,
    label_column: str = "",
    caption_column: str = "",
    embedding_column: str = "",
    max_file_mb: int = 64,
) -> Source:
    """Any DataFrame with a unique id and a binary column of encoded images.

    Null images, and those over `max_file_mb` MB, are rejected by id.
    """
    from pyspark.sql import functions as F

    _check_columns(dict(frame.dtypes), id_column, image_column, label_column, caption_column, embedding_column)
    id, image = _column(id_column), _column(image_column)
    label = _column(label_column).cast("string") if label_column else F.lit(None).cast("string")
    reason = F.when(id.isNull(), "no id (null)").when(image.isNull(), "no image (null)")
    if label_column:
        reason = reason.when(label.isNull(), "no label (null)")
    is_large = F.length(image) > max_file_mb * 2**20
    reason = reason.when(is_large, F.concat(F.length(image), F.lit(f" bytes, over the limit of {max_file_mb} MB")))
    chosen = frame.select(
        F.coalesce(id.cast("string"), F.concat(F.lit("null id "), F.monotonically_increasing_id())).alias("id"),
        F.when(~is_large, image).alias("content"),
        label.alias("label"),
        reason.alias("reason"),
        (_column(caption_column) if caption_column else F.lit(None)).cast("string").alias("caption"),
        _flat(frame, embedding_column).alias("embedding"),
    )
    classes = (
        sorted(row[0] for row in frame.select(label).distinct().collect() if row[0] is not None) if label_column else []
    )
    return Source(
        padded(chosen),
        tuple(classes),
        frame.count(),
        bool(caption_column),
        _embedding_shape(frame, embedding_column),
        holds_files=True,
    )


def _check_columns(kinds: dict[str, str], id: str, image: str, label: str, caption: str, embedding: str) -> None:
    """`UserError` where a column is not in the table, whose types by column are `kinds`, or is of a wrong type."""
    optional = {"label": label, "caption": caption, "embedding": embedding}
    for key, column in {"id": id, "image": image, **{key: name for key, name in optional.items() if name}}.items():
        if column not in kinds:
            raise UserError(
                f"ingest.{key}_column = {column!r}: not a column of the table (columns: {', '.join(kinds)})"
            )
    if kinds[image] != "binary":
        raise UserError(f"ingest.image_column = {image!r}: expected a binary column, found {kinds[image]}")
    if embedding and kinds[embedding] not in _EMBEDDINGS:
        raise UserError(
            f"ingest.embedding_column = {embedding!r}: expected an array of float, or an array of such arrays,"
            f" found {kinds[embedding]}"
        )


def _flat(frame, embedding_column: str):
    """The embeddings of a row end to end, as float32."""
    from pyspark.sql import functions as F

    if not embedding_column:
        return F.lit(None).cast("array<float>")
    nested = dict(frame.dtypes)[embedding_column].startswith("array<array")
    return (F.flatten(_column(embedding_column)) if nested else _column(embedding_column)).cast("array<float>")


def _embedding_shape(frame, embedding_column: str) -> tuple[int, ...]:
    """(how many a row, size of each) of the first row that has one."""
    if not embedding_column:
        return ()
    first = (
        frame.select(_column(embedding_column).alias("embedding"))
        .where("embedding is not null and size(embedding) > 0")
        .first()
    )
    if first is None:
        raise UserError(f"ingest.embedding_column = {embedding_column!r}: every row is null or empty")
    values = first["embedding"]
    return (len(values), len(values[0])) if isinstance(values[0], list) else (1, len(values))
