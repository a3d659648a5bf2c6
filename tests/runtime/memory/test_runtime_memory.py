"""Memory known before loading, and which degrees are worth keeping within a limit."""

from __future__ import annotations

import logging
from itertools import combinations
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_bundles import CLASSES, SIZE, images_of, write_small_bundle

from tocom.errors import EngineError, RequestError
from tocom.formats.bundle import Bundle
from tocom.runtime import Runtime
from tocom.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from tocom.runtime.memory.needs import LIBRARY_BYTES, OVERHEAD_BYTES, Need, best_subset, needs_of, set_bytes, set_value

degree_sets = st.integers(1, 5).flatmap(
    lambda count: st.tuples(
        st.lists(st.floats(0, 1), min_size=count, max_size=count),
        st.lists(st.floats(1, 100), min_size=count, max_size=count),
        st.lists(st.integers(1, 50), min_size=count, max_size=count),
    )
)


def test_weights_are_counted_exactly_and_shared_ones_once(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "b", width=64)
    needs = needs_of(Bundle(bundle.path), [0, 4, 8])
    weights = 4 * (3 * SIZE * SIZE * 64 + 64 * 64 + 64 * CLASSES)
    assert all(need.weight_bytes == weights for need in needs.values())
    scratch = max(need.activation_bytes for need in needs.values())
    fixed = LIBRARY_BYTES + 3 * OVERHEAD_BYTES + scratch
    assert set_bytes(list(needs.values()), shared=True) == weights + fixed
    assert set_bytes(list(needs.values()), shared=False) == 3 * weights + fixed
    assert set_bytes([], shared=True) == 0


@given(degree_sets, st.integers(1, 200))
def test_the_best_subset_is_the_best_of_all_that_fit(
    sets: tuple[list[float], list[float], list[int]], limit: int
) -> None:
    accuracy, latency, sizes = (dict(enumerate(values)) for values in sets)
    needs = {d: Need(d, {("weights.bin", d): size}, 0, 0) for d, size in sizes.items()}
    limit_bytes = LIBRARY_BYTES + limit
    fitting = [
        chosen
        for count in range(1, len(sizes) + 1)
        for chosen in combinations(sizes, count)
        if sum(sizes[d] for d in chosen) <= limit
    ]
    if not fitting:
        with pytest.raises(EngineError, match="No degree fits into memory_limit_bytes"):
            best_subset(needs, accuracy, latency, limit_bytes, shared=False)
        return
    best = best_subset(needs, accuracy, latency, limit_bytes, shared=False)
    assert best.degrees in fitting
    assert best.value == max(set_value(chosen, accuracy, latency) for chosen in fitting)


def test_value_not_order_decides() -> None:
    accuracy = {0: 0.80, 4: 0.799, 8: 0.79, 12: 0.78, 16: 0.70}
    latency = {0: 29.0, 4: 28.0, 8: 24.0, 12: 21.0, 16: 17.0}
    needs = {d: Need(d, {("weights.bin", d): 10}, 0, 0) for d in accuracy}
    two = best_subset(needs, accuracy, latency, LIBRARY_BYTES + 20, shared=False)
    # A fast degree for tight budgets and an accurate middle one; not the first two, not both ends.
    assert two.degrees == (12, 16)
    assert best_subset(needs, accuracy, latency, LIBRARY_BYTES + 50, shared=False).degrees == (0, 4, 8, 12, 16)


@given(degree_sets)
def test_more_degrees_are_never_worth_less(sets: tuple[list[float], list[float], list[int]]) -> None:
    accuracy, latency = dict(enumerate(sets[0])), dict(enumerate(sets[1]))
    degrees = list(accuracy)
    for count in range(1, len(degrees)):
        assert set_value(degrees[: count + 1], accuracy, latency) >= set_value(degrees[:count], accuracy, latency)


def test_many_degrees_are_thinned_evenly() -> None:
    degrees = range(30)
    needs = {d: Need(d, {("weights.bin", d): 10}, 0, 0) for d in degrees}
    accuracy, latency = {d: -float(d) for d in degrees}, {d: 100.0 - 2 * d for d in degrees}
    best = best_subset(needs, accuracy, latency, LIBRARY_BYTES + 100, shared=False)
    assert len(best.degrees) == 10
    assert best.degrees[-1] == 29


def test_a_limit_leaves_out_degrees_with_a_warning(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    bundle = write_small_bundle(tmp_path / "b", width=512)
    needs = needs_of(Bundle(bundle.path), [0, 4, 8])
    two = set_bytes([needs[0], needs[8]], shared=True)
    with (
        caplog.at_level(logging.WARNING),
        Runtime.open(bundle.path, memory_limit_bytes=two) as runtime,
    ):
        assert len(runtime.degrees) == 2
        assert runtime.stats()["estimated_bytes"] <= two
        assert runtime.infer(images_of(1)).outputs["logits"].shape == (1, CLASSES)
    assert "left out" in caplog.text
    with pytest.raises(EngineError, match=r"No degree fits into memory_limit_bytes=1000: the smallest needs about"):
        Runtime.open(bundle.path, memory_limit_bytes=1000)
    for bad in (0, -5, 1.5, True):
        with pytest.raises(RequestError, match="'memory_limit_bytes' parameter must be an integer"):
            Runtime.open(bundle.path, memory_limit_bytes=bad)  # type: ignore[arg-type]


@pytest.mark.fault("out of memory at the nth engine", outcome="a warning; the other degrees serve")
def test_out_of_memory_while_loading_costs_degrees_not_the_service(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = write_small_bundle(tmp_path / "b")
    load, loaded = OnnxRuntimeBackend.load, []

    def load_two(backend: OnnxRuntimeBackend, degree: int) -> object:
        if len(loaded) == 2:
            raise MemoryError("no room")
        loaded.append(degree)
        return load(backend, degree)

    monkeypatch.setattr(OnnxRuntimeBackend, "load", load_two)
    with caplog.at_level(logging.WARNING), Runtime.open(bundle.path) as runtime:
        assert runtime.degrees == tuple(sorted(loaded))
        assert runtime.infer(images_of(1)).degree in loaded
    assert "out of memory at degree" in caplog.text

    def load_none(backend: OnnxRuntimeBackend, degree: int) -> object:
        raise MemoryError("no room")

    monkeypatch.setattr(OnnxRuntimeBackend, "load", load_none)
    with pytest.raises(EngineError, match=r"No degree of .* fits into memory"):
        Runtime.open(bundle.path)
