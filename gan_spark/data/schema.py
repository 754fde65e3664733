"""Schema of a dataset: a Petastorm Unischema, and a manifest beside its Parquet files.

A small image is stored by Petastorm's own `NdarrayCodec`: an .npy header that is the
same in every row, then the raw uint8 pixels, row by row. So `make_reader` decodes it with no code
of this project, and a batch of rows is decoded here by dropping the header.
A large RGB image is PNG bytes under Petastorm's `CompressedImageCodec`.
"""

import dataclasses
import hashlib
import io
import json
import posixpath
import re
import typing
from collections.abc import Iterator

import numpy as np

from .. import lake
from ..config import UserError
from .images import decode_png

SPLITS = ("train", "validation", "test")
MANIFEST = lake.MANIFEST
MARK = b"gan_spark.mark"  # in the metadata of a Parquet file: no other file has its value
SOURCE_COLUMNS = ("source_version", "source_hash")  # by which an ingest that adds tells what changed in the source
_RAW_LIMIT = 64 * 1024
_FILE = re.compile(rf"split=({'|'.join(SPLITS)})/(part=\w+/)?part-[\w.-]+\.parquet")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """The description of one snapshot of a dataset: of what was last ingested whole in `<dataset>/_gan_spark.json`, and
    of each one since in `<dataset>/_snapshots/<number>.json`.
    """

    height: int
    width: int
    channels: int
    encoding: str  # "raw" or "png"
    classes: tuple[str, ...]  # label i is classes[i]; empty for a dataset without labels
    rows: dict[str, int]  # by split
    rejected: int
    fingerprint: str  # of every id, label, split and image; the same rows give the same one
    ingest: dict  # the ingest section that made it
    created: str  # UTC, ISO 8601
    parts: tuple[str, ...] = ()  # what the images are divided into; a folder each in a split
    captioned: bool = False
    embedding: tuple[int, ...] = ()  # (how many an image, size of each); empty for none
    number: int = 1  # of the snapshot
    files: dict[str, int] = dataclasses.field(default_factory=dict)  # row groups of each; empty: whatever is there
    sums: dict[str, str] = dataclasses.field(default_factory=dict)  # what the fingerprint is made of; empty: not known
    base: str = ""  # `identity` of the whole ingest that it adds to; empty for that itself
    made_by: str = ""  # the job
    seals: dict[str, str] = dataclasses.field(default_factory=dict)  # "bytes:MARK" of each file; empty: not known

    @property
    def identity(self) -> str:
        """What tells a whole ingest from all others at the same place."""
        return f"{self.number} {self.created} {self.fingerprint}"

    @property
    def shape(self) -> tuple[int, int, int]:
        return self.height, self.width, self.channels


def read_manifest(url: str) -> Manifest:
    """The manifest of the newest snapshot of the dataset at `url`, or of the one that `url` names (`lake.at_snapshot`).

    `UserError` where there is no whole dataset, or no such snapshot.
    """
    folder, number = lake.split_snapshot(url)
    if not number:
        return next(snapshots(folder))
    if lake.exists(snapshot_url(folder, number)):
        manifest = _read(folder, number)
        if manifest.base == read_base(folder).identity:
            return manifest
    numbers = {manifest.number: manifest for manifest in snapshots(folder)}
    if number in numbers:  # All there is, and nothing was added to it.
        return numbers[number]
    raise UserError(
        f"dataset {folder} has no snapshot {number} (there are: {', '.join(map(str, sorted(numbers)))}): it was"
        " expired, or went when the dataset was replaced"
    )


def snapshots(folder: str) -> Iterator[Manifest]:
    """Manifests of the dataset's snapshots, the newest first, each read when it comes to it.

    One that was added to something which a whole ingest has since replaced is none.
    """
    base = _read(folder)
    is_alone = True
    for number in sorted(_numbers(folder), reverse=True):
        if number < base.number:
            break
        manifest = _read(folder, number)
        if manifest.base == base.identity:
            is_alone = False
            yield manifest
    if is_alone:
        yield base


