"""Catalogue of the lake's runs, and lineage: from a run to its config, code, dataset and figures."""

from .. import lake
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


def lineage(root: str, name: str) -> dict:
    """All that a run came from and led to.

    Config, dataset with its fingerprint, versions, checkpoints, last metrics, quality by table, registered versions.
    """
    run = Run.named(root, name)
    record = run.record()
    lines = [line for line in run.metrics() if "scalars" in line]
    versions = [
        f"{model} v{version['version']}"
        for model in registry.models(root)
        for version in registry.read(root, model)["versions"]
        if version["run"] == name
    ]
    return {
        "run": name,
        "url": run.url,
        "created": record["created"],
        **record["versions"],
        "dataset": record["dataset"]["url"],
        "fingerprint": record["dataset"]["fingerprint"],
        "config": record["config"],
        "checkpoints": run.checkpoints(),
        "metrics": {key: lines[-1][key] for key in ("step", *lines[-1]["scalars"])} if lines else {},
        "quality": {
            report["table"]: {key: value for key, value in report.items() if key not in ("table", "run", "report")}
            for report in registry.evaluations(root).get(name, [])
        },
        "registered": versions,
    }
