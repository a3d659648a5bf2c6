"""What a build tries when an engine answers wrongly: each rung after a wrong one, on the scripted TensorRT."""

from __future__ import annotations

import hashlib
import json
import platform
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import scripted_tensorrt
import tensorrt_names
from host_cuda import HostCuda
from scripted_engines import ScriptedTensorRt, engine_bytes, reference
from small_bundles import SmallBundle, images_of, put_references, seal_bundle, write_small_bundle
from small_vits import small_vit

from tocom.errors import EngineError
from tocom.export import export
from tocom.export.engines import builder, trial
from tocom.export.engines.backend import BackendFound, Device
from tocom.export.engines.ladder import rungs
from tocom.export.engines.process import Job, build_engines
from tocom.export.engines.trial import Trial, run_trial
from tocom.export.graph.functions import token_merge_function
from tocom.export.op_plugin.library import OpPluginLibrary
from tocom.formats.build_options import BuildOptions
from tocom.formats.bundle import MANIFEST_NAME, Bundle
from tocom.formats.sealed_json import write_sealed_json
from tocom.formats.sidecar import EngineAnswers, Sidecar, read_sidecar
from tocom.runtime import Runtime
from tocom.runtime.backends import select
from tocom.runtime.backends.tensorrt.backend import TensorRtBackend
from tocom.runtime.backends.tensorrt.device.libcuda import LibcudaDevice
from tocom.runtime.trial import try_engine

GPU = Device("Host GPU 0", (8, 7))
IsWrong = Callable[[BuildOptions], "bool | str"]


@pytest.fixture
def bundle(tmp_path: Path) -> SmallBundle:
    """A half-precision bundle of one degree, by its manifest; what runs is the scripted device."""
    small = write_small_bundle(tmp_path / "bundle", degrees=(8,), batch=(1, 2, 4))
    put_references(small.path, reference)
    manifest = {**json.loads((small.path / MANIFEST_NAME).read_text()), "precision": "fp16"}
    del manifest["sha256"]
    write_sealed_json(small.path / MANIFEST_NAME, manifest)
    return small


@pytest.fixture
def build_where(monkeypatch: pytest.MonkeyPatch, bundle: SmallBundle) -> Callable[[IsWrong], tuple[Any, list[str]]]:
    """Build on a scripted TensorRT whose engines answer zeros where ``is_wrong(options)``."""
    cuda = HostCuda()
    trt = ScriptedTensorRt(cuda, version="10.3.0")

    def backend(found: Bundle, threads: int | None, reason: str) -> TensorRtBackend:
        del threads
        return TensorRtBackend(found, name="tensorrt", reason=reason, trt=trt, device=LibcudaDevice(path=cuda.path))

    monkeypatch.setitem(select._OPENERS, "tensorrt", backend)
    monkeypatch.setattr(builder, "find_backend", lambda name: BackendFound("tensorrt", "10.3.0", "tensorrt"))
    monkeypatch.setattr(builder, "find_device", lambda: GPU)

    def tried(path: Path, folder: Path, sidecar: Sidecar, *, timeout_s: float | None) -> Trial:
        del timeout_s
        assert not (folder / "degree-08.json").exists(), "no sidecar before the engine answered rightly"
        return Trial(**try_engine(Bundle(path), folder, sidecar, trt=trt, device=LibcudaDevice(path=cuda.path)))

    monkeypatch.setattr(builder, "run_trial", tried)

    def build(is_wrong: IsWrong | None, **asked: Any) -> tuple[Any, list[str]]:
        """None builds in the worker's own process, over what it has for TensorRT.

        Where ``is_wrong`` returns a text, TensorRT logs it as it refuses the engine.
        """

        def compiled(_: Any, jobs: Sequence[Job], options: BuildOptions, *, on_done: Any, **how: Any) -> None:
            assert is_wrong is not None
            for job in jobs:
                wrong = is_wrong(options)
                how_wrong = {"error": wrong} if isinstance(wrong, str) else {"wrong": "zeros"} if wrong else {}
                content = engine_bytes(job.degree, **how_wrong)
                job.engine.write_bytes(content)
                facts = {
                    "sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content),
                    "content_bytes": len(content), "device_memory_bytes": None, "inputs": [], "outputs": [],
                    "layers": 3, "op_plugin_layers": 0, "tensors_dynamic_beyond_batch": 0, "build_seconds": 0.1,
                }  # fmt: skip
                on_done(job.degree, facts)

        if is_wrong is not None:
            monkeypatch.setattr(builder, "build_engines", compiled)
        lines: list[str] = []
        return builder.build(bundle.path, backend="tensorrt", say=lines.append, **asked), lines

    return build


