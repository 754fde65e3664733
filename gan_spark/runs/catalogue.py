"""Catalogue of the lake's runs and datasets, and lineage: from a run to its config, code, dataset and figures."""

from .. import lake
from ..config import UserError
from ..data import schema, snapshots
from . import registry
from .store import Run


def runs(root: str) -> list[dict]:
    """The lake's runs, oldest first.

    Of each: run, model, dataset, step of the newest checkpoint, fid (of its newest evaluated table), created, promoted
    (as which model).
    """
    quality, promoted = registry.evaluations(root), {}
    for name in registry.models(root):
        version = registry.current(root, name)
        if version:
            promoted.setdefault(version["run"], []).append(f"{name} v{version['version']}")
    rows = []
    for name in registry.names(lake.join(lake.to_url(root), "runs")):
        run = Run.named(root, name)
        if not lake.exists(run.path("config.json")):
            continue
        record, steps = run.record(), run.checkpoints()
        reports = quality.get(name, [])
        rows.append(
            {
                "run": name,
                "model": record["config"]["model"]["name"],
                "dataset": record["dataset"]["url"].rsplit("/", 1)[1],
                "step": steps[-1] if steps else 0,
                "fid": reports[-1].get("fid") if reports else None,
                "created": record["created"],
                "promoted": ", ".join(promoted.get(name, [])),
            }
        )
    return sorted(rows, key=lambda row: row["created"])


def show(root: str, name: str) -> list[dict] | dict:
    """`lineage` of the run of this name, or `snapshots_of` the dataset where there is no such run."""
    if lake.exists(Run.named(root, name).path("config.json")):
        return lineage(root, name)
    if lake.exists(lake.join(lake.dataset_place(root, name), schema.MANIFEST)):
        return snapshots_of(root, name)
    raise UserError(
        f"no run at {lake.run_url(root, name)}, and no dataset at {lake.dataset_place(root, name)}:"
        " `gan-spark runs` and `gan-spark datasets` list what there is"
    )


def lineage(root: str, name: str) -> dict:
    """All that a run came from and led to.

    Config, dataset with its fingerprint, versions, checkpoints, last metrics, quality by table, registered versions.
    """
    run = Run.named(root, name)
    record = run.record()
    lines = [line for line in run.metrics() if "scalars" in line]
    versions = {
        f"{model} v{version['version']}": version
        for model in registry.models(root)
        for version in registry.read(root, model)["versions"]
        if version["run"] == name
    }
    return {
        "run": name,
        "url": run.url,
        "created": record["created"],
        **record["versions"],
        "dataset": record["dataset"]["url"],
        "snapshot": record["dataset"].get("snapshot"),
        "fingerprint": record["dataset"]["fingerprint"],
        "started_from": record.get("started_from"),
        "config": record["config"],
        "checkpoints": run.checkpoints(),
        "metrics": {key: lines[-1][key] for key in ("step", *lines[-1]["scalars"])} if lines else {},
        "quality": {
            report["table"]: {key: value for key, value in report.items() if key not in ("table", "run", "report")}
            for report in registry.evaluations(root).get(name, [])
        },
        "registered": list(versions),
        "compared": {key: version["compared"] for key, version in versions.items() if "compared" in version},
    }


def datasets(root: str) -> list[dict]:
    """The lake's datasets by name: dataset, snapshot (the newest), snapshots (how many), rows, files, created, runs."""
    rows = []
    for name in registry.names(lake.join(lake.to_url(root), "datasets")):
        if name.startswith(".") or not lake.exists(lake.join(lake.to_url(root), "datasets", name, schema.MANIFEST)):
            continue
        listing = snapshots.listing(lake.dataset_place(root, name))
        rows.append(
            {
                "dataset": name,
                "snapshot": listing[-1]["snapshot"],
                "snapshots": len(listing),
                **{key: listing[-1][key] for key in ("rows", "files", "created")},
                "runs": ", ".join(run for runs in needed(root, name).values() for run in runs),
            }
        )
    return rows


def snapshots_of(root: str, name: str) -> list[dict]:
    """The snapshots of a dataset, oldest first, each with the runs that are of it."""
    runs = needed(root, name)
    return [
        {**row, "runs": ", ".join(runs.get(row["snapshot"], []))}
        for row in snapshots.listing(lake.dataset_place(root, name))
    ]


def needed(root: str, name: str) -> dict[int, list[str]]:
    """Names of the runs that are of each snapshot of a dataset."""
    url, found = lake.dataset_place(root, name), {}
    for run in registry.names(lake.join(lake.to_url(root), "runs")):
        if not lake.exists(Run.named(root, run).path("config.json")):
            continue
        dataset = Run.named(root, run).record().get("dataset") or {}
        if lake.canonical(dataset.get("url", "")) != lake.canonical(url):
            continue
        if number := snapshots.find(url, dataset.get("snapshot", 0), dataset.get("fingerprint", "")):
            found.setdefault(number, []).append(run)
    return found


def expire(root: str, name: str, keep: int, force: bool = False) -> dict:
    """Forgets the snapshots of a dataset but for the newest `keep`; `UserError` where a run is of one."""
    if keep < 1:
        raise UserError(f"--keep {keep}: expected at least 1, as the newest snapshot is the dataset")
    return snapshots.expire(lake.dataset_place(root, name), keep, needed(root, name), force)
