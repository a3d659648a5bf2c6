"""The staircase and the suggested degrees: against brute force, and in words."""

from __future__ import annotations

import itertools
from collections.abc import Mapping

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tocom.calibration import suggest_degrees
from tocom.errors import CalibrationError, RequestError
from tocom.formats.profile import Accuracy, DegreeProfile, Latency, Profile
from tocom.runtime.policy.choice import Candidate, choose, dominators, frontier


def profile_of(latency: Mapping[int, float], accuracy: Mapping[int, float | None], kind: str = "top1") -> Profile:
    degrees = {}
    for degree, ms in latency.items():
        value = accuracy[degree]
        known = None if value is None else Accuracy(kind, value, 1000, max(value - 0.1, 0), min(value + 0.1, 1))
        degrees[degree] = DegreeProfile(Latency(100, ms, ms * 1.1, ms * 1.2, ms * 1.3), known)
    return Profile({"processor": "x"}, "onnxruntime", "fp32", 1, 2, "a" * 64, "small", degrees, "the engine")


LATENCY = {0: 30.0, 1: 30.2, 2: 28.0, 3: 26.0, 4: 25.9, 5: 20.0}
ACCURACY = {0: 0.80, 1: 0.7985, 2: 0.799, 3: 0.797, 4: 0.790, 5: 0.75}


def test_dominated_degrees_and_the_frontier_are_one_rule() -> None:
    candidates = [Candidate(d, ACCURACY[d], LATENCY[d]) for d in LATENCY]
    assert dominators(candidates) == {1: 2}
    assert [c.degree for c in frontier(candidates)] == [0, 2, 3, 4, 5]


@settings(max_examples=60)
@given(st.lists(st.tuples(st.floats(1, 100), st.floats(0, 1)), min_size=1, max_size=7), st.floats(0, 0.1))
def test_the_subset_is_the_smallest_that_loses_little(points: list[tuple[float, float]], max_loss: float) -> None:
    latency = {degree: ms for degree, (ms, _) in enumerate(points)}
    accuracy = {degree: value for degree, (_, value) in enumerate(points)}
    found = suggest_degrees(profile_of(latency, accuracy), max_loss=max_loss)
    stairs = frontier([Candidate(d, accuracy[d], latency[d]) for d in latency])
    low, high = found.budgets_ms
    # The loss changes only at the stairs, so the mean over budgets is a sum over the pieces between them.
    edges = sorted({low, high, *(c.latency_ms for c in stairs)})

    def loss(degrees: set[int]) -> float:
        kept = tuple(c for c in stairs if c.degree in degrees)
        pieces = [
            (right - left) * (_best(stairs, left) - _best(kept, left)) for left, right in itertools.pairwise(edges)
        ]
        return sum(pieces) / max(high - low, 1e-9)

    assert found.mean_loss == pytest.approx(loss(set(found.degrees)), abs=1e-9)
    assert found.mean_loss <= max_loss + 1e-12
    ends = {stairs[0].degree, stairs[-1].degree}
    assert ends <= set(found.degrees)
    for size in range(len(ends), len(found.degrees)):
        for subset in itertools.combinations([c.degree for c in stairs], size):
            assert not ends <= set(subset) or loss(set(subset)) > max_loss - 1e-12


def _best(candidates: tuple[Candidate, ...], budget: float) -> float:
    degree = choose(candidates, budget).degree
    return next(c.accuracy for c in candidates if c.degree == degree)


def test_reasons_say_why() -> None:
    found = suggest_degrees(profile_of(LATENCY, ACCURACY), max_loss=0.002)
    assert found.accuracy == "top1"
    assert found.degrees == (0, 3, 5)
    assert found.reasons[0] == "in: the most accurate"
    assert found.reasons[1] == "out: brings nothing, degree 2 is at least as accurate and not slower"
    assert found.reasons[2] == "out: degree 3 serves its budgets, 7% faster, 0.20 points lower"
    assert found.reasons[3] == "in: 13% faster, 0.30 points lower than degree 0"
    assert found.reasons[5].endswith("; the fastest")
    content = found.to_json()
    assert content["degrees"] == [0, 3, 5]
    assert content["reasons"][1] == {"degree": 1, "reason": found.reasons[1]}


def test_most_limits_the_count_and_zero_loss_keeps_the_frontier() -> None:
    profile = profile_of(LATENCY, ACCURACY)
    assert suggest_degrees(profile, most=2, max_loss=0).degrees == (0, 5)
    assert suggest_degrees(profile, max_loss=0).degrees == (0, 2, 3, 4, 5)


def test_without_accuracy_latency_alone_decides() -> None:
    latency = {d: float(ms) for d, ms in zip(range(9), np.linspace(40, 20, 9), strict=True)}
    unknown = dict.fromkeys(latency)
    found = suggest_degrees(profile_of(latency, unknown))
    assert found.accuracy == "degree"
    assert {0, 8} <= set(found.degrees)
    assert "points" not in " ".join(found.reasons.values())


def test_bad_arguments() -> None:
    profile = profile_of(LATENCY, ACCURACY)
    for options in ({"max_loss": -0.1}, {"most": 1}):
        with pytest.raises(RequestError, match="max_loss"):
            suggest_degrees(profile, **options)  # type: ignore[arg-type]
    mixed = {**profile.degrees, 0: profile_of({0: 1.0}, {0: 1.0}, "agreement").degrees[0]}
    with pytest.raises(CalibrationError, match="mixes"):
        suggest_degrees(Profile({}, "o", "fp32", 1, 1, "a", "m", mixed, "i"))
