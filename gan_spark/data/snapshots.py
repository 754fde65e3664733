"""Snapshots of a dataset: which files are in which, and where they are.

    _gan_spark.json            what was last ingested whole, from which on snapshots are counted
    _snapshots/00000002.json   the manifest of one that was added, with the files of all its rows: the commit, which
                               is written last, whole, and never over another
    split=train/part-...       the files of the newest snapshot, as whoever opens the folder itself reads them
    _aside/split=train/part-.. the same tree for the files that nobody is to find there: of snapshots that are being
                               written, and of former ones that a compaction has written anew

A file is written once, and is in a snapshot or in none. Whether it lies in the one place or the other says nothing
about what is in a snapshot: readers of this project look in both (`files`). After a commit `publish` moves what is in
the newest snapshot into sight; where it died on its way, the next job that writes the dataset goes on with it.
"""

import contextlib
import dataclasses
import logging
import posixpath
import time

from .. import lake
from ..config import UserError
from ..lake import tables
from . import petastorm_view, schema

log = logging.getLogger(__name__)
ASIDE = "_aside"
_STALE = 24 * 3600  # seconds after which what was written aside for no snapshot is a dead job's


def files(url: str) -> dict[str, str]:
    """URLs of the files of a snapshot, the newest unless `url` names one, by their paths in the dataset, sorted.

    `UserError` where one is gone, or is not the one that was written.
    """
    folder, _ = lake.split_snapshot(url)
    manifest = schema.read_manifest(url)
    present = _present(folder)
    places = {}
    for name in sorted(manifest.files or filter(schema.is_file, present)):
        place = next((place for place in (name, _aside(name)) if place in present), None)
        if place is None:
            raise UserError(f"dataset {folder}: {name} of snapshot {manifest.number} is gone; ingest it again")
        places[name] = lake.join(folder, place)
        schema.check_seal(manifest, places[name], size=present[place])
    return places


def petastorm_filesystem(url: str):
    """The filesystem by which Petastorm reads one snapshot: `make_reader(folder, filesystem=...)`, whatever lies in the
    folder; `url` names the snapshot, or is the dataset's, for the newest.
    """
    return petastorm_view.filesystem(lake.split_snapshot(url)[0], files(url))


def other_place(url: str) -> str:
    """Where a file of a dataset is, if it is not at `url` any more."""
    before, _, name = url.rpartition("/split=")
    before = before.removesuffix(f"/{ASIDE}") if before.endswith(f"/{ASIDE}") else lake.join(before, ASIDE)
    return f"{before}/split={name}"


def aside(folder: str) -> str:
    """URL of the folder that files are written to until they are in a snapshot."""
    return lake.join(folder, ASIDE)


def known(spark, url: str):
    """The DataFrame of what is in a snapshot: id, and by what it was read (`schema.SOURCE_COLUMNS`, null in files of
    versions that did not keep it).
    """
    columns = ", ".join(f"{name} binary" for name in schema.SOURCE_COLUMNS)
    return tables.read_files(spark, *files(url).values(), schema=f"id string, {columns}")


def job_name(spark) -> str:
    """By which others are told which job made a snapshot."""
    return f"{spark.sparkContext.appName}, {spark.sparkContext.applicationId}"


def commit(folder: str, manifest: schema.Manifest) -> None:
    """Makes a snapshot of it, which all readers see from here on, and then everybody who opens the folder itself.

    `UserError` where another job has made one of this number, or has replaced the dataset, meanwhile.
    """
    base = schema.read_base(folder)
    if base.identity != manifest.base:
        raise UserError(
            f"dataset {folder} was replaced meanwhile ({base.created}, {base.made_by or 'by another job'}): nothing was"
            " added to it; run this job again"
        )
    _describe_base(folder, base)
    if not lake.create(schema.snapshot_url(folder, manifest.number), schema.to_json(manifest)):
        taken = next((other for other in schema.snapshots(folder) if other.number == manifest.number), None)
        raise UserError(
            f"dataset {folder}: snapshot {manifest.number} was made meanwhile"
            f" ({f'{taken.created}, {taken.made_by}' if taken else 'by another job'}); nothing of this one was added."
            " Run it again: what is not there by then is added"
        )
    try:
        publish(folder)
    except Exception as error:  # A store that does not answer, a disk that is full: the snapshot is made all the same.
        log.warning(
            "dataset %s: snapshot %d is made, and not all of its files are in sight yet (%s: %s): readers of gan_spark"
            " find them, others once the next job that writes the dataset has put them there",
            *(folder, manifest.number, type(error).__name__, error),
        )


