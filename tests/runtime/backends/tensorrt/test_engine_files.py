"""Which engines beside a bundle are loaded: those that fit this TensorRT and GPU, and are what their sidecars say."""

from __future__ import annotations

import ctypes
import hashlib
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from host_cuda import HostCuda
from scripted_engines import (
    DEGREES,
    IPluginRegistry,
    ScriptedTensorRt,
    engine_bytes,
    reference,
    write_engines,
)
from small_bundles import SmallBundle, images_of

from tocom.errors import EngineError
from tocom.formats.engine import SELF_REGISTER
from tocom.runtime.backends.tensorrt.backend import TensorRtBackend

OTHER_ONNX = {"file": "x", "sha256": "0" * 64, "weights_sha256": "0" * 64, "content_sha256": "0" * 64}


def op_plugin_json(content: bytes, tensorrt: str = "10.13.2") -> dict[str, Any]:
    sha256 = hashlib.sha256(content).hexdigest()
    return {"sha256": sha256, "tensorrt": tensorrt, "architectures": [87], "file": "libop.so"}


def test_a_version_compatible_engine_of_an_older_release_is_taken(
    bundle: SmallBundle, opened: Callable[[], TensorRtBackend]
) -> None:
    options = {"version_compatible": True, "hardware_compatible": False}
    write_engines(bundle, "tensorrt-10.3.0-x", backend_version="10.3.0", options=options)
    assert opened()._folder.path.name == "tensorrt-10.3.0-x"


@pytest.mark.parametrize(
    ("folder", "changes", "message"),
    [
        ("tensorrt-10.3.0-x", {"backend_version": "10.3.0"}, r"built by tensorrt 10\.3\.0, this is 10\.13\.2"),
        (
            "tensorrt-10.13.2-x",
            {"gpu": "y", "compute_capabilities": ["8.9"]},
            r"built for compute capability 8\.9, this GPU has 8\.7",
        ),
        ("tensorrt-10.13.2-x", {"onnx": OTHER_ONNX}, "from another ONNX file"),
        ("tensorrt-10.13.2-x", {"engine": {"size_bytes": 3}}, r"not a readable sidecar .*'engine' has no 'file'"),
        (
            "tensorrt-11.0.0-x",
            {"backend_version": "11.0.0", "options": {"version_compatible": True}},
            r"version-compatible, which holds within tensorrt 11\.x; this is 10\.13\.2",
        ),
        (
            "tensorrt-10.14.0-x",
            {"backend_version": "10.14.0", "options": {"version_compatible": True}},
            r"version-compatible with tensorrt 10\.14\.0 and newer; this is 10\.13\.2",
        ),
        (
            "tensorrt-10.13.2-x",
            {"op_plugin": op_plugin_json(b"", "11.0.0")},
            r"its op plugin library is for TensorRT 11\.x, this is 10\.13\.2",
        ),
        ("tensorrt-10.13.2-x", {"degree": 5}, "the bundle has no degree 5"),
        (
            "tensorrt-10.13.2-portable",
            {"gpu": None, "compute_capabilities": ["8.6", "12.0"]},
            r"it is portable, for compute capability 8\.6, 12\.0; this GPU has 8\.7",
        ),
        ("tensorrt-rtx-1.7.1-portable", {}, "has no tensorrt engines"),
    ],
)
@pytest.mark.fault(
    "an engine for another device, TensorRT or bundle",
    outcome="EngineError that names what differs and the command to build",
)
def test_engines_that_do_not_fit_are_named_with_the_reason(
    bundle: SmallBundle,
    opened: Callable[[], TensorRtBackend],
    folder: str,
    changes: dict[str, Any],
    message: str,
) -> None:
    write_engines(bundle, folder, **changes)
    with pytest.raises(EngineError, match=message) as caught:
        opened()
    assert "tocom build" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_portable_engines_serve_where_none_was_built_for_the_gpu(
    bundle: SmallBundle, opened: Callable[[], TensorRtBackend]
) -> None:
    write_engines(bundle, "tensorrt-10.13.2-portable", gpu=None)
    assert opened()._folder.path.name.endswith("portable")
    write_engines(bundle)
    assert opened()._folder.path.name.endswith("sm87")


def test_a_missing_degree_names_the_command(bundle: SmallBundle, opened: Callable[[], TensorRtBackend]) -> None:
    folder = write_engines(bundle)
    (folder / "degree-04.json").unlink()
    with pytest.raises(
        EngineError, match=r"no engine of degree 4; it has \[0, 8\]\. Build it: tocom build .*--degrees 4"
    ):
        opened().prepare(DEGREES)


