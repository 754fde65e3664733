"""Named models in the lake, and where everything came from.

`<lake>/models/<name>.json` lists versions, each a run at a checkpoint with what it measured, which of them is
promoted, and which were before. `lineage` leads from a run to its config, code, dataset and figures.
"""

import datetime

from . import lake
from .config import UserError
from .store import Run

# FIDs compare where these are equal: another network is another scale, and of fewer images it is greater.
MEASURED = ("features", "dataset", "fingerprint", "split", "part", "generated_images")


class Incomparable(UserError):
    """The run's FID and that of the promoted version were not measured alike."""


def _names(url: str) -> list[str]:
    fs, path = lake.filesystem(url)
    if not fs.exists(path):
        return []
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[1] for entry in fs.ls(path, detail=True))


def _run(root: str, name: str) -> Run:
    return Run(lake.join(lake.to_url(root), "runs", name))


def runs(root: str) -> list[dict]:
    """The lake's runs, oldest first: run, model, dataset, step of the newest checkpoint, fid (of its newest evaluated table), created, promoted (as which model)."""
    quality, promoted = _quality(root), {}
    for name in models(root):
        version = current(root, name)
        if version:
            promoted.setdefault(version["run"], []).append(f"{name} v{version['version']}")
    found = []
    for name in _names(lake.join(lake.to_url(root), "runs")):
        run = _run(root, name)
        if not lake.exists(run.path("config.json")):
            continue
        record, steps = run.record(), run.checkpoints()
        measured = quality.get(name, [])
        found.append({
            "run": name, "model": record["config"]["model"]["name"], "dataset": record["dataset"]["url"].rsplit("/", 1)[1], "step": steps[-1] if steps else 0,
            "fid": measured[-1].get("fid") if measured else None, "created": record["created"], "promoted": ", ".join(promoted.get(name, [])),
        })  # fmt: skip
    return sorted(found, key=lambda row: row["created"])


def _quality(root: str) -> dict[str, list[dict]]:
    """Reports of `evaluate` by run's name, in the order of their steps and of when they were made."""
    folder = lake.join(lake.to_url(root), "generated")
    reports = [lake.read_json(lake.join(folder, name)) for name in _names(folder) if name.endswith(".quality.json")]
    found = {}
    for report in sorted(reports, key=lambda report: (report["step"], report.get("evaluated", ""))):
        found.setdefault(report["run"].rsplit("/", 1)[1], []).append(report)
    return found


def lineage(root: str, name: str) -> dict:
    """All that a run came from and led to: config, dataset with its fingerprint, versions, checkpoints, last metrics, quality by table, registered versions."""
    run = _run(root, name)
    record = run.record()
    lines = [line for line in run.metrics() if "scalars" in line]
    versions = [f"{model} v{version['version']}" for model in models(root) for version in read(root, model)["versions"] if version["run"] == name]
    return {
        "run": name, "url": run.url, "created": record["created"], **record["versions"],
        "dataset": record["dataset"]["url"], "fingerprint": record["dataset"]["fingerprint"], "config": record["config"],
        "checkpoints": run.checkpoints(), "metrics": {key: lines[-1][key] for key in ("step", *lines[-1]["scalars"])} if lines else {},
        "quality": {report["table"]: {key: value for key, value in report.items() if key not in ("table", "run", "report")} for report in _quality(root).get(name, [])},
        "registered": versions,
    }  # fmt: skip


# --- named models ----------------------------------------------------------------------


def _url(root: str, name: str) -> str:
    return lake.join(lake.to_url(root), "models", f"{name}.json")


def models(root: str) -> list[str]:
    return [name.removesuffix(".json") for name in _names(lake.join(lake.to_url(root), "models")) if name.endswith(".json") and not name.startswith(".")]


def read(root: str, name: str) -> dict:
    """{"versions": [{version, run, step, fid, measured, registered}], "promoted": version or 0, "history": [{version, at}]}; empty where there is no such model.

    `measured` is what the FID was measured with, by the names in MEASURED; it and `fid` are None where none was measured.
    """
    url = _url(root, name)
    return lake.read_json(url) if lake.exists(url) else {"versions": [], "promoted": 0, "history": []}


