"""Does an engine answer what the reference answers say? Asked before it serves, at every batch size that is checked."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tocom.formats.references import Agreement, References
from tocom.runtime.backends.base import Backend, Engine

__all__ = ["Checked", "advice", "batches_to_check", "check_engine", "version_of"]

# A device launches a batch size plainly at first and captures it later; TensorRT-RTX once its kernels are compiled.
_MOST_RUNS = 8


@dataclass(frozen=True)
class Checked:
    """What came of checking one engine.

    Attributes:
        degree: Its degree.
        agreement: Agreement of the run that was furthest off.
        batch: Its batch.
        run: Which run of that batch it was, from 1.
        again: The same images once more, where they were answered wrongly and then otherwise; else None.
        rows_differ: By how much equal rows of the batch differ, where that is more than allowed; else None.
    """

    degree: int
    agreement: Agreement
    batch: int
    run: int
    again: Agreement | None = None
    rows_differ: float | None = None

    @property
    def is_right(self) -> bool:
        """Whether every answer was right."""
        return self.agreement.is_right

    def describe(self) -> str:
        """Return what was found, for a message."""
        text = f"batch {self.batch}, run {self.run}: {self.agreement.describe()}"
        if self.rows_differ is not None:
            text += f"; equal rows of the batch differ by {self.rows_differ:.3g}"
        if self.again is not None:
            text += (
                f"; the same images again: {self.again.describe()}, so the device answers differently from run to run"
            )
        return text

    def to_json(self) -> dict[str, Any]:
        """Return the figures as plain JSON content; a difference that is not finite is null."""
        difference = self.agreement.difference
        return {
            "right": self.is_right,
            "difference": difference if np.isfinite(difference) else None,
            "allowed": self.agreement.allowed,
            "cosine": self.agreement.cosine,
            "batch": self.batch,
            "found": None if self.is_right else self.describe(),
        }


def batches_to_check(batch: tuple[int, int, int]) -> list[int]:
    """Return the batch sizes at which engines are compared: the smallest, the optimal and the largest."""
    return sorted(set(batch))


def check_engine(engine: Engine, degree: int, references: References, batches: Sequence[int]) -> Checked:
    """Run an engine on the reference images and compare, plainly and captured; stops at the first wrong answer.

    A single batch size is run twice at least, since first runs cost more than others.

    Args:
        engine: The engine.
        degree: Its degree.
        references: The bundle's.
        batches: Batch sizes to run.

    Raises:
        EngineError: The engine does not run.
    """
    worst: Checked | None = None
    least = 2 if len(batches) == 1 else 1
    for batch in batches:
        for run in range(_MOST_RUNS):
            indices = _indices(references.conclusive[degree], batch, run)
            images = references.images[indices]
            outputs = engine.run(images)
            agreement = references.compare(degree, indices, outputs)
            checked = Checked(degree, agreement, batch, run + 1)
            if not agreement.is_right:
                again = engine.run(images)
                return Checked(
                    degree,
                    agreement,
                    batch,
                    run + 1,
                    again=references.compare(degree, indices, again)
                    if _differ(references, degree, outputs, again)
                    else None,
                    rows_differ=_equal_rows_differ(references, degree, indices, outputs),
                )
            if worst is None or agreement.difference > worst.agreement.difference:
                worst = checked
            if run + 1 >= least and engine.is_settled(batch):
                break
    assert worst is not None  # there is at least one batch size
    return worst


def version_of(backend: Backend) -> str:
    """Return a backend's name and version for messages, such as ``tensorrt 10.3.0``."""
    version = backend.device.get(backend.name.removesuffix("-cuda"))
    return backend.name if version is None else f"{backend.name} {version}"


def advice(bundle_path: Path, backend: Backend) -> str:
    """Return the command that helps against an engine that answers wrongly."""
    if backend.name.startswith("tensorrt"):
        return (
            f"Build it again, which tries other ways until the answers are right: tocom build {bundle_path} "
            f"--backend {backend.name}."
        )
    return f"See which backends answer rightly: tocom check {bundle_path}."


def _indices(conclusive: Sequence[int], batch: int, run: int) -> list[int]:
    """Return which reference image stands in each row: other ones in each run, and two rows the same."""
    indices = [conclusive[(row + run) % len(conclusive)] for row in range(batch)]
    if batch > 2 or (batch == 2 and run > 0):
        indices[-1] = indices[0]
    return indices


def _differ(references: References, degree: int, first: Any, second: Any) -> bool:
    """Return whether two runs on the same images answered differently, by more than what is allowed."""
    first, second = references.values(first), references.values(second)
    if not np.isfinite(first).all() or not np.isfinite(second).all():
        return bool(np.isfinite(first).all() != np.isfinite(second).all())
    return bool((np.abs(first - second) > references.allowed(degree)).any())


def _equal_rows_differ(references: References, degree: int, indices: Sequence[int], outputs: Any) -> float | None:
    values = references.values(outputs)
    if indices.count(indices[0]) < 2 or not np.isfinite(values).all():
        return None
    same = values[[row for row, index in enumerate(indices) if index == indices[0]]]
    spread = np.ptp(same, axis=0)
    return float(spread.max()) if (spread > references.allowed(degree)).any() else None
