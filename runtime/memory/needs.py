"""What a set of degrees needs in memory, known before anything is loaded, and which set is worth most within a limit.

The needs are estimates: weights are counted exactly from the ONNX files, shared ones once; activations from the
token counts and the widest layer; a fixed part per degree for the backend's own structures.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise

from tocom.errors import BundleError, EngineError
from tocom.formats.bundle import Bundle
from tocom.formats.onnx.tensors import Tensor, read_tensors, stored_tensors

__all__ = ["Need", "SetValue", "best_subset", "needs_of", "set_bytes", "set_value"]

# Session structures, small tensors and per-degree constants under ONNX Runtime; measured 5.5 MB for DeiT-S.
OVERHEAD_BYTES = 6 << 20
# The backend's library itself, once per process.
LIBRARY_BYTES = 24 << 20
# Buffers of the widest activation that are alive at once in a block: in, out and two for the kernels.
_LIVE_ACTIVATIONS = 4
_MOST_FOR_ALL_SUBSETS = 12


@dataclass(frozen=True)
class Need:
    """What one degree needs.

    Attributes:
        degree: The degree.
        blobs: Its weights: key of the stored bytes to their size; equal keys are one copy where weights are shared.
        activation_bytes: Scratch memory of one inference at the largest batch; one arena serves all degrees.
        overhead_bytes: What the degree needs besides.
    """

    degree: int
    blobs: Mapping[tuple[str, int], int]
    activation_bytes: int
    overhead_bytes: int = OVERHEAD_BYTES

    @property
    def weight_bytes(self) -> int:
        """Bytes of all weights of this degree."""
        return sum(self.blobs.values())


@dataclass(frozen=True)
class SetValue:
    """A set of degrees, what it needs, and what it is worth."""

    degrees: tuple[int, ...]
    bytes: int
    value: float


def needs_of(bundle: Bundle, degrees: Sequence[int]) -> dict[int, Need]:
    """Return what each degree needs, from the bundle's files alone.

    Raises:
        BundleError: A file does not match the manifest, or is not an ONNX file.
    """
    needs = {}
    for degree in degrees:
        model = bundle.read_onnx(degree)
        try:
            tensors = read_tensors(model)
        except ValueError as error:
            path = bundle.onnx_path(degree)
            raise BundleError(f"{path} is not an ONNX file ({error}). Export the bundle again.") from error
        blobs = stored_tensors(tensors)
        values = bundle.batch[2] * max(bundle.degrees[degree].token_counts) * _repeated_width(tensors)
        images = bundle.batch[2] * math.prod(bundle.image_shape)
        needs[degree] = Need(degree, blobs, 4 * (_LIVE_ACTIVATIONS * values + images))
    return needs


def set_bytes(needs: Sequence[Need], *, shared: bool) -> int:
    """Return what a set of degrees needs together.

    Args:
        needs: The degrees.
        shared: The backend keeps one copy of equal weights.
    """
    if not needs:
        return 0
    if shared:
        weights = sum({key: size for need in needs for key, size in need.blobs.items()}.values())
    else:
        weights = sum(need.weight_bytes for need in needs)
    return (
        LIBRARY_BYTES
        + weights
        + sum(need.overhead_bytes for need in needs)
        + max(need.activation_bytes for need in needs)
    )


def set_value(degrees: Sequence[int], accuracy: Mapping[int, float], latency: Mapping[int, float]) -> float:
    """Return what a set is worth to the policy: its mean accuracy over budgets.

    Budgets are spread evenly from the fastest latency of all degrees to the slowest. A budget that no degree of the
    set meets counts as the worst accuracy less the whole range: a miss is worse than any answer.

    Args:
        degrees: The set.
        accuracy: Per degree of the bundle; any number that orders them.
        latency: The same, in milliseconds or any unit of time.
    """
    if not degrees:
        return float("-inf")
    worst, best = min(accuracy.values()), max(accuracy.values())
    missed = worst - (best - worst or 1.0)
    marks = sorted(set(latency.values()))
    # Between two latencies nothing changes; the last stretch stands for every larger budget.
    stretches = [*zip(marks, (b - a for a, b in pairwise(marks)), strict=False)]
    stretches.append((marks[-1], max((marks[-1] - marks[0]) / len(marks), 1e-9)))
    total = sum(width for _, width in stretches)
    value = 0.0
    for budget, width in stretches:
        feasible = [accuracy[degree] for degree in degrees if latency[degree] <= budget]
        value += width * max(feasible, default=missed)
    return value / total


def best_subset(
    needs: Mapping[int, Need],
    accuracy: Mapping[int, float],
    latency: Mapping[int, float],
    limit_bytes: int,
    *,
    shared: bool,
) -> SetValue:
    """Return the set of degrees that is worth most within a memory limit; of equals the smaller one.

    Args:
        needs: What each degree needs.
        accuracy: Per degree.
        latency: Per degree.
        limit_bytes: Most memory that the set may take.
        shared: The backend keeps one copy of equal weights.

    Raises:
        EngineError: Not even one degree fits; the least need is named.
    """
    degrees = sorted(needs)
    fitting = [
        SetValue(chosen, need, set_value(chosen, accuracy, latency))
        for chosen in _subsets(degrees)
        if (need := set_bytes([needs[degree] for degree in chosen], shared=shared)) <= limit_bytes
    ]
    if not fitting:
        least = min(set_bytes([need], shared=shared) for need in needs.values())
        raise EngineError(
            f"No degree fits into memory_limit_bytes={limit_bytes}: the smallest needs about {least} bytes "
            f"({least / 2**20:.0f} MiB). Raise the limit, or export at a lower precision or a smaller batch."
        )
    return max(fitting, key=lambda entry: (entry.value, -entry.bytes))


def _subsets(degrees: Sequence[int]) -> list[tuple[int, ...]]:
    """Return all subsets; of many degrees only those that drop consecutive ones from an even spread."""
    if len(degrees) <= _MOST_FOR_ALL_SUBSETS:
        return [chosen for size in range(1, len(degrees) + 1) for chosen in combinations(degrees, size)]
    spreads = []
    for size in range(1, len(degrees) + 1):
        for first in range(len(degrees)):
            step = (len(degrees) - 1 - first) / max(size - 1, 1)
            spreads.append(tuple(sorted({degrees[first + round(step * index)] for index in range(size)})))
    return spreads


def _repeated_width(tensors: Sequence[Tensor]) -> int:
    """Return the largest dimension that occurs in at least two tensors: layers repeat, a large classifier does not."""
    counts: dict[int, int] = {}
    for tensor in tensors:
        for size in set(tensor.dims):
            counts[size] = counts.get(size, 0) + 1
    return max((size for size, count in counts.items() if count > 1), default=1)
