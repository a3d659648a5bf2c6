"""TensorRT's Python module over :mod:`host_cuda`: engines are JSON, contexts compute on "device" memory.

As in TensorRT, nothing raises: a refused call returns False or None and logs a line. Names and arguments are those of
TensorRT's own stubs, to which a test holds them.
"""

from __future__ import annotations

import enum
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from host_cuda import HostCuda
from sidecars import sidecar_json
from small_bundles import SmallBundle, put_references
from wrong_engines import WRONG

from tocom.formats.engine import engine_name, pack_engine

CLASSES, SIZE = 5, 8
DEGREES = (0, 4, 8)
WEIGHTS = np.random.default_rng(3).standard_normal((3 * SIZE * SIZE, CLASSES)).astype(np.float32)


def reference(images: np.ndarray, degree: int) -> np.ndarray:
    return images.reshape(len(images), -1) @ WEIGHTS + np.float32(degree)


def engine_bytes(degree: int, **changes: Any) -> bytes:
    return json.dumps({"degree": degree, "scratch": 1000 * (degree + 1), "max_batch": 4, **changes}).encode()


def write_engines(
    bundle: SmallBundle,
    folder: str = "tensorrt-10.13.2-scripted-gpu-sm87",
    *,
    engines: Mapping[int, Mapping[str, Any]] | None = None,
    **changes: Any,
) -> Path:
    """Write engines and sidecars as ``tocom build`` does.

    Args:
        bundle: Where.
        folder: The engines' folder.
        engines: Per degree what its engine does otherwise.
        changes: Go into every sidecar.
    """
    put_references(bundle.path, reference)  # what the scripted device computes, which is not what the ONNX files do
    path = bundle.path / "engines" / folder
    path.mkdir(parents=True, exist_ok=True)
    compact = changes.get("options", {}).get("compact", False)
    for degree in DEGREES:
        content = engine_bytes(degree, **(engines or {}).get(degree, {}))
        file = path / engine_name(degree, compact=compact)
        if compact:
            pack_engine(memoryview(content), file)
        else:
            file.write_bytes(content)
        sidecar = sidecar_json(bundle.path, degree, file, len(content), changes)
        (path / f"degree-{degree:02d}.json").write_text(sidecar)
    return path


def replace_engine(folder: Path, degree: int, content: bytes) -> None:
    (folder / f"degree-{degree:02d}.engine").write_bytes(content)
    sidecar = folder / f"degree-{degree:02d}.json"
    record = json.loads(sidecar.read_text())
    size, sha256 = len(content), hashlib.sha256(content).hexdigest()
    record["engine"].update(size_bytes=size, content_bytes=size, sha256=sha256)
    sidecar.write_text(json.dumps(record))


class ILogger:
    class Severity(enum.IntEnum):
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def log(self, severity: Any, msg: str) -> None:
        raise NotImplementedError


class TensorIOMode(enum.IntEnum):
    NONE, INPUT, OUTPUT = range(3)


class ExecutionContextAllocationStrategy(enum.IntEnum):
    STATIC, ON_PROFILE_CHANGE, USER_MANAGED = range(3)


class ScriptedTensorRt:
    """Stands where the module stands.

    Args:
        cuda: The driver that engines run on.
        version: What it says it is.
    """

    ILogger = ILogger
    TensorIOMode = TensorIOMode
    ExecutionContextAllocationStrategy = ExecutionContextAllocationStrategy

    def __init__(self, cuda: HostCuda, version: str = "10.13.2") -> None:
        self.cuda, self.__version__ = cuda, version
        self.contexts: list[IExecutionContext] = []
        self.registries: list[IPluginRegistry] = []

    def Runtime(self, logger: ILogger) -> Runtime:
        return Runtime(self, logger)


class IPluginRegistry:
    """One of a runtime's own. A library's ops are registered once in each; again, the answer is None."""

    def __init__(self, logger: ILogger) -> None:
        self.logger, self.libraries = logger, []

    def load_library(self, plugin_path: str) -> Any:
        content = Path(plugin_path).read_bytes()
        if content in self.libraries:
            self.logger.log(ILogger.Severity.ERROR, "plugin creator already registered")
            return None
        self.libraries.append(content)
        return object()


class Runtime:
    engine_host_code_allowed = False

    def __init__(self, trt: ScriptedTensorRt, logger: ILogger) -> None:
        self.trt, self.logger = trt, logger
        self.registry = IPluginRegistry(logger)
        trt.registries.append(self.registry)

    def get_plugin_registry(self) -> IPluginRegistry:
        return self.registry

    def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
        try:
            described = json.loads(serialized_engine)
        except ValueError:
            self.logger.log(ILogger.Severity.ERROR, "Size specified in header does not match\nactual size")
            return None
        if error := described.get("error"):
            self.logger.log(ILogger.Severity.ERROR, error)
            return None
        return ICudaEngine(self.trt, described, self.logger)


