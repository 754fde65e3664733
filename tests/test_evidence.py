"""Verdicts on two versions: right where they say something, and silent where they cannot know."""

import numpy as np
import pytest

from gan_spark.serving import evidence
from gan_spark.serving.evidence import Rate

USERS = 1000


def simulated(random: np.random.Generator, rate: float, requests: float = 5.0, spread: float = 0.1) -> Rate:
    """Outcomes of 1,000 people, each of whom asks some times, and likes answers more or less than others do."""
    counts = 1 + random.poisson(requests - 1, USERS)
    strength = rate * (1 - rate) / spread**2 - 1
    own = random.beta(rate * strength, (1 - rate) * strength, USERS)
    return Rate.of(random.binomial(counts, own).astype(float), counts.astype(float))


def verdicts(champion: float, challenger: float, repeats: int = 100, **options) -> list[str]:
    random = np.random.default_rng(7)
    return [
        evidence.compared(simulated(random, champion, **options), simulated(random, challenger, **options))["verdict"]
        for _ in range(repeats)
    ]


@pytest.mark.parametrize("rate", [0.6, 0.8])
def test_a_difference_of_five_points_is_found_in_at_least_95_of_100(rate):
    """1,000 people each, with five requests each."""
    assert verdicts(rate, rate + 0.05).count("better") >= 95
    assert verdicts(rate + 0.05, rate).count("worse") >= 95


@pytest.mark.parametrize("rate", [0.6, 0.8])
def test_no_difference_is_not_taken_for_one_in_at_least_95_of_100(rate):
    found = verdicts(rate, rate)
    assert found.count("better") + found.count("worse") <= 5


def test_no_difference_is_said_where_it_can_be_known():
    assert verdicts(0.9, 0.9, requests=30.0, spread=0.02).count("no difference that matters") >= 95


@pytest.mark.parametrize("difference", [0.0, 0.05])
def test_one_request_each_is_mostly_too_little_and_then_that_is_said(difference):
    """Of 1,000 outcomes each at a rate of 0.5, five points are 2.2 standard errors."""
    found = verdicts(0.5, 0.5 + difference, requests=1.0)
    assert found.count("not yet") >= 50
    wrong = {"worse", "no difference that matters"} if difference else {"better", "worse"}
    assert sum(found.count(word) for word in wrong) <= 5


def test_people_are_counted_and_not_requests():
    """Ten people who ask a thousand times each are ten."""
    few = Rate.of(np.repeat([1000.0, 0.0], 5), np.full(10, 1000.0))
    many = Rate.of(np.repeat([1.0, 0.0], 5000), np.ones(10_000))
    assert few.value == pytest.approx(many.value, abs=0.01) and few.variance > 500 * many.variance
    assert evidence.compared(few, many)["verdict"] == "not yet"


def test_few_who_all_agree_prove_nothing():
    all_kept, none_kept = Rate.of(np.ones(5), np.ones(5)), Rate.of(np.zeros(5), np.ones(5))
    assert evidence.compared(all_kept, none_kept)["verdict"] == "not yet"
    low, high = all_kept.interval()
    assert low < 0.5 and high == 1.0
    nobody = Rate.of(np.zeros(0), np.zeros(0))
    assert evidence.compared(nobody, nobody)["verdict"] == "not yet"


def test_a_rate_and_its_variance_in_closed_form():
    """With one request each it is Agresti and Caffo's: (x + 1) / (n + 2)."""
    rate = Rate.of(np.repeat([1.0, 0.0], [60, 38]), np.ones(98))
    assert rate.value == pytest.approx(0.61) and rate.people == 98 and rate.outcomes == 98
    assert rate.variance == pytest.approx(0.61 * 0.39 / 99)


def test_population_stability_in_closed_form():
    same = evidence.population_stability(np.array([0.5, 0.5]), np.array([5000, 5000]))
    assert same == pytest.approx(0, abs=1e-9)
    shifted = evidence.population_stability(np.array([0.5, 0.5]), np.array([750_000, 250_000]))
    assert shifted == pytest.approx(0.25 * np.log(1.5) - 0.25 * np.log(0.5), abs=1e-4)
    assert evidence.population_stability(np.array([1.0, 0.0]), np.array([0, 1000])) > 1
