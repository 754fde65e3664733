"""Ownership of what is in the lake: nothing is replaced that this project cannot prove it made.

A folder that a job makes holds `OWNER`, which says what the folder is and, of a table, its columns. It is written
before anything else, so that what a dead job leaves behind can be told from what a user put there. A file beside the
folders says itself who made it: a page in a meta tag, JSON in a key, a picture in a chunk of text.
"""

import io
import json
import posixpath
import re
import zlib
from collections.abc import Sequence

from ..config import UserError
from .files import exists, filesystem, is_object_store, join, read_bytes, write_bytes, write_json
from .references import write_record
from .swap import MANIFEST, OWNER, SNAPSHOTS, displaced, journal

# Names of files that Spark, Petastorm and this project write into such folders.
_OURS = re.compile(
    rf"part-[\w.-]+|_SUCCESS|_(started|committed)_\w+|_(common_)?metadata|{re.escape(MANIFEST)}|{re.escape(OWNER)}"
    r"|\.[\w.-]+\.crc|\._common_metadata\.lock"
    rf"|\.({re.escape(MANIFEST)}|{re.escape(OWNER)}|_SUCCESS|_common_metadata)\.[0-9a-f]{{8}}"
)
# And those of its snapshots, in a folder of theirs alone: a user's own file may well be named by a date.
_SNAPSHOT = re.compile(rf"{SNAPSHOTS}/(\d{{8}}\.json|\.\d{{8}}\.json\.[0-9a-f]{{8}})")

_META = b'<meta name="generator" content="gan_spark">'
_TEXT = b"tEXtSoftware\0gan_spark"
_CHUNK = (len(_TEXT) - 4).to_bytes(4, "big") + _TEXT + zlib.crc32(_TEXT).to_bytes(4, "big")
_HEADER = 33  # bytes of a PNG's signature and first chunk
# What a former version, which wrote none of these, put into every such file.
_FORMER_PAGE = b"<details><summary>Config, data, code and figures</summary><table>"
_FORMER_KEYS = {"evaluation": {"fid", "kid", "precision", "recall", "table"}, "reading": {"seen", "heldout", "reader"}}


def claim(url: str, kind: str, columns: Sequence[str] = (), files: Sequence[str] = ()) -> None:
    """Says in the folder at `url` that this project makes it, as a `kind`: "dataset", "rejects", "pipeline", ...

    `files` are paths in it of what it is to hold beside what jobs write.
    """
    write_json(join(url, OWNER), {"kind": kind, "columns": list(columns), **({"files": list(files)} if files else {})})


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


def check_file(url: str, kind: str) -> None:
    """`UserError` where the file at `url` was not made as a `kind`: "page", "picture", "evaluation" or "reading".

    To be called before any work.
    """
    fs, path = filesystem(url)
    if not fs.exists(path):
        return
    if problem := "a folder" if fs.isdir(path) else None if _is_made(read_bytes(url), kind) else "another file":
        raise UserError(
            f"{url} is there, and is not replaced: expected nothing or {kind} that gan_spark made, found {problem};"
            " name another run or table, or move it away yourself"
        )


def write_picture(url: str, png: bytes) -> None:
    """Writes a PNG to `url`, where nothing but a picture that this project made is replaced."""
    check_file(url, "picture")
    write_bytes(url, png[:_HEADER] + _CHUNK + png[_HEADER:])


def write_figures(root: str, url: str, figures: dict, kind: str) -> None:
    """Writes JSON of the lake at `root` to `url`, where nothing but a `kind` that this project made is replaced."""
    check_file(url, kind)
    write_record(root, url, {"made_by": "gan_spark", **figures})


def _is_made(data: bytes, kind: str) -> bool:
    if kind == "page":
        return _META in data[:512] or _FORMER_PAGE in data
    if kind == "picture":
        return _CHUNK in data[: _HEADER + len(_CHUNK)] or _is_former_picture(data)
    try:
        figures = json.loads(data)
    except ValueError:
        return False
    if not isinstance(figures, dict):
        return False
    return figures.get("made_by") == "gan_spark" or figures.keys() >= _FORMER_KEYS[kind]


def _is_former_picture(data: bytes) -> bool:
    """Whether a PNG is a grid as a former version wrote it: no chunk but pixels at zlib's first level, and white all
    around.
    """
    if data[_HEADER + 4 : _HEADER + 10] != b"IDAT\x78\x01":
        return False
    import numpy as np
    from PIL import Image

    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pixels = np.asarray(image)
    except (OSError, ValueError, Image.DecompressionBombError):
        return False
    return all((edge == 255).all() for edge in (pixels[:2], pixels[-2:], pixels[:, :2], pixels[:, -2:]))


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
    listed = _listed(url, kind)
    first_part = None
    is_empty = True
    for folder, _, names in fs.walk(path):
        # Object stores may hold an empty object that stands for the folder itself.
        files = sorted(str(name) for name in names if name and not str(name).endswith("_$folder$"))
        is_empty = is_empty and not files
        for name in files:
            file = posixpath.join(str(folder), name)
            relative = posixpath.relpath(file, path)
            if not _OURS.fullmatch(name) and not _SNAPSHOT.fullmatch(relative) and relative not in listed:
                return relative
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


def _listed(url: str, kind: str) -> list[str]:
    """Paths of the files that the `OWNER` of a folder of this `kind` lists."""
    try:
        owner = json.loads(read_bytes(join(url, OWNER)))
    except (FileNotFoundError, ValueError):
        return []
    files = owner.get("files") if isinstance(owner, dict) and owner.get("kind") == kind else None
    return files if isinstance(files, list) else []


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