def _describe_base(folder: str, base: schema.Manifest) -> None:
    """Says which files were ingested whole, before others lie beside them."""
    url = schema.snapshot_url(folder, base.number)
    if lake.exists(url) or any(manifest.base for manifest in schema.snapshots(folder)):
        return
    described = dataclasses.replace(base, files=row_groups(folder, base), base=base.identity)
    lake.create(url, schema.to_json(described))


def row_groups(folder: str, manifest: schema.Manifest) -> dict[str, int]:
    """How many row groups each file of a snapshot has; former versions told this to Petastorm alone."""
    if manifest.files:
        return manifest.files
    told = petastorm_view.row_groups(folder)
    return {name: told.get(name, 0) for name in _present(folder) if schema.is_file(name)}


def publish(folder: str) -> None:
    """Moves files into sight, or out of it, so that whoever opens the folder itself finds those of the newest snapshot.

    Where a store has no rename, it copies what comes into sight; the originals go once they are a day old (`tidy`).
    """
    newest = schema.read_manifest(folder)
    if not newest.base:
        return
    present = _present(folder)
    # All that any reader may meet, before it can meet it: Petastorm refuses a file of which it is not told.
    petastorm_view.tell(folder, newest.files)
    for name in newest.files:
        if name not in present and _aside(name) in present:
            _move(folder, _aside(name), name, keeps=lake.is_object_store(folder))
    former = {name for name in present if schema.is_file(name)} - newest.files.keys()
    if former:
        former &= {name for manifest in schema.snapshots(folder) for name in manifest.files}
        for name in sorted(former):
            _move(folder, name, _aside(name))


def tidy(folder: str) -> None:
    """Goes on with what a dead job left: what it had committed comes into sight, and what it had not, and what was
    copied from aside, is removed a day later.
    """
    publish(folder)
    fs, path = lake.filesystem(aside(folder))
    present = _present(folder)
    old = [name for name in present if name.startswith(f"{ASIDE}/") and _is_stale(fs, f"{path}/../{name}")]
    old = [name for name in old if schema.is_file(name.removeprefix(f"{ASIDE}/"))]
    needed = set()
    if any(name.removeprefix(f"{ASIDE}/") not in present for name in old):
        needed = {_aside(name) for manifest in schema.snapshots(folder) for name in manifest.files}
    for name in old:
        if name.removeprefix(f"{ASIDE}/") in present or name not in needed:
            lake.remove(lake.join(folder, name))


def remove_uncommitted(folder: str, token: str, number: int) -> None:
    """`remove_unfinished` of a job that fails, unless it had made its snapshot, of this number. Where a store does not
    say whether it had, all stays: `tidy` removes in a day what is in no snapshot.
    """
    with contextlib.suppress(Exception):
        try:
            committed = lake.read_json(schema.snapshot_url(folder, number))["files"]
        except FileNotFoundError:
            committed = ()
        remove_unfinished(folder, token, set(map(posixpath.basename, committed)))


def remove_unfinished(folder: str, token: str, keep: set[str]) -> None:
    """Removes what the tasks of one job, whose `token` is in its files' names, wrote aside, but for those in `keep`."""
    for name in _present(folder):
        if name.startswith(f"{ASIDE}/split=") and f"-{token}" in name and posixpath.basename(name) not in keep:
            lake.remove(lake.join(folder, name))


def find(url: str, number: int, fingerprint: str) -> int:
    """The number of the snapshot of the dataset that has this fingerprint, `number` where that one has; 0 for none, or
    no dataset.
    """
    if not lake.exists(lake.join(url, schema.MANIFEST)):
        return 0
    if number:
        with contextlib.suppress(UserError):
            if schema.read_manifest(lake.at_snapshot(url, number)).fingerprint == fingerprint:
                return number
    return next((manifest.number for manifest in schema.snapshots(url) if manifest.fingerprint == fingerprint), 0)


