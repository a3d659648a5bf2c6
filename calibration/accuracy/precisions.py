"""Precisions beside each other on the backend at hand: the same degrees of two bundles, timed in turn.

Which precision is faster depends on the device, and "stay at float32" is an answer. The winner of a degree is the
fastest that may win; one that is not shown to be faster than the bundle of higher precision does not replace it.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from tocom.calibration.accuracy.answers import Answers
from tocom.calibration.accuracy.intervals import share_of
from tocom.calibration.accuracy.ranking import mcnemar
from tocom.errors import RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.measurements import Accuracy, PrecisionCandidate, PrecisionComparison
from tocom.formats.pixels import random_images
from tocom.runtime import Runtime
from tocom.system.progress import Progress, silent

__all__ = ["compare_precisions"]

_LEVEL = 0.05
_WARM_UP = 5


def compare_precisions(
    runtime: Runtime,
    other: Runtime,
    *,
    samples: int = 60,
    seed: int = 0,
    answers: Answers | None = None,
    other_answers: Answers | None = None,
    progress: Progress = silent,
) -> dict[int, PrecisionComparison]:
    """Time the degrees that two warm runtimes share, in turn, in an order drawn again every round.

    Args:
        runtime: Runtime of the bundle in question, such as INT8.
        other: Runtime of the same model at a higher precision, such as float32, on the same backend.
        samples: Timed inferences per degree and precision.
        seed: Seed of the order and of the images' values.
        answers: Answers of ``runtime`` to some images; their accuracy is noted.
        other_answers: Answers of ``other`` to the same images.
        progress: Called after every round.

    Raises:
        RequestError: The bundles are not of one model, have the same precision, or share no degree.
    """
    first, second = runtime.bundle, other.bundle
    _check_pair(first, second, runtime.backend.name, other.backend.name)
    shared = [degree for degree in runtime.degrees if degree in other.degrees]
    generator = np.random.default_rng(seed)
    images = [random_images(bundle.manifest["input"], first.batch[1], generator) for bundle in (first, second)]
    turns = [(degree, which) for degree in shared for which in (0, 1)]
    times: dict[tuple[int, int], list[float]] = {turn: [] for turn in turns}
    for index in range(_WARM_UP + samples):
        for which in generator.permutation(len(turns)):
            turn = turns[int(which)]
            result = (runtime, other)[turn[1]].infer(images[turn[1]], degree=turn[0])
            if index >= _WARM_UP:
                times[turn].append(result.latency_ms - result.queue_ms)
        progress("precisions", index + 1, _WARM_UP + samples)
    found = {}
    for degree in shared:
        candidates = {}
        for which, (bundle, known) in enumerate(((first, answers), (second, other_answers))):
            p50, p95 = (float(q) for q in np.quantile(times[degree, which], (0.5, 0.95)))
            candidates[bundle.precision] = PrecisionCandidate(
                p50, p95, bundle.degree_bytes(degree), _accuracy(known, degree), _excluded(bundle, degree)
            )
        found[degree] = _decide(candidates, first.precision, second.precision, times[degree, 0], times[degree, 1])
    return found


def _decide(
    candidates: Mapping[str, PrecisionCandidate], mine: str, higher: str, my_ms: list[float], higher_ms: list[float]
) -> PrecisionComparison:
    excluded = candidates[mine].excluded
    if excluded is not None:
        return PrecisionComparison(candidates, higher, f"stay at {higher}: {excluded}")
    faster = sum(a < b for a, b in zip(my_ms, higher_ms, strict=True))
    slower = sum(a > b for a, b in zip(my_ms, higher_ms, strict=True))
    ratio = candidates[mine].p50_ms / candidates[higher].p50_ms
    measured = f"{mine} takes {ratio:.2f} of {higher}'s median here, faster in {faster} of {len(my_ms)} rounds"
    # The sign test, which McNemar's exact test is.
    if faster > slower and mcnemar(faster, slower) <= _LEVEL:
        return PrecisionComparison(candidates, mine, measured)
    return PrecisionComparison(candidates, higher, f"stay at {higher}: {measured}")


def _check_pair(first: Bundle, second: Bundle, backend: str, other_backend: str) -> None:
    if first.manifest["model"]["fingerprint"] != second.manifest["model"]["fingerprint"]:
        raise RequestError(f"{first.path} and {second.path} are not of one model: nothing to compare.")
    if first.precision == second.precision:
        raise RequestError(f"{first.path} and {second.path} are both in {first.precision}: nothing to compare.")
    if backend != other_backend:
        raise RequestError(f"The two precisions run on different backends, {backend} and {other_backend}. Name one.")
    if not set(first.degrees) & set(second.degrees):
        raise RequestError(f"{first.path} and {second.path} share no degree: nothing to compare.")


def _excluded(bundle: Bundle, degree: int) -> str | None:
    """Return why a degree is not in the bundle's precision, as the manifest says."""
    entry = next(each for each in bundle.manifest["degrees"] if each["degree"] == degree)
    reason: str | None = entry.get("quantization", {}).get("kept_out")
    return reason


def _accuracy(answers: Answers | None, degree: int) -> Accuracy | None:
    if answers is None:
        return None
    return share_of(answers.right()[degree], "agreement" if answers.labels is None else "top1")
