"""OpenVINO: the bundle's ONNX files on the CPU, compiled for it when they are loaded.

Every degree is a compiled model with one infer request. All of them read the stored weights from one mapping of the
bundle's file while they are compiled; what OpenVINO packs for the processor each one holds by itself.
"""

from __future__ import annotations

import errno
import mmap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import PurePosixPath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import BundleError, EngineError, one_line
from tocom.formats.bundle import Bundle
from tocom.runtime.backends.arrays import host_array
from tocom.runtime.backends.openvino.model import readable_model
from tocom.runtime.memory.free import COMPILING, require_free
from tocom.runtime.memory.needs import Need, needs_of
from tocom.system.cpu import cpu_identity, usable_cores
from tocom.system.files import open_regular

__all__ = ["OpenVinoBackend", "OpenVinoEngine"]

_INSTALL = "Install it: pip install 'tocom[openvino]'."
# The compiled graph, its kernels and what it keeps beside the packed weights: measured 57 to 73 MiB for DeiT-Ti and
# DeiT-S at float32, merging or dense, 90 to 106 at float16, whose weights are unpacked.
_OVERHEAD_BYTES = 80 << 20
_NO_ROOM = ("bad_alloc", "ailed to allocate", "ould not allocate", "annot allocate")


class OpenVinoEngine:
    """One infer request. ``run`` may be called from any thread, by one thread at a time."""

    def __init__(self, compiled: Any, tensor: Any, degree: int, output_names: Sequence[str]) -> None:
        self.degree = degree
        self._compiled = compiled
        self._infer = compiled.create_infer_request().infer
        self._tensor = tensor
        outputs = [port.get_names() for port in compiled.outputs]
        self._indices = [(name, [name in each for each in outputs].index(True)) for name in output_names]

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, copied out of the request. ``images`` is read in place where it can be."""
        try:
            # A tensor over memory that may not be written to, or lies in another order, there cannot be.
            flags = images.flags
            values = self._infer(self._tensor(images, shared_memory=flags.c_contiguous and flags.writeable))
            return {name: values[index] for name, index in self._indices}
        except Exception as error:  # pybind's exception types are not exported; this is the one boundary to them
            raise EngineError(f"OpenVINO failed at degree {self.degree}: {one_line(error)}") from error

    def is_settled(self, batch: int) -> bool:
        """Every run is the same."""
        return True

    def close(self) -> None:
        """Drop the request and the compiled model."""
        self._compiled = None
        self._infer = _closed


class OpenVinoBackend:
    """Compiled models of one bundle.

    A bundle of one batch size is compiled for it. One of a range is compiled for the range: OpenVINO then works out
    shapes at every inference, which costs a few percent at high degrees.

    Args:
        bundle: The bundle.
        threads: CPU threads of one inference; None takes the usable physical cores.
        reason: Why this backend was chosen.

    Raises:
        EngineError: openvino or onnx is not installed, or openvino has no CPU here.
    """

    shares_weights = False
    timeout_s: float | None = None
    name = "openvino"

    def __init__(self, bundle: Bundle, *, threads: int | None = None, reason: str = "") -> None:
        try:
            import onnx.inliner  # noqa: F401  # used by openvino_model, and reported missing before anything is opened
            import openvino
        except ImportError as error:
            raise EngineError(f"The openvino backend needs the packages openvino and onnx. {_INSTALL}") from error
        self._openvino = openvino
        self._version = openvino.__version__.split("-")[0]
        try:
            self._core = openvino.Core()
            devices = self._core.available_devices
        except RuntimeError as error:
            raise EngineError(f"OpenVINO {self._version} does not start: {one_line(error)}") from error
        if "CPU" not in devices:
            raise EngineError(f"OpenVINO {self._version} has no CPU plugin here. {_INSTALL}")
        self._bundle = bundle
        self._needs: dict[int, Need] = {}
        self._weights: dict[str, mmap.mmap] = {}
        self.reason = reason
        self.threads = usable_cores() if threads is None else threads
        self.device: Mapping[str, str] = {**cpu_identity(), "openvino": self._version}

    def needs(self, degrees: Sequence[int]) -> Mapping[int, Need]:
        """Return what each degree needs in memory, from the bundle's files."""
        missing = [degree for degree in degrees if degree not in self._needs]
        for degree, need in needs_of(self._bundle, missing).items():
            self._needs[degree] = replace(need, overhead_bytes=_OVERHEAD_BYTES)
        return {degree: self._needs[degree] for degree in degrees}

    def adopt(self, images: Any) -> Any:
        """Return images of another library's host memory as an array, without a copy."""
        return host_array(images)

    def prepare(self, degrees: Sequence[int]) -> None:
        """Nothing is shared that could be made ready."""

    def load(self, degree: int) -> OpenVinoEngine:
        """Compile a degree."""
        require_free(self.needs([degree])[degree], COMPILING)
        self._bundle.require_verified()
        content = self._bundle.read_onnx(degree)
        try:
            model, weights = readable_model(content, self._at)
        except ValueError as error:
            path = self._bundle.onnx_path(degree)
            raise BundleError(f"{path} cannot be read ({one_line(error)}). Export the bundle again.") from error
        try:
            compiled = self._core.compile_model(self._read(model, weights, degree), "CPU", self._options())
            engine = OpenVinoEngine(compiled, self._openvino.Tensor, degree, self._bundle.output_names)
        except Exception as error:  # see OpenVinoEngine.run
            if isinstance(error, EngineError):
                raise
            if isinstance(error, MemoryError) or any(words in str(error) for words in _NO_ROOM):
                raise MemoryError(f"degree {degree} does not fit: {one_line(error)}") from error
            raise EngineError(
                f"OpenVINO {self._version} cannot load degree {degree} of {self._bundle.path}: {one_line(error)} "
                "Check the bundle with 'tocom verify', or take another backend."
            ) from error
        for mapped in self._weights.values():
            # Packed by now. Pages of the mapping that are asked for again come back from the file.
            mapped.madvise(mmap.MADV_DONTNEED)
        return engine

    def close(self) -> None:
        """Let go of the mapping; it ends with the last engine."""
        self._weights.clear()

    def _options(self) -> dict[str, Any]:
        return {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": self.threads,
            # Else bfloat16 where the processor has it. Precision is decided at export.
            "INFERENCE_PRECISION_HINT": "f32",
            # Pinned threads cannot leave a core that another program takes.
            "ENABLE_CPU_PINNING": False,
        }

    def _read(self, model: bytes, weights: Mapping[str, NDArray[Any]], degree: int) -> Any:
        """Return OpenVINO's model with the weights instead of the inputs that stand for them."""
        read = self._core.read_model(model)
        for parameter in read.get_parameters():
            name = next((name for name in parameter.output(0).get_names() if name in weights), None)
            if name is not None:
                parameter.output(0).replace(self._openvino.op.Constant(weights[name], shared_memory=True).output(0))
                read.remove_parameter(parameter)
        if len(read.inputs) != 1:
            raise EngineError(f"Degree {degree} of {self._bundle.path} has {len(read.inputs)} inputs, expected 1.")
        smallest, _, largest = self._bundle.batch
        batch = largest if smallest == largest else self._openvino.Dimension(smallest, largest)
        read.reshape([batch, *self._bundle.image_shape])
        return read

    def _at(self, location: str, offset: int, length: int) -> NDArray[np.uint8]:
        """Return bytes of a file of the bundle, mapped; every degree maps the same pages."""
        if length == 0:
            return np.empty(0, np.uint8)
        if location not in self._weights:
            path = self._bundle.file(PurePosixPath(location).as_posix())
            try:
                with open_regular(path.resolve()) as file:
                    # OpenVINO asks for memory that may be written to; what were written would be this process's alone.
                    self._weights[location] = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
            except OSError as error:
                if error.errno == errno.ENOMEM:
                    raise MemoryError(f"{path} cannot be mapped: {error.strerror}") from error
                raise EngineError(f"{path} cannot be mapped ({error.strerror}). Copy the bundle again.") from error
        return np.frombuffer(self._weights[location], np.uint8, length, offset)


def _closed(*_: Any, **__: Any) -> Any:
    raise EngineError("the engine is closed")
