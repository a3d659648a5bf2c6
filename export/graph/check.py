"""After every export: does the ONNX file compute what the torch model computes?"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tocom.errors import ExportError, first_line
from tocom.export.graph.half_arithmetic import one_behind_the_other, run_in_half
from tocom.export.graph.trace import DTYPES, Outputs
from tocom.formats.references import allowed_differences
from tocom.system.onnxruntime_session import open_session, session_options

__all__ = ["TOLERANCES", "CheckResult", "check_onnx", "equally_right", "sample_images", "torch_answers"]

# Largest difference of an output, relative to the larger of 1 and the largest output. Float32 differs by the order of
# sums alone; half precision by its 8 or 11 bits, over a dozen blocks.
TOLERANCES = {"fp32": 1e-4, "fp16": 3e-2, "bf16": 2e-1}
# What weights off by this share do, rounding may do too: eight units in the last place, since float32 sums are taken in
# another order, and two of the half precisions, whose sums are rounded once. Far too little to hide a wrong graph: it
# moves outputs by a small part of the tolerance unless tokens change.
_JITTER, _JITTERED = {"fp32": 2.0**-20, "fp16": 2.0**-9, "bf16": 2.0**-6}, 8
# Images in half arithmetic; each takes seconds.
_HALF_IMAGES = 2


@dataclass(frozen=True)
class CheckResult:
    """How closely an ONNX file follows torch.

    Attributes:
        max_abs_difference: Largest difference of any output on any conclusive image.
        undecided: Per image whether torch itself chooses other tokens in another precision, or rounded otherwise.
    """

    max_abs_difference: float
    undecided: NDArray[np.bool_]

    def to_json(self) -> dict[str, Any]:
        """Return what the manifest says."""
        return {
            "max_abs_difference": self.max_abs_difference,
            "images": int((~self.undecided).sum()),
            "undecided": int(self.undecided.sum()),
            "against": "torch, float32, CPU",
        }


def sample_images(shape: tuple[int, int, int], count: int = 4, seed: int = 0) -> np.ndarray:
    """Return smooth random images [count, channels, height, width], float32: for a check where none are at hand."""
    generator = torch.Generator().manual_seed(seed)
    channels, height, width = shape
    images = torch.zeros(count, channels, height, width)
    for side in (4, 16, 64):
        noise = torch.randn(count, channels, side, side, generator=generator)
        images += nn.functional.interpolate(noise, size=(height, width), mode="bilinear", align_corners=False)
    return images.numpy()


def torch_answers(model: nn.Module, images: np.ndarray, outputs: Outputs) -> list[NDArray[np.float32]]:
    """Return what a float32 model answers: each output [images, width] or [images, patches, channels].

    Raises:
        ExportError: An answer is not finite: nothing could be compared with it.
    """
    with torch.no_grad():
        parts = [part.numpy() for part in outputs.of(model, torch.from_numpy(images))]
    bad = sum(not all(np.isfinite(part[index]).all() for part in parts) for index in range(len(images)))
    if bad:
        raise ExportError(
            f"The model itself, in torch and float32, answers {bad} of {len(images)} check images with NaN or "
            "infinity, so no engine can be right. Look at the checkpoint, and at --check-images."
        )
    return parts


def check_onnx(
    path: Path,
    model: nn.Module,
    images: np.ndarray,
    expected_parts: Sequence[NDArray[np.float32]] | None = None,
    *,
    inputs: NDArray[Any] | None = None,
    precision: str,
    batch: int | None,
    outputs: Outputs | None = None,
) -> CheckResult:
    """Compare an ONNX file, under ONNX Runtime on the CPU, with a torch model in float32.

    Which tokens merge is decided by comparing scores, so on an image with a near-tie two correct programs may differ.
    An image counts only when float64 torch confirms float32 torch, for a half-precision file torch with weights, or
    with all, in half precision; and so do copies whose weights are off by what rounding may be off by.

    Args:
        path: The ONNX file, its weights beside it.
        model: The reference at the same degree, float32.
        images: [count, channels, height, width], float32.
        expected_parts: What the model answers to them, from :func:`torch_answers`, where that is known already.
        inputs: The same images as the file takes them, where that is their pixels.
        precision: Precision of the ONNX file; sets the tolerance.
        batch: The file's fixed batch, or None.
        outputs: What the file gives; None for the logits alone.

    Raises:
        ExportError: An output differs by more than the tolerance, or no image is conclusive.
    """
    outputs = outputs or Outputs()
    step = batch or 1
    count = -(-len(images) // step) * step
    inputs = images if inputs is None else inputs
    padded = np.resize(inputs, (count, *images.shape[1:]))
    options = session_options()
    try:
        session = open_session(path.read_bytes(), path.parent, options)
        parts = [session.run(None, {"images": part}) for part in np.split(padded, count // step)]
        got = np.concatenate([one_behind_the_other(outputs) for outputs in parts])[: len(images)]
    except Exception as error:  # ONNX Runtime's own exceptions share no other base
        raise ExportError(
            f"ONNX Runtime cannot run {path.name} ({precision}) on this CPU: {first_line(error)}. The bundle was not "
            "written; --no-check exports without the comparison, for other runtimes."
        ) from error
    expected_parts = expected_parts or torch_answers(model, images, outputs)
    expected = one_behind_the_other(expected_parts)
    allowed = allowed_differences(expected, TOLERANCES[precision], [part[0].size for part in expected_parts])
    differences = np.abs(got - expected)
    difference = differences.max(axis=1)
    undecided = np.zeros(len(images), dtype=bool)

    def is_undecided(index: int) -> bool:
        pixels = torch.from_numpy(images[index : index + 1])
        for other in equally_right(model, precision):
            with torch.no_grad():
                dtype = next(other.parameters()).dtype
                found = outputs.of(other, pixels.to(dtype))
            values = one_behind_the_other([part.double().numpy() for part in found])[0]
            if (np.abs(values - expected[index]) > allowed).any():
                return True
        return False

    for index in np.flatnonzero(~(differences <= allowed).all(axis=1)):
        # What overflows is wrong, not undecided.
        undecided[index] = np.isfinite(difference[index]) and is_undecided(index)
        if not undecided[index]:
            raise ExportError(
                f"{path.name} differs from torch by {difference[index]:.3g} on image {index}, allowed is "
                f"{allowed[np.argmax(differences[index] / allowed)]:.3g} "
                f"({precision}). The bundle was not written. Please report the model's name and the versions of torch, "
                "onnx and onnxruntime; --no-check exports without this comparison."
            )
    if precision == "fp16":
        decided = np.flatnonzero(~undecided)
        _check_half_arithmetic(path, inputs, expected, allowed, decided, batch, is_undecided)
    if undecided.all():
        raise ExportError(
            f"{path.name} could not be checked: on all {len(images)} images rounding alone makes torch choose other "
            "tokens. Check on real images (--check-images FOLDER)."
        )
    return CheckResult(float(difference[~undecided].max()), undecided)


def _check_half_arithmetic(
    path: Path,
    inputs: np.ndarray,
    expected: np.ndarray,
    allowed: np.ndarray,
    decided: np.ndarray,
    batch: int | None,
    is_undecided: Callable[[int], bool],
) -> None:
    """Run the file on a few images where every op rounds, and overflows, as half precision does.

    Raises:
        ExportError: An answer is not finite, or differs by more than is allowed on every image that counts.
    """
    for start in range(0, len(decided), _HALF_IMAGES):
        indices = decided[start : start + _HALF_IMAGES]
        got = run_in_half(path, inputs[indices], batch=batch)
        differences = np.abs(got - expected[indices])
        # Where every op rounds, a near-tie may fall otherwise on one image; a wrong graph is wrong on all.
        finite = np.isfinite(got).all()
        if finite and (differences <= allowed).all(axis=1).any():
            return
        if not finite or not all(map(is_undecided, indices)):
            worst = f"off by {differences.max():.3g}" if finite else "not finite"
            raise ExportError(
                f"{path.name} is {worst} in half arithmetic, though ONNX Runtime, which computes in float32 in "
                "between, is right. The bundle was not written. Export with --precision bf16 or fp32, give other "
                "--check-images, and please report the model's name."
            )


def equally_right(model: nn.Module, precision: str, *, jittered: int = _JITTERED) -> Iterator[nn.Module]:
    """Yield copies of the model that round otherwise, and are as right as it.

    Args:
        model: In float32.
        precision: Precision that a file of the model computes in.
        jittered: Copies whose weights are off at random, beside those of another type.
    """
    if precision != "fp32":
        half = copy.deepcopy(model).to(DTYPES[precision])
        yield half
        yield copy.deepcopy(half).float()
    else:
        yield copy.deepcopy(model).double()
    generator = torch.Generator().manual_seed(0)
    for _ in range(jittered):
        other = copy.deepcopy(model)
        with torch.no_grad():
            for weight in other.parameters():
                weight.mul_(1 + _JITTER[precision] * (2 * torch.rand(weight.shape, generator=generator) - 1))
        yield other
