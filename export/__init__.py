"""torch → ONNX per degree → bundle → engines."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tocom.system.dependencies import lazy_names

if TYPE_CHECKING:
    from tocom.export.engines.builder import build
    from tocom.export.pipeline import export
    from tocom.export.triton.repository import write_triton_repository

__all__ = ["build", "export", "write_triton_repository"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "tocom.export.engines.builder": ("build",),
        "tocom.export.pipeline": ("export",),
        "tocom.export.triton.repository": ("write_triton_repository",),
    },
)
