"""Reference answers of an INT8 bundle: the float32 bundle's, with the tolerance that its own rounding needs."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from tocom.calibration.int8.ranges import cpu_session
from tocom.formats.bundle import Bundle
from tocom.formats.pixels import full_batches
from tocom.formats.references import TURN, read_references

__all__ = ["carry_references", "int8_tolerance"]

# What ONNX Runtime's eight bits change, another backend's may change as much again.
_MARGIN = 2.0


def int8_tolerance(bundle: Bundle, degree: int, model: bytes) -> float:
    """Return the tolerance at which a quantized model, under ONNX Runtime, agrees with the references with a margin.

    Args:
        bundle: The float32 bundle.
        degree: The degree.
        model: The quantized ONNX model, its weights inside.

    Raises:
        EngineError: ONNX Runtime refuses the model.
        BundleError: The references are damaged.
    """
    references, session = read_references(bundle), cpu_session(model, bundle.path)
    indices, names, got = np.array(references.conclusive[degree]), list(references.outputs), []
    for filled, count in full_batches(references.images[indices], bundle.batch[1]):
        answered = session.run(names, {"images": filled})
        got.append(references.values(dict(zip(names, answered, strict=True)))[:count])
    values, floor = np.concatenate(got), references.tolerances[degree]
    differences = np.abs(values - references.answers[degree][indices])
    turned = (1 - references.compare_values(degree, indices.tolist(), values).cosine) / TURN
    return float(np.clip(_MARGIN * max(floor * (differences / references.allowed(degree)).max(), turned), floor, 1.0))


def carry_references(
    bundle: Bundle, folder: Path, degrees: Collection[int], tolerances: Mapping[int, float]
) -> dict[str, Any]:
    """Write the references of a float32 bundle into another's folder; return the manifest's entry.

    Args:
        bundle: The float32 bundle.
        folder: Where the other is written.
        degrees: The other's degrees.
        tolerances: Per quantized degree what :func:`int8_tolerance` returned.
    """
    entry = bundle.manifest["references"]
    data = bundle.read_file(entry["file"])
    have = sorted(bundle.degrees)
    size = read_references(bundle).answers[have[0]].nbytes
    begin = len(data) - size * len(have)
    kept = [begin + size * have.index(degree) for degree in sorted(degrees)]
    (folder / entry["file"]).write_bytes(data[:begin] + b"".join(data[at : at + size] for at in kept))
    described = [
        {**each, "tolerance": tolerances.get(each["degree"], each["tolerance"])}
        for each in entry["degrees"]
        if each["degree"] in degrees
    ]
    return {**entry, "degrees": described}
