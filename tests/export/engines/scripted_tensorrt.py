"""A TensorRT module that does what a script says: what the real one does only on a GPU, or when it fails."""

from __future__ import annotations

import enum
import types
from typing import Any


class Severity(enum.Enum):
    INTERNAL_ERROR = 0
    ERROR = 1
    WARNING = 2
    INFO = 3


class BuilderFlag(enum.Enum):
    VERSION_COMPATIBLE = 1
    EXCLUDE_LEAN_RUNTIME = 2


class ComputeCapability(enum.Enum):
    """TensorRT-RTX's alone; a subset of its names."""

    SM86 = 86
    SM89 = 89


class Dims(list):
    """TensorRT's take a sequence, and are one."""


class MemoryPoolType(enum.Enum):
    WORKSPACE = 0


class HardwareCompatibilityLevel(enum.Enum):
    AMPERE_PLUS = 1


class LayerType(enum.Enum):
    PLUGIN_V3 = 1
    CAST = 2


class DataType(enum.Enum):
    FLOAT = 0


class ILogger:
    Severity = Severity


class IProgressMonitor:
    pass


class Tensor:
    def __init__(self, name: str, *shape: int) -> None:
        self.name, self.shape, self.dtype = name, shape, DataType.FLOAT


class Network:
    """Two layers, one of them the op plugin's."""

    num_layers, num_inputs, num_outputs = 2, 1, 1

    def __init__(self) -> None:
        self.images = Tensor("images", -1, 3, 32, 32)

    def get_input(self, index: int) -> Tensor:
        return self.images

    def get_output(self, index: int) -> Tensor:
        return Tensor("logits", -1, 10)

    def get_layer(self, index: int) -> Any:
        kind = (LayerType.PLUGIN_V3, LayerType.CAST)[index]
        return types.SimpleNamespace(type=kind, num_outputs=1, get_output=lambda i: Tensor("t", -1, 13, 32))


class TimingCache:
    def __init__(self, content: bytes) -> None:
        self.content = content

    def serialize(self) -> bytes:
        return self.content + b"+"


class Config:
    def __init__(self, script: dict[str, Any]) -> None:
        self._script = script
        self.set: dict[str, Any] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("_script", "set"):
            object.__setattr__(self, name, value)
        else:
            self.set[name] = value

    def set_memory_pool_limit(self, pool: MemoryPoolType, size: int) -> None:
        self.set[pool.name] = size

    def set_flag(self, flag: BuilderFlag) -> None:
        self.set[flag.name] = True

    def set_compute_capability(self, capability: ComputeCapability, index: int) -> bool:
        self.set.setdefault("compute_capabilities", []).append(capability.name)
        return index < self.set["num_compute_capabilities"]

    def add_optimization_profile(self, profile: Any) -> int:
        return self._script.get("profile", 0)

    def create_timing_cache(self, content: bytes) -> TimingCache | None:
        return None if content == b"corrupt" else TimingCache(content)

    def set_timing_cache(self, cache: TimingCache, *, ignore_mismatch: bool) -> bool:
        return cache.content != b"of another GPU"


CREATOR = ("TokenMerge", "1", "tocom")


def make(script: dict[str, Any]) -> types.SimpleNamespace:
    """Return the module. ``script`` may hold: strongly_typed, library, creators, parses, profile, engine,
    scratch."""
    module = types.SimpleNamespace(
        ILogger=ILogger,
        IProgressMonitor=IProgressMonitor,
        BuilderFlag=BuilderFlag,
        MemoryPoolType=MemoryPoolType,
        HardwareCompatibilityLevel=HardwareCompatibilityLevel,
        ComputeCapability=ComputeCapability,
        Dims=Dims,
        __name__="scripted",
        __version__="10.3.0",
        configs=[],
        parsed=[],
        networks=[],
        network_flags=[],
        shapes={},
        libraries=[],
    )
    flags = {"STRONGLY_TYPED": 1} if script.get("strongly_typed", True) else {}
    module.NetworkDefinitionCreationFlag = types.SimpleNamespace(**flags)

    class Builder:
        def __init__(self, logger: Any) -> None:
            self.logger = logger

        def get_plugin_registry(self) -> Any:
            return types.SimpleNamespace(load_library=self._load, get_creator=self._creator)

        def _creator(self, name: str, version: str, namespace: str) -> Any:
            return object() if (name, version, namespace) in script.get("creators", [CREATOR]) else None

        def _load(self, path: str) -> Any:
            module.libraries.append(path)
            return script.get("library", object())

        def create_network(self, flags: int) -> Network:
            module.network_flags.append(flags)
            module.networks.append(Network())
            return module.networks[-1]

        def create_builder_config(self) -> Config:
            module.configs.append(Config(script))
            return module.configs[-1]

        def create_optimization_profile(self) -> Any:
            return types.SimpleNamespace(set_shape=lambda name, *shapes: module.shapes.update({name: shapes}))

        def build_serialized_network(self, network: Network, config: Config) -> bytes | None:
            monitor = config.set["progress_monitor"]
            monitor.phase_start("Building", None, 2)
            monitor.step_complete("Building", 0)
            monitor.phase_finish("Building")
            self.logger.log(Severity.WARNING, "a warning")
            if script.get("engine", b"engine") is None:
                self.logger.log(Severity.ERROR, "[x] could not find any implementation\nfor node 7")
            return script.get("engine", b"engine")

    class OnnxParser:
        num_errors = 1

        def __init__(self, network: Network, logger: Any) -> None:
            pass

        def parse(self, model: bytes, path: str) -> bool:
            module.parsed.append((model, path))
            return script.get("parses", True)

        def get_error(self, index: int) -> Any:
            return types.SimpleNamespace(
                node=lambda: 3, node_name=lambda: "gelu", node_operator=lambda: "Gelu", desc=lambda: "no importer"
            )

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self.libraries: list[str] = []

        def get_plugin_registry(self) -> Any:
            return types.SimpleNamespace(load_library=self.libraries.append)

        def deserialize_cuda_engine(self, content: memoryview) -> Any:
            embedded = "plugins_to_serialize" in module.configs[-1].set
            assert embedded or self.libraries == module.libraries, "an engine needs its op plugin to load"
            size = script.get("scratch", 4096)
            return None if size is None else types.SimpleNamespace(device_memory_size_v2=size)

    module.Builder, module.OnnxParser, module.Runtime = Builder, OnnxParser, Runtime
    return module
