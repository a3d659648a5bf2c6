"""The child process that builds engines: only it imports TensorRT.

It reads a request (JSON) from its standard input and writes events (one JSON object per line) to the file descriptor
that the request names. Whatever native code prints goes to standard error, which the parent captures.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import os
import signal
import sys
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from tocom.errors import EngineError, OutputError
from tocom.export.engines.precision import widen_network
from tocom.export.engines.source import OP_VERSION
from tocom.formats.engine import pack_engine
from tocom.formats.onnx.summary import op_nodes, without_functions
from tocom.system.files import atomic_path, sha256_file
from tocom.system.sealed_library import hold_library

if TYPE_CHECKING:
    # TensorRT or TensorRT-RTX, whichever the request names: _build_all puts the module here.
    import tensorrt as trt

__all__ = ["main"]

_PR_SET_PDEATHSIG = 1


class Reporter:
    """Writes events for the parent. Errors that TensorRT logs are kept: it returns None and logs, it does not raise."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.errors: list[str] = []

    def send(self, event: str, **values: Any) -> None:
        """Write one event."""
        self._stream.write(json.dumps({"event": event, **values}) + "\n")
        self._stream.flush()

    def fail(self, what: str) -> EngineError:
        """Return the error for ``what``, with the last errors that TensorRT logged."""
        said = " | ".join(line.strip().replace("\n", " ") for line in self.errors[-4:])
        return EngineError(f"{what}. TensorRT said: {said or 'nothing'}")


def main() -> int:
    """Build what the request on standard input asks for; return the exit code."""
    request = json.loads(sys.stdin.read())
    with os.fdopen(request["events"], "w", encoding="utf-8") as stream:
        reporter = Reporter(stream)
        try:
            _build_all(request, reporter)
        except (EngineError, OutputError) as error:
            reporter.send("failed", kind=type(error).__name__, message=str(error))
            return 1
    return 0


def _build_all(request: dict[str, Any], reporter: Reporter) -> None:
    for name in request["preload"]:
        ctypes.CDLL(name, mode=ctypes.RTLD_GLOBAL)
    try:
        globals()["trt"] = importlib.import_module(request["module"])
    except ImportError as error:
        raise EngineError(f"{request['module']} cannot be imported: {error}") from error
    logger = _logger(reporter)
    builder = trt.Builder(logger)
    if builder is None:
        raise reporter.fail("TensorRT made no builder")
    if request["op_plugin"] is not None:
        named = request["op_plugin"]["path"]
        reporter.send("stage", what=f"loading the op plugin library {named}")
        reporter.errors.clear()
        # From here on the request names the bytes that were hashed, wherever the path leads by then.
        request["op_plugin"] = hold_library(Path(named), request["op_plugin"]["sha256"])
        if builder.get_plugin_registry().load_library(request["op_plugin"]) is None:
            raise reporter.fail(f"The op plugin library {named} could not be loaded")
    for job in request["jobs"]:
        reporter.send("begin", degree=job["degree"])
        reporter.errors.clear()
        result = _build_one(builder, logger, request, job, reporter)
        reporter.send("done", degree=job["degree"], **result)


def _build_one(
    builder: trt.Builder, logger: trt.ILogger, request: dict[str, Any], job: dict[str, Any], reporter: Reporter
) -> dict[str, Any]:
    begin = time.perf_counter()
    network = _parse(builder, logger, request, job, reporter)
    if (which := request["options"]["float32"]) != "none":
        widen_network(trt, network, which)
    facts = _inspect(network)
    config = _config(builder, network, request, reporter)
    cache = _timing_cache(config, Path(request["timing_cache"]))
    serialized = builder.build_serialized_network(network, config)
    if serialized is None:
        raise reporter.fail(f"TensorRT could not build degree {job['degree']}")
    view = memoryview(serialized)
    with atomic_path(job["engine"]) as beside:
        if request["options"]["compact"]:
            pack_engine(view, beside)
        else:
            beside.write_bytes(view)
        stored = {"size_bytes": beside.stat().st_size, "sha256": sha256_file(beside)}
    if cache is not None:
        with atomic_path(request["timing_cache"]) as beside:
            beside.write_bytes(memoryview(cache.serialize()))
    return {
        **facts,
        **stored,
        "content_bytes": view.nbytes,
        "device_memory_bytes": _device_memory(logger, view, request, reporter),
        "build_seconds": round(time.perf_counter() - begin, 3),
    }


