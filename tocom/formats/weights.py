"""The weights of a bundle: one external-data file, every distinct tensor once. Needs the onnx package, never torch."""

from __future__ import annotations

import hashlib
from pathlib import Path

import onnx
from onnx import numpy_helper

__all__ = ["WeightStore"]

# Smaller tensors stay in the ONNX file: shapes and scalars, which parsers want to see at once.
_MIN_EXTERNAL_BYTES = 1024
# ONNX's external data may be memory-mapped; mapping works on pages.
_PAGE_BYTES = 4096
_BIG_BYTES = 1 << 20
_ALIGN_BYTES = 64


class WeightStore:
    """Write tensors to an external-data file, equal ones once (by the sha256 of their bytes).

    Args:
        path: The file to write. ONNX files beside it refer to it by its name.
    """

    def __init__(self, path: Path) -> None:
        self._name = path.name
        self._file = path.open("wb")
        self._stored: dict[str, tuple[int, int]] = {}

    def __enter__(self) -> WeightStore:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def take(self, tensor: onnx.TensorProto) -> None:
        """Move a tensor's bytes into the file, in place; small ones stay where they are."""
        data = numpy_helper.to_array(tensor).tobytes() if not tensor.raw_data else tensor.raw_data
        if len(data) < _MIN_EXTERNAL_BYTES:
            return
        key = hashlib.sha256(data).hexdigest()
        if key not in self._stored:
            align = _PAGE_BYTES if len(data) >= _BIG_BYTES else _ALIGN_BYTES
            self._file.write(b"\0" * (-self._file.tell() % align))
            self._stored[key] = (self._file.tell(), len(data))
            self._file.write(data)
        offset, length = self._stored[key]
        for field in ("raw_data", "float_data", "int32_data", "int64_data", "external_data"):
            tensor.ClearField(field)
        tensor.data_location = onnx.TensorProto.EXTERNAL
        for name, value in (("location", self._name), ("offset", str(offset)), ("length", str(length))):
            tensor.external_data.add(key=name, value=value)