def next_number(folder: str) -> int:
    """The number of the next snapshot: to be asked before the newest manifest is read, so that of two jobs that add to
    the same snapshot one finds its number taken.
    """
    return max([read_base(folder).number, *_numbers(folder)]) + 1


def _numbers(folder: str) -> list[int]:
    fs, path = lake.filesystem(lake.join(folder, lake.SNAPSHOTS))
    try:
        names = [posixpath.basename(name) for name in fs.ls(path, detail=False)]
    except FileNotFoundError:
        return []
    return [int(name.removesuffix(".json")) for name in names if re.fullmatch(r"\d{8}\.json", name)]


def snapshot_url(folder: str, number: int) -> str:
    """Where the manifest of a snapshot is that was added to others."""
    return lake.join(folder, lake.SNAPSHOTS, f"{number:08d}.json")


def read_base(folder: str) -> Manifest:
    """The manifest of what was last ingested whole; `UserError` where there is no whole dataset."""
    return _read(folder)


def _read(url: str, number: int = 0) -> Manifest:
    """The manifest of a snapshot that was added to others, or of what was last ingested whole."""
    place = snapshot_url(url, number) if number else lake.join(url, MANIFEST)
    try:
        return _parsed(lake.read_json(place))
    except FileNotFoundError:
        died = (
            " again; one died while it replaced this dataset, whose former state it will put back"
            if lake.exists(lake.displaced(url))
            else ""
        )
        raise UserError(f"no dataset at {url}: expected {MANIFEST} there; make it with jobs/ingest.py{died}") from None
    except ValueError as error:
        name = posixpath.relpath(place, url)
        raise UserError(f"dataset {url}: {name} cannot be understood ({error}); ingest it again") from None


def _parsed(table: object) -> Manifest:
    """The manifest that parsed JSON holds; `ValueError` names a field that is missing, unknown or of another type."""
    if not isinstance(table, dict):
        raise ValueError(f"expected a JSON object, found {type(table).__name__}")
    fields = {field.name: field for field in dataclasses.fields(Manifest)}
    for name, field in fields.items():
        if name not in table and field.default is field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{name} is missing")
    kinds = typing.get_type_hints(Manifest)
    values = {}
    for name, value in table.items():
        if name not in fields:
            raise ValueError(f"unknown field {name}")
        if not _is_of(value, kind := kinds[name]):
            expected = kind.__name__ if isinstance(kind, type) else kind
            raise ValueError(f"{name} = {value!r:.80}: expected {expected}")
        values[name] = tuple(value) if isinstance(value, list) else value
    if strangers := [name for name in values.get("files", ()) if not is_file(name)]:
        raise ValueError(f"files: {strangers[0]!r:.80} is no file of a dataset")
    return Manifest(**values)


def _is_of(value: object, kind: typing.Any) -> bool:
    """Whether a JSON value is of a field's type; a tuple is a list in JSON."""
    items = typing.get_args(kind)
    if typing.get_origin(kind) is tuple:
        return isinstance(value, list) and all(_is_of(item, items[0]) for item in value)
    if typing.get_origin(kind) is dict:
        return isinstance(value, dict) and all(_is_of(item, items[1]) for item in value.values())
    return type(value) is kind  # isinstance would take true for an int


def write_manifest(url: str, manifest: Manifest) -> None:
    """Writes the manifest of what was ingested whole."""
    lake.write_bytes(lake.join(url, MANIFEST), to_json(manifest))


def to_json(manifest: Manifest) -> bytes:
    return (json.dumps(dataclasses.asdict(manifest), indent=2) + "\n").encode()


def check_seal(manifest: Manifest, place: str, size: int | None = None, mark: bytes | None = None) -> None:
    """`UserError` where the file at the URL `place`, of that size or MARK, is not the one that the manifest means."""
    name = "split=" + place.rpartition("/split=")[2]
    expected_size, _, expected_mark = manifest.seals.get(name, "").partition(":")
    if not expected_mark:
        return
    wrong = ""
    if size is not None and size != int(expected_size):
        wrong = f"{size:,} bytes where {int(expected_size):,} were written"
    elif mark is not None and mark.decode("ascii", "replace") != expected_mark:
        wrong = "a file of another dataset, or of another place in this one"
    if wrong:
        raise UserError(
            f"{place}: expected the file that snapshot {manifest.number} of the dataset was made with, found {wrong};"
            " put it back, or ingest the dataset again (ingest.mode = 'replace')"
        )


