"""The data lake: its files, crash-safe replacement of its folders, and where everything is."""

from .files import (
    exists,
    filesystem,
    is_object_store,
    join,
    mounted,
    read_bytes,
    read_json,
    remove,
    to_url,
    write_bytes,
    write_json,
)
from .layout import dataset_url, run_url, table_url
from .swap import (
    MANIFEST,
    MARKERS,
    SUCCESS,
    displaced,
    recover,
    replace,
    replace_all,
    staging,
    tidy,
)

__all__ = [
    "MANIFEST",
    "MARKERS",
    "SUCCESS",
    "dataset_url",
    "displaced",
    "exists",
    "filesystem",
    "is_object_store",
    "join",
    "mounted",
    "read_bytes",
    "read_json",
    "recover",
    "remove",
    "replace",
    "replace_all",
    "run_url",
    "staging",
    "table_url",
    "tidy",
    "to_url",
    "write_bytes",
    "write_json",
]
