"""TensorRT and TensorRT-RTX: engines of one device on one stream, one arena, captured CUDA graphs.

Both libraries share this code. All contexts run one after another, so they share one block of scratch memory, the
largest engine's. Input and output buffers are allocated once per engine; the copies and the inference of a batch
size are captured into one CUDA graph the second time that batch size comes.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from tocom.errors import EngineError
from tocom.formats.bundle import Bundle
from tocom.formats.engine import SELF_REGISTER
from tocom.formats.sidecar import Sidecar
from tocom.runtime.backends.arrays import device_images, host_array
from tocom.runtime.backends.base import DEVICE_TIMEOUT_S
from tocom.runtime.backends.tensorrt.context import Arena, Shared
from tocom.runtime.backends.tensorrt.device.select import Device, open_device
from tocom.runtime.backends.tensorrt.engine import TensorRtEngine
from tocom.runtime.backends.tensorrt.files import EngineFolder, any_engines, find_engines
from tocom.runtime.backends.tensorrt.fixed_batch import FixedBatchEngine
from tocom.runtime.backends.tensorrt.library import LogCapture, import_tensorrt
from tocom.runtime.memory.needs import Need, needs_of
from tocom.system.sealed_library import hold_library

if TYPE_CHECKING:
    import tensorrt

__all__ = ["TensorRtBackend"]


class TensorRtBackend:
    """Engines of one bundle under TensorRT or TensorRT-RTX.

    Args:
        bundle: The bundle.
        name: ``tensorrt`` or ``tensorrt-rtx``.
        reason: Why this backend was chosen.
        engines: The engines to load; None looks for those that fit beside the bundle.
        trt: TensorRT's module; given by tests, imported otherwise.
        device: The GPU; given by tests, opened otherwise.

    Raises:
        EngineError: TensorRT, a GPU, or engines for it are missing.
    """

    threads = 0
    shares_weights = False
    timeout_s: float | None = DEVICE_TIMEOUT_S

    def __init__(
        self,
        bundle: Bundle,
        *,
        name: str,
        reason: str = "",
        engines: EngineFolder | None = None,
        trt: Any = None,
        device: Device | None = None,
    ) -> None:
        self.name = name
        self.reason = reason
        self._bundle = bundle
        # In this order each check is cheaper than the next: most machines without engines import nothing.
        if engines is None and not any_engines(bundle, name):
            raise EngineError(
                f"{bundle.path} has no {name} engines. Build them on this device: tocom build {bundle.path} "
                f"--backend {name}."
            )
        self._trt = import_tensorrt(name) if trt is None else trt
        self._closed = False
        try:
            self._device = open_device() if device is None else device
            try:
                self._start(engines)
            except BaseException:
                with contextlib.suppress(EngineError):  # of a device that is lost: the first error says more
                    self._device.close()
                raise
        except MemoryError as error:
            raise EngineError(
                f"{name} has no room to start: {error}. Free memory of the GPU: 'nvidia-smi' shows who holds it."
            ) from error

    def _start(self, engines: EngineFolder | None) -> None:
        described = dict(self._device.describe())
        self.device: Mapping[str, str] = {**described, self.name: str(self._trt.__version__)}
        version = str(self._trt.__version__)
        self._folder: EngineFolder = engines or find_engines(self._bundle, self.name, version, described)
        log = LogCapture(self._trt)
        with self._device.attached():
            try:
                self._runtime: tensorrt.Runtime | None = self._trt.Runtime(log.logger)
            except TypeError as error:  # what pybind11 makes of a null pointer
                raise EngineError(f"{self.name} does not start on {described['gpu']}: {log.take()}.") from error
            self._load_op_plugin(self._runtime, log)
            self._shared = Shared(self._device, self._device.create_stream(), Arena(self._device), log, self._trt)
            # Other libraries let this one wait for them, from any thread, whatever ours is recording.
            self._intake = self._device.create_stream()

    def needs(self, degrees: Sequence[int]) -> Mapping[int, Need]:
        """Return what each degree needs: engines keep their weights in device memory, each its own copy.

        What a context needs was asked when the engine was built; of a portable engine it is estimated from the tokens.
        """
        estimates = needs_of(self._bundle, degrees)
        # Images lie in a buffer of the host and in one of the GPU; on a Jetson that is the same memory.
        item = np.dtype(self._bundle.input_type).itemsize
        buffers = 2 * item * self._bundle.batch[2] * int(np.prod(self._bundle.image_shape))
        needs = {}
        for degree in degrees:
            stored = self._file(degree).engine
            known = stored.device_memory_bytes
            scratch = estimates[degree].activation_bytes if known is None else known
            needs[degree] = Need(degree, {(stored.file, 0): stored.content_bytes}, scratch, buffers)
        return needs

    def adopt(self, images: Any) -> Any:
        """Return images of another library, in host or GPU memory, without a copy; None when they are neither."""
        host = host_array(images)
        if host is not None:
            return host
        return device_images(images, self._intake, self._device.index, self._bundle.input_type)

    def prepare(self, degrees: Sequence[int]) -> None:
        """Check that every degree has an engine, before any is loaded."""
        for degree in degrees:
            self._file(degree)

    def load(self, degree: int) -> TensorRtEngine | FixedBatchEngine:
        """Deserialize an engine whose hash was checked, and grow the arena to what it needs."""
        file = self._file(degree)
        content = file.read_engine(self._folder.path)
        if self._runtime is None:
            raise EngineError(f"the backend of {self._bundle.path} is closed")
        self._shared.log.take()  # what was said before is of others
        with self._device.attached():
            engine: tensorrt.ICudaEngine | None = self._runtime.deserialize_cuda_engine(content)
            if engine is None:
                raise self._shared.log.refusal(
                    f"{self.name} {self._trt.__version__} cannot load {self._folder.path / file.engine.file}",
                    f"Build it again on this device: tocom build {self._bundle.path} --backend {self.name}.",
                )
            # At least one byte: address zero would read as "not bound yet".
            self._shared.arena.ensure(max(engine.device_memory_size_v2, 1))
            loaded = TensorRtEngine(
                degree, engine, self._shared, self._bundle.batch[2], np.dtype(self._bundle.input_type)
            )
        least, _, most = file.options.batch
        narrower = least > self._bundle.batch[0] or most < self._bundle.batch[2]
        return FixedBatchEngine(loaded, least, most) if narrower else loaded

    def close(self) -> None:
        """Release the arena, the stream and the GPU. More than once is fine."""
        if self._closed:
            return
        self._closed = True
        try:
            with self._device.attached():
                self._runtime = None
                self._shared.arena.close()
                for stream in (self._shared.stream, self._intake):
                    self._device.release_stream(stream)
        finally:
            self._device.close()

    def _file(self, degree: int) -> Sidecar:
        if degree not in self._folder.engines:
            raise EngineError(
                f"{self._folder.path} has no engine of degree {degree}; it has {list(self._folder.engines)}. "
                f"Build it: tocom build {self._bundle.path} --backend {self.name} --degrees {degree}."
            )
        return self._folder.engines[degree]

    def _load_op_plugin(self, runtime: tensorrt.Runtime, log: LogCapture) -> None:
        """Give the library to this runtime alone: the process's registry takes every op plugin only once."""
        needed = self._folder.op_plugin()
        if needed is None:
            return
        path, expected = needed
        held = hold_library(path, expected)
        os.environ.pop(SELF_REGISTER, None)
        if runtime.get_plugin_registry().load_library(held) is None:
            raise EngineError(f"{self.name} cannot load the op plugin library {path}: {log.take()}.")
