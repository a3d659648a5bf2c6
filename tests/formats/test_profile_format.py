"""The profile format: round trips, the schema, and every way a file can be wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from seals import sealed_bytes

import tocom.formats.schemas
from tocom.errors import CalibrationError, OutputError
from tocom.formats.measurements import Energy, PrecisionCandidate, PrecisionComparison, StateLog
from tocom.formats.profile import Accuracy, DegreeProfile, Latency, Profile, find_profiles

SCHEMAS = Path(tocom.formats.schemas.__path__[0])
SCHEMA = json.loads((SCHEMAS / "profile-v1.schema.json").read_text())

milliseconds = st.floats(1e-3, 1e5)


@st.composite
def _latencies(draw: st.DrawFn) -> Latency:
    count = draw(st.integers(1, 10**6))
    quantiles = sorted(draw(st.lists(milliseconds, min_size=4, max_size=4)))
    names = draw(st.sets(st.sampled_from(["p50", "p90", "p95", "p99"])))
    intervals = {
        name: (value * draw(st.floats(0.5, 1)), value * draw(st.floats(1, 2)))
        for name, value in zip(("p50", "p90", "p95", "p99"), quantiles, strict=True)
        if name in names
    }
    slowest = draw(st.none() | st.just(quantiles[-1] * 2))
    return Latency(count, *quantiles, intervals, draw(st.integers(0, min(count - 1, 9))), slowest)


latencies = _latencies()


def _accuracies(*kinds: str) -> st.SearchStrategy[Accuracy]:
    shares = st.lists(st.floats(0, 1), min_size=3, max_size=3).map(sorted)
    expected = st.none() | st.floats(-0.1, 1)
    return st.tuples(st.sampled_from(kinds), shares, st.integers(1, 10**6), expected).map(
        lambda t: Accuracy(t[0], t[1][1], t[2], t[1][0], t[1][2], t[3])
    )


accuracies = _accuracies("top1", "agreement")
texts = st.text(min_size=1, max_size=20)
candidates = st.builds(
    PrecisionCandidate,
    p50_ms=st.floats(1e-3, 1),
    p95_ms=st.floats(1, 10),
    bytes=st.integers(1, 10**12),
    accuracy=st.none() | accuracies,
)
comparisons = st.dictionaries(st.sampled_from(["fp32", "fp16", "int8"]), candidates, min_size=1).map(
    lambda found: PrecisionComparison(found, next(iter(found)), "measured")
)
states = st.dictionaries(texts, st.floats(-1e6, 1e6) | st.integers(-9, 9) | st.text(max_size=9), max_size=3)
entries = st.builds(
    DegreeProfile,
    latencies,
    accuracy=st.none() | accuracies,
    agreement=st.none() | _accuracies("agreement"),
    energy=st.none() | st.builds(Energy, st.floats(1e-3, 1e6), st.integers(1, 1000), texts),
    precisions=st.none() | comparisons,
    dominated_by=st.none() | st.integers(0, 99),
)
profiles = st.builds(
    Profile,
    device=st.dictionaries(texts, st.text(max_size=20), max_size=4),
    backend=texts,
    precision=texts,
    batch=st.integers(1, 512),
    threads=st.integers(0, 64),
    bundle_fingerprint=texts,
    model=texts,
    interval=texts,
    measured=st.dictionaries(texts, st.integers() | st.text(), max_size=3),
    degrees=st.dictionaries(st.integers(0, 500), entries, min_size=1, max_size=5),
    device_state=st.none()
    | st.builds(
        StateLog, states, states, st.lists(states, max_size=3).map(tuple), st.lists(texts, max_size=2).map(tuple)
    ),
)


def one_profile(**changes: Any) -> Profile:
    arguments: dict[str, Any] = {
        "device": {"processor": "x", "cores": "2"},
        "backend": "onnxruntime",
        "precision": "fp32",
        "batch": 1,
        "threads": 2,
        "bundle_fingerprint": "a" * 64,
        "model": "small",
        "interval": "the engine",
        "degrees": {
            8: DegreeProfile(Latency(10, 1.0, 2.0, 3.0, 4.0)),
            0: DegreeProfile(Latency(10, 5.0, 6.0, 7.0, 8.0), Accuracy("top1", 0.9, 100, 0.8, 0.95)),
        },
        "measured": {"when": "2024-01-01T00:00:00+00:00"},
    }
    return Profile(**{**arguments, **changes})


@settings(max_examples=40)
@given(profiles)
def test_json_round_trip(profile: Profile) -> None:
    content = json.loads(json.dumps(profile.to_json(), allow_nan=False))
    jsonschema.validate(content, SCHEMA)
    assert Profile.from_json(content) == profile


def test_save_load_find(tmp_path: Path) -> None:
    profile = one_profile()
    path = profile.save(tmp_path)
    assert path == tmp_path / "profiles" / f"{profile.fingerprint}.json"
    assert Profile.load(path) == profile
    assert find_profiles(tmp_path) == [path]
    assert list(profile.degrees) == [0, 8]


def test_the_fingerprint_covers_what_the_profile_holds_for() -> None:
    names = {
        one_profile(**change).fingerprint
        for change in (
            {},
            {"device": {"processor": "y", "cores": "2"}},
            {"backend": "tensorrt"},
            {"precision": "fp16"},
            {"batch": 8},
            {"threads": 1},
            {"bundle_fingerprint": "b" * 64},
        )
    }
    assert len(names) == 7
    assert one_profile(model="other", interval="other", measured={}).fingerprint == one_profile().fingerprint


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"device": {"processor": "y", "cores": "2"}}, "device processor is 'x', the profile has 'y'"),
        ({"device": {"processor": "x"}}, "device cores is '2', the profile has None"),
        ({"batch": 8}, "batch is 1, the profile has 8"),
        ({"bundle_fingerprint": "b"}, "bundle is "),
    ],
)
def test_a_mismatch_is_named(change: dict[str, Any], why: str) -> None:
    mine = one_profile()
    assert mine.mismatch(mine.identity) is None
    other = one_profile(**change).mismatch(mine.identity)
    assert other is not None
    assert why in other


def _without(key: str) -> dict[str, Any]:
    content = one_profile().to_json()
    del content[key]
    return content


def _with(**changes: Any) -> dict[str, Any]:
    return {**one_profile().to_json(), **changes}


def _latency(**changes: Any) -> dict[str, Any]:
    content = one_profile().to_json()
    content["degrees"][0]["latency"].update(changes)
    return content


REFERENCE = {"right": True, "difference": 1e-6, "allowed": 1e-3, "cosine": 1.0, "batch": 1, "found": None}
ACCURACY = {"kind": "top1", "value": 0.5, "count": 10, "low": 0.4, "high": 0.6, "expected": None}


def _entry(**changes: Any) -> dict[str, Any]:
    content = one_profile().to_json()
    content["degrees"][0].update(changes)
    return content


def _precisions(**changes: Any) -> dict[str, Any]:
    candidate = {"p50_ms": 1.0, "p95_ms": 2.0, "bytes": 9, "accuracy": ACCURACY, "excluded": None, **changes}
    return {"candidates": {"fp32": candidate}, "winner": "fp32", "reason": "the only one"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (_without("profile_version"), "profile version None"),
        (_with(profile_version=2), "profile version 2, this tocom reads 1"),
        *((_without(key), key) for key in ("device", "backend", "batch", "threads", "degrees", "measured", "model")),
        (_with(degrees=[]), "'degrees' must be a list of at least 1. Got"),
        (_with(degrees=[1]), "not a valid profile"),
        (_with(batch=0), "'batch' must be at least 1. Got 0 instead"),
        (_with(batch=True), "'batch' must be of type integer. Got True instead"),
        (_with(threads=-1), "'threads' must be at least 0. Got -1 instead"),
        (_with(backend=3), "'backend' must be of type string. Got 3 instead"),
        (_with(device=[]), "not a valid profile"),
        (_with(degrees=one_profile().to_json()["degrees"] * 2), "is twice there"),
        (_with(batch=8), "changed by hand"),
        (_latency(p50_ms=-1), r"'degrees\[0\]\.latency\.p50_ms' must be above 0. Got -1 instead"),
        (_latency(p50_ms=float("nan")), "NaN is not a JSON number"),
        (_latency(p50_ms="5"), "p50_ms' must be of type number. Got '5' instead"),
        (_latency(p99_ms=0.5), "positive and ascending"),
        (_latency(count=0), "count' must be at least 1. Got 0 instead"),
        (_latency(mean_ms=1), "not a valid profile"),
        (_latency(intervals_ms={"p50": [3.0, 4.0]}), "low <= p50 <= high"),
        (_latency(intervals_ms={"p51": [3.0, 4.0]}), "intervals_ms' has an unknown member 'p51'"),
        (_latency(intervals_ms={"p50": [3.0]}), "intervals_ms.p50' must be a list of at least 2. Got"),
        (_latency(intervals_ms=7), "not a valid profile"),
        (_latency(outliers=10), "'outliers' must be an integer in 0"),
        (_latency(max_ms=1.0), "at least the p99"),
        (_latency(p99_ms=10**400), "not a valid profile"),
        (_entry(agreement=ACCURACY), "must be of that kind"),
        (_entry(dominated_by="0"), "dominated_by' must be of type integer or null. Got '0' instead"),
        (
            _entry(energy={"millijoules": 0, "count": 1, "source": "nvml"}),
            "millijoules' must be above 0",
        ),
        (_entry(precisions={"candidates": {}, "winner": "fp32", "reason": ""}), "an object of at least 1 members"),
        (_entry(precisions=_precisions(excluded="below the floor")), "winning precision"),
        (_entry(precisions=_precisions(p95_ms=0.5)), "0 < p50 <= p95"),
        (
            _with(device_state={"start": {}, "end": {"clock_mhz": None}, "readings": [], "marks": []}),
            "of type number or string",
        ),
        (
            _with(device_state={"start": {}, "end": {}, "readings": [], "marks": [1]}),
            "of type string",
        ),
        (_with(device_state={"start": {}}), "not a valid profile"),
        *(
            (_with(measured={"reference_answers": found}), "reference_answers")
            for found in ("all right", {"0": True}, {"0": {"right": True}}, {"0": {**REFERENCE, "allowed": 0}})
        ),
    ],
)
@pytest.mark.fault("profile fields of the wrong type or range", outcome="CalibrationError in one line")
def test_bad_content_is_refused_in_one_line(tmp_path: Path, content: Any, message: str) -> None:
    path = tmp_path / "p.json"
    path.write_bytes(sealed_bytes(json.dumps(content).removesuffix("}").encode()))
    with pytest.raises(CalibrationError, match=message) as caught:
        Profile.load(path)
    text = str(caught.value)
    assert str(path) in text
    assert "tocom calibrate" in text
    assert "\n" not in text


def test_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(CalibrationError, match="No profile at"):
        Profile.load(tmp_path / "none.json")
    (tmp_path / "half.json").write_text('{"profile_version": 1,')
    with pytest.raises(CalibrationError, match="lacks its seal"):
        Profile.load(tmp_path / "half.json")
    (tmp_path / "large.json").write_bytes(b" " * ((1 << 20) + 1))
    with pytest.raises(CalibrationError, match="more than 1048576 bytes"):
        Profile.load(tmp_path / "large.json")


def test_an_unwritable_folder_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "profiles").write_text("a file in the way")
    with pytest.raises(OutputError):
        one_profile().save(tmp_path)
    assert [entry.name for entry in tmp_path.iterdir()] == ["profiles"]


@pytest.mark.parametrize("shares", [(0.5, 0.4, 0.6), (0.1, 0.5, 1.5), (-0.1, 0.5, 0.6), (0.1, float("nan"), 0.6)])
def test_impossible_accuracies(shares: tuple[float, float, float]) -> None:
    low, value, high = shares
    with pytest.raises(CalibrationError, match="0 <= low <= value <= high <= 1"):
        Accuracy("top1", value, 10, low, high)
