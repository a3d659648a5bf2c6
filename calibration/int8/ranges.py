"""Ranges of activations, collected where they will be used: on the compressed graph of the very degree.

A range is the least and the largest value that was seen (min-max): nothing saturates.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tocom.calibration.int8.qdq import Range, quantizable_layers
from tocom.errors import EngineError, first_line
from tocom.system.onnxruntime_session import open_session, session_options

__all__ = ["collect_ranges", "cpu_session"]


def cpu_session(model: bytes, folder: Path) -> Any:
    """Return an ONNX Runtime session on the CPU; ``folder`` holds the weights outside the model.

    Raises:
        EngineError: ONNX Runtime refuses the model.
    """
    try:
        return open_session(model, folder, session_options())
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise EngineError(f"ONNX Runtime cannot load the model while quantizing: {first_line(error)}") from error


def _activations_of(
    model: onnx.ModelProto, folder: Path, images: NDArray[np.float32], names: Sequence[str], *, batch: int = 1
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield, batch by batch, the tensors of these names.

    Args:
        model: A float32 model; it is not changed.
        folder: Where its weights lie, those that are not inside.
        images: [count, channels, height, width], float32; the last batch is filled up with copies.
        names: Names of tensors of the graph.
        batch: Images per inference.
    """
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    wanted = sorted(set(names))
    if not wanted:
        return
    known = {value.name for value in copied.graph.output}
    copied.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in wanted if name not in known
    )
    session = cpu_session(copied.SerializeToString(), folder)
    count = -(-len(images) // batch) * batch
    filled = images if count == len(images) else np.resize(images, (count, *images.shape[1:]))
    for start in range(0, count, batch):
        yield dict(zip(wanted, session.run(wanted, {"images": filled[start : start + batch]}), strict=True))


def collect_ranges(
    model: onnx.ModelProto, folder: Path, images: NDArray[np.float32], *, batch: int = 1
) -> dict[str, Range]:
    """Return per layer the range of its activations.

    Args:
        model: A float32 model.
        folder: Where its weights lie, those that are not inside.
        images: [count, channels, height, width], float32.
        batch: Images per inference.
    """
    layers = quantizable_layers(model.graph)
    extremes = {layer.input: (float("inf"), float("-inf")) for layer in layers}
    for values in _activations_of(model, folder, images, list(extremes), batch=batch):
        for name, value in values.items():
            low, high = extremes[name]
            extremes[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return {layer.name: extremes[layer.input] for layer in layers}
