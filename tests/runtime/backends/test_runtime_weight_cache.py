"""Packed weights shared between degrees: the file rewriting against the onnx package, and the cache for real."""

from __future__ import annotations

import json
import logging
import os
import shutil
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from small_bundles import SmallBundle, images_of, write_small_bundle

from tocom.errors import OutputError
from tocom.formats.bundle import Bundle
from tocom.formats.onnx.tensors import rewrite_external_data
from tocom.runtime import Runtime
from tocom.runtime.backends.onnxruntime import weight_cache
from tocom.runtime.backends.onnxruntime.backend import OnnxRuntimeBackend
from tocom.runtime.backends.onnxruntime.weight_cache import WeightCache
from tocom.system.cache import cache_folder

entries = st.dictionaries(st.text(min_size=1, max_size=12), st.text(max_size=200), max_size=4)


@given(
    tensors=st.lists(st.tuples(st.text(max_size=8), entries), max_size=6),
    doc=st.text(max_size=300),
    added=entries,
)
def test_rewriting_equals_the_onnx_package(
    tensors: list[tuple[str, dict[str, str]]], doc: str, added: dict[str, str]
) -> None:
    initializers = []
    for name, external in tensors:
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=[3, 200_000])
        for key, value in external.items():
            tensor.external_data.add(key=key, value=value)
        initializers.append(tensor)
    node = helper.make_node("Gemm", ["a", "b"], ["c"], alpha=0.5, transB=1, doc_string=doc)
    model = helper.make_model(helper.make_graph([node], "g", [], [], initializers), doc_string=doc)
    seen = []

    def change(found: dict[str, str]) -> dict[str, str]:
        seen.append(dict(found))
        return {**found, **added}

    got = onnx.ModelProto.FromString(rewrite_external_data(model.SerializeToString(), change))
    assert seen == [external for _, external in tensors if external]
    for tensor, (_, external) in zip(model.graph.initializer, tensors, strict=True):
        if external:
            del tensor.external_data[:]
            for key, value in {**external, **added}.items():
                tensor.external_data.add(key=key, value=value)
    assert got == model


@given(st.binary(max_size=200))
def test_any_bytes_end_in_bytes_or_a_value_error(content: bytes) -> None:
    try:
        rewritten = rewrite_external_data(content, dict)
    except ValueError:
        return
    assert isinstance(rewritten, bytes)


@pytest.fixture
def bundle(tmp_path: Path) -> SmallBundle:
    return write_small_bundle(tmp_path / "bundle", width=256)


def opened(bundle: SmallBundle, folder: Path, degrees: tuple[int, ...] = (0, 4, 8)) -> OnnxRuntimeBackend:
    backend = OnnxRuntimeBackend(Bundle(bundle.path), cache_folder=folder)
    backend.prepare(degrees)
    return backend


def cache_of(bundle: SmallBundle, folder: Path) -> WeightCache:
    return WeightCache(Bundle(bundle.path), [0, 4, 8], runtime_version=onnxruntime.__version__, folder=folder)


def test_cached_degrees_answer_bit_for_bit_like_independent_ones(bundle: SmallBundle, tmp_path: Path) -> None:
    images = images_of(3)
    independent = OnnxRuntimeBackend(Bundle(bundle.path), share_weights=False)
    independent.prepare([0, 4, 8])
    shared = opened(bundle, tmp_path / "cache")
    assert (independent.shares_weights, shared.shares_weights) == (False, True)
    for degree in (0, 4, 8):
        expected = independent.load(degree).run(images)["logits"]
        np.testing.assert_array_equal(shared.load(degree).run(images)["logits"], expected)
        np.testing.assert_allclose(expected, bundle.reference(images, degree), atol=1e-4)


def test_each_weight_is_stored_once(bundle: SmallBundle, tmp_path: Path) -> None:
    opened(bundle, tmp_path / "cache")
    three = (cache_of(bundle, tmp_path / "cache").path / "weights.bin").stat().st_size
    one = write_small_bundle(tmp_path / "one", degrees=(0, 1), layers=(2, 2), width=256)
    backend = OnnxRuntimeBackend(Bundle(one.path), cache_folder=tmp_path / "cache1")
    backend.prepare([0, 1])
    (folder,) = (path for path in (tmp_path / "cache1" / "onnxruntime").iterdir() if path.is_dir())
    # All three degrees use the same matrices, so more degrees add only their own small tensors.
    assert three <= (folder / "weights.bin").stat().st_size + 3 * 4096


def test_the_second_start_reuses_the_cache(bundle: SmallBundle, tmp_path: Path) -> None:
    opened(bundle, tmp_path / "cache")
    cache = cache_of(bundle, tmp_path / "cache")
    before = (cache.path / "cache.json").stat().st_mtime_ns
    opened(bundle, tmp_path / "cache")
    assert (cache.path / "cache.json").stat().st_mtime_ns == before


def test_degrees_join_one_cache_and_those_in_it_stay(bundle: SmallBundle, tmp_path: Path) -> None:
    images = images_of(2)
    folder = tmp_path / "cache"
    old = opened(bundle, folder, (0, 4))
    opened(bundle, folder, (4, 8))
    assert cache_of(bundle, folder).ready()
    assert len([path for path in (folder / "onnxruntime").iterdir() if path.is_dir()]) == 1
    # One that found the cache before the third degree joined reads it once more.
    for degree in (0, 4):
        np.testing.assert_allclose(old.load(degree).run(images)["logits"], bundle.reference(images, degree), atol=1e-4)
    assert old.shares_weights


