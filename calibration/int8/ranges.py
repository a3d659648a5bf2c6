"""Ranges of activations, collected where they will be used: on the compressed graph of the very degree.

A range is the least and the largest value that was seen (min-max): nothing saturates.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from tocom.calibration.int8.qdq import Range, quantizable_layers
from tocom.errors import EngineError, first_line
from tocom.formats.pixels import full_batches
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


def collect_ranges(model: onnx.ModelProto, folder: Path, images: NDArray[Any], *, batch: int = 1) -> dict[str, Range]:
    """Return per layer the range of its activations.

    Args:
        model: A float32 model; it is not changed.
        folder: Where its weights lie, those that are not inside.
        images: [count, channels, height, width], as the model takes them.
        batch: Images per inference.
    """
    layers = quantizable_layers(model.graph)
    names = sorted({layer.input for layer in layers})
    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    known = {value.name for value in copied.graph.output}
    copied.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in known
    )
    session = cpu_session(copied.SerializeToString(), folder)
    extremes = dict.fromkeys(names, (float("inf"), float("-inf")))
    for filled, _ in full_batches(images, batch):
        for name, value in zip(names, session.run(names, {"images": filled}), strict=True):
            low, high = extremes[name]
            extremes[name] = (min(low, float(value.min())), max(high, float(value.max())))
    return {layer.name: extremes[layer.input] for layer in layers}
