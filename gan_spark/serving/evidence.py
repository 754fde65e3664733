"""Evidence of a comparison of two versions by what became of their answers: rates, intervals, a decision.

People, not requests, are what is independent: a person's requests go to one version and have much in common. Rates are
ratios of sums over people, their variance is that of such a ratio (the delta method). To each version two people with
one request are added, one of whom kept the answer and one did not, so that few who all agree prove nothing (Agresti and
Caffo, 2000).
"""

import dataclasses
import math

import numpy as np
from scipy import stats

LEVEL = 0.99  # of confidence, since a verdict is asked for again and again
MARGIN = 0.02  # a difference of rates that does not matter
LEAST = 50  # people with an outcome, of each version, below which nothing is said


@dataclasses.dataclass(frozen=True)
class Rate:
    """Share of good outcomes: of `people`, with `outcomes` in all."""

    people: int
    outcomes: int
    value: float
    variance: float

    @classmethod
    def of(cls, good: np.ndarray, all: np.ndarray) -> "Rate":
        """Of good outcomes and of all outcomes of each person, [people]."""
        good, counts = np.append(good, (1.0, 0.0)), np.append(all, (1.0, 1.0))
        value, people = good.sum() / counts.sum(), len(counts)
        variance = np.square(good - value * counts).sum() / counts.sum() ** 2 * people / (people - 1)
        return cls(people - 2, int(counts.sum()) - 2, float(value), float(variance))

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        reach = _reach(level, self.people) * math.sqrt(self.variance)
        return max(0.0, self.value - reach), min(1.0, self.value + reach)


def _reach(level: float, people: int) -> float:
    """Standard errors to either side of a mean."""
    return float(stats.t.ppf(0.5 + level / 2, max(people, 1)))


def compared(champion: Rate, challenger: Rate) -> dict:
    """The two-sided test of the challenger's rate against the champion's.

    {"verdict": "better", "worse", "no difference that matters" or "not yet", "difference", "interval" of it, "p",
    "why"}. "better" and "worse" are of the challenger, by the test at 1 - LEVEL; "no difference that matters" is said
    where the interval lies within MARGIN of 0.
    """
    difference = challenger.value - champion.value
    error = math.sqrt(champion.variance + challenger.variance)
    people = min(champion.people, challenger.people)
    reach = _reach(LEVEL, people) * error
    p = 2 * float(stats.t.sf(abs(difference) / error, max(people, 1)))
    low, high = difference - reach, difference + reach
    verdict, why = _decided(people, difference, low, high, error)
    return {
        "verdict": verdict,
        "why": why,
        "difference": round(difference, 4),
        "interval": [round(low, 4), round(high, 4)],
        "p": float(f"{p:.3g}"),
    }


def _decided(people: int, difference: float, low: float, high: float, error: float) -> tuple[str, str]:
    if people < LEAST:
        return "not yet", f"{people} people with an outcome of one of the versions; at least {LEAST} are needed"
    if low > 0 or high < 0:
        word = "better" if low > 0 else "worse"
        return word, f"the difference is not 0, at a level of {LEVEL:.0%}"
    if low > -MARGIN and high < MARGIN:
        return "no difference that matters", f"the difference is within {MARGIN:.0%}, at a level of {LEVEL:.0%}"
    # The error falls with the root of people; the difference may be as it looks, or 0.
    target = max(abs(difference), MARGIN)
    needed = math.ceil(people * (_reach(LEVEL, people) * error / target) ** 2)
    return "not yet", f"the difference may be 0, or matter; about {max(needed, people + 1)} people of each may tell"


def population_stability(expected: np.ndarray, actual: np.ndarray) -> float:
    """Population stability index of two divisions into the same classes, counts or shares: sum (a - e) ln (a / e).

    Half an image is added to each class of what was counted, as 0 has no logarithm. Under 0.1 is usually called stable,
    over 0.25 a shift.
    """
    e, a = (np.asarray(values, float) for values in (expected, actual))
    a = (a + 0.5) / (a + 0.5).sum()
    e = np.maximum(e / e.sum(), 1e-4)
    e = e / e.sum()
    return float(np.sum((a - e) * np.log(a / e)))