LADDER: dict[str, IsWrong] = {
    "as asked": lambda options: False,
    "fixed batch 2": lambda options: options.batch != (2, 2, 2),
    "optimization level 1": lambda options: options.optimization_level != 1,
    "layer norm, softmax and the residual sum in float32": lambda options: options.float32 == "none",
    "all of it in float32": lambda options: options.float32 != "all",
}


@pytest.mark.fault(
    "an engine that answers wrongly when it is built",
    outcome="`tocom build` tries other ways in a fixed order and keeps the first that is right; the sidecar says which",
)
@pytest.mark.parametrize("right", LADDER)
def test_each_rung_is_taken_when_the_one_before_is_wrong(
    bundle: SmallBundle, build_where: Callable[..., tuple[Any, list[str]]], right: str
) -> None:
    engines, lines = build_where(LADDER[right])
    wrong = list(LADDER)[: list(LADDER).index(right)]
    told = [line for line in lines if line.startswith("degree 8, ")]
    assert [line.split(": ")[0] for line in told] == [f"degree 8, {name}" for name in (*wrong, right)]
    assert all("not kept, batch " in line and "largest difference" in line for line in told[:-1])
    answers = engines.records[8].answers
    assert (answers.state, [each.split(": ")[0] for each in answers.tried]) == ("right", wrong)
    assert answers.difference < answers.allowed
    assert read_sidecar(engines.folder / "degree-08.json")[0] == engines.records[8]
    # Asked the same again, what was kept is current; and whatever its batch range is, every batch size is served.
    again, _ = build_where(LADDER[right])
    assert again.built == ()
    with Runtime.open(bundle.path, "tensorrt") as runtime:
        for batch in (1, 3, 4):
            images = images_of(batch)
            np.testing.assert_allclose(runtime.infer(images).outputs["logits"], reference(images, 8), rtol=1e-5)


@pytest.mark.fault(
    "an engine that answers wrongly however it is built",
    outcome="EngineError with what each way answered; neither engine nor sidecar stays",
)
def test_no_rung_is_right(build_where: Callable[..., tuple[Any, list[str]]], bundle: SmallBundle) -> None:
    with pytest.raises(EngineError, match="answers wrongly however it is built") as error:
        build_where(lambda options: True)
    assert all(name in str(error.value) for name in LADDER)
    assert not list((bundle.path / "engines").glob("*/degree-*"))


# TensorRT-RTX 1.7.1's own words on an H200.
UNSUPPORTED = (
    "IRuntime::deserializeCudaEngine: Error Code 6: API Usage Error (The engine cannot run on this GPU, which has "
    "compute capability 9.0. Supported compute capabilities: 8.0 8.6 8.9 12.0 12.1 >12.0. TensorRT-RTX does not "
    "support this compute capability, so the engine cannot be rebuilt for it.)"
)


@pytest.mark.fault(
    "a GPU that the backend's library does not support",
    outcome="EngineError at the first engine, with the library's words and what else serves; no other way is tried",
)
def test_a_gpu_that_the_library_does_not_support(
    build_where: Callable[..., tuple[Any, list[str]]], bundle: SmallBundle
) -> None:
    tried = []
    with pytest.raises(EngineError, match=r"compute capability 9\.0.*Serve with another backend") as error:
        build_where(lambda options: tried.append(options) or UNSUPPORTED)
    assert len(tried) == 1
    assert "answers wrongly" not in str(error.value)
    assert "Build it again" not in str(error.value)
    assert not list((bundle.path / "engines").glob("*/degree-*"))


def test_the_rungs_of_a_degree_with_ops_and_of_a_float32_bundle() -> None:
    options = BuildOptions(batch=(1, 2, 4), optimization_level=1)
    found = dict(rungs(options, has_ops=True, precision="fp32"))
    assert list(found) == ["as asked", "fixed batch 2", "native lowering", "optimization level 4"]
    last = found["optimization level 4"]
    assert (last.batch, last.lowering, last.float32) == ((2, 2, 2), "native", "none")
    assert list(rungs(BuildOptions(lowering="native"), has_ops=True, precision="fp32"))[1][0] == "optimization level 1"


# The worker's process: TensorRT is the scripted module, whose engines are wrong where a layer is an op plugin's.
WORKER = """
import json, sys
sys.path[:0] = {folders}
import scripted_tensorrt
module = sys.modules["tensorrt"] = scripted_tensorrt.make({{"wrong_with": ["PLUGIN_V3"], "degree": 8}})
from tocom.export.engines.worker import main
code = main()
import onnx
kinds = sorted({{layer.type.name for layer in module.networks[-1]._layers}})
functions = [each.name for each in onnx.load_from_string(module.parsed[-1][0]).functions]
with open({log!r}, "a") as log:
    log.write(json.dumps([kinds, functions, len(module.libraries)]) + "\\n")
sys.exit(code)
"""


