"""Reference answers: images and what the model must answer to them, in the bundle, and the comparison with an engine.

The file holds numbers alone, little-endian, nothing else to parse: the images, uint8 [images, height, width, channels]
as they are after resizing and cropping, then per degree, ascending, float32 [images, values], the outputs one behind
the other in the manifest's order. The manifest's entry ``references`` says the rest. Of features for every patch one
sum per patch stands there, see :func:`in_row`: all of them would take more than the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import BundleError, EngineError
from tocom.formats.bundle import Bundle
from tocom.formats.pixels import to_input

__all__ = [
    "REFERENCES_NAME",
    "TURN",
    "Agreement",
    "References",
    "compare_answers",
    "in_row",
    "read_references",
    "write_references",
]

REFERENCES_NAME = "references.bin"
# Noise of a tolerance's size turns an answer by far less than this share of it; what zeros, or another model, would
# answer to a model with small outputs turns it by more.
TURN = 0.3


@dataclass(frozen=True)
class Agreement:
    """How an engine's answers compare with the reference answers.

    Attributes:
        difference: Largest absolute difference of any output; infinite where an answer is not finite.
        allowed: Most that it may be, where it is nearest to that or furthest beyond.
        cosine: Smallest cosine between an answer and its reference; 0 where an answer is not finite or all zeros.
        same_top: Share of the images whose largest output is the reference's.
        images: Images compared.
        is_right: Whether every answer is finite, near enough, and points the same way.
    """

    difference: float
    allowed: float
    cosine: float
    same_top: float
    images: int
    is_right: bool

    def describe(self) -> str:
        """Return the figures as words for a message."""
        if not np.isfinite(self.difference):
            return "answers that are not finite"
        return f"largest difference {self.difference:.3g}, allowed {self.allowed:.3g}; cosine {self.cosine:.4f}"


@dataclass(frozen=True)
class References:
    """The reference answers of a bundle.

    Attributes:
        images: [images, channels, height, width], float32, as an engine takes them.
        answers: Per degree the outputs one behind the other, [images, values] float32.
        tolerances: Per degree the largest difference that is allowed, relative to the larger of 1 and the largest
            reference of the output.
        conclusive: Per degree the images on which rounding alone changes no token.
        outputs: Names of the outputs, and how many values each has.
    """

    images: NDArray[Any]
    answers: Mapping[int, NDArray[np.float32]]
    tolerances: Mapping[int, float]
    conclusive: Mapping[int, tuple[int, ...]]
    outputs: Mapping[str, int]

    def compare(self, degree: int, indices: Sequence[int], outputs: Mapping[str, NDArray[Any]]) -> Agreement:
        """Compare what an engine answered.

        Args:
            degree: The engine's degree.
            indices: Which image each row of the batch was.
            outputs: The engine's outputs, each [batch, width] or [batch, patches, channels].
        """
        return self.compare_values(degree, indices, self.values(outputs))

    def compare_values(self, degree: int, indices: Sequence[int], values: NDArray[np.float32]) -> Agreement:
        """Compare answers that stand one behind the other, [batch, values]; otherwise as :meth:`compare`.

        Raises:
            EngineError: The answers have another shape: a runtime that is out of memory may leave rows out.
        """
        expected = self.answers[degree][list(indices)]
        if values.shape != expected.shape:
            raise EngineError(
                f"Degree {degree} answered {list(values.shape)} values where the reference answers are "
                f"{list(expected.shape)}: it is not the engine of this bundle, or the device is out of memory."
            )
        return compare_answers(values, expected, self.allowed(degree), self.tolerances[degree], self.outputs)

    def values(self, outputs: Mapping[str, NDArray[Any]]) -> NDArray[np.float32]:
        """Return an engine's outputs one behind the other, [batch, values]."""
        return in_row([np.asarray(outputs[name], np.float32) for name in self.outputs])

    def split(self, values: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """Return the outputs by name, [batch, width] each, of answers one behind the other, [batch, values]."""
        parts = np.split(values, np.cumsum(list(self.outputs.values()))[:-1], axis=-1)
        return dict(zip(self.outputs, parts, strict=True))

    def allowed(self, degree: int) -> NDArray[np.float32]:
        """Return the largest difference that is allowed of each value, [values]."""
        return allowed_differences(self.answers[degree], self.tolerances[degree], list(self.outputs.values()))


def in_row(outputs: Sequence[NDArray[np.float32]]) -> NDArray[np.float32]:
    """Return outputs one behind the other, [batch, values].

    Args:
        outputs: Each [batch, width]; or [batch, patches, channels], of which a sum per patch is taken, every channel
            with another weight: it tells patches apart, and one row from another.
    """
    return np.concatenate([_summed(output) if output.ndim == 3 else output for output in outputs], axis=-1)


def _summed(output: NDArray[np.float32]) -> NDArray[np.float32]:
    channels = output.shape[-1]
    weights = np.cos(np.arange(channels) ** 2) * (2 / channels) ** 0.5
    return np.asarray(output @ weights.astype(np.float32), np.float32)


def allowed_differences(answers: NDArray[Any], tolerance: float, widths: Sequence[int]) -> NDArray[np.float32]:
    """Return the largest difference that is allowed of each value, [values]: each output is measured by its own size.

    Args:
        answers: [images, values], the outputs one behind the other.
        tolerance: Relative to the larger of 1 and the largest value of the output.
        widths: Values of each output.
    """
    parts = np.split(answers, np.cumsum(widths)[:-1], axis=-1)
    return np.concatenate(
        [np.full(part.shape[-1], tolerance * max(1.0, float(np.abs(part).max())), np.float32) for part in parts]
    )


def compare_answers(
    got: NDArray[Any],
    expected: NDArray[Any],
    allowed: NDArray[Any],
    tolerance: float,
    outputs: Mapping[str, int],
) -> Agreement:
    """Compare answers [images, values] with their references; see :class:`Agreement`."""
    is_finite = bool(np.isfinite(got).all())
    with np.errstate(invalid="ignore", over="ignore"):
        differences = np.abs(got.astype(np.float64) - expected)
    cosine, ends = 1.0, np.cumsum(list(outputs.values()))
    for begin, end in zip((0, *ends[:-1]), ends, strict=True):
        if is_finite and np.abs(expected[:, begin:end]).max() > 0:
            cosine = min(cosine, float(_cosines(got[:, begin:end], expected[:, begin:end]).min()))
    worst = np.unravel_index(np.argmax(np.where(np.isfinite(differences), differences, np.inf) / allowed), got.shape)
    first = slice(0, int(ends[0]))
    same = got[:, first].argmax(axis=1) == expected[:, first].argmax(axis=1)
    return Agreement(
        difference=float(differences[worst]) if is_finite else float("inf"),
        allowed=float(allowed[worst[1]]),
        cosine=cosine if is_finite else 0.0,
        same_top=float(same.mean()),
        images=len(got),
        is_right=is_finite and bool((differences <= allowed).all()) and cosine >= 1 - TURN * tolerance,
    )


def write_references(path: Any, images: NDArray[np.uint8], answers: Mapping[int, NDArray[np.float32]]) -> None:
    """Write the file.

    Args:
        path: The file.
        images: [images, height, width, channels], already thinned out by the entry's ``repeat``.
        answers: Per degree [images, values].
    """
    content = [np.ascontiguousarray(images, np.uint8).tobytes()]
    content += [np.ascontiguousarray(answers[degree], "<f4").tobytes() for degree in sorted(answers)]
    path.write_bytes(b"".join(content))


def read_references(bundle: Bundle) -> References:
    """Return the reference answers of a bundle; the very bytes that were hashed.

    Raises:
        BundleError: The bundle has none, they are not of its degrees, or hold what no answer can be.
    """
    entry = bundle.manifest.get("references")
    if entry is None:
        raise BundleError(
            f"Bundle {bundle.path} has no reference answers, so no engine of it can be checked. Export it again; "
            "Runtime.open(…, check_answers=False) serves it unchecked."
        )
    channels, height, width = bundle.image_shape
    count, repeat = entry["images"], entry["repeat"]
    stored = (count, -(-height // repeat), -(-width // repeat), channels)
    outputs = {output["name"]: output["shape"][1] for output in bundle.manifest["outputs"]}
    values = sum(outputs.values())
    degrees = sorted(described["degree"] for described in entry["degrees"])
    pixels = int(np.prod(stored))
    data = bundle.read_file(entry["file"])
    expected = pixels + 4 * len(degrees) * count * values
    if len(data) != expected:
        raise BundleError(
            f"Bundle {bundle.path}: {entry['file']} has {len(data)} bytes; {count} images of {list(stored[1:])} and "
            f"their answers at {len(degrees)} degrees are {expected}. Export the bundle again."
        )
    images = np.frombuffer(data, np.uint8, pixels).reshape(stored)
    answers = np.frombuffer(data, "<f4", offset=pixels).reshape(len(degrees), count, values)
    if not np.isfinite(answers).all():
        raise BundleError(
            f"Bundle {bundle.path}: {entry['file']} holds answers that are not finite: no model gives them. Export the "
            "bundle again."
        )
    whole = images.repeat(repeat, axis=1).repeat(repeat, axis=2)[:, :height, :width]
    return References(
        images=to_input(whole, bundle.manifest["input"]),
        answers=dict(zip(degrees, answers, strict=True)),
        tolerances={each["degree"]: float(each["tolerance"]) for each in entry["degrees"]},
        conclusive={each["degree"]: tuple(each["conclusive"]) for each in entry["degrees"]},
        outputs=outputs,
    )


def _cosines(got: NDArray[Any], expected: NDArray[Any]) -> NDArray[np.float64]:
    """Return the cosine of each row, [images]; 0 where one is all zeros."""
    got, expected = got.astype(np.float64), expected.astype(np.float64)
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    products = (got * expected).sum(axis=1)
    return np.asarray(np.divide(products, lengths, out=np.zeros(len(got)), where=lengths > 0))