def _device_memory(logger: trt.ILogger, engine: memoryview, request: dict[str, Any], reporter: Reporter) -> int | None:
    """Return the scratch memory of one context, in bytes; None where the engine cannot be loaded here to ask."""
    if request["compute_capabilities"]:
        return None
    runtime = trt.Runtime(logger)
    if request["op_plugin"] is not None:
        runtime.get_plugin_registry().load_library(request["op_plugin"])
    loaded = runtime.deserialize_cuda_engine(engine)
    if loaded is None:  # too little memory beside the builder, for one: the engine itself is built
        reporter.send("log", level="WARNING", text=str(reporter.fail("The engine was not loaded to ask its memory")))
        return None
    size = getattr(loaded, "device_memory_size_v2", None)  # before 10.1 without the suffix
    return int(loaded.device_memory_size if size is None else size)


def _parse(
    builder: trt.Builder, logger: trt.ILogger, request: dict[str, Any], job: dict[str, Any], reporter: Reporter
) -> trt.INetworkDefinition:
    """Read a degree into a network. Every tocom node is a layer of the op plugin, or none is."""
    # TensorRT 11 has strongly typed networks alone, and no flag for them.
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.OnnxParser(network, logger)
    content = Path(job["onnx"]).read_bytes()
    with_op_plugin = request["op_plugin"] is not None
    if with_op_plugin:
        # Before 10.7 the parser prefers a function to an op plugin (NVIDIA/TensorRT #4113). Not with Polygraphy's
        # loaders: NetworkFromOnnxPath hands on the file as it is, NetworkFromOnnxBytes no path for the weights.
        content = without_functions(content)
    if not parser.parse(content, job["onnx"]):
        # The parser's own list is clearer than the same errors in the log.
        found = [parser.get_error(index) for index in range(parser.num_errors)]
        reporter.errors[:] = [
            f"node {each.node()} {each.node_name()} ({each.node_operator()}): {each.desc()}" for each in found
        ] or reporter.errors
        error = reporter.fail(f"TensorRT cannot read {job['onnx']}")
        raise EngineError(f"{error} {_fault(builder, content) or ''}".strip()) if with_op_plugin else error
    layers = _inspect(network)["op_plugin_layers"]
    expected = job["op_nodes"] if with_op_plugin else 0
    if layers != expected:
        fault = _fault(builder, content) or (
            f"The parser is at fault: library and attributes are right, but TensorRT {trt.__version__} took other "
            "layers for them. Build without the op plugin: --lowering native."
        )
        raise EngineError(
            f"{job['onnx']} has {job['op_nodes']} tocom nodes, of which {expected} must be layers of the op plugin; "
            f"{layers} are. {fault}"
        )
    return network


def _fault(builder: trt.Builder, content: bytes) -> str | None:
    """Return why the parser finds no op plugin for the model's nodes, or None where it should."""
    nodes = op_nodes(content)
    unnamed = sum(node.plugin != (str(OP_VERSION), "tocom") for node in nodes)
    if unnamed:
        return (
            f"The attributes are at fault: {unnamed} of {len(nodes)} tocom nodes do not say plugin_version "
            f"'{OP_VERSION}' and plugin_namespace 'tocom'. Export the bundle again with this tocom."
        )
    registry = builder.get_plugin_registry()
    lacking = [
        name
        for name in sorted({node.op_type for node in nodes})
        if registry.get_creator(name, str(OP_VERSION), "tocom") is None
    ]
    if lacking:
        return (
            f"The library is at fault: it registers no {' and no '.join(lacking)} of version {OP_VERSION}. Build it "
            "again: 'tocom plugins build'."
        )
    return None


def _inspect(network: trt.INetworkDefinition) -> dict[str, Any]:
    """Return what the sidecar says of the network, read before the build: an engine hides its layers."""
    kinds: Counter[str] = Counter()
    dynamic = 0
    for index in range(network.num_layers):
        layer = network.get_layer(index)
        kinds[layer.type.name] += 1
        for output in range(layer.num_outputs):
            dynamic += any(size < 0 for size in _shape(layer.get_output(output))[1:])
    tensors = {
        "inputs": [network.get_input(i) for i in range(network.num_inputs)],
        "outputs": [network.get_output(i) for i in range(network.num_outputs)],
    }
    described = {
        kind: [{"name": t.name, "dtype": t.dtype.name.lower(), "shape": _shape(t)} for t in group]
        for kind, group in tensors.items()
    }
    return {
        **described,
        "layers": network.num_layers,
        "op_plugin_layers": kinds["PLUGIN_V3"],
        "tensors_dynamic_beyond_batch": dynamic,
    }


