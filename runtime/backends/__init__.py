"""Backends behind one seam; :func:`open_backend` finds the one to use and says why."""

from __future__ import annotations

from tocom.runtime.backends.base import Backend, Engine
from tocom.runtime.backends.select import BACKENDS, open_backend

__all__ = ["BACKENDS", "Backend", "Engine", "open_backend"]
