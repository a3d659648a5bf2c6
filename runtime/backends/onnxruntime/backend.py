"""ONNX Runtime: runs the bundle's ONNX files as they are, on the CPU or with the CUDA provider."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from tocom.errors import EngineError, OutputError, one_line
from tocom.formats.bundle import Bundle
from tocom.runtime.backends.arrays import host_array
from tocom.runtime.backends.base import DEVICE_TIMEOUT_S
from tocom.runtime.backends.onnxruntime.weight_cache import WeightCache
from tocom.runtime.memory.free import MAPPED, PACKING, require_free
from tocom.runtime.memory.needs import Need, needs_of
from tocom.system.cpu import cpu_identity, usable_cores
from tocom.system.onnxruntime_session import open_session, session_options

__all__ = ["OnnxRuntimeBackend", "OnnxRuntimeEngine"]

log = logging.getLogger("tocom.runtime")

_arena_registered = False


class OnnxRuntimeEngine:
    """One session. ``run`` may be called from any thread, by one thread at a time.

    Attributes:
        degree: Tokens removed in every block.
        session: The ``InferenceSession``; None once closed.
    """

    def __init__(self, session: Any, degree: int, output_names: tuple[str, ...]) -> None:
        self.degree = degree
        self.session = session
        self._names = list(output_names)
        self._indices = [(name, index) for index, name in enumerate(output_names)]
        self._input = session.get_inputs()[0].name

    def run(self, images: NDArray[Any]) -> dict[str, NDArray[Any]]:
        """Return the outputs by name. ``images`` is read in place, without a copy."""
        if self.session is None:
            raise EngineError("the engine is closed")
        try:
            values = self.session.run(self._names, {self._input: images})
        except Exception as error:  # pybind's exception types are not exported; this is the one boundary to them
            raise EngineError(f"ONNX Runtime failed at degree {self.degree}: {one_line(error)}") from error
        # A strict zip takes 7 µs, here where an inference has just emptied the caches.
        return {name: values[index] for name, index in self._indices}

    def is_settled(self, batch: int) -> bool:
        """Every run is the same."""
        return True

    def close(self) -> None:
        """Drop the session."""
        self.session = None


class OnnxRuntimeBackend:
    """Sessions of one bundle.

    On the CPU, several degrees share one copy of each packed weight (see :mod:`.weight_cache`) and one activation
    arena. Where the cache cannot be written, each session packs its own, with a warning.

    Args:
        bundle: The bundle.
        threads: CPU threads of one inference; None takes the usable physical cores.
        reason: Why this backend was chosen.
        cuda: Use the CUDA provider, and fail where it is missing.
        share_weights: Let the degrees share packed weights.
        cache_folder: Where packed weights are kept; None takes the user's cache folder.

    Raises:
        EngineError: onnxruntime is not installed, or has no CUDA provider.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        threads: int | None = None,
        reason: str = "",
        cuda: bool = False,
        share_weights: bool = True,
        cache_folder: Path | None = None,
    ) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise EngineError(
                "The onnxruntime backend needs the package onnxruntime. Install it: pip install 'tocom[runtime]'."
            ) from error
        self._ort = onnxruntime
        self._bundle = bundle
        self.shares_weights = share_weights and not cuda
        self._cache_folder = cache_folder
        self._cache: WeightCache | None = None
        self._needs: dict[int, Need] = {}
        self.name = "onnxruntime-cuda" if cuda else "onnxruntime"
        self.reason = reason
        self.timeout_s = DEVICE_TIMEOUT_S if cuda else None
        self.threads = usable_cores() if threads is None else threads
        self.device: Mapping[str, str] = {**cpu_identity(), "onnxruntime": onnxruntime.__version__}
        self._providers = ["CPUExecutionProvider"]
        if cuda:
            if "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
                raise EngineError(
                    "This onnxruntime has no CUDA provider. Install it: pip install onnxruntime-gpu, instead of "
                    "onnxruntime."
                )
            self._providers.insert(0, "CUDAExecutionProvider")

    def needs(self, degrees: Sequence[int]) -> Mapping[int, Need]:
        """Return what each degree needs in memory, from the bundle's files."""
        missing = [degree for degree in degrees if degree not in self._needs]
        self._needs |= needs_of(self._bundle, missing)
        return {degree: self._needs[degree] for degree in degrees}

    def adopt(self, images: Any) -> Any:
        """Return images of another library in host memory without a copy; None when they are not there."""
        return host_array(images)

    def prepare(self, degrees: Sequence[int]) -> None:
        """Pack the weights of these degrees once, if they can be shared; a later start finds them packed."""
        if not self.shares_weights or len(degrees) < 2:
            return
        try:
            cache = WeightCache(self._bundle, degrees, runtime_version=self._ort.__version__, folder=self._cache_folder)
            if not cache.ready():
                cache.build(self._save_packed)
        except (OutputError, EngineError, MemoryError) as error:
            self._share_no_weights(str(error))
        else:
            self._cache = cache

    def _share_no_weights(self, why: str) -> None:
        log.warning(
            "the degrees do not share weights and take more memory: %s (set TOCOM_CACHE to a writable folder)", why
        )
        self.shares_weights, self._cache = False, None

    def load(self, degree: int) -> OnnxRuntimeEngine:
        """Open a session for a degree."""
        session = self._cached_session(degree) or self._session(degree, self._options())
        if self.name == "onnxruntime-cuda" and "CUDAExecutionProvider" not in session.get_providers():
            raise EngineError("The CUDA provider is installed but does not start here. See 'tocom doctor'.")
        return OnnxRuntimeEngine(session, degree, self._bundle.output_names)

    def _cached_session(self, degree: int) -> Any:
        """Open a session of the packed weights; None where there are none."""
        if self._cache is None:
            return None
        options = self._options()
        # The cached model is optimised already; doing it again would make private copies of the weights.
        options.graph_optimization_level = self._ort.GraphOptimizationLevel.ORT_DISABLE_ALL
        if _shared_arena(self._ort):
            options.add_session_config_entry("session.use_env_allocators", "1")
        for _ in range(2):
            try:
                session = self._open(self._cache.model(degree), self._cache.path, options, degree)
            except EngineError:
                session = None
            if self._cache.unchanged():
                if session is not None:
                    return session
                break
            # Another process added degrees to it, or removed it: read it once more.
            if not self._cache.ready():
                break
        self._share_no_weights(f"the cache {self._cache.path} cannot be loaded")
        return None

    def close(self) -> None:
        """Sessions hold everything; nothing to release."""

    def _options(self) -> Any:
        return session_options(self.threads, cpu=self._providers == ["CPUExecutionProvider"])

    def _save_packed(self, degree: int, config: dict[str, str], target: Path) -> None:
        options = self._options()
        options.optimized_model_filepath = str(target)
        for key, value in config.items():
            options.add_session_config_entry(key, value)
        self._session(degree, options)

    def _session(self, degree: int, options: Any) -> Any:
        """Open a session of the bundle's own ONNX file, whose weights are the bundle's."""
        self._bundle.require_verified()
        return self._open(self._bundle.read_onnx(degree), self._bundle.onnx_path(degree).parent, options, degree)

    def _open(self, model: bytes, folder: Path, options: Any, degree: int) -> Any:
        """Open a session of bytes that were hashed."""
        require_free(self.needs([degree])[degree], PACKING if self._cache is None else MAPPED)
        try:
            return open_session(model, folder, options, providers=self._providers)
        except Exception as error:  # see OnnxRuntimeEngine.run
            if isinstance(error, MemoryError) or "bad_alloc" in str(error) or "Failed to allocate" in str(error):
                raise MemoryError(f"degree {degree} does not fit: {one_line(error)}") from error
            raise EngineError(
                f"ONNX Runtime {self._ort.__version__} cannot load degree {degree} from {folder}: {one_line(error)} "
                "Check the bundle with 'tocom verify', or export it again."
            ) from error


def _shared_arena(ort: Any) -> bool:
    """Register one CPU arena for all sessions of this process that ask for it. Sessions run one at a time here."""
    global _arena_registered
    if not _arena_registered:
        info = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
        try:
            ort.create_and_register_allocator(info, None)
        except Exception as error:  # see OnnxRuntimeEngine.run
            # Somebody else in this process registered one: that serves as well.
            log.debug("no arena of our own: %s", error)
        _arena_registered = True
    return _arena_registered
