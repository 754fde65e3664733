"""Safety of HDF5 files: one of weights holds arrays of its own, and is not far larger inside than outside.

HDF5 follows links to other files, and lets the values of a dataset be in others, wherever whoever reads it may read;
and a dataset that is compressed, or was never written, may declare any size.
"""

from collections.abc import Iterator
from typing import BinaryIO

_TIMES, _FREE = 16, 64 * 2**20


def limit(size: int) -> int:
    """Bytes of arrays that a file of `size` bytes may hold; of weights it holds about as many as it has itself."""
    return size * _TIMES + _FREE


def foreign_part(file: str | BinaryIO, size: int) -> str:
    """The first thing in an HDF5 file of `size` bytes by which it would read another file, or be far larger in memory;
    else "". Errors of h5py where it is no such file.
    """
    import h5py

    declared = 0
    with h5py.File(file, "r") as opened:
        for path, item in _items(opened):
            if isinstance(item, h5py.ExternalLink):
                return f"{path}, a link to {item.path!r} in the file {item.filename!r}"
            # What is referred to need not hang on any group.
            if any(h5py.check_ref_dtype(item.attrs.get_id(name).dtype) for name in item.attrs):
                return f"{path}, with an attribute that refers to other objects"
            if not isinstance(item, h5py.Dataset):
                continue
            if item.external:
                return f"{path}, whose values are in the file {item.external[0][0]!r}"
            if item.is_virtual:
                return f"{path}, whose values are in other datasets"
            declared += item.nbytes
            if declared > limit(size):
                return f"arrays of {declared:,} bytes in a file of {size:,}"
    return ""


def _items(root) -> Iterator[tuple[str, object]]:
    """(path, object or link to another file) of the root and all that hangs on it, each object once. Soft links lead
    nowhere else.
    """
    import h5py

    seen, waiting = set(), [("/", root)]
    while waiting:
        path, item = waiting.pop()
        address = h5py.h5o.get_info(item.id).addr
        if address in seen:
            continue
        seen.add(address)
        yield path, item
        for name in item if isinstance(item, h5py.Group) else ():
            link, place = item.get(name, getlink=True), f"{path.rstrip('/')}/{name}"
            if isinstance(link, h5py.ExternalLink):
                yield place, link
            elif isinstance(link, h5py.HardLink):
                waiting.append((place, item[name]))
