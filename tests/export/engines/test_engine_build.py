"""Real engines: TensorRT-RTX builds them on a machine without a GPU."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import onnx
import pytest
from tiny_engine_models import DEPTH, tiny_vit, with_onnx

from tocom.compression.tokens import removal_schedule
from tocom.errors import BundleError, EngineError, OutputError, RequestError
from tocom.export import export
from tocom.export.engines import builder as build_module
from tocom.export.engines.backend import Device
from tocom.export.engines.builder import build
from tocom.formats.bundle import Bundle
from tocom.formats.engine import unpack_engine
from tocom.formats.sidecar import EngineTensor, read_sidecar

pytestmark = pytest.mark.usefixtures("rtx", "no_gpu")


@pytest.fixture(scope="module")
def first_build(exported, op_plugin, tmp_path_factory):
    path = shutil.copytree(exported, tmp_path_factory.mktemp("built") / "bundle")
    return build(path, backend="tensorrt-rtx", op_plugin=op_plugin.path)


@pytest.fixture
def built(bundle, op_plugin, first_build):
    """The engines of the bundle, copied: the builder sees that nothing is to do."""
    shutil.copytree(first_build.folder.parent, bundle.path / "engines")
    engines = build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin.path)
    assert engines.built == ()
    return engines


def test_one_op_plugin_layer_per_merging_block(bundle, first_build):
    assert first_build.built == (0, 2, 4)
    for degree, record in first_build.records.items():
        removed = removal_schedule(17, DEPTH, degree, 1)
        assert record.op_plugin_layers == sum(count > 0 for count in removed)
        assert record.token_counts == bundle.degrees[degree].token_counts
        assert record.tensors_dynamic_beyond_batch == 0


def test_native_lowering_has_no_op_plugin_layer_and_keeps_the_dense_engine(bundle, built):
    native = build(bundle, backend="tensorrt-rtx", lowering="native")
    assert native.built == (2, 4)
    for record in native.records.values():
        assert record.op_plugin_layers == 0
        assert record.op_plugin is None
        assert record.tensors_dynamic_beyond_batch == 0
    assert not list(native.folder.glob("*.so"))


def test_the_sidecar_tells_everything(bundle, built, op_plugin):
    record, _ = read_sidecar(built.folder / "degree-02.json")
    assert record == built.records[2]
    engine = (built.folder / "degree-02.engine.zip").read_bytes()
    assert record.engine.sha256 == hashlib.sha256(engine).hexdigest()
    assert record.engine.size_bytes == len(engine)
    assert record.onnx.sha256 == bundle.manifest["files"]["degree-02.onnx"]["sha256"]
    assert record.onnx.weights_sha256 == bundle.manifest["files"]["weights.bin"]["sha256"]
    assert record.op_plugin.sha256 == op_plugin.sha256
    library = built.folder / record.op_plugin.file
    assert hashlib.sha256(library.read_bytes()).hexdigest() == op_plugin.sha256
    assert record.gpu is None
    assert record.engine.device_memory_bytes is None
    assert record.backend == "tensorrt-rtx"
    assert built.folder.name == f"tensorrt-rtx-{'.'.join(record.backend_version.split('.')[:3])}-portable"
    assert record.precision == "fp32"
    assert record.options.batch == (1, 2, 4)
    assert record.inputs == (EngineTensor("images", "float", (-1, 3, 32, 32)),)
    assert record.outputs == (EngineTensor("logits", "float", (-1, 10)),)
    assert record.build_seconds > 0


def test_compact_engines_hold_what_tensorrt_wrote(bundle, built, op_plugin):
    packed = built.folder / "degree-02.engine.zip"
    engine = built.records[2].engine
    content = unpack_engine(packed.read_bytes(), engine.content_bytes, packed)
    plain = build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin.path, degrees=[2], compact=False)
    assert plain.built == (2,)
    # Building is not deterministic to the byte; its size and the kernels' text are.
    written = (built.folder / "degree-02.engine").read_bytes()
    assert plain.records[2].engine.size_bytes == len(written)
    assert written.count(b"__global__") == content.count(b"__global__") > 0
    assert engine.size_bytes < 0.5 * len(written)
    # One engine per degree: the other form is gone.
    assert not packed.exists()


def test_a_second_build_does_nothing(bundle, built, op_plugin, monkeypatch):
    monkeypatch.setattr(build_module, "build_engines", pytest.fail)
    again = build(Bundle(bundle.path), backend="tensorrt-rtx", op_plugin=op_plugin.path)
    assert again.built == ()
    assert again.records == built.records


def test_only_what_changed_is_built_again(bundle, built, op_plugin):
    (built.folder / "degree-02.engine.zip").write_bytes(b"cut off")
    (built.folder / "degree-04.json").write_text("{")
    again = build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin.path)
    assert again.built == (2, 4)
    # A copied engine has another time, and the same content.
    (built.folder / "degree-00.engine.zip").touch()
    assert build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin.path).built == ()


@pytest.mark.fault("parts of a killed build", outcome="the next build removes them")
def test_what_a_killed_build_left_behind_is_removed(bundle, built, op_plugin):
    for name in (
        ".degree-02.engine.zip.x7k2x7k2.tocom-part",
        ".degree-02.json.abcdabcd.tocom-part",
        ".libtocom_op_plugin-0123.so.qrstuvwx.tocom-part",
        ".timing.cache.zzzzzzzz.tocom-part",
    ):
        (built.folder / name).write_bytes(b"half")
    # The engine was replaced, and the sidecar still speaks of the one before.
    (built.folder / "degree-02.engine.zip").write_bytes(b"a whole engine of another build")
    assert build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin.path).built == (2,)
    assert [path.name for path in built.folder.glob(".*")] == [".lock"]


def test_a_build_that_was_killed_goes_on_where_it_was(bundle, op_plugin):
    arguments = f"{str(bundle.path)!r}, backend='tensorrt-rtx', op_plugin={str(op_plugin.path)!r}"
    code = f"from tocom.export.engines.builder import build; build({arguments})"
    child = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        while not list(bundle.path.glob("engines/*/degree-00.json")):
            assert child.poll() is None
            time.sleep(0.01)
    finally:
        # The session: the process that builds is a child of the child.
        os.killpg(child.pid, signal.SIGKILL)
        assert child.wait() == -signal.SIGKILL
    engines = build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin.path)
    assert set(engines.built) <= {2, 4}
    assert [path.name for path in engines.folder.glob(".*")] == [".lock"]
    for record in engines.records.values():
        stored = engines.folder / record.engine.file
        assert hashlib.sha256(stored.read_bytes()).hexdigest() == record.engine.sha256


def test_another_option_builds_again(bundle, built, op_plugin):
    again = build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin.path, degrees=[2], workspace_mib=64)
    assert again.built == (2,)
    assert list(again.records) == [2]
    assert build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin.path, degrees=[2], batch=2, workspace_mib=64).built


def test_a_degree_that_joins_the_bundle_leaves_the_others_alone(bundle, built, op_plugin):
    export(tiny_vit(), bundle.path.with_name("wider"), degrees=[0, 1, 2, 4], batch=(1, 2, 4), check=False)
    engines = bundle.path / "engines"
    wider = Bundle(bundle.path.with_name("wider"))
    engines.rename(wider.path / "engines")
    engines = build(wider, backend="tensorrt-rtx", op_plugin=op_plugin.path)
    assert engines.built == (1,)
    # The sidecars name the files of the bundle as they are now: the runtime compares them.
    for degree, record in engines.records.items():
        files = wider.manifest["files"]
        assert record.onnx.sha256 == files[f"degree-{degree:02d}.onnx"]["sha256"]
        assert record.onnx.weights_sha256 == files["weights.bin"]["sha256"]


def test_progress_names_every_degree(bundle, op_plugin):
    seen = []
    build(
        bundle,
        backend="tensorrt-rtx",
        op_plugin=op_plugin.path,
        progress=lambda *what: seen.append(what),
        degrees=[0, 2],
    )
    assert seen[-1] == ("degree 2: built", 2, 2)
    assert any(what.startswith("degree 0: ") and "built" not in what and "reading" not in what for what, _, _ in seen)


@pytest.mark.parametrize(
    ("method", "fuse", "precision"),
    [
        ("prune", True, "fp16"),
        ("merge", False, "bf16"),
        pytest.param("prune", False, "fp32", marks=pytest.mark.slow),
        pytest.param("merge", False, "fp16", marks=pytest.mark.slow),
    ],
)
def test_every_method_and_precision(tmp_path, op_plugin, method, fuse, precision):
    export(tiny_vit(), tmp_path / "b", degrees=[3], method=method, fuse=fuse, precision=precision, check=False)
    record = build(tmp_path / "b", backend="tensorrt-rtx", op_plugin=op_plugin.path).records[3]
    assert record.op_plugin_layers == DEPTH
    assert record.precision == precision
    assert record.inputs[0].shape == (1, 3, 32, 32)
    assert build(tmp_path / "b", backend="tensorrt-rtx", lowering="native").records[3].op_plugin_layers == 0


def test_without_a_library_the_lowering_is_native_and_says_so(bundle, monkeypatch):
    def no_nvcc(**options):
        raise EngineError("No usable nvcc found.")

    monkeypatch.setattr(build_module, "build_library", no_nvcc)
    engines = build(bundle, backend="tensorrt-rtx", degrees=[2])
    assert engines.notes == ("lowering is native, because the op plugin library cannot be used: No usable nvcc found.",)
    assert engines.records[2].options.lowering == "native"
    with pytest.raises(EngineError, match="No usable nvcc found"):
        build(bundle, backend="tensorrt-rtx", degrees=[2], lowering="plugin")


@pytest.mark.fault("a build that may write no more", outcome="OutputError; no engine is left; the next build works")
def test_a_full_disk_is_one_error_and_leaves_no_engine(bundle, op_plugin):
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))
    try:
        with pytest.raises(OutputError, match=r"Cannot write .*degree-00.engine.zip: File too large"):
            build(bundle, backend="tensorrt-rtx", lowering="native", degrees=[0])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert not list(bundle.path.glob("engines/*/*degree*"))
    assert build(bundle, backend="tensorrt-rtx", lowering="native", degrees=[0]).built == (0,)


@pytest.mark.fault(
    "a build that is killed for its time or memory", outcome="EngineError; nothing is left half; the next build works"
)
def test_a_build_past_its_limit_leaves_nothing(bundle, op_plugin, monkeypatch):
    script = """