class ICudaEngine:
    num_io_tensors = 2

    def __init__(self, trt: ScriptedTensorRt, described: dict[str, Any], logger: ILogger) -> None:
        self.trt, self.described, self.logger = trt, described, logger
        self.device_memory_size_v2 = described["scratch"]

    def get_tensor_name(self, index: int) -> str:
        return ("images", "logits")[index]

    def get_tensor_mode(self, name: str) -> TensorIOMode:
        return TensorIOMode.INPUT if name == "images" else TensorIOMode.OUTPUT

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return (-1, 3, SIZE, SIZE) if name == "images" else (-1, CLASSES)

    def create_execution_context(self, strategy: Any = ExecutionContextAllocationStrategy.STATIC) -> Any:
        assert strategy == ExecutionContextAllocationStrategy.USER_MANAGED, "the arena serves all contexts"
        if words := self.described.get("no_context"):
            self.logger.log(ILogger.Severity.ERROR, words)
            return None
        return IExecutionContext(self)


class IExecutionContext:
    """Holds callers to NVIDIA's rules for CUDA graphs.

    Before a capture the context must have run plainly with the same shape and addresses, and the stream must have been
    synchronized since; inside it nothing but the enqueue is allowed; a graph holds the shape and the addresses of its
    capture, and answers NaN when they were changed under it.
    """

    def __init__(self, engine: ICudaEngine) -> None:
        self.engine, self.addresses, self.shape = engine, {}, None
        self.scratch = (0, 0)
        self.capturable = True
        self.executed = self.version = 0
        self.ready_after: int | None = None
        engine.trt.contexts.append(self)

    def set_device_memory(self, memory: int, size: int) -> None:
        self._change(memory % 256 == 0, "device memory is not aligned to 256 bytes")
        self.scratch = (memory, size)

    def is_stream_capturable(self, stream: int) -> bool:
        return self.capturable

    def set_tensor_address(self, name: str, memory: int) -> bool:
        if self.addresses.get(name) == memory:
            return True
        self.addresses[name] = memory
        return self._change(memory % 256 == 0, f"{name} is not aligned to 256 bytes")

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shape = shape
        return self._change(shape[0] <= self.engine.described["max_batch"], f"batch {shape[0]} beyond the profile")

    def execute_async_v3(self, stream_handle: int) -> bool:
        cuda, described = self.engine.trt.cuda, self.engine.described
        pointer, size = self.scratch
        capturing = cuda.recording(stream_handle)
        ready = (
            self._check(set(self.addresses) == {"images", "logits"}, "a tensor has no address")
            and self._check(size >= described["scratch"], "device memory too small")
            and self._check(cuda.holds(pointer, described["scratch"]), "device memory not live")
            and self._check(not described.get("refuses"), "enqueue refused")
            and self._check(not (capturing and described.get("allocates")), "an allocation while capturing")
            and self._check(
                not capturing or (self.ready_after is not None and cuda.calls(_SYNCHRONIZE) > self.ready_after),
                "captured without a plain run and a synchronization before",
            )
        )
        if not ready or self.shape is None:
            return False
        batch, addresses, version = self.shape[0], dict(self.addresses), self.version
        if not capturing:
            self.ready_after = cuda.calls(_SYNCHRONIZE)

        def compute() -> None:
            self.executed += 1
            images = cuda.view(addresses["images"], (batch, 3, SIZE, SIZE), described.get("input", "float32"))
            if images.dtype == np.uint8:  # as the small bundles' input entry says
                images = (images.astype(np.float32) / 255 - 0.5) / 0.5
            answers = reference(images, described["degree"]) if version == self.version else np.float32(np.nan)
            if self._is_wrong(capturing):
                answers = WRONG[described["wrong"]](answers)
            cuda.view(addresses["logits"], (batch, CLASSES))[:] = answers

        return cuda.launch(stream_handle, compute) == 0

    def _change(self, good: bool, words: str) -> bool:
        self.version += 1
        self.ready_after = None
        return self._check(good, words) and self._check(not self.engine.trt.cuda.recording(), "changed while capturing")

    def _is_wrong(self, captured: bool) -> bool:
        """Return whether this run answers wrongly: where ``wrong`` says how and ``when`` does not say another time."""
        when = {"always": True, "captured": captured, "every other run": self.executed % 2 == 0}
        return "wrong" in self.engine.described and when[self.engine.described.get("when", "always")]

    def _check(self, good: bool, words: str) -> bool:
        if not good:
            self.engine.logger.log(ILogger.Severity.ERROR, words)
        return good


_SYNCHRONIZE = "cuStreamSynchronize"
