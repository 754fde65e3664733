"""References: how what is written in a lake names what else is in it, so that the lake can be moved or copied.

A run's config.json, a report, a registry and the column `run` of a table say `lake:/runs/first` for the run `first` of
the lake that they are in. In memory it is a URL. What former versions wrote are URLs, whose root a record's dataset
tells.
"""

from typing import Any

from .files import exists, join, mounted, read_json, to_json, to_url, write_bytes

_HERE = "lake:/"
# Spellings of one store: the connectors of Hadoop, the store's own, and whether the connection is encrypted.
_ALIKE = (("s3a", "s3", "s3n"), ("gs", "gcs"), ("abfss", "abfs"), ("wasbs", "wasb"))
_FIRST = {scheme: schemes[0] for schemes in _ALIKE for scheme in schemes}
_DATABRICKS = "file:///dbfs/"


def canonical(url: str) -> str:
    """One spelling for all URLs of a place: `s3:`, `s3n:` and `s3a:` are one store, `dbfs:/` is mounted at /dbfs."""
    scheme, separator, rest = mounted(url).rstrip("/").partition("://")
    return _FIRST.get(scheme, scheme) + separator + rest


def spellings(url: str) -> list[str]:
    """All URLs of a place, as `canonical` takes them for one."""
    scheme, separator, rest = canonical(url).partition("://")
    schemes = next((schemes for schemes in _ALIKE if scheme in schemes), (scheme,))
    urls = [f"{name}{separator}{rest}" for name in schemes]
    return urls + [f"dbfs:/{url.removeprefix(_DATABRICKS)}" for url in urls if url.startswith(_DATABRICKS)]


def relative(root: str, value: Any) -> Any:
    """JSON's `value` with `lake:/...` for each URL of what is in the lake at `root`, a path or URL."""
    return _mapped(value, lambda text, _: text if (path := _inside(to_url(root), text)) is None else _HERE + path)


def absolute(root: str, value: Any) -> Any:
    """JSON's `value` with URLs for each `lake:/...` of the lake at `root`, a path or URL.

    URLs in a record that was written where the lake was before lead to here too, where the lake has what they name.
    """
    root = to_url(root)

    def url(text: str, former: str) -> str:
        if text.startswith(_HERE):
            return join(root, text.removeprefix(_HERE))
        if (path := _inside(root, text)) is not None:
            return join(root, path)
        if former and (path := _inside(former, text)) is not None and exists(join(root, path)):
            return join(root, path)
        return text

    return _mapped(value, url)


def former_root(record: dict) -> str:
    """Root of the lake that the record was written in, as the URL of its dataset tells it; "" where none does."""
    dataset = record.get("dataset")
    url = dataset.get("url") if isinstance(dataset, dict) else dataset
    root, _, name = url.rpartition("/datasets/") if isinstance(url, str) else ("", "", "")
    return root if ":/" in root and "/" not in name else ""


def read_record(root: str, url: str) -> Any:
    """The JSON file at `url`, which the lake at `root` has of itself, as `absolute` gives it."""
    return absolute(root, read_json(url))


def write_record(root: str, url: str, value: Any) -> None:
    """Writes a JSON file of the lake at `root`, as `relative` gives it where the file is in the lake."""
    write_bytes(url, to_record(root, url, value))


def to_record(root: str, url: str, value: Any) -> bytes:
    """What `write_record` writes."""
    return to_json(relative(root, value) if _inside(to_url(root), url) is not None else value)


def reference(root: str, place: str, url: str) -> str:
    """What stands for `url` in a file or table at `place`: a reference, where both are in the lake at `root`."""
    return url if _inside(to_url(root), place) is None else relative(root, url)


def _inside(root: str, url: str) -> str | None:
    """The path in the lake at `root` of what is at `url`; None where it is not in it."""
    if ":/" not in url:
        return None
    folder, place = canonical(root) + "/", canonical(url)
    return place.removeprefix(folder) if place.startswith(folder) else None


def _mapped(value: Any, change, former: str = "") -> Any:
    """`value` with `change(text, former)` for each text in it; `former` is the root that the record around it tells."""
    if isinstance(value, dict):
        former = former_root(value) or former
        return {key: _mapped(item, change, former) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_mapped(item, change, former) for item in value]
    return change(value, former) if isinstance(value, str) else value
