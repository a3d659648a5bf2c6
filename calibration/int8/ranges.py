"""Ranges of activations, collected where they will be used: on the compressed graph of the very degree.

One pass over the images serves all three methods:

- ``min-max``: everything that was seen. Nothing saturates; the step is coarse where there are outliers.
- ``percentile``: all but one value in a hundred thousand, shared by both ends.
- ``entropy``: the range whose eight-bit histogram diverges least from the full one (Migacz, GTC 2017).
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from tocom.calibration.int8.qdq import Range, quantizable_layers
from tocom.errors import EngineError

__all__ = ["METHODS", "activations_of", "collect_ranges", "open_session"]

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


def activations_of(
    model: onnx.ModelProto, folder: Path, images: NDArray[np.float32], names: Sequence[str], *, batch: int = 1
) -> Iterator[dict[str, NDArray[np.float32]]]:
    """Yield, batch by batch, the tensors of these names.

    Args:
        model: A float32 model; it is not changed.
        folder: Where its weights lie, those that are not inside.
        images: [count, channels, height, width], float32; the last batch is filled up with copies.
        names: Of tensors of the graph.
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
    session = open_session(copied.SerializeToString(), folder)
    count = -(-len(images) // batch) * batch
    filled = images if count == len(images) else np.resize(images, (count, *images.shape[1:]))
    for start in range(0, count, batch):
        yield dict(zip(wanted, session.run(wanted, {"images": filled[start : start + batch]}), strict=True))


def collect_ranges(
    model: onnx.ModelProto,
    folder: Path,
    images: NDArray[np.float32],
    methods: Sequence[str] = METHODS,
    *,
    batch: int = 1,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, dict[str, Range]]:
    """Return per method, per layer, the range of its activations.

    Args:
        model: A float32 model.
        folder: Where its weights lie, those that are not inside.
        images: [count, channels, height, width], float32.
        methods: Of :data:`METHODS`.
        batch: Images per inference.
        progress: Called with the images done and all of them.
    """
    from onnxruntime.quantization.calibrate import HistogramCollector

    layers = quantizable_layers(model.graph)
    names = [layer.input for layer in layers]
    entropy = HistogramCollector("entropy", False, _ENTROPY_BINS, _ENTROPY_LEVELS, None, None)
    percentile = HistogramCollector("percentile", False, _PERCENTILE_BINS, None, _PERCENTILE, None)
    collectors = {"entropy": entropy, "percentile": percentile}
    used = [collectors[method] for method in methods if method in collectors]
    extremes = {name: (float("inf"), float("-inf")) for name in names}
    for done, values in enumerate(activations_of(model, folder, images, names, batch=batch), start=1):
        for name, value in values.items():
            low, high = extremes[name]
            extremes[name] = (min(low, float(value.min())), max(high, float(value.max())))
        with contextlib.redirect_stdout(io.StringIO()):  # the collectors print
            for collector in used:
                collector.collect(values)
        if progress is not None:
            progress(min(done * batch, len(images)), len(images))
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
