"""The worker over a scripted TensorRT: every option reaches it, and each way it refuses is an error with its words."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from dataclasses import asdict
from pathlib import Path

import onnx
import pytest
import scripted_tensorrt
from onnx import helper
from tensorrt_names import classes, differences

from tocom.errors import EngineError
from tocom.export.engines import worker as engine_worker
from tocom.export.graph.functions import token_merge_function
from tocom.formats.build_options import BuildOptions
from tocom.runtime.backends.tensorrt.library import import_tensorrt

PLUGIN = {"plugin_version": "1", "plugin_namespace": "tocom"}


def one_node(path: Path, **attributes: str) -> None:
    """Write an ONNX file with one tocom node and its function. Its types are of no interest to a script."""
    node = helper.make_node("TokenMerge", ["x", "k", "s"], ["y", "t", "u"], domain="tocom", r=1, **attributes)
    graph = helper.make_graph([node], "g", [], [])
    opsets = [helper.make_opsetid("", 20), helper.make_opsetid("tocom", 1)]
    onnx.save(helper.make_model(graph, functions=[token_merge_function()], opset_imports=opsets), str(path))


@pytest.fixture
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    one_node(Path("x.onnx"), **PLUGIN)
    library = tmp_path / "lib.so"
    library.write_bytes(b"a library")
    its_own = hashlib.sha256(b"a library").hexdigest()

    def run(script=None, *, options=None, sha256=its_own, op_nodes=1, op_plugin=True, compute_capabilities=()):
        module = scripted_tensorrt.make(script or {})
        monkeypatch.setitem(sys.modules, "scripted", module)
        read_end, write_end = os.pipe()
        request = {
            "module": "scripted",
            "preload": [],
            "op_plugin": {"path": str(library), "sha256": sha256} if op_plugin else None,
            "compute_capabilities": list(compute_capabilities),
            "jobs": [{"degree": 4, "onnx": "x.onnx", "engine": str(tmp_path / "x.engine"), "op_nodes": op_nodes}],
            "options": asdict(options or BuildOptions(batch=(1, 2, 4))),
            "timing_cache": str(tmp_path / "timing.cache"),
            "events": write_end,
        }
        monkeypatch.setattr(sys, "stdin", io.StringIO(json.dumps(request)))
        code = engine_worker.main()
        with os.fdopen(read_end) as stream:
            events = [json.loads(line) for line in stream]
        return code, events, module

    return run


def test_every_option_reaches_tensorrt(work, tmp_path):
    options = BuildOptions(
        batch=(1, 2, 4),
        workspace_mib=64,
        optimization_level=5,
        version_compatible=True,
        hardware_compatible=True,
    )
    code, events, module = work(options=options)
    assert code == 0
    said = module.configs[0]._said
    assert said["WORKSPACE"] == 64 << 20
    assert said["builder_optimization_level"] == 5
    assert said["VERSION_COMPATIBLE"] is True
    assert said["EXCLUDE_LEAN_RUNTIME"] is True
    assert said["hardware_compatibility_level"].name == "AMPERE_PLUS"
    assert module.shapes == {"images": ([1, 3, 32, 32], [2, 3, 32, 32], [4, 3, 32, 32])}
    assert (tmp_path / "x.engine").read_bytes() == b"engine"
    done = events[-1]
    assert (done["event"], done["degree"], done["size_bytes"], done["op_plugin_layers"]) == ("done", 4, 6, 1)
    assert done["content_bytes"] == 6
    assert done["device_memory_bytes"] == 4096
    assert [event["event"] for event in events[:3]] == ["stage", "begin", "phase"]
    assert {"event": "log", "level": "WARNING", "text": "a warning"} in events


def test_what_is_not_asked_for_is_left_to_tensorrt(work):
    _, _, module = work()
    assert set(module.configs[0]._said) == {"progress_monitor"}


@pytest.mark.parametrize(("strongly_typed", "flags"), [(True, 2), (False, 0)])
def test_networks_are_strongly_typed_with_and_without_a_flag_for_it(work, strongly_typed, flags):
    code, _, module = work({"strongly_typed": strongly_typed})
    assert (code, module.network_flags) == (0, [flags])


@pytest.mark.parametrize(
    ("before", "after"), [(None, b"+"), (b"kept", b"kept+"), (b"corrupt", b"+"), (b"of another GPU", b"+")]
)
def test_the_timing_cache_is_kept_or_begun_anew(work, tmp_path, before, after):
    if before is not None:
        (tmp_path / "timing.cache").write_bytes(before)
    assert work()[0] == 0
    assert (tmp_path / "timing.cache").read_bytes() == after


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ({"library": None}, "The op plugin library {folder}/lib.so could not be loaded. TensorRT said: nothing"),
        ({"parses": False}, "TensorRT cannot read x.onnx. TensorRT said: node 3 gelu (Gelu): no importer"),
        ({"profile": -1}, "TensorRT refused the batch range [1, 2, 4]"),
        (
            {"engine": None},
            "TensorRT could not build degree 4. TensorRT said: [x] could not find any implementation for",
        ),
    ],
)
def test_what_tensorrt_refuses_is_an_error_with_its_words(work, tmp_path, script, message):
    code, events, _ = work(script)
    assert code == 1
    assert events[-1]["event"] == "failed"
    assert events[-1]["kind"] == "EngineError"
    assert events[-1]["message"].startswith(message.replace("{folder}", str(tmp_path)))
    assert "\n" not in events[-1]["message"]
    assert not (tmp_path / "x.engine").exists()


def test_a_library_that_is_not_the_one_that_was_chosen_is_not_loaded(work):
    code, events, module = work(sha256="0" * 64)
    assert code == 1
    assert "lib.so has 9 bytes and sha256" in events[-1]["message"]
    assert module.libraries == []


def test_a_parser_that_takes_other_layers_is_told(work):
    code, events, _ = work(op_nodes=12)
    assert code == 1
    assert events[-1]["message"].startswith(
        "x.onnx has 12 tocom nodes, of which 12 must be layers of the op plugin; 1 are. The parser is at fault: "
        "library and attributes are right, but TensorRT"
    )


@pytest.mark.parametrize(
    ("attributes", "creators", "fault"),
    [
        (PLUGIN, [], "The library is at fault: it registers no TokenMerge of version 1."),
        (
            {"plugin_version": "1"},
            [scripted_tensorrt.CREATOR],
            "The attributes are at fault: 1 of 1 tocom nodes do not",
        ),
    ],
)
def test_a_node_that_no_op_plugin_takes_is_an_error_that_says_whose(work, attributes, creators, fault):
    one_node(Path("x.onnx"), **attributes)
    code, events, _ = work({"creators": creators})
    assert code == 1
    assert events[-1]["message"].startswith("TensorRT cannot read x.onnx")
    assert fault in events[-1]["message"]


def test_where_there_is_a_function_and_an_op_plugin_the_parser_takes_the_function(work, monkeypatch):
    """Before TensorRT 10.7: so a file that kept its functions would have none of its layers in the op plugin."""
    monkeypatch.setattr(engine_worker, "without_functions", lambda content: content)
    _, events, _ = work()
    assert "of which 1 must be layers of the op plugin; 0 are" in events[-1]["message"]


def test_a_node_that_the_parser_does_not_know_is_an_error_that_says_whose(work):
    _, events, _ = work({"parses": False, "creators": []})
    assert "TensorRT said: node 3 gelu (Gelu): no importer The library is at fault" in events[-1]["message"]


@pytest.mark.parametrize(("op_plugin", "functions"), [(True, []), (False, ["TokenMerge"])])
def test_the_op_plugin_has_no_function_beside_it_that_a_parser_could_take(work, op_plugin, functions):
    _, _, module = work(op_plugin=op_plugin)
    content, path = module.parsed[0]
    assert path == "x.onnx"
    model = onnx.load_from_string(content)
    assert [function.name for function in model.functions] == functions
    assert [node.op_type for node in model.graph.node] == ["TokenMerge"]
    kinds = {layer.type.name for layer in module.networks[0]._layers}
    assert kinds == ({"PLUGIN_V3"} if op_plugin else {"CAST"})
    assert len(module.libraries) == op_plugin


def test_one_batch_makes_fixed_shapes(work):
    _, _, module = work(options=BuildOptions(batch=(4, 4, 4)))
    assert module.networks[0].get_input(0).shape == [4, 3, 32, 32]
    assert module.shapes == {}


def test_the_gpus_to_build_for_are_named(work):
    _, _, module = work(compute_capabilities=["8.6", "8.9"])
    assert module.configs[0]._said["compute_capabilities"] == ["SM86", "SM89"]


def test_an_engine_that_cannot_be_written_keeps_its_kind(work, tmp_path):
    (tmp_path / "x.engine").mkdir()
    code, events, _ = work()
    assert code == 1
    assert events[-1]["kind"] == "OutputError"


@pytest.mark.parametrize("why", ["no GPU here", "no room to load it"])
def test_an_engine_that_cannot_be_loaded_here_tells_no_memory(work, why):
    portable = {"compute_capabilities": ("8.9",)} if why == "no GPU here" else {}
    code, events, _ = work({"scratch": None}, **portable)
    assert code == 0
    assert events[-1]["device_memory_bytes"] is None
    assert any("not loaded" in event.get("text", "") for event in events) == (why == "no room to load it")


HELD = (
    *("ILogger", "IProgressMonitor", "BuilderFlag", "MemoryPoolType", "HardwareCompatibilityLevel", "Dims", "ITensor"),
    *("ILayer", "LayerType", "DataType", "INetworkDefinition", "ITimingCache", "IOptimizationProfile", "ParserError"),
    *("IPluginRegistry", "IBuilderConfig"),
)
MADE = ("Builder", "OnnxParser", "Runtime", "ILogger", "IProgressMonitor", "Dims")


@pytest.mark.parametrize("name", sorted({*HELD, *MADE}))
def test_the_script_has_only_names_and_arguments_of_tensorrt(name):
    scripted = getattr(scripted_tensorrt, name, None) or getattr(scripted_tensorrt.make({}), name)
    found = differences(scripted, name, made=name in MADE and name != "Dims")
    assert found == (["IBuilderConfig has no set_compute_capability"] if name == "IBuilderConfig" else [])


def test_every_class_of_the_script_is_held():
    module = {name for name, each in vars(scripted_tensorrt.make({})).items() if isinstance(each, type)}
    own = {
        name for name, each in vars(scripted_tensorrt).items() if isinstance(each, type) and each.__module__ != "typing"
    }
    assert module | {name for name in own if name in classes()} <= {*HELD, *MADE, "ComputeCapability"}


def test_what_only_tensorrt_rtx_has_is_there():
    try:
        rtx = import_tensorrt("tensorrt-rtx")
    except EngineError as error:
        pytest.skip(str(error))
    assert all(hasattr(rtx.IBuilderConfig, name) for name in scripted_tensorrt.OF_RTX)
    assert all(hasattr(rtx.ComputeCapability, each.name) for each in scripted_tensorrt.ComputeCapability)


def test_a_name_that_tensorrt_lacks_and_a_wrong_call_fail_on_the_script():
    module = scripted_tensorrt.make({})
    builder = module.Builder(module.ILogger())
    with pytest.raises(AttributeError, match="has no optimisation_level"):
        builder.create_builder_config().optimisation_level = 3
    with pytest.raises(AttributeError):
        builder.create_engine()
    with pytest.raises(TypeError):
        builder.create_optimization_profile().set_shape("images", [1], [1])
    with pytest.raises(TypeError):
        module.OnnxParser(builder.create_network(0))
