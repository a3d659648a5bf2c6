"""The device layer: what the TensorRT backend needs of CUDA, behind one small interface with two implementations."""

from __future__ import annotations

from tocom.runtime.device.base import Device
from tocom.runtime.device.select import open_device

__all__ = ["Device", "open_device"]