def is_file(name: str) -> bool:
    """Whether a path in a dataset's folder is that of one of its Parquet files."""
    return _FILE.fullmatch(name) is not None


def choose_encoding(encoding: str, shape: tuple[int, int, int]) -> str:
    """`auto` is raw up to 64 KiB an image, and for grey images, which Petastorm's image codec flattens."""
    if encoding == "png" and shape[2] == 1:
        raise UserError(
            "ingest.encoding = 'png' with ingest.channels = 1: Petastorm's image codec drops the channel axis of grey"
            " images; use 'raw'"
        )
    if encoding == "auto":
        return "raw" if shape[2] == 1 or int(np.prod(shape)) <= _RAW_LIMIT else "png"
    return encoding


def split_of(id: str, validation: float, test: float) -> str:
    """The split of an image by its id alone: the same id falls into the same split in every ingest."""
    share = int.from_bytes(hashlib.sha256(id.encode()).digest()[:8], "big") / 2**64
    return "test" if share < test else "validation" if share < test + validation else "train"


def npy_header(shape: tuple[int, ...], kind: type = np.uint8) -> bytes:
    """The bytes that `np.save` puts before the values of an array of `shape`."""
    out = io.BytesIO()
    values = np.zeros(shape, kind)
    np.save(out, values)
    return out.getvalue()[: -values.nbytes]


def unischema(manifest: Manifest):
    """Petastorm schema of a dataset: `id`, `image`, `split`, and where it has them `label`, `part`, `caption`,
    `embedding`.
    """
    from petastorm.codecs import CompressedImageCodec, NdarrayCodec, ScalarCodec
    from petastorm.unischema import Unischema, UnischemaField
    from pyspark.sql.types import IntegerType, StringType

    codec = NdarrayCodec() if manifest.encoding == "raw" else CompressedImageCodec("png")
    fields = [
        UnischemaField("id", np.str_, (), ScalarCodec(StringType()), False),
        UnischemaField("image", np.uint8, manifest.shape, codec, False),
        UnischemaField("split", np.str_, (), ScalarCodec(StringType()), False),
    ]
    if manifest.parts:
        fields.append(UnischemaField("part", np.str_, (), ScalarCodec(StringType()), False))
    if manifest.captioned:
        fields.append(UnischemaField("caption", np.str_, (), ScalarCodec(StringType()), False))
    if manifest.embedding:
        fields.append(UnischemaField("embedding", np.float32, manifest.embedding, NdarrayCodec(), False))
    if manifest.classes:
        fields.append(UnischemaField("label", np.int32, (), ScalarCodec(IntegerType()), False))
    return Unischema("Images", fields)


def unpack(column, shape: tuple[int, int, int], encoding: str) -> np.ndarray:
    """Stored `image` values (an iterable of bytes) to uint8 [n, height, width, channels]."""
    return unpack_arrays(column, shape) if encoding == "raw" else np.stack([decode_png(value) for value in column])


def unpack_arrays(column, shape: tuple[int, ...], kind: type = np.uint8) -> np.ndarray:
    """Values under `NdarrayCodec`, all of one shape and type, to [n, *shape]: the headers are dropped."""
    header, values = npy_header(shape, kind), list(column)
    size = len(header) + int(np.prod(shape)) * np.dtype(kind).itemsize
    rows = np.frombuffer(b"".join(values), np.uint8)
    if rows.size != len(values) * size:
        raise ValueError(
            f"{rows.size} bytes for {len(values)} arrays of {shape}; the dataset is not what its manifest says"
        )
    stripped = rows.reshape(len(values), size)[:, len(header) :]
    return (stripped if kind is np.uint8 else np.ascontiguousarray(stripped).view(kind)).reshape(len(values), *shape)
