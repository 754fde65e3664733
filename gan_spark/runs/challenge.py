"""Challengers: a version of a registered model that answers a share of its requests, to be compared with the promoted
one.
"""

from ..config import UserError
from . import registry
from .store import Run


def challenge(root: str, run_name: str, name: str = "default", share: float = 0.1) -> dict:
    """Registers the run at its preferred checkpoint as a version of model `name`, unless it is one, and lets it answer
    `share` of the requests, in place of an earlier challenger.

    It ends by `end`, and with any promotion or rollback. Returns {"model", "version", "run", "step", "share",
    "against": the promoted version}.
    """
    if not 0 < share < 1:
        raise UserError(f"--share {share:g}: expected more than 0 and less than 1")
    run = Run.named(root, run_name)
    run.record()

    def update(table: dict) -> dict:
        if not table["promoted"]:
            raise UserError(
                f"model {name!r}: no version is promoted, which the run could be compared with; promote one"
            )
        version = registry.registered(root, table, run_name, run.preferred())
        if version["version"] == table["promoted"]:
            raise UserError(f"model {name!r}: run {run_name} at step {version['step']} is the promoted version itself")
        table["challenger"] = {"version": version["version"], "share": share, "at": registry.now()}
        return {
            "model": name,
            **{key: version[key] for key in ("version", "run", "step")},
            "share": share,
            "against": table["promoted"],
        }

    return registry.change(root, name, update)


def end(root: str, name: str = "default", number: int = 0) -> dict:
    """Ends the challenge of model `name`: the promoted version answers all requests. Returns {"model", "ended":
    version}. `UserError` where there is none, or another than of version `number`.
    """

    def update(table: dict) -> dict:
        if "challenger" not in table:
            raise UserError(f"model {name!r} has no challenger")
        if number:
            _check(table, name, number)
        return {"model": name, "ended": table.pop("challenger")["version"]}

    return registry.change(root, name, update)


def served(root: str, name: str) -> tuple[dict | None, dict | None]:
    """The promoted version of model `name`, and its challenger, with its `share` and since when (`at`)."""
    table = registry.read(root, name)
    versions = {entry["version"]: entry for entry in table["versions"]}
    challenger = table.get("challenger")
    if challenger and challenger.get("version") in versions:
        challenger = {**versions[challenger["version"]], **challenger}
    else:
        challenger = None
    return versions.get(table["promoted"]), challenger


def win(root: str, name: str, number: int) -> None:
    """Promotes the challenger of model `name`, which has to be version `number` still, and so ends the challenge."""

    def update(table: dict) -> None:
        _check(table, name, number)
        del table["challenger"]
        table["promoted"] = number
        table["history"].append({"version": number, "at": registry.now()})

    registry.change(root, name, update)


def _check(table: dict, name: str, number: int) -> None:
    if table.get("challenger", {}).get("version") != number:
        raise UserError(f"model {name!r}: version {number} is not the challenger any more; nothing was changed")
