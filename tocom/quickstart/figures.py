"""The quickstart's figures: what the test cells are worth at every degree, as JSON."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.alignment.ridge import feature_gaps
from tocom.calibration import collect_answers, wilson_interval
from tocom.formats.bundle import Bundle
from tocom.formats.measurements import Accuracy
from tocom.formats.profile import Profile
from tocom.quickstart.cells import Cell
from tocom.runtime import Runtime
from tocom.system.cpu import cpu_identity
from tocom.system.dependencies import installed

__all__ = ["Measured", "all_figures", "first_rows", "found_again", "is_found", "measured", "share"]


@dataclass(frozen=True)
class Measured:
    """What the same cells gave at every degree.

    Attributes:
        features: Per degree [cells, channels], float32.
        accuracy: Per degree, of the head on them.
        median_ms: Per degree, of an inference at batch 1.
    """

    features: dict[int, NDArray[np.float32]]
    accuracy: dict[int, Accuracy]
    median_ms: dict[int, float]


def measured(runtime: Runtime, cells: list[Cell], progress: Callable[..., None]) -> Measured:
    """Run every resident degree on every cell."""
    features: dict[int, list[NDArray[np.float32]]] = {degree: [] for degree in runtime.degrees}
    latencies: dict[int, list[float]] = {degree: [] for degree in runtime.degrees}

    def keep(result: Any) -> None:
        features[result.degree].append(result.outputs["features"])
        latencies[result.degree].append(result.latency_ms)

    runtime.add_hook(keep)
    accuracy = collect_answers(runtime, [(cell.path, cell.label) for cell in cells], progress=progress).accuracy()
    return Measured(
        {degree: np.concatenate(parts) for degree, parts in features.items()},
        accuracy,
        {degree: float(np.median(values)) for degree, values in latencies.items()},
    )


def is_found(features: NDArray[np.float32], gallery: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Return for every image whether its nearest neighbour (cosine) is itself, [images].

    Args:
        features: Features of the images at a degree, [images, channels].
        gallery: Features of the same images at degree 0, then of others, [count, channels].
    """
    gallery = gallery / np.linalg.norm(gallery, axis=1, keepdims=True)
    return np.asarray((features @ gallery.T).argmax(axis=1) == np.arange(len(features)))


def share(right: NDArray[np.bool_]) -> dict[str, float]:
    """Return the share of what is true, [count], as ``value`` with its 95 % Wilson interval, ``low`` and ``high``."""
    low, high = wilson_interval(int(right.sum()), len(right))
    return {"value": float(right.mean()), "low": low, "high": high}


def found_again(
    features: NDArray[np.float32], dense: NDArray[np.float32], others: NDArray[np.float32]
) -> dict[str, float]:
    """Return the share of cells whose nearest neighbour (cosine) among dense features is the same cell.

    Args:
        features: Features of the cells at a degree, [cells, channels].
        dense: Features of the same cells at degree 0, [cells, channels].
        others: Features of the rest of the gallery at degree 0, [count, channels].

    Returns:
        ``value`` with its 95 % Wilson interval, ``low`` and ``high``.
    """
    return share(is_found(features, np.concatenate([dense, others])))


def first_rows(bundle: Bundle, alone: Measured, gallery: NDArray[np.float32]) -> list[dict[str, Any]]:
    """Return per degree what merging alone does; ``gallery`` holds dense features of other cells."""
    return [
        {
            "degree": degree,
            "token_counts": list(entry.token_counts),
            "macs": entry.macs,
            "median_ms": alone.median_ms[degree],
            "accuracy": vars(alone.accuracy[degree]),
            "found": found_again(alone.features[degree], alone.features[0], gallery),
        }
        for degree, entry in bundle.degrees.items()
    ]


def all_figures(
    bundle: Bundle,
    profile: Profile,
    *,
    alone: Measured,
    compensated: Measured,
    gallery: NDArray[np.float32],
    scale: float,
    backend: str,
) -> dict[str, Any]:
    """Return what the bundle is worth; degree 0 is the same with and without the compensator."""
    rows = []
    for index, (row, degree) in enumerate(zip(first_rows(bundle, alone, gallery), bundle.degrees, strict=True)):
        row.pop("median_ms")  # the profile's are measured with more care
        better = compensated if degree else alone
        dense, own, latency = alone.features[0], better.features[degree], profile.degrees[degree].latency
        gaps = [float(feature_gaps(dense, each).mean()) for each in (alone.features[degree], own)]
        rows.append(
            row
            | {
                "bytes": bundle.degree_bytes(degree),
                "accuracy": vars(better.accuracy[degree]),
                "accuracy_without_compensator": row["accuracy"],
                "found": found_again(own, dense, gallery),
                "found_without_compensator": row["found"],
                "feature_gap": dict(zip(("without_compensator", "with_compensator"), gaps, strict=True))
                if degree
                else None,
                "p50_ms": latency.p50_ms,
                "p95_ms": latency.p95_ms,
                "held_out_accuracy": vars(profile.degrees[degree].accuracy),
                "largest_difference_to_torch": bundle.manifest["degrees"][index]["check"]["max_abs_difference"],
            }
        )
    return {
        "machine": {
            "processor": cpu_identity()["processor"],
            "cores": str(len(os.sched_getaffinity(0))),
            "backend": backend,
            "python": platform.python_version(),
            **{name: installed(name) for name in ("torch", "timm", "onnxruntime")},
        },
        "scale": scale,
        "gallery": len(alone.features[0]) + len(gallery),
        "degrees": rows,
        "bundle_bytes": sum(file["size"] for file in bundle.manifest["files"].values()),
        "dense_bytes": bundle.degree_bytes(0),
    }