def test_caches_that_were_not_used_for_longest_go(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "cache"
    caches = []
    for seed in range(3):
        bundle = write_small_bundle(tmp_path / str(seed), seed=seed)
        opened(bundle, folder)
        caches.append(cache_of(bundle, folder))
        os.utime(caches[-1].path.with_name(f"{caches[-1].path.name}.lock"), (seed, seed))
    assert caches[0].ready()  # and so used now
    size = sum(file.stat().st_size for file in caches[0].path.iterdir())
    monkeypatch.setattr(weight_cache, "MOST_BYTES", 3 * size + size // 2)  # of a size that differs by some bytes
    with caplog.at_level(logging.INFO):
        opened(write_small_bundle(tmp_path / "3", seed=3), folder)
    assert [cache.ready() for cache in caches] == [True, False, True]
    assert str(caches[1].path) in caplog.text


def test_a_cache_that_is_removed_while_it_is_opened(
    bundle: SmallBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    backend = opened(bundle, tmp_path / "cache")
    shutil.rmtree(tmp_path / "cache")
    images = images_of(1)
    with caplog.at_level(logging.WARNING):
        np.testing.assert_allclose(backend.load(4).run(images)["logits"], bundle.reference(images, 4), atol=1e-4)
    assert "do not share weights" in caplog.text


def test_fusions_that_are_slower_are_left_out(tmp_path: Path) -> None:
    weights = {
        name: np.random.default_rng(0).standard_normal(shape).astype(np.float32)
        for name, shape in {"up": (64, 256), "bias": (256,), "scale": (64,), "shift": (64,)}.items()
    }
    nodes = [
        helper.make_node("Add", ["x", "skip"], ["sum"]),
        helper.make_node("LayerNormalization", ["sum", "scale", "shift"], ["normed"], axis=-1),
        helper.make_node("MatMul", ["normed", "up"], ["wide"]),
        helper.make_node("Add", ["wide", "bias"], ["biased"]),
        helper.make_node("Gelu", ["biased"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "mlp",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 5, 64]) for name in ("x", "skip")],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)

    def kinds(options: onnxruntime.SessionOptions) -> set[str]:
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return {node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node}

    bundle = Bundle(write_small_bundle(tmp_path / "bundle").path)
    # Where the first ends otherwise, this ONNX Runtime has other fusions, and the list wants measuring again.
    assert {"SkipLayerNormalization", "BiasGelu"} <= kinds(onnxruntime.SessionOptions())
    assert kinds(OnnxRuntimeBackend(bundle)._options()) == {"Add", "LayerNormalization", "MatMul", "Gelu"}


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "manifest", "foreign"])
@pytest.mark.fault("a cache of packed weights that is flipped, cut, emptied or foreign", outcome="it is built again")
def test_a_damaged_cache_is_built_anew(bundle: SmallBundle, tmp_path: Path, damage: str) -> None:
    opened(bundle, tmp_path / "cache")
    cache = cache_of(bundle, tmp_path / "cache")
    weights, manifest = cache.path / "weights.bin", cache.path / "cache.json"
    content = bytearray(weights.read_bytes())
    if damage == "flip":
        content[5000] ^= 255
        weights.write_bytes(bytes(content))
    elif damage == "truncate":
        weights.write_bytes(bytes(content[:-1]))
    elif damage == "remove":
        (cache.path / "degree-04.onnx").unlink()
    elif damage == "manifest":
        manifest.write_text("[]")
    else:
        identity = json.loads(manifest.read_text())
        identity["identity"]["processor"] = "another"
        manifest.write_text(json.dumps(identity))
    assert not cache.ready()
    backend = opened(bundle, tmp_path / "cache")
    assert cache.ready()
    images = images_of(1)
    np.testing.assert_allclose(backend.load(4).run(images)["logits"], bundle.reference(images, 4), atol=1e-4)


@pytest.mark.fault("no place for the cache of packed weights", outcome="a warning; every degree serves")
def test_nowhere_to_cache_is_a_warning_and_every_degree_still_answers(
    bundle: SmallBundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("in the way")
    with caplog.at_level(logging.WARNING):
        backend = opened(bundle, tmp_path / "file")
    assert "do not share weights" in caplog.text
    images = images_of(1)
    np.testing.assert_allclose(backend.load(4).run(images)["logits"], bundle.reference(images, 4), atol=1e-4)


def test_one_degree_needs_no_cache(bundle: SmallBundle, tmp_path: Path) -> None:
    opened(bundle, tmp_path / "cache", (4,)).load(4)
    assert not (tmp_path / "cache").exists()


def test_the_cache_folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TOCOM_CACHE", str(tmp_path / "a"))
    assert cache_folder() == tmp_path / "a"
    monkeypatch.delenv("TOCOM_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "b"))
    assert cache_folder() == tmp_path / "b" / "tocom"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path / "c"))
    assert cache_folder() == tmp_path / "c" / ".cache" / "tocom"

    def no_home() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", no_home)
    with pytest.raises(OutputError, match="no home folder"):
        cache_folder()


def test_the_runtime_uses_the_cache_of_the_environment(bundle: SmallBundle) -> None:
    with Runtime.open(bundle.path) as runtime:
        assert runtime.backend.shares_weights  # type: ignore[attr-defined]
    assert any((Path(os.environ["TOCOM_CACHE"]) / "onnxruntime").iterdir())
