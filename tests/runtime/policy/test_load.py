"""A request's share of the time, against a schedule that is worked out step by step."""

from __future__ import annotations

import math
import tracemalloc

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tocom.runtime.policy.load import Load

MS = 1e-3


class Sure:
    """A device whose inferences all take what they take."""

    def __init__(self, fastest_ms: float) -> None:
        self._fastest_ms = fastest_ms

    def tail(self, misses: float = 1.0) -> float:
        return 1.0

    def fastest_ms(self, batch: int = 1) -> float:
        return self._fastest_ms


def steady(load: Load, names: list[str], period_ms: float, *, staggered: bool, until_ms: float) -> None:
    """Let sources ask in a rhythm up to a time; what they asked has been answered."""
    for beat in range(10):
        for place, name in enumerate(names):
            late = place / len(names) * period_ms if staggered else 0.0
            now = (until_ms - (10 - beat) * period_ms + late) * MS
            load.start(load.arrive(name, now, now + period_ms * MS))


def test_alone_a_request_has_all_that_is_left() -> None:
    load = Load()
    assert load.share("a", 5.0, 33.0, Sure(4.0)).ms == 33.0
    load.start(load.arrive("a", 5.0, 5.033))
    assert load.share("a", 5.0, 33.0, Sure(4.0)).ms == 33.0
    assert load.share("a", 5.0, math.inf, Sure(4.0)).ms == math.inf


@given(
    slacks=st.lists(st.floats(1, 300), max_size=8),
    left=st.floats(1, 300),
    fastest=st.floats(0.5, 20),
)
def test_all_that_wait_are_in_time_at_the_share(slacks: list[float], left: float, fastest: float) -> None:
    load = Load()
    for slack in slacks:
        load.arrive(None, 10.0, 10.0 + slack * MS)
    share = load.share("a", 10.0, left, Sure(fastest)).ms
    assert min(left, fastest) <= share <= left
    done, before = share, 1
    for slack in sorted(slacks):
        if slack < (before + 1) * fastest * (1 + 1e-6):
            continue  # not even the fastest degree could make it
        done, before = done + share, before + 1
        assert done <= slack * (1 + 1e-9) or share <= fastest


@pytest.mark.parametrize("staggered", [False, True])
@pytest.mark.parametrize("count", [2, 4, 8])
def test_cameras_share_their_period(count: int, staggered: bool) -> None:
    load, period = Load(), 40.0
    steady(load, [f"camera {place}" for place in range(count)], period, staggered=staggered, until_ms=1000.0)
    now = 1.0
    token = load.arrive("camera 0", now, now + period * MS)
    load.start(token)
    share = load.share("camera 0", now, period, Sure(1.0)).ms
    assert share == pytest.approx(period / count, rel=0.02)


@pytest.mark.parametrize("count", [2, 4, 8])
def test_sources_that_are_known_share_their_period_from_the_first_frame(count: int) -> None:
    load, period = Load(), 40.0
    for place in range(count):
        load.expect(f"camera {place}", period * MS, period * MS)
    load.start(load.arrive("camera 0", 1.0, 1.04))
    assert load.share("camera 0", 1.0, period, Sure(1.0)).ms == pytest.approx(period / count)
    # The others did not come: they are waited for no longer.
    load.start(load.arrive("camera 0", 1.12, 1.16))
    assert load.share("camera 0", 1.12, period, Sure(1.0)).ms == period


@given(late=st.floats(0, 1))
def test_a_source_that_is_known_keeps_its_rhythm_whenever_its_first_frame_comes(late: float) -> None:
    load, period = Load(), 40.0
    for name in "ab":
        load.expect(name, period * MS, period * MS)
    for beat in range(3):
        load.start(load.arrive("a", beat * period * MS, (beat + 1) * period * MS))
        assert load.share("a", beat * period * MS, period, Sure(1.0)).ms <= period / 2 * (1 + 1e-6)
        if beat:
            begin = (beat + late) * period * MS
            load.start(load.arrive("b", begin, begin + period * MS))


def test_a_source_that_stopped_takes_nothing() -> None:
    load = Load()
    steady(load, ["a", "b"], 40.0, staggered=False, until_ms=1000.0)
    assert load.share("a", 1.0, 40.0, Sure(1.0)).ms < 25.0
    assert load.share("a", 1.3, 40.0, Sure(1.0)).ms == 40.0


@given(slack=st.floats(12, 300), fastest=st.floats(0.5, 5))
def test_who_waits_is_in_time_at_the_fastest_degree_even_if_this_one_takes_its_longest(
    slack: float, fastest: float
) -> None:
    class Noisy(Sure):
        def tail(self, misses: float = 1.0) -> float:
            return 1.5 if misses < 1.0 else 1.1

    load = Load()
    load.arrive(None, 10.0, 10.0 + slack * MS)
    share = load.share("a", 10.0, 1000.0, Noisy(fastest)).ms
    assert share / 1.1 * 1.5 + fastest <= slack * (1 + 1e-6)


def test_who_asks_without_a_rhythm_is_not_expected() -> None:
    load = Load()
    for now in (0.0, 0.1, 0.102, 0.5, 0.52, 0.9, 0.98):
        load.start(load.arrive("odd", now, now + 0.04))
    load.start(load.arrive("a", 0.98, 1.02))
    assert load.share("a", 0.98, 40.0, Sure(1.0)).ms == 40.0


def test_a_lost_frame_does_not_break_the_rhythm() -> None:
    load = Load()
    for name in ("a", "b"):
        for beat in (0, 1, 2, 3, 5, 6, 9, 10):
            load.start(load.arrive(name, beat * 0.04, beat * 0.04 + 0.04))
    assert load.share("a", 0.4, 40.0, Sure(1.0)).ms == pytest.approx(20.0, rel=0.02)


def test_sources_without_end_take_no_memory() -> None:
    load, held_bytes = Load(), []
    tracemalloc.start()
    for caller in range(10_000):
        load.start(load.arrive(caller, caller * 0.01, math.inf))
        if caller in (2_000, 9_999):
            held_bytes.append(tracemalloc.get_traced_memory()[0])
    tracemalloc.stop()
    assert held_bytes[1] < held_bytes[0] + 20_000  # 8,000 more sources would take a hundred times that