import json, os, pathlib, sys, time
request = json.loads(sys.stdin.read())
engine = pathlib.Path(request["jobs"][0]["engine"])
engine.with_name(f".{engine.name}.k1ll3d00.tocom-part").write_bytes(b"half")
time.sleep(600)
"""
    with monkeypatch.context() as patch:
        patch.setattr(build_module, "build_engines", partial(build_module.build_engines, worker=("-c", script)))
        with pytest.raises(EngineError, match="took longer than 2 s while starting"):
            build(bundle, backend="tensorrt-rtx", lowering="native", degrees=[0], timeout_s=2)
    with pytest.raises(EngineError, match=r"held \d+ bytes of memory, allowed are 20971520 while"):
        build(bundle, backend="tensorrt-rtx", lowering="native", degrees=[0], memory_limit_mib=20)
    assert [path.name for path in bundle.path.glob("engines/*/*")] == [".lock"]
    assert build(bundle, backend="tensorrt-rtx", lowering="native", degrees=[0]).built == (0,)


@pytest.mark.parametrize("limits", [{"timeout_s": 0}, {"timeout_s": float("nan")}, {"memory_limit_mib": 0}])
def test_limits_out_of_range(bundle, limits):
    with pytest.raises(RequestError, match=f"'{next(iter(limits))}' parameter must be"):
        build(bundle, backend="tensorrt-rtx", **limits)


def test_an_onnx_file_that_tensorrt_refuses(bundle, op_plugin, monkeypatch):
    model = onnx.load(bundle.onnx_path(2), load_external_data=False)
    model.graph.node[-1].op_type = "NoSuchOp"
    bundle = with_onnx(bundle, 2, model)
    with pytest.raises(
        EngineError,
        match=r"TensorRT cannot read .*degree-02.onnx. TensorRT said: node \d+ .*\(NoSuchOp\): .*Plugin not found",
    ) as caught:
        build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin.path, degrees=[2])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("r", 0, r"TokenMerge node 'node_token_merge\S*': attribute 'r' must be at least 1, got 0"),
        ("prefix", -1, r"attribute 'prefix' must be at least 0, got -1"),
        ("r", 9, r"attribute 'r' must be at most 8 for 17 tokens with 1 protected, got 9"),
    ],
)
def test_attributes_out_of_range_are_told_by_the_op_plugin(bundle, op_plugin, attribute, value, message):
    model = onnx.load(bundle.onnx_path(2), load_external_data=False)
    node = next(node for node in model.graph.node if node.domain == "tocom")
    next(a for a in node.attribute if a.name == attribute).i = value
    # The shapes in the file no longer hold, and are not what is asked here.
    del model.graph.value_info[:]
    bundle = with_onnx(bundle, 2, model)
    with pytest.raises(EngineError, match=rf"tocom op plugin: \S+: .*{message}") as caught:
        build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin.path, degrees=[2])
    assert "\n" not in str(caught.value)


def test_a_library_that_is_cut_off(bundle, op_plugin, tmp_path):
    broken = tmp_path / "libbroken.so"
    broken.write_bytes(op_plugin.path.read_bytes()[:-1000])
    with pytest.raises(EngineError, match="is cut off"):
        build(bundle, backend="tensorrt-rtx", op_plugin=broken, degrees=[2])


@pytest.mark.fault(
    "an op plugin library that crashes the process", outcome="EngineError that names the signal; the caller lives"
)
def test_a_library_that_ends_the_process_is_one_error(bundle, op_plugin, tmp_path):
    """It says of itself what the real one says, and ends the process as soon as it is opened."""
    said = re.search(rb"tocom-op-plugin;[ -~]*", op_plugin.path.read_bytes())[0].decode()
    source = f"""
        #include <stdlib.h>
        const char info[] = "{said}";
        __attribute__((constructor)) static void begin(void) {{ abort(); }}
    """
    broken = tmp_path / "libbroken.so"
    subprocess.run(["g++", "-shared", "-fPIC", "-xc++", "-", "-o", broken], input=source.encode(), check=True)
    with pytest.raises(EngineError, match=r"SIGABRT while loading the op plugin library .*libbroken\.so"):
        build(bundle, backend="tensorrt-rtx", op_plugin=broken, degrees=[2])


@pytest.mark.fault(
    "the op plugin library exchanged while a build begins", outcome="EngineError with both hashes; it is not loaded"
)
def test_a_library_that_is_exchanged_after_its_check(bundle, op_plugin, tmp_path, monkeypatch):
    library = tmp_path / "liboperations.so"
    shutil.copyfile(op_plugin.path, library)
    checked = build_module.read_library(library)
    monkeypatch.setattr(build_module, "read_library", lambda path: checked)
    with library.open("ab") as file:
        file.write(b"more")
    with pytest.raises(EngineError, match=rf"liboperations\.so has .* sha256 .*, expected is {op_plugin.sha256}"):
        build(bundle, backend="tensorrt-rtx", op_plugin=library, degrees=[2])
    assert not list(bundle.path.glob("engines/*/*degree*"))


def test_a_batch_that_the_bundle_was_not_exported_for(tmp_path):
    export(tiny_vit(), tmp_path / "b", degrees=[0], batch=1, check=False)
    with pytest.raises(RequestError, match="exported with that batch"):
        build(tmp_path / "b", backend="tensorrt-rtx", batch=(1, 2, 4))


def test_a_degree_that_is_not_there(bundle):
    with pytest.raises(BundleError, match="has no degree 7"):
        build(bundle, backend="tensorrt-rtx", degrees=[7])


def test_tensorrt_needs_a_gpu(bundle, monkeypatch):
    from tocom.export.engines.backend import BackendFound

    monkeypatch.setattr(build_module, "find_backend", lambda name: BackendFound("tensorrt", "10.3.0", "tensorrt"))
    with pytest.raises(EngineError, match="this machine shows none"):
        build(bundle, backend="tensorrt")


def test_portable_engines_say_which_gpus_they_cover(built, bundle):
    assert {tuple(record.compute_capabilities) for record in built.records.values()} == {("8.6", "8.9", "12.0")}
    said = []
    build(bundle, backend="tensorrt-rtx", degrees=[0], say=said.append)
    assert "portable engines, for compute capability 8.6, 8.9, 12.0 and no other" in said[0]


def test_bfloat16_is_refused_below_ampere(tmp_path, monkeypatch):
    bundle = export(tiny_vit(), tmp_path / "bf16", degrees=[2], precision="bf16", check=False)
    monkeypatch.setattr(build_module, "find_device", lambda: Device("Xavier", (7, 2)))
    with pytest.raises(
        EngineError, match=r"Ampere\) or newer; Xavier has 7\.2\. Export the bundle with --precision fp16"
    ):
        build(bundle, backend="tensorrt-rtx")


def test_zero_points_are_refused_with_what_to_do(bundle):
    zero = onnx.numpy_helper.from_array(np.uint8(128), "zero")
    scale = onnx.numpy_helper.from_array(np.float32(0.1), "scale")

    model = onnx.load(str(bundle.onnx_path(2)), load_external_data=False)
    model.graph.initializer.extend([zero, scale])
    model.graph.node.insert(0, onnx.helper.make_node("QuantizeLinear", ["images", "scale", "zero"], ["q"]))
    with pytest.raises(EngineError, match=r"zero points \(degrees 2\).* 'tocom quantize --activations symmetric'"):
        build(with_onnx(bundle, 2, model), backend="tensorrt-rtx", degrees=[0, 2])


def test_a_library_for_another_gpu_is_refused(bundle, op_plugin, monkeypatch):
    monkeypatch.setattr(build_module, "find_device", lambda: Device("Orin", (8, 7)))
    with pytest.raises(EngineError, match=r"this GPU has compute capability 8.7"):
        build(bundle, backend="tensorrt-rtx", op_plugin=op_plugin.path, degrees=[2])