@pytest.mark.parametrize("damage", ["flip", "cut", "gone"])
@pytest.mark.fault("an engine that is flipped, cut or gone", outcome="EngineError; TensorRT never sees a byte of it")
def test_a_damaged_engine_is_never_deserialized(
    bundle: SmallBundle, opened: Callable[[], TensorRtBackend], damage: str
) -> None:
    path = write_engines(bundle) / "degree-04.engine"
    content = path.read_bytes()
    backend = opened()
    if damage == "gone":
        path.unlink()
    else:
        path.write_bytes(content[:-3] if damage == "cut" else content.replace(b"4", b"5", 1))
    message = {"flip": "has .* is not loaded", "cut": "was cut off or changed", "gone": "cannot be read"}
    with pytest.raises(EngineError, match=message[damage]):
        backend.load(4)


def test_compact_engines_answer_as_plain_ones(bundle: SmallBundle, opened: Callable[[], TensorRtBackend]) -> None:
    folder = write_engines(bundle, options={"compact": True, "version_compatible": False})
    assert (folder / "degree-04.engine.zip").exists()
    engine = opened().load(4)
    images = images_of(2)
    np.testing.assert_allclose(engine.run(images)["logits"], reference(images, 4), rtol=1e-5)
    engine.close()


@pytest.mark.fault(
    "the op plugin missing, or another than the engines were built with",
    outcome="EngineError that names the library; it is not loaded",
)
def test_the_op_plugin_library_is_checked_then_loaded(
    bundle: SmallBundle, trt: ScriptedTensorRt, opened: Callable[[], TensorRtBackend], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(SELF_REGISTER, "1")  # meant for other programs: TensorRT would refuse the library
    content = b"a library"
    op_plugin = op_plugin_json(content)
    folder = write_engines(bundle, op_plugin=op_plugin)
    with pytest.raises(EngineError, match=r"libop\.so cannot be read"):
        opened()
    (folder / "libop.so").write_bytes(b"another library")
    with pytest.raises(EngineError, match="it is not loaded"):
        opened()
    assert not any(registry.libraries for registry in trt.registries)
    (folder / "libop.so").write_bytes(content)
    # Each runtime has a registry of its own: the process's takes an op only once, and answers None after.
    opened()
    opened()
    assert [registry.libraries for registry in trt.registries[-2:]] == [[content], [content]]
    assert SELF_REGISTER not in os.environ


@pytest.mark.fault(
    "the op plugin library exchanged or rewritten between its hash and its loading",
    outcome="the bytes that were hashed are loaded, and no others",
)
@pytest.mark.parametrize("rewrite", [True, False])
def test_an_exchange_after_the_hash_loads_nothing_else(
    bundle: SmallBundle, opened: Callable[[], TensorRtBackend], rewrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a real dynamic loader, at the very moment when TensorRT is handed the path."""
    content, hostile = (compiled(bundle.path.parent, answer) for answer in (42, 666))
    op_plugin = op_plugin_json(content)
    library = write_engines(bundle, op_plugin=op_plugin) / "libop.so"
    library.write_bytes(content)
    answers = []

    def exchanged(registry: IPluginRegistry, path: str) -> Any:
        if not rewrite:
            library.unlink()
        library.write_bytes(hostile)
        with pytest.raises(PermissionError):
            Path(path).write_bytes(hostile)  # the copy is sealed
        loaded = ctypes.CDLL(path)
        answers.append(loaded.answer())
        return loaded

    monkeypatch.setattr(IPluginRegistry, "load_library", exchanged)
    opened()
    assert answers == [42]
    with pytest.raises(EngineError, match="it is not loaded"):
        opened()


def compiled(folder: Path, answer: int) -> bytes:
    if shutil.which("gcc") is None:
        pytest.skip("needs gcc")
    out = folder / f"{answer}.so"
    source = f"int answer(void) {{ return {answer}; }}"
    subprocess.run(["gcc", "-shared", "-fPIC", "-x", "c", "-", "-o", str(out)], input=source.encode(), check=True)
    return out.read_bytes()


def test_needs_are_known_before_loading(
    bundle: SmallBundle, cuda: HostCuda, opened: Callable[[], TensorRtBackend]
) -> None:
    write_engines(bundle)
    backend = opened()
    before = cuda.live("device")
    needs = backend.needs(DEGREES)
    assert cuda.live("device") == before
    assert {degree: need.weight_bytes for degree, need in needs.items()} == {d: len(engine_bytes(d)) for d in DEGREES}
