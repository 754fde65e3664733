"""Source of a Kafka topic's messages: the value of each is an image file, the headers are its columns."""

import functools
import re

from pyspark.sql import functions as F

from ... import lake
from ...config import Ingest, Stream, UserError
from . import table
from .rows import Source

KEY = "id"  # ingest.id_column for the message's key


def stream(spark, config: Ingest, options: Stream):
    """The streaming DataFrame of the topic `ingest.path`, from the first message that it still holds."""
    if not options.servers:
        raise UserError("stream.servers is empty: expected the brokers of the topic, as 'host:9092,other:9092'")
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,249}", config.path):
        raise UserError(f"ingest.path = {config.path!r}: expected the name of a Kafka topic")
    reader = spark.readStream.format("kafka").options(**_client(options.client))
    reader = reader.option("kafka.bootstrap.servers", options.servers).option("subscribe", config.path)
    reader = reader.option("startingOffsets", "earliest").option("includeHeaders", True)
    try:
        rows = reader.option("maxOffsetsPerTrigger", options.files_a_batch).load()
    except Exception as error:
        if "Failed to find data source: kafka" not in str(error):
            raise
        raise UserError(
            "ingest.source = 'kafka': Spark's connector is not in the session: start it with --packages"
            f" org.apache.spark:spark-sql-kafka-0-10_2.12:{spark.version}, or with spark.jars.packages"
        ) from None
    return rows.withColumnRenamed("timestamp", "modificationTime")


def _client(path: str) -> dict[str, str]:
    """What a file of a Kafka client's properties says, as Spark's options."""
    if not path:
        return {}
    try:
        lines = lake.read_bytes(lake.to_url(path)).decode().splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"stream.client = {path!r}: expected a file of properties ({error})") from None
    lines = [line.strip() for line in lines]
    pairs = [line.partition("=") for line in lines if line and not line.startswith(("#", "!"))]
    if wrong := [number for number, (name, equals, _) in enumerate(pairs, 1) if not equals or not name.strip()]:
        raise UserError(f"stream.client = {path!r}: expected lines of name=value, found another: number {wrong[0]}")
    return {f"kafka.{name.strip()}": value.strip() for name, _, value in pairs}


def source(batch, config: Ingest, names: tuple[str, ...]) -> Source:
    """A micro-batch of `stream`, as a table's rows; `names` are those of the labels, if they are decided."""
    columns = (config.label_column, config.caption_column, config.split_column)
    headers = dict.fromkeys(name for name in (config.id_column, *columns) if name not in ("", KEY))
    place = F.concat_ws("-", "topic", "partition", "offset")
    frame = batch.select(
        F.coalesce(_text("key", lambda key: F.concat(F.lit("0x"), F.hex(key))), place).alias(KEY),
        F.col("value").alias("content"),
        *(_text(_header(name), lambda _: F.lit(None)).alias(name) for name in headers),
    )
    read = functools.partial(table.from_frame, frame, config.id_column, "content")
    label, caption, split = columns
    return read(label, caption, "", config.max_file_mb, split, names)


def _text(value, otherwise):
    """Bytes as the UTF-8 that they are, or what `otherwise` makes of such as are not; null where there are none."""
    value = F.col(value) if isinstance(value, str) else value
    text = F.decode(value, "UTF-8")
    is_text = F.encode(text, "UTF-8") == value
    return F.when(F.length(value) > 0, F.when(is_text, text).otherwise(otherwise(value)))


def _header(name: str):
    """The last header of that name, as bytes."""
    headers = F.filter("headers", lambda header: header["key"] == name)
    return F.get(headers, F.size(headers) - 1)["value"]
