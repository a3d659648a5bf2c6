"""torch → ONNX per degree → bundle → engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tocom.system.dependencies import lazy_names

if TYPE_CHECKING:
    from tocom.export.engines.builder import build
    from tocom.export.pipeline import export
    from tocom.export.triton.repository import write_triton_repository

__all__ = ["build", "export", "write_triton_repository"]

_HOMES = {
    "build": "tocom.export.engines.builder",
    "export": "tocom.export.pipeline",
    "write_triton_repository": "tocom.export.triton.repository",
}


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