def current(root: str, name: str) -> dict | None:
    """The promoted version of model `name`."""
    return _promoted(read(root, name))


def _promoted(registry: dict) -> dict | None:
    return next((version for version in registry["versions"] if version["version"] == registry["promoted"]), None)


def promote(root: str, run_name: str, name: str = "default", better: bool = False) -> dict:
    """Registers the run at its preferred checkpoint as a version of model `name`, unless it is one, and promotes it.

    With `better`, only where its FID is below that of the promoted version, or none is promoted. `Incomparable` where the
    promoted version has no FID that was measured like the run's. Returns
    {"model", "version", "run", "step", "fid", "promoted": whether it is now the promoted one, "before": the version that was}.
    """
    run = _run(root, run_name)
    run.record()
    step = run.preferred()
    figures = _figures(root, run_name, step)
    if better and not figures:
        raise UserError(f"run {run_name}: no FID was measured at step {step}; generate from that step (generate.checkpoint = {step}) and evaluate it with jobs/evaluate.py")
    registry = read(root, name)
    before = _promoted(registry)
    version = next((each for each in registry["versions"] if (each["run"], each["step"]) == (run_name, step)), None)
    if version is None:
        version = {"version": len(registry["versions"]) + 1, "run": run_name, "step": step, "fid": None, "measured": None, "registered": _now()}
        registry["versions"].append(version)
    if figures:
        version |= figures[-1]
    wins = True
    if better and before not in (None, version):
        before |= _alike(root, name, before, version)
        wins = version["fid"] < before["fid"]
    if wins and registry["promoted"] != version["version"]:
        registry["promoted"] = version["version"]
        registry["history"].append({"version": version["version"], "at": _now()})
    lake.write_json(_url(root, name), registry)
    return {"model": name, **{key: version[key] for key in ("version", "run", "step", "fid")}, "promoted": wins, "before": before["version"] if before else 0}


def _figures(root: str, name: str, step: int) -> list[dict]:
    """`fid` and `measured` of the evaluations of a run at a step, oldest first."""
    reports = [report for report in _quality(root).get(name, []) if report["step"] == step and report.get("fid") is not None]
    return [{"fid": report["fid"], "measured": {key: report.get(key) for key in MEASURED}} for report in reports]


def _alike(root: str, name: str, before: dict, version: dict) -> dict:
    """The newest `fid` of the promoted version that was measured like that of `version`, as `_figures` gives it."""
    figures = _figures(root, before["run"], before["step"])
    if before["fid"] is not None:  # perhaps of a table that holds other images by now
        figures.insert(0, {"fid": before["fid"], "measured": before.get("measured") or dict.fromkeys(MEASURED)})
    wanted = version["measured"]
    # Without a fingerprint, as old evaluations are, nobody knows which images it was.
    found = [each for each in figures if each["measured"] == wanted and wanted["fingerprint"]]
    if found:
        return found[-1]
    this, other = (f"run {each['run']} at step {each['step']}" for each in (version, before))
    if figures:
        pairs = ((key, wanted[key], figures[-1]["measured"].get(key)) for key in MEASURED)
        why = "they were not measured alike: " + ", ".join(f"{key} {a!r} and {b!r}" for key, a, b in pairs if a != b or a is None)
    else:
        why = "the second was not measured"
    raise Incomparable(
        f"model {name!r}: the FIDs of {this}, and of the promoted version {before['version']}, {other}, cannot be compared; {why}. "
        "Evaluate both alike with jobs/evaluate.py, or promote without --if-better (promote.only_if_better = false)"
    )


def rollback(root: str, name: str = "default") -> dict:
    """Promotes the version that was promoted before the present one."""
    registry = read(root, name)
    if len(registry["history"]) < 2:
        raise UserError(f"model {name!r}: there is no version from before to go back to ({len(registry['versions'])} registered)")
    registry["history"].pop()
    registry["promoted"] = registry["history"][-1]["version"]
    lake.write_json(_url(root, name), registry)
    return {"model": name, **current(root, name)}


def _now() -> str:
    return datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds")
