"""What a profile holds per degree: latency, accuracy, energy and the comparison of precisions.

Each checks how its numbers stand to each other; what each may be alone stands in the JSON Schema of profiles.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tocom.errors import CalibrationError

__all__ = [
    "QUANTILES",
    "Accuracy",
    "DegreeProfile",
    "Energy",
    "Latency",
    "PrecisionCandidate",
    "PrecisionComparison",
    "State",
    "StateLog",
]

State = dict[str, float | str]
QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99}


@dataclass(frozen=True)
class Latency:
    """Latency of one degree over ``count`` samples, in milliseconds. No sample is left out, outliers included.

    Attributes:
        count: Timed inferences.
        p50_ms: Median.
        p90_ms: 90 % quantile.
        p95_ms: 95 % quantile.
        p99_ms: 99 % quantile.
        intervals_ms: Per quantile (``p50`` …) its 95 % interval, low and high; a quantile that has too few samples
            for one is absent.
        outliers: Samples beyond three interquartile ranges above the upper quartile.
        max_ms: The slowest sample; None where it was not kept.
    """

    count: int
    p50_ms: float
    p90_ms: float
    p95_ms: float
    p99_ms: float
    intervals_ms: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    outliers: int = 0
    max_ms: float | None = None

    def __post_init__(self) -> None:
        quantiles = (self.p50_ms, self.p90_ms, self.p95_ms, self.p99_ms)
        if not 0 < self.p50_ms <= self.p90_ms <= self.p95_ms <= self.p99_ms:
            raise CalibrationError(
                f"Latency quantiles must be positive and ascending (p50, p90, p95, p99). Got {quantiles}."
            )
        intervals = {name: tuple(interval) for name, interval in self.intervals_ms.items()}
        object.__setattr__(self, "intervals_ms", intervals)
        for name, interval in intervals.items():
            if not 0 < interval[0] <= getattr(self, f"{name}_ms") <= interval[1]:
                raise CalibrationError(f"The interval of {name} must hold 0 < low <= {name} <= high. Got {interval}.")
        if not 0 <= self.outliers < self.count:
            raise CalibrationError(f"'outliers' must be an integer in 0 … count - 1. Got {self.outliers!r}.")
        if self.max_ms is not None and not self.max_ms >= self.p99_ms:
            raise CalibrationError(f"'max_ms' must be a number that is at least the p99. Got {self.max_ms!r}.")


@dataclass(frozen=True)
class Accuracy:
    """Share of right answers of one degree.

    Attributes:
        kind: ``top1`` (against labels), or ``agreement`` (with the answers of the lowest degree).
        value: The share, 0…1.
        count: Images it was measured on.
        low: Lower end of the 95 % Wilson interval.
        high: Upper end of it.
        expected: What the runtime ranks the degrees by: the share as far as the images tell the degrees apart (see
            ``tocom.calibration.accuracy.ranking``); None where that was not worked out.
    """

    kind: str
    value: float
    count: int
    low: float
    high: float
    expected: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.low <= self.value <= self.high <= 1:
            shares = (self.low, self.value, self.high)
            raise CalibrationError(f"Accuracy must hold 0 <= low <= value <= high <= 1. Got {shares}.")

    @property
    def rank(self) -> float:
        """The number to rank degrees by: ``expected``, else ``value``."""
        return self.value if self.expected is None else self.expected


@dataclass(frozen=True)
class Energy:
    """Energy of one inference, the device's idle share included.

    Attributes:
        millijoules: Mean of one inference.
        count: Inferences that it is the mean of.
        source: What measured it, such as ``nvml``.
    """

    millijoules: float
    count: int
    source: str


@dataclass(frozen=True)
class PrecisionCandidate:
    """One precision of a degree, as measured on one backend.

    Attributes:
        p50_ms: Median latency.
        p95_ms: 95 % quantile.
        bytes: Size of the degree's tensors.
        accuracy: At this precision; None where it was not measured.
        excluded: Why it must not win, such as an accuracy below the floor; None where it may.
    """

    p50_ms: float
    p95_ms: float
    bytes: int
    accuracy: Accuracy | None = None
    excluded: str | None = None

    def __post_init__(self) -> None:
        if not 0 < self.p50_ms <= self.p95_ms:
            raise CalibrationError(
                f"A precision's latency must hold 0 < p50 <= p95. Got {self.p50_ms!r} and {self.p95_ms!r}."
            )


@dataclass(frozen=True)
class PrecisionComparison:
    """The precisions of a degree beside each other.

    Attributes:
        candidates: Per precision (``fp32``, ``fp16``, ``int8``).
        winner: The one to use.
        reason: Why, in one line.
    """

    candidates: Mapping[str, PrecisionCandidate]
    winner: str
    reason: str

    def __post_init__(self) -> None:
        if self.winner not in self.candidates or self.candidates[self.winner].excluded is not None:
            raise CalibrationError(
                f"The winning precision must be a candidate that is not excluded. Got {self.winner!r} of "
                f"{', '.join(self.candidates) or 'none'}."
            )


@dataclass(frozen=True)
class StateLog:
    """The device's state while a profile was measured. A state is plain JSON: name with unit to number or text.

    Attributes:
        start: Before the first sample.
        end: After the last one.
        readings: In between, each with ``seconds`` since the start; at most some hundred, evenly thinned.
        marks: What makes the run doubtful, one line each, such as a change of the power mode; empty is good.
    """

    start: Mapping[str, Any]
    end: Mapping[str, Any]
    readings: tuple[Mapping[str, Any], ...] = ()
    marks: tuple[str, ...] = ()


@dataclass(frozen=True)
class DegreeProfile:
    """What is known about one degree on one device.

    Attributes:
        latency: Its latency.
        accuracy: Against labels where there were some, else None or the agreement.
        agreement: With the answers of the lowest degree, where it was measured beside the accuracy.
        energy: Energy of one inference, where the device measures it.
        precisions: Precisions beside each other, where more than one was measured.
        dominated_by: A degree that is at least as accurate and not slower: the runtime never takes this one.
    """

    latency: Latency
    accuracy: Accuracy | None = None
    agreement: Accuracy | None = None
    energy: Energy | None = None
    precisions: PrecisionComparison | None = None
    dominated_by: int | None = None

    def __post_init__(self) -> None:
        if self.agreement is not None and self.agreement.kind != "agreement":
            raise CalibrationError(f"'agreement' must be of that kind. Got {self.agreement.kind!r}.")