def kept_in(url: str, fingerprint: str) -> str:
    """URL of a snapshot with this fingerprint all of whose files the snapshot at `url` has too; empty where there is
    none.
    """
    folder, _ = lake.split_snapshot(url)
    present = row_groups(folder, schema.read_manifest(url)).keys()
    for manifest in schema.snapshots(folder):
        if manifest.fingerprint == fingerprint and row_groups(folder, manifest).keys() <= present:
            return lake.at_snapshot(folder, manifest.number)
    return ""


def pinned(url: str, number: int) -> str:
    """The URL of a snapshot, or for 0 of the dataset itself."""
    return lake.at_snapshot(url, number) if number else url


def listing(url: str) -> list[dict]:
    """The snapshots of the dataset at `url`, oldest first: number, created, rows, rejected, files, fingerprint,
    made_by.
    """
    present = _present(url)
    return [
        {
            "snapshot": manifest.number,
            "created": manifest.created,
            "rows": sum(manifest.rows.values()),
            "rejected": manifest.rejected,
            "files": len(manifest.files) or sum(map(schema.is_file, present)),
            "fingerprint": manifest.fingerprint,
            "made_by": manifest.made_by,
        }
        for manifest in reversed(list(schema.snapshots(url)))
    ]


def expire(url: str, keep: int, needed: dict[int, list[str]], force: bool = False) -> dict:
    """Forgets all snapshots but the newest `keep`, and removes the files that none of these has; what became of it.

    `needed`, by number, are the runs that are of a snapshot: one that is needed is refused, unless by `force`.
    Removed is what a manifest of this dataset names as its file, and nothing else.
    """
    lake.check_replaceable(url, "dataset")
    publish(url)
    manifests = list(schema.snapshots(url))
    kept, gone = manifests[:keep], manifests[keep:]
    if not force and (of_runs := [manifest.number for manifest in gone if needed.get(manifest.number)]):
        runs = ", ".join(f"{', '.join(needed[number])} (snapshot {number})" for number in sorted(of_runs))
        raise UserError(
            f"dataset {url}: runs still need what would go: {runs}. Keep more snapshots, or expire them with --force:"
            " these runs can then not be trained further"
        )
    for manifest in reversed(gone):
        lake.remove(schema.snapshot_url(url, manifest.number))
    left = {name for manifest in kept for name in manifest.files}
    names = {name for manifest in gone for name in manifest.files} - left
    present = _present(url)
    removed = [place for name in names for place in (name, _aside(name)) if place in present]
    for place in removed:
        lake.remove(lake.join(url, place))
    if removed:
        petastorm_view.tell(url, {name: groups for manifest in kept for name, groups in manifest.files.items()}, True)
    return {
        "dataset": url,
        "snapshots": sorted(manifest.number for manifest in kept),
        "expired": sorted(manifest.number for manifest in gone),
        "files_removed": len(removed),
    }


def _aside(name: str) -> str:
    return f"{ASIDE}/{name}"


def _present(folder: str) -> dict[str, int]:
    """Bytes of all files in the dataset's folder, by their paths in it."""
    fs, path = lake.filesystem(folder)
    return {posixpath.relpath(name, path): entry["size"] for name, entry in fs.find(path, detail=True).items()}


def _move(folder: str, source: str, target: str, keeps: bool = False) -> None:
    """Moves a file of the dataset, or copies it; another job may have done so meanwhile."""
    fs, path = lake.filesystem(folder)
    source, target = f"{path}/{source}", f"{path}/{target}"
    try:
        fs.makedirs(posixpath.dirname(target), exist_ok=True)
        (fs.cp_file if keeps else fs.mv)(source, target)
    except FileNotFoundError:
        log.info("dataset %s: %s was moved by another job", folder, posixpath.basename(source))


def _is_stale(fs, path: str) -> bool:
    """Whether a file has not changed for a day; False where the filesystem does not tell."""
    try:
        return fs.modified(posixpath.normpath(path)).timestamp() < time.time() - _STALE
    except (NotImplementedError, OSError):
        return False
