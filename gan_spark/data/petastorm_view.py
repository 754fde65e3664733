"""What Petastorm needs to open a dataset, or one of its snapshots: `_common_metadata`, and a filesystem.

`petastorm.make_reader(url)` reads the files that lie in the folder, which are those of the newest snapshot. Another one
it reads through a filesystem that shows the files of that one alone (`snapshots.petastorm_filesystem`): of a list of
files it would take no schema, which it looks for in a folder, and give bytes where there are images.
"""

import json
import warnings
from collections.abc import Iterator

import pyarrow as pa
import pyarrow.parquet as pq

from .. import lake

_METADATA = "_common_metadata"
_ROW_GROUPS = b"dataset-toolkit.num_row_groups_per_file.v1"  # Petastorm's key


def filesystem(folder: str, files: dict[str, str] | None = None):
    """The filesystem that Petastorm needs to open the dataset in `folder`; None for local paths, which it knows.

    With `files`, URLs by their paths in the folder, the folder holds these and the metadata alone. It is fsspec's, in
    the legacy interface of pyarrow that Petastorm reads through.
    """
    if files is None and lake.mounted(folder).startswith("file:"):
        return None
    fs, path = lake.filesystem(folder)
    places = {f"{path}/{name}": lake.filesystem(place)[1] for name, place in (files or {}).items()}
    places |= {f"{path}/{_METADATA}": f"{path}/{_METADATA}"}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        from pyarrow.filesystem import DaskFileSystem

        class Wrapped(DaskFileSystem):
            def isdir(self, path):
                return self.fs.isdir(path)

            def isfile(self, path):
                return self.fs.isfile(path)

        class Shown(Wrapped):
            def isfile(self, path):
                return path in places

            def open(self, path, mode="rb"):
                return self.fs.open(places.get(path, path), mode=mode)

            def walk(self, path):
                return _walk(path, places)

        return Wrapped(fs) if files is None else Shown(fs)


def _walk(path: str, places: dict[str, str]) -> Iterator[tuple[str, list[str], list[str]]]:
    """What `os.walk` would give of folders that hold these files and nothing else."""
    path = path.rstrip("/")
    inside = [name.removeprefix(f"{path}/") for name in places if name.startswith(f"{path}/")]
    folders = sorted({name.partition("/")[0] for name in inside if "/" in name})
    yield path, folders, sorted(name for name in inside if "/" not in name)
    for folder in folders:
        yield from _walk(f"{path}/{folder}", places)


def row_groups(folder: str) -> dict[str, int]:
    """How many row groups each file has, by its path in the dataset's folder, as Petastorm was told."""
    metadata = _schema(folder).metadata or {}
    return json.loads(metadata.get(_ROW_GROUPS, b"{}"))


def tell(folder: str, files: dict[str, int], anew: bool = False) -> None:
    """Tells Petastorm of more files, with their row groups; `anew`, of these alone.

    What else is in the metadata, a pickled schema, is handed on as it is.
    """
    changes = []

    def update(data: bytes | None) -> bytes:
        if data is None:
            raise FileNotFoundError(f"{folder}: no {_METADATA}")
        schema = pq.read_schema(pa.BufferReader(data))
        metadata = schema.metadata or {}
        former = json.loads(metadata.get(_ROW_GROUPS, b"{}"))
        told = dict(files) if anew else {**former, **files}
        if told == former:
            return data
        sink = pa.BufferOutputStream()
        pq.write_metadata(schema.with_metadata({**metadata, _ROW_GROUPS: json.dumps(told).encode()}), sink)
        changes.append(told)
        return sink.getvalue().to_pybytes()

    lake.change(lake.join(folder, _METADATA), update)
    if not changes:
        return
    checksum = lake.join(folder, f".{_METADATA}.crc")
    if lake.exists(checksum):  # Hadoop's, of what was there before
        lake.remove(checksum)


def _schema(folder: str):
    fs, path = lake.filesystem(lake.join(folder, _METADATA))
    with fs.open(path, "rb") as stream:
        return pq.read_schema(stream)
