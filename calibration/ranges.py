"""Ranges of activations, collected where they will be used: on the compressed graph of the very degree.

One pass over the images serves all three methods:

- ``min-max``: everything that was seen. Nothing saturates; the step is coarse where there are outliers.
- ``percentile``: all but one value in a hundred thousand, shared by both ends.
- ``entropy``: the range whose eight-bit histogram diverges least from the full one (Migacz, GTC 2017).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tocom.calibration.qdq import Range, quantizable_layers
from tocom.errors import EngineError

__all__ = ["METHODS", "collect_ranges", "open_session"]

METHODS = ("min-max", "entropy", "percentile")
_PERCENTILE = 99.999
_PERCENTILE_BINS = 2048
# Entropy is searched in Python, quadratic in the bins.
_ENTROPY_BINS = 512
_ENTROPY_LEVELS = 128


def open_session(model: bytes, folder: Path, threads: int | None = None) -> Any:
    """Return an ONNX Runtime session on the CPU; ``folder`` holds the weights outside the model.

    Raises:
        EngineError: ONNX Runtime refuses the model.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads or 0
    options.add_session_config_entry("session.force_spinning_stop", "1")
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", str(folder))
    try:
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        first = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise EngineError(f"ONNX Runtime cannot load the model while quantizing: {first[:400]}") from error


def collect_ranges(
    model: bytes,
    folder: Path,
    images: NDArray[np.float32],
    methods: Sequence[str] = METHODS,
    *,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Range]]:
    """Return per method, per layer, the range of its activations.

    Args:
        model: A float32 ONNX file.
        folder: Where its weights lie.
        images: [count, channels, height, width], float32; ``count`` a multiple of ``batch``.
        methods: Of :data:`METHODS`.
        batch: Images per inference.
        progress: Called with the images done and all of them.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    graph = onnx.load_model_from_string(model)
    layers = quantizable_layers(graph.graph)
    names = sorted({layer.input for layer in layers})
    known = {value.name for value in graph.graph.output}
    graph.graph.output.extend(
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in names if name not in known
    )
    session = open_session(graph.SerializeToString(), folder)
    entropy = HistogramCollector("entropy", False, _ENTROPY_BINS, _ENTROPY_LEVELS, None, None)
    percentile = HistogramCollector("percentile", False, _PERCENTILE_BINS, None, _PERCENTILE, None)
    collectors = {"entropy": entropy, "percentile": percentile}
    used = [collectors[method] for method in methods if method in collectors]
    extremes = {name: (float("inf"), float("-inf")) for name in names}
    for start in range(0, len(images), batch):
        values = dict(zip(names, session.run(names, {"images": images[start : start + batch]}), strict=True))
        for name, value in values.items():
            low, high = extremes[name]
            extremes[name] = (min(low, float(value.min())), max(high, float(value.max())))
        with contextlib.redirect_stdout(io.StringIO()):  # the collectors print
            for collector in used:
                collector.collect(values)
        if progress is not None:
            progress(min(start + batch, len(images)), len(images))
    found: dict[str, dict[str, Range]] = {}
    for method in methods:
        if method in collectors:
            with contextlib.redirect_stdout(io.StringIO()):
                result = collectors[method].compute_collection_result()
            by_input = {name: (float(entry[0]), float(entry[1])) for name, entry in result.items()}
        else:
            by_input = extremes
        found[method] = {layer.name: by_input[layer.input] for layer in layers}
    return found
