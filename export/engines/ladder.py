"""What a build tries, in this order, when an engine answers wrongly: each rung keeps the ones before it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from tocom.formats.build_options import BuildOptions

__all__ = ["rungs"]

# Public reports name dynamic shapes (NVIDIA/TensorRT 4419, 4813), custom layers, single tactics (4558), and sums and
# fused attention in half precision (2709, 4837), from the cheapest cure to the dearest.
_OTHER_LEVELS = (1, 4)
_HALF = ("fp16", "bf16")


def rungs(options: BuildOptions, *, has_ops: bool, precision: str) -> Iterator[tuple[str, BuildOptions]]:
    """Yield the name and the options of each way to build; the first is what was asked for.

    Args:
        options: What was asked for.
        has_ops: The degree merges or prunes tokens.
        precision: Precision of the bundle.
    """
    yield "as asked", options
    if len(set(options.batch)) > 1:
        options = replace(options, batch=(options.batch[1],) * 3)
        yield f"fixed batch {options.batch[1]}", options
    if has_ops and options.lowering == "plugin":
        options = replace(options, lowering="native")
        yield "native lowering", options
    level = next(each for each in _OTHER_LEVELS if each != options.optimization_level)
    options = replace(options, optimization_level=level)
    yield f"optimization level {level}", options
    if precision in _HALF:
        yield "layer norm, softmax and the residual sum in float32", replace(options, float32="fragile")
        yield "all of it in float32", replace(options, float32="all")
