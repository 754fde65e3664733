"""Verdict on a challenger, from what the service recorded: how each version did, and whether what comes in is still
like the training data.
"""

import dataclasses
import datetime
import logging

import numpy as np
import pyarrow as pa

from ..config import UserError
from ..quality.statistics import Moments, frechet_distance
from ..runs import challenge
from ..runs.store import Run
from . import evidence, records, statistics

log = logging.getLogger(__name__)
_DRAWS = 5  # of the floor


def verdict(root: str, name: str, act: bool = False) -> dict:
    """The verdict on the challenger of model `name` of the lake at `root`.

    With `act`, a challenger that is better is promoted, one that is worse or makes no difference that matters is ended.
    {"model", "versions": by number, figures since the challenge began, "verdict", "why", "difference",
    "interval", "p", "drift", "acted": "promoted", "ended" or "nothing"}. Without a challenger `verdict` is "no
    challenger".
    """
    return acted(root, judged(recorded(root, name)), act)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """What a verdict rests on."""

    name: str
    champion: dict  # entry of the registry
    challenger: dict | None
    rows: pa.Table  # since the challenge began; all where there is none
    training: dict | None  # statistics of the champion's training data; None where these cannot be told

    @property
    def numbers(self) -> list[int]:
        return [entry["version"] for entry in (self.champion, self.challenger) if entry]


def recorded(root: str, name: str) -> Recorded:
    """What there is about model `name`; `UserError` where no version of it is promoted."""
    champion, challenger = challenge.served(root, name)
    if champion is None:
        raise UserError(f"model {name!r}: no version of it is promoted in {root}")
    table = records.read(records.url(root, name))
    rows = _since(table, challenger["at"]) if challenger else table
    return Recorded(name, champion, challenger, rows, _training(root, champion, rows))


def judged(found: Recorded) -> dict:
    """The verdict that follows, upon which nothing was done."""
    rows, numbers = found.rows, found.numbers
    outcomes = _outcomes(rows)
    answer = {
        "model": found.name,
        "versions": {str(number): _figures(rows, outcomes, number) for number in numbers},
        "verdict": "no challenger",
        "drift": drift(found.training, _of(rows, numbers[0])),
        "acted": "nothing",
    }
    if found.challenger is not None:
        answer |= evidence.compared(*(_rate(outcomes.get(number, {})) for number in numbers))
    return answer


def acted(root: str, answer: dict, act: bool) -> dict:
    """The answer of `judged`, once with `act` what it allows is done."""
    if not act or answer["verdict"] == "no challenger":
        return answer
    _, number = answer["versions"]
    return {**answer, "acted": _acted(root, answer["model"], int(number), answer["verdict"])}


def _acted(root: str, name: str, number: int, verdict: str) -> str:
    if verdict == "better":
        challenge.win(root, name, number)
        return "promoted"
    if verdict in ("worse", "no difference that matters"):
        challenge.end(root, name, number)
        return "ended"
    return "nothing"


def _since(table: pa.Table, at: str) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(
        pc.greater_equal(table["at"], pa.scalar(datetime.datetime.fromisoformat(at), pa.timestamp("us", "UTC")))
    )


def _of(table: pa.Table, version: int) -> pa.Table:
    import pyarrow.compute as pc

    return table.filter(pc.and_(pc.equal(table["kind"], "request"), pc.equal(table["version"], version)))