def _shape(tensor: trt.ITensor) -> list[int]:
    try:
        return [tensor.shape[axis] for axis in range(len(tensor.shape))]
    except ValueError:
        # A rank that is not known has a negative length. Nothing of that kind is static.
        return [-1, -1]


def _config(
    builder: trt.Builder, network: trt.INetworkDefinition, request: dict[str, Any], reporter: Reporter
) -> trt.IBuilderConfig:
    options = request["options"]
    config = builder.create_builder_config()
    if options["workspace_mib"] is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options["workspace_mib"] << 20)
    if options["optimization_level"] is not None:
        config.builder_optimization_level = options["optimization_level"]
    if options["version_compatible"]:
        config.set_flag(trt.BuilderFlag.VERSION_COMPATIBLE)
        # A lean runtime in the engine is code, which a runtime that allows no host code refuses.
        config.set_flag(trt.BuilderFlag.EXCLUDE_LEAN_RUNTIME)
    # TensorRT-RTX alone has it: an inference that allocates cannot be captured into a CUDA graph.
    no_allocation = getattr(trt.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if no_allocation is not None:
        config.set_flag(no_allocation)
    if options["hardware_compatible"]:
        config.hardware_compatibility_level = trt.HardwareCompatibilityLevel.AMPERE_PLUS
    _build_for(config, request["compute_capabilities"])
    config.progress_monitor = _monitor(reporter)
    smallest, optimal, largest = options["batch"]
    profile = builder.create_optimization_profile()
    dynamic = False
    for index in range(network.num_inputs):
        tensor = network.get_input(index)
        shape = _shape(tensor)
        if -1 not in shape:
            continue
        if smallest == largest:
            # Fixed shapes admit more tactics, and none of the errors that versions have with dynamic ones.
            tensor.shape = trt.Dims([largest, *shape[1:]])
            continue
        dynamic = True
        profile.set_shape(tensor.name, *(trt.Dims([batch, *shape[1:]]) for batch in (smallest, optimal, largest)))
    if dynamic and config.add_optimization_profile(profile) < 0:
        raise reporter.fail(f"TensorRT refused the batch range {options['batch']}")
    return config


def _build_for(config: Any, compute_capabilities: list[str]) -> None:
    """Name the GPUs to build for, which TensorRT-RTX alone can; its types are not TensorRT's."""
    if compute_capabilities:
        config.num_compute_capabilities = len(compute_capabilities)
    for index, capability in enumerate(compute_capabilities):
        kind: Any = getattr(trt, "ComputeCapability")  # noqa: B009 (no such name in TensorRT's types)
        if not config.set_compute_capability(getattr(kind, f"SM{capability.replace('.', '')}"), index):
            raise EngineError(f"{trt.__name__} {trt.__version__} does not build for compute capability {capability}.")


def _timing_cache(config: trt.IBuilderConfig, path: Path) -> trt.ITimingCache | None:
    """Give the config the cache that the degrees share; one that TensorRT refuses is replaced by an empty one."""
    try:
        content = path.read_bytes()
    except OSError:
        content = b""
    for candidate in (content, b""):
        cache = config.create_timing_cache(candidate)
        if cache is not None and config.set_timing_cache(cache, ignore_mismatch=False):
            return cache
    return None


def _logger(reporter: Reporter) -> trt.ILogger:
    severity = trt.ILogger.Severity

    class Logger(trt.ILogger):
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, level: Any, text: str) -> None:
            if level in (severity.ERROR, severity.INTERNAL_ERROR):
                reporter.errors.append(text)
            if level in (severity.ERROR, severity.INTERNAL_ERROR, severity.WARNING):
                reporter.send("log", level=level.name, text=text)

    return Logger()


def _monitor(reporter: Reporter) -> trt.IProgressMonitor:
    class Monitor(trt.IProgressMonitor):
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)
            self._steps: dict[str, int] = {}

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            self._steps[phase_name] = num_steps
            reporter.send("phase", name=phase_name, parent=parent_phase, step=0, steps=num_steps)

        def phase_finish(self, phase_name: str) -> None:
            self._steps.pop(phase_name, None)

        def step_complete(self, phase_name: str, step: int) -> bool:
            reporter.send("phase", name=phase_name, parent=None, step=step + 1, steps=self._steps.get(phase_name, 0))
            return True

    return Monitor()


if __name__ == "__main__":
    # Ask Linux to kill this process when its parent dies: nobody would write the sidecar of what it builds.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    sys.exit(main())
