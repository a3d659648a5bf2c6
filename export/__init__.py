"""torch → ONNX per degree → bundle → engines."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

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


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'tocom.export' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
