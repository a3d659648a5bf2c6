"""One degree while it is quantized: its float32 answers, and how far a candidate departs from them."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx.external_data_helper import ExternalDataInfo

from tocom.alignment.ridge import feature_gaps
from tocom.calibration.int8.qdq import Range, Scheme, quantizable_layers, with_qdq
from tocom.calibration.int8.ranges import collect_ranges, cpu_session
from tocom.formats.bundle import Bundle
from tocom.formats.pixels import full_batches
from tocom.images import check_labels

__all__ = ["DegreeModel", "Outputs", "Trial", "compare", "load_degree"]

Outputs = NDArray[np.float32]


@dataclass(frozen=True)
class Trial:
    """A candidate on the held-out images.

    Attributes:
        exclude: Groups of layers in float32.
        right: Per image whether the answer is right; without labels, whether it is float32's.
        loss_points: Accuracy lost to float32, in percentage points; without labels, answers that differ; without a
            classifier, one minus cosine of the features. Negative where INT8 answers more images right.
        divergence: Mean divergence from float32 per image: of the classes' probabilities (Kullback-Leibler), or one
            minus cosine of the features.
    """

    exclude: tuple[str, ...]
    right: NDArray[np.bool_]
    loss_points: float
    divergence: float


class DegreeModel:
    """A degree's float32 model with its weights loaded, and its outputs on the held-out images.

    Args:
        bundle: A verified float32 bundle.
        degree: The degree.
        images: Held-out images [count, channels, height, width], float32.
        labels: Their class indices [count], or None.
        scheme: How numbers become eight bits.

    Attributes:
        model: The float32 model with its weights inside, as the bundle holds it.

    Raises:
        DataError: A label that the model does not have.
    """

    def __init__(
        self,
        bundle: Bundle,
        degree: int,
        images: NDArray[np.float32],
        labels: NDArray[np.int64] | None,
        scheme: Scheme,
    ) -> None:
        self._folder, self._batch = bundle.path, bundle.batch[1]
        self._images, self._labels, self._scheme = images, labels, scheme
        self._is_classifier = "logits" in bundle.output_names
        self.model = load_degree(bundle, degree)
        self.layers = quantizable_layers(self.model.graph)
        self.outputs = self._run(bundle.read_onnx(degree), images)
        check_labels(labels, self.outputs.shape[-1])
        self.right = self._right(self.outputs)

    def quantized(self, ranges: Mapping[str, Range], exclude: Collection[str] = ()) -> onnx.ModelProto:
        """Return the model with Q/DQ, its weights inside."""
        return with_qdq(self.model, ranges, self._scheme, exclude=exclude)

    def ranges(self, images: NDArray[np.float32]) -> dict[str, Range]:
        """Return the ranges of the model's layers."""
        return collect_ranges(self.model, self._folder, images, batch=self._batch)

    def outputs_of(
        self, ranges: Mapping[str, Range], exclude: Collection[str] = (), count: int | None = None
    ) -> Outputs:
        """Return a candidate's outputs on the held-out images, or on the first ``count``."""
        return self._run(self.quantized(ranges, exclude).SerializeToString(), self._images[:count])

    def trial(self, ranges: Mapping[str, Range], exclude: Collection[str] = (), count: int | None = None) -> Trial:
        """Return how a candidate does on the held-out images, or on the first ``count``."""
        got = self.outputs_of(ranges, exclude, count)
        right = self._right(got)
        divergence = float(compare(self.outputs[:count], got, self._is_classifier).mean())
        loss = 100 * (float(self.right[:count].mean() - right.mean()) if self._is_classifier else divergence)
        return Trial(tuple(sorted(exclude)), right, loss, divergence)

    def _run(self, model: bytes, images: NDArray[np.float32]) -> Outputs:
        session = cpu_session(model, self._folder)
        batches = full_batches(images, self._batch)
        return np.concatenate([session.run(None, {"images": filled})[0][:count] for filled, count in batches])

    def _right(self, outputs: Outputs) -> NDArray[np.bool_]:
        if not self._is_classifier:
            return np.ones(len(outputs), np.bool_)
        expected = self.outputs.argmax(-1) if self._labels is None else self._labels
        return np.asarray(outputs.argmax(-1) == expected[: len(outputs)])


def load_degree(bundle: Bundle, degree: int) -> onnx.ModelProto:
    """Return a degree's model with its weights inside."""
    model = onnx.load_model_from_string(bundle.read_onnx(degree))
    # Not onnx's own loader, which refuses files with a second hard link: copies of a bundle may share its weights.
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            at = ExternalDataInfo(tensor)
            stored = np.fromfile(bundle.path / at.location, np.uint8, at.length or 0, offset=at.offset or 0)
            tensor.raw_data = stored.tobytes()
            tensor.ClearField("external_data")
            tensor.data_location = onnx.TensorProto.DEFAULT
    return model


def compare(expected: Outputs, got: Outputs, is_classifier: bool) -> NDArray[np.float64]:
    """Return per image how far ``got`` is from ``expected``: see :attr:`Trial.divergence`."""
    if is_classifier:
        first, second = _log_softmax(expected), _log_softmax(got)
        return np.asarray((np.exp(first) * (first - second)).sum(-1))
    return feature_gaps(expected, got)


def _log_softmax(logits: Outputs) -> NDArray[np.float64]:
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)
    return np.asarray(shifted - np.log(np.exp(shifted).sum(-1, keepdims=True)))