def _outcomes(table: pa.Table) -> dict[int, dict[str, tuple[float, float]]]:
    """By version and person: (good outcomes, outcomes). A person is a key, or a request without one.

    A request's newest feedback counts, once: it is good where the label is the one that was answered, or what was made
    was kept.
    """
    names = ["kind", "request_id", "at", "user", "version", "label", "correct_label", "kept"]
    rows = sorted(table.select(names).to_pylist(), key=lambda row: row["at"])
    requests = {}
    for row in rows:
        if row["kind"] == "request":
            requests.setdefault(row["request_id"], row)
    newest = {row["request_id"]: row for row in rows if row["kind"] == "feedback"}
    people: dict[int, dict[str, tuple[float, float]]] = {}
    for request_id, feedback in newest.items():
        request = requests.get(request_id)
        if request is None:  # of a request that is not recorded
            continue
        is_good = _is_good(request, feedback)
        if is_good is not None:
            version = people.setdefault(request["version"], {})
            good, count = version.get(request["user"] or request_id, (0.0, 0.0))
            version[request["user"] or request_id] = (good + is_good, count + 1)
    return people


def _is_good(request: dict, feedback: dict) -> bool | None:
    if feedback["kept"] is not None:
        return feedback["kept"]
    if not request["label"] or feedback["correct_label"] is None:
        return None
    return request["label"][0] == feedback["correct_label"]


def _rate(people: dict[str, tuple[float, float]]) -> evidence.Rate:
    sums = np.array(list(people.values()), float).reshape(-1, 2)
    return evidence.Rate.of(sums[:, 0], sums[:, 1])


def _figures(table: pa.Table, outcomes: dict, version: int) -> dict:
    rows = _of(table, version)
    milliseconds = rows["milliseconds"].drop_null().to_numpy()
    rate = _rate(outcomes.get(version, {}))
    return {
        "requests": rows.num_rows,
        "milliseconds_p50": round(float(np.percentile(milliseconds, 50)), 2) if len(milliseconds) else None,
        "milliseconds_p99": round(float(np.percentile(milliseconds, 99)), 2) if len(milliseconds) else None,
        "outcomes": rate.outcomes,
        "people": rate.people,
        "rate": round(rate.value, 4) if rate.outcomes else None,
        "interval": [round(end, 4) for end in rate.interval()] if rate.outcomes else None,
    }


def _training(root: str, entry: dict, rows: pa.Table) -> dict | None:
    """Statistics of what a version learnt from, where there is something to compare with them."""
    if rows["label"].null_count == rows.num_rows and rows["features"].null_count == rows.num_rows:
        return None
    try:
        return statistics.of_dataset(Run.named(root, entry["run"]).record()["dataset"]["url"])
    except UserError as error:
        log.warning("verdict: no drift from the training data: %s", error)
        return None


def drift(training: dict | None, rows: pa.Table) -> dict:
    """How far the classes that are answered, and the images that come in, are from the training data, of which these
    are the statistics; None where that cannot be told.

    `frechet` is the distance of the moments of `statistics.features`, `frechet_floor` what it is of as many draws from
    the training data's own moments.
    """
    answer = {"class_stability": None, "frechet": None, "frechet_floor": None}
    if training is None:
        return answer
    labels = [label for value in rows["label"].drop_null().to_pylist() for label in value]
    features = [one for value in rows["features"].drop_null().to_pylist() for one in value]
    shares = training["class_shares"]
    if labels and shares and sum(shares.values()):
        counts = np.array([labels.count(name) for name in shares])
        answer["class_stability"] = round(evidence.population_stability(np.array(list(shares.values())), counts), 4)
    if len(features) >= 2 and training["features"]:
        answer |= _distance(training["features"], np.array(features, float))
    return answer


def _distance(training: dict, live: np.ndarray) -> dict[str, float]:
    mean, covariance = np.array(training["mean"]), np.array(training["covariance"])
    count = training["count"]
    expected = Moments(count, mean, covariance * (count - 1))
    random = np.random.default_rng(0)
    draws = [
        Moments.of(random.multivariate_normal(mean, covariance, len(live), check_valid="ignore")) for _ in range(_DRAWS)
    ]
    floor = np.mean([frechet_distance(expected, draw) for draw in draws])
    return {
        "frechet": round(frechet_distance(expected, Moments.of(live)), 4),
        "frechet_floor": round(float(floor), 4),
    }