def test_native_lowering_builds_the_functions_and_loads_no_op_plugin(
    bundle: SmallBundle,
    build_where: Callable[..., tuple[Any, list[str]]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    node = onnx.helper.make_node(
        "TokenMerge",
        ["x", "k", "s"],
        ["y", "t", "u"],
        domain="tocom",
        r=8,
        plugin_version="1",
        plugin_namespace="tocom",
    )
    opsets = [onnx.helper.make_opsetid("", 20), onnx.helper.make_opsetid("tocom", 1)]
    graph = onnx.helper.make_graph([node], "g", [], [])
    model = onnx.helper.make_model(graph, functions=[token_merge_function()], opset_imports=opsets)
    onnx.save(model, str(bundle.path / "degree-08.onnx"))
    seal_bundle(bundle.path, json.loads((bundle.path / MANIFEST_NAME).read_text()))
    library = tmp_path / "libtocom_op_plugin.so"
    library.write_bytes(b"a library")
    described = OpPluginLibrary(
        library, hashlib.sha256(b"a library").hexdigest(), 1, (10, 3), (12, 6), (87,), platform.machine()
    )
    monkeypatch.setattr(builder, "_library", lambda *_: described)
    log = tmp_path / "built.jsonl"
    folders = [str(Path(scripted_tensorrt.__file__).parent), str(Path(tensorrt_names.__file__).parent)]
    worker = ("-c", WORKER.format(folders=folders, log=str(log)))
    monkeypatch.setattr(builder, "build_engines", partial(build_engines, worker=worker))
    engines, _ = build_where(None)
    kept = engines.records[8]
    assert [each.split(": ")[0] for each in kept.answers.tried] == ["as asked", "fixed batch 2"]
    assert (kept.options.lowering, kept.op_plugin, kept.answers.state) == ("native", None, "right")
    assert [json.loads(line) for line in log.read_text().splitlines()] == [
        [["PLUGIN_V3"], [], 1],
        [["PLUGIN_V3"], [], 1],
        [["CAST"], ["TokenMerge"], 0],
    ]


@pytest.mark.parametrize(
    ("program", "seconds", "found"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", 20, "SIGSEGV"),
        ("import time; time.sleep(60)", 0.5, "did not answer within 0.5 s"),
        ("import sys; sys.exit('no room')", 20, "no room"),
    ],
)
def test_an_engine_that_ends_its_process_is_wrong(program: str, seconds: float, found: str, tmp_path: Path) -> None:
    class Any_:
        def to_json(self) -> dict[str, Any]:
            return {}

    tried = run_trial(tmp_path, tmp_path, Any_(), timeout_s=seconds, worker=("-c", program))  # type: ignore[arg-type]
    assert not tried.is_right
    assert found in tried.found


def test_the_child_runs_the_runtime_s_own_module(tmp_path: Path, bundle: SmallBundle) -> None:
    from sidecars import sidecar_json

    engine = bundle.path / "degree-08.engine"
    engine.write_bytes(b"{}")
    content = json.loads(sidecar_json(bundle.path, 8, engine, 2, {}))
    from tocom.formats.sidecar import sidecar_of

    tried = run_trial(bundle.path, bundle.path, sidecar_of(content), timeout_s=60)
    assert not tried.is_right
    assert "ensor" in tried.found, "it says that TensorRT, or a GPU, is missing here"
    assert trial._WORKER == ("-m", "tocom.runtime.trial")
    assert sys.executable


def test_without_a_gpu_the_sidecar_says_not_run() -> None:
    assert EngineAnswers().state == "not run"


@pytest.mark.parametrize("which", ["fragile", "all"])
def test_tensorrt_rtx_builds_what_was_widened(rtx: BackendFound, tmp_path: Path, which: str) -> None:
    exported = export(small_vit(num_classes=3), tmp_path / "bundle", degrees=[2], precision="fp16", check=False)
    model = onnx.load(exported.onnx_path(2), load_external_data=False)
    done: dict[int, dict[str, Any]] = {}
    layers = {}
    for mode in ("none", which):
        build_engines(
            rtx,
            [Job(2, exported.onnx_path(2), tmp_path / f"{mode}.engine", 1)],
            BuildOptions(lowering="native", float32=mode),
            op_plugin=None,
            compute_capabilities=("8.6",),
            timing_cache=tmp_path / "timing.cache",
            on_done=done.__setitem__,
            progress=lambda *_: None,
        )
        layers[mode] = done[2]["layers"]
    assert layers[which] > layers["none"] > len(model.graph.node) / 2
    assert (tmp_path / f"{which}.engine").stat().st_size > 0
