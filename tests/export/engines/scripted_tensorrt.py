"""A TensorRT module that does what a script says: what the real one does only on a GPU, or when it fails.

Its classes have the names of TensorRT's, and only members and arguments that those have: a test holds them to
TensorRT's own type stubs. Its parser takes nodes as 10.3's does: by a function of the file before an op plugin
(NVIDIA/TensorRT #4113), and not at all where there is neither.
"""

from __future__ import annotations

import enum
import json
import types
from typing import Any

import onnx
from tensorrt_names import classes


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

    def __init__(self, shape: Any = ()) -> None:
        super().__init__(shape)


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

    def __init__(self) -> None:
        pass


class IProgressMonitor:
    def __init__(self) -> None:
        pass


class ITensor:
    def __init__(self, name: str, *shape: int) -> None:
        self.name, self.shape, self.dtype = name, shape, DataType.FLOAT


class ILayer:
    num_outputs = 1

    def __init__(self, kind: LayerType) -> None:
        self.type = kind

    def get_output(self, index: int) -> ITensor:
        return ITensor("t", -1, 13, 32)


class INetworkDefinition:
    """What the parser put in, behind one image and before the logits."""

    num_inputs = num_outputs = 1

    def __init__(self) -> None:
        self._images = ITensor("images", -1, 3, 32, 32)
        self._layers: list[ILayer] = []

    @property
    def num_layers(self) -> int:
        return len(self._layers)

    def get_input(self, index: int) -> ITensor:
        return self._images

    def get_output(self, index: int) -> ITensor:
        return ITensor("logits", -1, 10)

    def get_layer(self, index: int) -> ILayer:
        return self._layers[index]


class ITimingCache:
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> bytes:
        return self._content + b"+"


class IOptimizationProfile:
    def __init__(self, shapes: dict[str, Any]) -> None:
        self._shapes = shapes

    def set_shape(self, input: str, min: Any, opt: Any, max: Any) -> None:
        self._shapes[input] = (min, opt, max)


class IBuilderConfig:
    """Keeps what is set; what TensorRT's own has not cannot be set."""

    def __init__(self, script: dict[str, Any]) -> None:
        self._script = script
        self._said: dict[str, Any] = {}

    def __setattr__(self, name: str, value: Any) -> None:
        if name.startswith("_"):
            object.__setattr__(self, name, value)
        elif name not in classes()["IBuilderConfig"] and name not in OF_RTX:
            raise AttributeError(f"IBuilderConfig has no {name}")
        else:
            self._said[name] = value

    def set_memory_pool_limit(self, pool: MemoryPoolType, pool_size: int) -> None:
        self._said[pool.name] = pool_size

    def set_flag(self, flag: BuilderFlag) -> None:
        self._said[flag.name] = True

    def set_compute_capability(self, capability: ComputeCapability, index: int) -> bool:
        self._said.setdefault("compute_capabilities", []).append(capability.name)
        return index < self._said["num_compute_capabilities"]

    def add_optimization_profile(self, profile: IOptimizationProfile) -> int:
        return self._script.get("profile", 0)

    def create_timing_cache(self, serialized_timing_cache: bytes) -> ITimingCache | None:
        return None if serialized_timing_cache == b"corrupt" else ITimingCache(serialized_timing_cache)

    def set_timing_cache(self, cache: ITimingCache, ignore_mismatch: bool) -> bool:
        return cache._content != b"of another GPU"


class IPluginRegistry:
    def __init__(self, script: dict[str, Any], libraries: list[str]) -> None:
        self._script, self._libraries = script, libraries

    def load_library(self, plugin_path: str) -> Any:
        self._libraries.append(plugin_path)
        return self._script.get("library", object())

    def get_creator(self, type: str, version: str, plugin_namespace: str) -> Any:
        known = self._libraries and (type, version, plugin_namespace) in self._script.get("creators", [CREATOR])
        return object() if known else None


class ParserError:
    def node(self) -> int:
        return 3

    def node_name(self) -> str:
        return "gelu"

    def node_operator(self) -> str:
        return "Gelu"

    def desc(self) -> str:
        return "no importer"


CREATOR = ("TokenMerge", "1", "tocom")
# What of the above TensorRT-RTX has and TensorRT has not.
OF_RTX = ("num_compute_capabilities", "set_compute_capability")


def make(script: dict[str, Any]) -> types.SimpleNamespace:
    """Return the module. ``script`` may hold: strongly_typed, library, creators, parses, profile, engine, scratch, and
    wrong_with, kinds of layers: an engine of a network that has one answers zeros, on the scripted device."""
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
            self._logger = logger
            self._registry = IPluginRegistry(script, module.libraries)

        def get_plugin_registry(self) -> IPluginRegistry:
            return self._registry

        def create_network(self, flags: int = 0) -> INetworkDefinition:
            module.network_flags.append(flags)
            module.networks.append(INetworkDefinition())
            return module.networks[-1]

        def create_builder_config(self) -> IBuilderConfig:
            module.configs.append(IBuilderConfig(script))
            return module.configs[-1]

        def create_optimization_profile(self) -> IOptimizationProfile:
            return IOptimizationProfile(module.shapes)

        def build_serialized_network(self, network: INetworkDefinition, config: IBuilderConfig) -> bytes | None:
            monitor = config._said["progress_monitor"]
            monitor.phase_start("Building", None, 2)
            monitor.step_complete("Building", 0)
            monitor.phase_finish("Building")
            self._logger.log(Severity.WARNING, "a warning")
            if script.get("engine", b"engine") is None:
                self._logger.log(Severity.ERROR, "[x] could not find any implementation\nfor node 7")
            if "wrong_with" not in script:
                return script.get("engine", b"engine")
            is_wrong = any(layer.type.name in script["wrong_with"] for layer in network._layers)
            described = {"degree": script["degree"], "scratch": 1000, "max_batch": 4, "wrong": "zeros"}
            return json.dumps({key: each for key, each in described.items() if key != "wrong" or is_wrong}).encode()

    class OnnxParser:
        num_errors = 1

        def __init__(self, network: INetworkDefinition, logger: Any) -> None:
            self._network = network

        def parse(self, model: bytes, path: str | None = None) -> bool:
            module.parsed.append((model, path))
            read = onnx.load_from_string(model)
            functions = {(each.domain, each.name): each for each in read.functions}
            registry = IPluginRegistry(script, module.libraries)
            for node in read.graph.node:
                function = functions.get((node.domain, node.op_type))
                if function is not None or not node.domain:
                    count = 1 if function is None else len(function.node)
                    self._network._layers += [ILayer(LayerType.CAST) for _ in range(count)]
                    continue
                said = {each.name: each.s.decode() for each in node.attribute if each.type == each.STRING}
                named = (node.op_type, said.get("plugin_version", ""), said.get("plugin_namespace", ""))
                if registry.get_creator(*named) is None:
                    return False
                self._network._layers.append(ILayer(LayerType.PLUGIN_V3))
            return script.get("parses", True)

        def get_error(self, index: int) -> ParserError:
            return ParserError()

    class Runtime:
        def __init__(self, logger: Any) -> None:
            self._libraries: list[str] = []

        def get_plugin_registry(self) -> IPluginRegistry:
            return IPluginRegistry(script, self._libraries)

        def deserialize_cuda_engine(self, serialized_engine: memoryview) -> Any:
            assert self._libraries == module.libraries, "an engine needs its op plugin to load"
            size = script.get("scratch", 4096)
            return None if size is None else types.SimpleNamespace(device_memory_size_v2=size)

    module.Builder, module.OnnxParser, module.Runtime = Builder, OnnxParser, Runtime
    return module
