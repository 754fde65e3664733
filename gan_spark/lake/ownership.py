"""Ownership of folders in the lake: nothing is replaced that this project cannot prove it made.

A folder that a job makes holds `OWNER`, which says what the folder is and, of a table, its columns. It is written
before anything else, so that what a dead job leaves behind can be told from what a user put there.
"""

import json
import posixpath
import re
from collections.abc import Sequence

from ..config import UserError
from .files import exists, filesystem, is_object_store, join, read_bytes, write_json
from .swap import MANIFEST, OWNER, displaced, journal

# Names of files that Spark, Petastorm and this project write into such folders.
_OURS = re.compile(
    rf"part-[\w.-]+|_SUCCESS|_(started|committed)_\w+|_(common_)?metadata|{re.escape(MANIFEST)}|{re.escape(OWNER)}"
    rf"|\.[\w.-]+\.crc|\.({re.escape(MANIFEST)}|{re.escape(OWNER)}|_SUCCESS)\.[0-9a-f]{{8}}"
)


def claim(url: str, kind: str, columns: Sequence[str] = ()) -> None:
    """Says in the folder at `url` that this project makes it, as a `kind`: "dataset", "rejects", "pipeline", ..."""
    write_json(join(url, OWNER), {"kind": kind, "columns": list(columns)})


def check_replaceable(url: str, kind: str, columns: Sequence[str] = ()) -> None:
    """`UserError` where the folder at `url`, or what is kept beside it while it is replaced, was not made as a `kind`.

    Of tables, `columns` are those that a former version gave them, which wrote no `OWNER`. To be called before any
    work, and again before the folder is replaced.
    """
    # What is at `url` of an object store is being removed once the journal says that its copy is whole.
    if not (is_object_store(url) and exists(journal(url))):
        _check(url, kind, columns)
    check_displaced(url, kind, columns)


def check_displaced(url: str, kind: str, columns: Sequence[str] = ()) -> None:
    """`check_replaceable` of what is kept beside `url` alone."""
    _check(displaced(url), kind, columns)


def _check(place: str, kind: str, columns: Sequence[str]) -> None:
    if problem := _stranger(place, kind, columns):
        raise UserError(
            f"{place} is there, and is not replaced: expected nothing, an empty folder or {kind} that gan_spark"
            f" made, found {problem}; name another place, or move it away yourself"
        )


def _stranger(url: str, kind: str, columns: Sequence[str]) -> str | None:
    """What shows that the folder at `url` is somebody else's; None where it is ours, empty or not there."""
    fs, path = filesystem(url)
    if not fs.exists(path):
        return None
    if not fs.isdir(path):
        return "a file"
    first_part = None
    is_empty = True
    for folder, _, names in fs.walk(path):
        # Object stores may hold an empty object that stands for the folder itself.
        files = sorted(str(name) for name in names if name and not str(name).endswith("_$folder$"))
        is_empty = is_empty and not files
        for name in files:
            file = posixpath.join(str(folder), name)
            if not _OURS.fullmatch(name):
                return posixpath.relpath(file, path)
            if name.startswith("part-") and name.endswith(".parquet"):
                first_part = first_part or file
    if is_empty:
        return None
    try:
        owner = json.loads(read_bytes(join(url, OWNER)))
    except FileNotFoundError:
        return None if _is_former(url, kind, columns, first_part) else f"no {OWNER} in it"
    except ValueError:
        return f"an {OWNER} that cannot be understood"
    if not isinstance(owner, dict) or owner.get("kind") != kind:
        return f"{owner.get('kind') if isinstance(owner, dict) else owner}, as its {OWNER} says"
    recorded = owner.get("columns") or []
    if recorded and first_part and kind != "dataset" and sorted(_columns(fs, first_part)) != sorted(recorded):
        return f"other columns than its {OWNER} says"
    return None


def _is_former(url: str, kind: str, columns: Sequence[str], first_part: str | None) -> bool:
    """Whether a version that wrote no `OWNER` made the folder: by its manifest, its metadata, or a table's columns."""
    fs, path = filesystem(url)
    try:
        if kind == "dataset":
            return {"fingerprint", "ingest", "rows"} <= json.loads(read_bytes(join(url, MANIFEST))).keys()
        if kind == "pipeline":
            parts = sorted(name for name in fs.find(f"{path}/metadata") if posixpath.basename(name).startswith("part-"))
            stages = json.loads(fs.cat_file(parts[0]).splitlines()[0])["paramMap"]["stageUids"]
            return [uid.partition("_")[0] for uid in stages] == ["DeepImageFeaturizer", "LogisticRegression"]
        return first_part is not None and sorted(_columns(fs, first_part)) == sorted(columns)
    except (FileNotFoundError, ValueError, IndexError, KeyError, TypeError, AttributeError):
        return False


def _columns(fs, path: str) -> list[str]:
    import pyarrow.parquet as pq

    try:
        with fs.open(path, "rb") as stream:
            return pq.read_schema(stream).names
    except (OSError, ValueError):  # no Parquet file, which no job left there
        return []
