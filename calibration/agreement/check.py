"""``check``: do all backends that are installed here give a bundle's reference answers, at every degree?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import EngineError, RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.pixels import full_batches
from tocom.formats.references import Agreement, References, read_references
from tocom.runtime.answers import batches_to_check, check_engine
from tocom.runtime.backends.base import Backend, Engine
from tocom.runtime.backends.select import BACKENDS, open_backend
from tocom.system.progress import Progress, silent

__all__ = ["BackendAgreement", "DegreeAgreement", "check", "references_of"]

# Answers images of the user's own that no reference exists for, once it has given the bundle's.
_JUDGE = "onnxruntime"


@dataclass(frozen=True)
class DegreeAgreement:
    """One degree on one backend.

    Attributes:
        degree: The degree.
        is_right: Whether the runtime would serve it.
        agreement: Over all images, in the optimal batch; None where the engine does not run.
        found: What is wrong, else empty.
    """

    degree: int
    is_right: bool
    agreement: Agreement | None
    found: str

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON content; what is not finite is null."""
        names = ("difference", "allowed", "cosine", "same_top")
        measured = {name: getattr(self.agreement, name, None) for name in names}
        if measured["difference"] is not None and not np.isfinite(measured["difference"]):
            measured["difference"] = None
        images = 0 if self.agreement is None else self.agreement.images
        return {"degree": self.degree, "right": self.is_right, **measured, "images": images, "found": self.found}


@dataclass(frozen=True)
class BackendAgreement:
    """One backend.

    Attributes:
        name: Its name.
        version: Its version; empty where it cannot be used.
        degrees: What each degree gave.
        missing: Why it cannot be used, else empty.
    """

    name: str
    version: str
    degrees: tuple[DegreeAgreement, ...]
    missing: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON content."""
        degrees = [each.to_json() for each in self.degrees]
        return {"backend": self.name, "version": self.version, "degrees": degrees, "missing": self.missing}


def check(
    bundle: Bundle | Path | str,
    backends: Sequence[str] | None = None,
    *,
    degrees: Sequence[int] | None = None,
    images: NDArray[np.float32] | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> list[BackendAgreement]:
    """Compare every degree on every backend with the bundle's reference answers.

    Args:
        bundle: The bundle, or its folder.
        backends: Names; None takes all, and says of each that cannot be used here why.
        degrees: Degrees; None takes all.
        images: Other images, [count, channels, height, width] float32. What ONNX Runtime on the CPU answers is the
            reference for them, once it has given the bundle's reference answers.
        threads: CPU threads of one inference; None takes the usable physical cores.
        progress: Called with what is being done, the steps done, and all steps.

    Raises:
        BundleError: The bundle is damaged, has no such degree or no reference answers.
        RequestError: A backend's name is unknown, or none can be used.
        EngineError: ``images`` are given, and ONNX Runtime does not give the bundle's reference answers.
    """
    names = list(dict.fromkeys(BACKENDS if backends is None else backends))
    if unknown := [name for name in names if name not in BACKENDS]:
        raise RequestError(f"The 'backends' parameter must name some of {', '.join(BACKENDS)}. Got {unknown} instead.")
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle, verify=False)
    wanted = sorted(set(bundle.degrees if degrees is None else degrees))
    for degree in wanted:
        bundle.onnx_path(degree)  # raises when it is not there
    bundle.require_verified()
    references = read_references(bundle)
    if images is not None:
        references = references_of(bundle, references, wanted, images, threads)
    found, done = [], 0
    for name in names:
        try:
            backend = open_backend(name, bundle, threads=threads)
        except EngineError as error:
            found.append(BackendAgreement(name, "", (), str(error)))
            done += len(wanted)
            continue
        rows = []
        try:
            for degree in wanted:
                progress(f"{name}: degree {degree}", done, len(names) * len(wanted))
                rows.append(_check_degree(backend, degree, bundle, references))
                done += 1
        finally:
            backend.close()
        found.append(BackendAgreement(name, str(backend.device.get(name.removesuffix("-cuda"), "")), tuple(rows)))
    if all(each.missing for each in found):
        raise RequestError(f"No backend can run {bundle.path} here. {' '.join(each.missing for each in found)}")
    return found


def references_of(
    bundle: Bundle, references: References, degrees: Sequence[int], images: NDArray[np.float32], threads: int | None
) -> References:
    """Return references for other images: what ONNX Runtime on the CPU answers, if it gives the bundle's own.

    Raises:
        EngineError: It does not.
    """
    answers = {}
    judge = open_backend(_JUDGE, bundle, threads=threads)
    try:
        for degree in degrees:
            engine = judge.load(degree)
            try:
                checked = check_engine(engine, degree, references, batches_to_check(bundle.batch))
                if not checked.is_right:
                    raise EngineError(
                        f"{_JUDGE} cannot stand in for the model on other images: it does not give the reference "
                        f"answers of {bundle.path} at degree {degree} ({checked.describe()}). Check without --images."
                    )
                answers[degree] = _answers(engine, references, images, bundle.batch[1])
            finally:
                engine.close()
    finally:
        judge.close()
    conclusive = dict.fromkeys(degrees, tuple(range(len(images))))
    return replace(references, images=images, answers=answers, conclusive=conclusive)


def _check_degree(backend: Backend, degree: int, bundle: Bundle, references: References) -> DegreeAgreement:
    try:
        backend.prepare([degree])
        engine = backend.load(degree)
        try:
            checked = check_engine(engine, degree, references, batches_to_check(bundle.batch))
            indices = references.conclusive[degree]
            values = _answers(engine, references, references.images[list(indices)], bundle.batch[1])
            agreement = references.compare_values(degree, indices, values)
        finally:
            engine.close()
    except (EngineError, MemoryError) as error:
        return DegreeAgreement(degree, False, None, str(error))
    is_right = checked.is_right and agreement.is_right
    return DegreeAgreement(degree, is_right, agreement, "" if checked.is_right else checked.describe())


def _answers(engine: Engine, references: References, images: NDArray[np.float32], batch: int) -> NDArray[np.float32]:
    """Return all outputs of an engine for any number of images, [count, values]; the last batch is filled up."""
    batches = full_batches(images, batch)
    return np.concatenate([references.values(engine.run(filled))[:count] for filled, count in batches])
