"""TensorRT's Python module over :mod:`scripted_cuda`: engines are JSON, contexts compute on "device" memory.

As in TensorRT, nothing raises: a refused call returns False or None and logs a line.
"""

from __future__ import annotations

import ctypes
import hashlib
import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from scripted_cuda import ScriptedCuda
from small_bundles import SmallBundle

from tocom.formats.bundle import Bundle
from tocom.formats.engine import engine_name, pack_engine

CLASSES, SIZE = 5, 8
DEGREES = (0, 4, 8)
WEIGHTS = np.random.default_rng(3).standard_normal((3 * SIZE * SIZE, CLASSES)).astype(np.float32)


def reference(images: np.ndarray, degree: int) -> np.ndarray:
    return images.reshape(len(images), -1) @ WEIGHTS + np.float32(degree)


def engine_bytes(degree: int, **changes: Any) -> bytes:
    return json.dumps({"degree": degree, "scratch": 1000 * (degree + 1), "max_batch": 4, **changes}).encode()


def write_engines(bundle: SmallBundle, folder: str = "tensorrt-10.13.2-scripted-gpu-sm87", **changes: Any) -> Path:
    """Write engines and sidecars as ``tocom build`` does; ``changes`` go into every sidecar."""
    manifest = Bundle(bundle.path).manifest
    path = bundle.path / "engines" / folder
    path.mkdir(parents=True, exist_ok=True)
    compact = changes.get("options", {}).get("compact", False)
    for degree in DEGREES:
        content = engine_bytes(degree)
        file = path / engine_name(degree, compact=compact)
        if compact:
            pack_engine(memoryview(content), file)
        else:
            file.write_bytes(content)
        stored = file.read_bytes()
        record = {
            "schema_version": 1,
            "backend": "tensorrt",
            "backend_version": "10.13.2",
            "device": {"name": "Scripted GPU", "compute_capability": "8.7"},
            "compute_capabilities": ["8.7"],
            "op_plugin": None,
            "options": {"version_compatible": False, "hardware_compatible": False},
            "degree": degree,
            "onnx": {
                "sha256": manifest["files"][f"degree-{degree:02d}.onnx"]["sha256"],
                "weights_sha256": manifest["files"]["weights.bin"]["sha256"],
            },
            "engine": {
                "size_bytes": len(stored),
                "sha256": hashlib.sha256(stored).hexdigest(),
                "content_bytes": len(content),
            },
            **changes,
        }
        (path / f"degree-{degree:02d}.json").write_text(json.dumps(record))
    return path


class ILogger:
    Severity = SimpleNamespace(INTERNAL_ERROR=0, ERROR=1, WARNING=2, INFO=3, VERBOSE=4)

    def log(self, severity: Any, message: str) -> None:
        raise NotImplementedError


class ScriptedTensorRt:
    """Stands where the module stands."""

    ILogger = ILogger
    TensorIOMode = SimpleNamespace(INPUT="in", OUTPUT="out")
    ExecutionContextAllocationStrategy = SimpleNamespace(STATIC=0, USER_MANAGED=2)

    def __init__(self, cuda: ScriptedCuda, version: str = "10.13.2", *, legacy: bool = False) -> None:
        self.cuda, self.__version__, self.legacy = cuda, version, legacy
        self.libraries: list[str] = []
        self.contexts: list[Context] = []
        if legacy:
            self.ExecutionContextAllocationStrategy = None  # type: ignore[assignment]

    def Runtime(self, logger: ILogger) -> Any:
        def deserialize(content: bytes) -> Any:
            try:
                return Engine(self, json.loads(content), logger)
            except ValueError:
                logger.log(ILogger.Severity.ERROR, "Size specified in header does not match\nactual size")
                return None

        return SimpleNamespace(deserialize_cuda_engine=deserialize)

    def get_plugin_registry(self) -> Any:
        return SimpleNamespace(load_library=self.load_library)

    def load_library(self, path: str) -> Any:
        self.libraries.append(path)
        return object()


class Engine:
    num_io_tensors = 2

    def __init__(self, trt: ScriptedTensorRt, described: dict[str, Any], logger: ILogger) -> None:
        self.trt, self.described, self.logger = trt, described, logger
        if trt.legacy:
            self.device_memory_size = described["scratch"]
        else:
            self.device_memory_size_v2 = described["scratch"]

    def get_tensor_name(self, index: int) -> str:
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> str:
        return "in" if name == "images" else "out"

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3, SIZE, SIZE) if name == "images" else (-1, CLASSES)

    def create_execution_context(self, strategy: int) -> Any:
        assert strategy == 2, "the arena serves all contexts, so none may bring its own memory"
        if self.described.get("no_context"):
            self.logger.log(ILogger.Severity.ERROR, "context refused")
            return None
        return Context(self)

    def create_execution_context_without_device_memory(self) -> Any:
        assert self.trt.legacy
        return Context(self)


class Context:
    def __init__(self, engine: Engine) -> None:
        self.engine, self.addresses, self.shape = engine, {}, None
        self.scratch = (0, 0)
        self.capturable = True
        self.executed = 0
        engine.trt.contexts.append(self)

    def set_device_memory(self, pointer: int, size: int) -> None:
        self.scratch = (pointer, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.capturable

    def set_tensor_address(self, name: str, pointer: int) -> bool:
        self.addresses[name] = pointer
        return True

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return self._check(shape[0] <= self.engine.described["max_batch"], f"batch {shape[0]} beyond the profile")

    def execute_async_v3(self, stream: int) -> bool:
        cuda, described = self.engine.trt.cuda, self.engine.described
        pointer, size = self.scratch
        ready = (
            self._check(set(self.addresses) == {"images", "logits"}, "a tensor has no address")
            and self._check(size >= described["scratch"], "device memory too small")
            and self._check(cuda.check_range(pointer, described["scratch"], cuda.device), "device memory not live")
            and self._check(not described.get("refuses"), "enqueue refused")
        )
        if not ready or self.shape is None:
            return False
        batch, addresses = self.shape[0], dict(self.addresses)

        def compute() -> None:
            self.executed += 1
            images = _view(addresses["images"], (batch, 3, SIZE, SIZE))
            _view(addresses["logits"], (batch, CLASSES))[:] = reference(images, described["degree"])

        return int(cuda.enqueue(stream, compute)) == 0

    def _check(self, good: bool, words: str) -> bool:
        if not good:
            self.engine.logger.log(ILogger.Severity.ERROR, words)
        return good


def _view(pointer: int, shape: tuple[int, ...]) -> np.ndarray:
    count = int(np.prod(shape))
    return np.ctypeslib.as_array((ctypes.c_float * count).from_address(pointer)).reshape(shape)
