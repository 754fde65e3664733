"""Registry of named models in the lake.

`<lake>/models/<name>.json` lists versions, each a run at a checkpoint with what it measured, which of them is
promoted, and which were before.
"""

import copy
import dataclasses
import datetime
import json
from collections.abc import Callable
from typing import TypeVar

from .. import lake
from ..config import Config, UserError
from .store import Run

# FIDs compare where these are equal: another network is another scale, and of fewer images it is greater.
MEASURED = ("features", "features_hash", "dataset", "fingerprint", "split", "part", "generated_images")


T = TypeVar("T")


class Incomparable(UserError):
    """The run's FID and that of the promoted version were not measured alike."""


class Overtaken(UserError):
    """Another version was promoted while one was compared with the promoted one."""


def names(url: str) -> list[str]:
    fs, path = lake.filesystem(url)
    if not fs.exists(path):
        return []
    return sorted(entry["name"].rstrip("/").rsplit("/", 1)[1] for entry in fs.ls(path, detail=True))


def evaluations(root: str) -> dict[str, list[dict]]:
    """Reports of `evaluate` by run's name, in the order of their steps and of when they were made."""
    folder = lake.join(lake.to_url(root), "generated")
    reports = [
        lake.read_record(root, lake.join(folder, name)) for name in names(folder) if name.endswith(".quality.json")
    ]
    by_run = {}
    for report in sorted(reports, key=lambda report: (report["step"], report.get("evaluated", ""))):
        by_run.setdefault(report["run"].rsplit("/", 1)[1], []).append(report)
    return by_run


def models(root: str) -> list[str]:
    return [
        name.removesuffix(".json")
        for name in names(lake.join(lake.to_url(root), "models"))
        if name.endswith(".json") and not name.startswith(".")
    ]


def read(root: str, name: str) -> dict:
    """The registry of model `name`; empty where there is no such model.

    {"versions": [{version, run, step, fid, measured, registered}, with `compared` where a stream trained it],
    "promoted": version or 0,
    "history": [{version, at}], "challenger": {version, share, at} where there is one}. `measured` is what the FID was
    measured with, by the names in MEASURED; it and `fid` are None where none was measured.
    """
    url = lake.model_url(root, name)
    try:
        data = lake.read_bytes(url)
    except FileNotFoundError:
        data = None
    return _parsed(root, url, data)


def _parsed(root: str, url: str, data: bytes | None) -> dict:
    """The registry that the bytes of its file are; None for none."""
    empty = {"versions": [], "promoted": 0, "history": []}
    if data is None:
        return empty
    try:
        registry = lake.absolute(root, json.loads(data))
    except ValueError as error:
        raise UserError(f"{url}: expected a registry that gan_spark wrote, found no JSON ({error})") from None
    if not isinstance(registry, dict) or not empty.keys() <= registry.keys():
        raise UserError(
            f"{url}: expected a registry that gan_spark wrote ({', '.join(empty)}), found something else, which is not"
            " replaced: name another model, or move it away yourself"
        )
    return registry


def change(root: str, name: str, update: Callable[[dict], T]) -> T:
    """What `update` returns, which changes the registry of model `name` in place: of several jobs that do so at once,
    each changes what the one before has written. `update` may be called several times, and is the last time with what
    is replaced.
    """
    url, answers = lake.model_url(root, name), []

    def changed(data: bytes | None) -> bytes:
        registry = _parsed(root, url, data)
        former = copy.deepcopy(registry)
        answers.append(update(registry))
        return data if data is not None and registry == former else lake.to_record(root, url, registry)

    lake.change(url, changed)
    return answers[-1]


def current(root: str, name: str) -> dict | None:
    """The promoted version of model `name`."""
    return _promoted(read(root, name))


def _promoted(registry: dict) -> dict | None:
    return next((version for version in registry["versions"] if version["version"] == registry["promoted"]), None)


def promote(root: str, run_name: str, name: str = "default", better: bool = False) -> dict:
    """Registers the run at its preferred checkpoint as a version of model `name`, unless it is one, and promotes it.

    With `better`, only where its FID is below that of the promoted version, or none is promoted. `Incomparable` where
    the promoted version has no FID that was measured like the run's. Returns {"model", "version", "run", "step",
    "fid", "promoted": whether it is now the promoted one, "before": the version that was}.
    """
    run = Run.named(root, run_name)
    run.record()
    step = run.preferred()
    figures = _figures(root, run_name, step)
    if better and not figures:
        raise UserError(
            f"run {run_name}: no FID was measured at step {step}; generate from that step (generate.checkpoint ="
            f" {step}) and evaluate it with jobs/evaluate.py"
        )

    def update(registry: dict) -> dict:
        before = _promoted(registry)
        version = registered(root, registry, run_name, step)
        wins = True
        if better and before not in (None, version):
            before |= _alike(root, name, before, version)
            wins = version["fid"] < before["fid"]
        return _settled(name, registry, version, wins)

    return change(root, name, update)


