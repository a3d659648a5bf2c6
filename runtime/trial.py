"""Run one engine that has no sidecar yet on the bundle's reference images: what ``tocom build`` starts as a process."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from tocom.errors import TocomError
from tocom.formats.bundle import Bundle
from tocom.formats.references import read_references
from tocom.formats.sidecar import Sidecar, sidecar_of
from tocom.runtime.answers import check_engine
from tocom.runtime.backends.tensorrt.backend import TensorRtBackend
from tocom.runtime.backends.tensorrt.files import EngineFolder
from tocom.runtime.backends.tensorrt.library import UnsupportedGpuError

__all__ = ["try_engine"]


def try_engine(bundle: Bundle, folder: Path, sidecar: Sidecar, **given: Any) -> dict[str, Any]:
    """Return what the engine answered, as plain JSON content.

    Args:
        bundle: The bundle.
        folder: The engine's folder.
        sidecar: What it is.
        given: ``trt`` and ``device`` of tests.
    """
    engines = EngineFolder(folder, {sidecar.degree: sidecar})
    try:
        backend = TensorRtBackend(bundle, name=sidecar.backend, engines=engines, **given)
        try:
            engine = backend.load(sidecar.degree)
            try:
                batches = sorted({sidecar.options.batch[0], sidecar.options.batch[2]})
                checked = check_engine(engine, sidecar.degree, read_references(bundle), batches)
            finally:
                engine.close()
        finally:
            backend.close()
    except (TocomError, MemoryError) as error:
        return {"is_right": False, "found": str(error), "can_run": not isinstance(error, UnsupportedGpuError)}
    agreement = checked.agreement
    return {
        "is_right": checked.is_right,
        "found": checked.describe(),
        "difference": agreement.difference if np.isfinite(agreement.difference) else None,
        "allowed": agreement.allowed,
        "cosine": agreement.cosine,
    }


def _work() -> None:
    request = json.loads(sys.stdin.read())
    found = try_engine(Bundle(request["bundle"]), Path(request["folder"]), sidecar_of(request["sidecar"]))
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    _work()
