"""Making the reference answers that travel in a bundle: few images, what torch answers to them, and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tocom.export.graph.check import equally_right
from tocom.export.graph.trace import Outputs
from tocom.formats.pixels import normalise, to_input
from tocom.formats.references import allowed_differences, in_row, write_references

__all__ = ["TOLERANCES", "ReferenceImages", "add_references", "rounding_changes"]

# Most that an engine's output may differ, relative to the larger of 1 and the largest output. A device may compute
# float32 in TF32, whose numbers have as many bits as half precision's: what is right there must be let through.
TOLERANCES = {"fp32": 3e-2, "fp16": 3e-2, "bf16": 2e-1}
_MOST_BYTES = 2 << 20
_MOST_IMAGES = 8
# To tell the rows of a batch apart takes two images.
_LEAST_IMAGES = 2


class ReferenceImages:
    """Check images in eight bits, as they go into the bundle, and as a model takes them.

    Args:
        images: [count, channels, height, width], float32, normalised; what eight bits cannot say is lost.
        entry: The manifest's ``input``.
        values: Values that all outputs of one image have.
        degrees: Degrees of the bundle.

    Attributes:
        pixels: [count, height / repeat, width / repeat, channels], uint8.
        repeat: How often each pixel stands in a row and in a column: above 1 only where two images would take too much.
        images: The same images as a torch model takes them, [count, channels, height, width] float32.
        inputs: The same images as the ONNX files take them: ``images``, or their pixels.
        most: Images that a bundle holds.
    """

    def __init__(self, images: NDArray[np.float32], entry: Mapping[str, Any], *, values: int, degrees: int) -> None:
        mean, std = (np.asarray(entry[key], np.float32) for key in ("mean", "std"))
        pixels = np.clip(np.rint((np.moveaxis(images, 1, -1) * std + mean) * 255), 0, 255).astype(np.uint8)
        answers_bytes = 4 * values * degrees
        self.repeat = 1
        while _LEAST_IMAGES * (self._thinned(pixels)[0].size + answers_bytes) > _MOST_BYTES and self.repeat < 16:
            self.repeat += 1
        self.pixels = self._thinned(pixels)
        height, width = images.shape[2:]
        whole = self.pixels.repeat(self.repeat, axis=1).repeat(self.repeat, axis=2)[:, :height, :width]
        self.images = normalise(whole, entry)
        self.inputs = to_input(whole, entry)
        self.most = max(1, min(_MOST_IMAGES, _MOST_BYTES // (self.pixels[0].size + answers_bytes)))

    def _thinned(self, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return pixels[:, :: self.repeat, :: self.repeat]


def rounding_changes(
    model: nn.Module,
    images: NDArray[np.float32],
    parts: Sequence[NDArray[np.float32]],
    outputs: Outputs,
    *,
    precision: str,
) -> NDArray[np.bool_]:
    """Return on which images half-precision rounding alone moves an answer by more than is allowed, [count].

    Args:
        model: The float32 reference at one degree.
        images: [count, channels, height, width].
        parts: What it answers, as :func:`tocom.export.graph.check.torch_answers` gives it.
        outputs: What the bundle's files give.
        precision: Precision of the bundle; float32 is rounded as TF32 rounds it.
    """
    expected = in_row(parts)
    allowed = allowed_differences(expected, TOLERANCES[precision], [part.shape[1] for part in parts])
    changed = np.zeros(len(images), dtype=bool)
    for other in equally_right(model, "fp16" if precision == "fp32" else precision, jittered=0):
        dtype = next(other.parameters()).dtype
        if precision == "fp32" and dtype != torch.float32:
            continue  # TF32 has float32's range; half precision has not
        with torch.no_grad():
            got = outputs.of(other, torch.from_numpy(images).to(dtype))
        answered = in_row([part.float().numpy() for part in got])
        if np.isfinite(answered).all():  # plain half precision may overflow where the bundle does not
            changed |= (np.abs(answered - expected) > allowed).any(axis=1)
    return changed


def add_references(
    path: Path,
    references: ReferenceImages,
    answers: Mapping[int, NDArray[np.float32]],
    conclusive: Mapping[int, NDArray[np.bool_]],
    *,
    precision: str,
    source: str,
) -> dict[str, Any]:
    """Write the bundle's reference answers and return the manifest's entry.

    Args:
        path: The file to write.
        references: The images.
        answers: Per degree [count, values].
        conclusive: Per degree and image [count] whether rounding alone changes no token; one per degree at least.
        precision: Precision of the bundle.
        source: ``given`` or ``smooth``.
    """
    chosen = _choose(np.stack([conclusive[degree] for degree in sorted(answers)]), references.most)
    write_references(path, references.pixels[chosen], {degree: values[chosen] for degree, values in answers.items()})
    return {
        "file": path.name,
        "images": len(chosen),
        "repeat": references.repeat,
        "source": source,
        "degrees": [
            {
                "degree": degree,
                "tolerance": TOLERANCES[precision],
                "conclusive": np.flatnonzero(conclusive[degree][chosen]).tolist(),
            }
            for degree in sorted(answers)
        ],
    }


def _choose(conclusive: NDArray[np.bool_], most: int) -> list[int]:
    """Return at most ``most`` images, or as many as every degree needs to have one: [degrees, count] → indices."""
    chosen: list[int] = []
    while len(chosen) < conclusive.shape[1]:
        lacking = ~conclusive[:, chosen].any(axis=1)
        if len(chosen) >= most and not lacking.any():
            break
        rest = [index for index in range(conclusive.shape[1]) if index not in chosen]
        chosen.append(max(rest, key=lambda index: (conclusive[lacking, index].sum(), conclusive[:, index].sum())))
    return sorted(chosen)