def settle(root: str, run_name: str, name: str, wins: bool, compared: dict, against: int) -> dict:
    """Registers the run at its preferred checkpoint, with what it was `compared` by, and promotes it where it `wins`;
    what `promote` returns. `Overtaken` where the version that it was compared `against` is not the promoted one any
    more.
    """

    def update(registry: dict) -> dict:
        if registry["promoted"] != against:
            raise Overtaken(
                f"model {name!r}: run {run_name} was compared with version {against}, and version"
                f" {registry['promoted']} is promoted by now; nothing was changed"
            )
        version = registered(root, registry, run_name, Run.named(root, run_name).preferred())
        version["compared"] = compared
        return _settled(name, registry, version, wins)

    return change(root, name, update)


def _settled(name: str, registry: dict, version: dict, wins: bool) -> dict:
    before = registry["promoted"]
    if wins and before != version["version"]:
        registry["promoted"] = version["version"]
        registry["history"].append({"version": version["version"], "at": now()})
        registry.pop("challenger", None)  # Who is to be compared with whom is another question now.
    return {
        "model": name,
        **{key: version[key] for key in ("version", "run", "step", "fid")},
        "promoted": wins,
        "before": before,
    }


def registered(root: str, registry: dict, run_name: str, step: int) -> dict:
    """The version in `registry` that is the run at the step, with its newest figures; added where there is none."""
    at_step = (entry for entry in registry["versions"] if (entry["run"], entry["step"]) == (run_name, step))
    version = next(at_step, None)
    if version is None:
        version = {
            "version": len(registry["versions"]) + 1,
            "run": run_name,
            "step": step,
            "fid": None,
            "measured": None,
            "registered": now(),
        }
        registry["versions"].append(version)
    if figures := _figures(root, run_name, step):
        version |= figures[-1]
    return version


def _figures(root: str, name: str, step: int) -> list[dict]:
    """`fid` and `measured` of the evaluations of a run at a step, oldest first."""
    reports = [
        report for report in evaluations(root).get(name, []) if report["step"] == step and report.get("fid") is not None
    ]
    return [{"fid": report["fid"], "measured": {key: report.get(key) for key in MEASURED}} for report in reports]


def _alike(root: str, name: str, before: dict, version: dict) -> dict:
    """The newest `fid` of the promoted version that was measured like that of `version`, as `_figures` gives it."""
    figures = _figures(root, before["run"], before["step"])
    if before["fid"] is not None:  # perhaps of a table that holds other images by now
        figures.insert(0, {"fid": before["fid"], "measured": before.get("measured") or dict.fromkeys(MEASURED)})
    measured = version["measured"]
    # Without a fingerprint or a hash, as old evaluations are, nobody knows which images or which network it was.
    is_known = measured["fingerprint"] and measured["features_hash"]
    comparable = [figure for figure in figures if figure["measured"] == measured and is_known]
    if comparable:
        return comparable[-1]
    candidate, incumbent = (f"run {entry['run']} at step {entry['step']}" for entry in (version, before))
    if figures:
        pairs = ((key, measured[key], figures[-1]["measured"].get(key)) for key in MEASURED)
        why = "they were not measured alike: " + ", ".join(
            f"{key} {_in_words(new)} and {_in_words(old)}" for key, new, old in pairs if new != old or new is None
        )
    else:
        why = "the second was not measured"
    raise Incomparable(
        f"model {name!r}: the FIDs of {candidate}, and of the promoted version {before['version']}, {incumbent}, cannot"
        f" be compared; {why}. Evaluate both alike with jobs/evaluate.py, or promote without --if-better"
        " (promote.only_if_better = false)"
    )


def _in_words(value) -> str:
    return "not known" if value is None else repr(value)


def promoted(config: Config) -> Config:
    """The config with the run and checkpoint of the promoted version of `generate.model`, where it names one."""
    options = config.generate
    if not options.model:
        return config
    version = current(config.lake, options.model)
    if version is None:
        raise UserError(
            f"generate.model = {options.model!r}: no version of it is promoted in {config.lake} (registered:"
            f" {', '.join(models(config.lake)) or 'none'})"
        )
    return dataclasses.replace(
        config,
        run=version["run"],
        generate=dataclasses.replace(options, checkpoint=version["step"], table=options.table or options.model),
    )


def rollback(root: str, name: str = "default") -> dict:
    """Promotes the version that was promoted before the present one."""

    def update(registry: dict) -> dict:
        if len(registry["history"]) < 2:
            raise UserError(
                f"model {name!r}: there is no version from before to go back to ({len(registry['versions'])}"
                " registered)"
            )
        registry["history"].pop()
        registry.pop("challenger", None)
        registry["promoted"] = registry["history"][-1]["version"]
        version = _promoted(registry)
        if version is None:
            raise UserError(f"model {name!r}: version {registry['promoted']} of its history is not registered")
        return {"model": name, **version}

    return change(root, name, update)


def now() -> str:
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
