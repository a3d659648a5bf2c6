"""Latency per degree: interleaved in random order, so that a slow phase of the machine hits every degree alike."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from tocom.errors import RequestError
from tocom.profile import Latency
from tocom.runtime import Runtime
from tocom.runtime.profiles import latency_of

__all__ = ["Progress", "measure_latency", "opened"]

Progress = Callable[[str, int, int], None]
"""Called with what is being done, the steps done, and the steps in all."""


@contextlib.contextmanager
def opened(runtime_or_bundle: Runtime | Path | str) -> Iterator[Runtime]:
    """Yield the runtime; one that is opened here is closed again."""
    if isinstance(runtime_or_bundle, Runtime):
        yield runtime_or_bundle
        return
    with Runtime.open(runtime_or_bundle) as runtime:
        yield runtime


def measure_latency(
    runtime_or_bundle: Runtime | Path | str,
    *,
    samples: int = 200,
    warmup: int = 5,
    batch: int | None = None,
    degrees: Sequence[int] | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> dict[int, Latency]:
    """Return latency quantiles per degree.

    Every round runs each degree once, in an order drawn anew; so the degrees compare within one run.

    Args:
        runtime_or_bundle: A warm runtime, or a bundle to open for this.
        samples: Timed inferences per degree.
        warmup: Inferences per degree before them, not counted.
        batch: Images per inference; None takes the bundle's optimal batch.
        degrees: Degrees to measure; None takes the resident ones.
        seed: Of the order and the images' values.
        progress: Called after every round.

    Raises:
        RequestError: ``samples``, ``warmup`` or ``batch`` is out of its range.
        EngineError: A degree does not run.
    """
    for name, value, least in (("samples", samples, 1), ("warmup", warmup, 0)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise RequestError(f"The {name!r} parameter must be an integer >= {least}. Got {value!r} instead.")
    with opened(runtime_or_bundle) as runtime:
        generator = np.random.default_rng(seed)
        chosen = list(runtime.degrees if degrees is None else degrees)
        size = runtime.bundle.batch[1] if batch is None else batch
        images = generator.standard_normal((size, *runtime.bundle.image_shape), np.float32)
        times: dict[int, list[float]] = {degree: [] for degree in chosen}
        for round_index in range(warmup + samples):
            for place in generator.permutation(len(chosen)):
                degree = chosen[int(place)]
                result = runtime.infer(images, degree=degree)
                if round_index >= warmup:
                    times[degree].append(result.latency_ms - result.queue_ms)
            if progress is not None:
                progress("latency", round_index + 1, warmup + samples)
    return {degree: latency_of(values) for degree, values in times.items()}
