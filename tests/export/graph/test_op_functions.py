"""The ONNX functions of TokenMerge and TokenPrune against the torch ops, on random and on tied inputs."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import onnxruntime
import pytest
import torch
from heads import in_heads
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from tocom.compression.merging import token_merge
from tocom.compression.pruning import token_prune
from tocom.compression.tokens import removable
from tocom.export.graph.functions import DOMAIN, DOMAIN_VERSION, OPSET, token_merge_function, token_prune_function

KINDS = {"fp32": (TensorProto.FLOAT, np.float32), "fp16": (TensorProto.FLOAT16, np.float16)}


@lru_cache(maxsize=256)
def session(op: str, r: int, prefix: int, tokens: int, fuse: bool, precision: str) -> onnxruntime.InferenceSession:
    """Return a model of one node, its batch and channels symbolic."""
    element = KINDS[precision][0]
    names = {"TokenMerge": ("x", "keys", "size"), "TokenPrune": ("x", "score")}[op]
    types = {"x": element, "keys": element, "size": TensorProto.FLOAT, "score": TensorProto.FLOAT}
    outputs = ("y", "size_out", "log_size") if op == "TokenMerge" else ("y",)
    attributes = {"r": r, "prefix": prefix, "tokens": tokens, "plugin_version": "1", "plugin_namespace": DOMAIN}
    if op == "TokenPrune":
        attributes["fuse"] = int(fuse)
    graph = helper.make_graph(
        [helper.make_node(op, names, outputs, domain=DOMAIN, **attributes)],
        "one_node",
        [helper.make_tensor_value_info(name, types[name], None) for name in names],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT if name == "size_out" else element, None)
            for name in outputs
        ],
    )
    function = token_merge_function(precision) if op == "TokenMerge" else token_prune_function(precision, fuse=fuse)
    opsets = [helper.make_opsetid("", OPSET), helper.make_opsetid(DOMAIN, DOMAIN_VERSION)]
    model = helper.make_model(graph, functions=[function], opset_imports=opsets, ir_version=10)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])


@st.composite
def shapes(draw: st.DrawFn) -> tuple[int, int, int, int, np.random.Generator]:
    """Draw batch, tokens, r (at least one: at zero no node is written), prefix, and a source of numbers."""
    prefix = draw(st.integers(0, 5))
    tokens = draw(st.integers(prefix + 2, prefix + 24))
    r = draw(st.integers(1, removable(tokens, prefix)))
    return draw(st.integers(1, 3)), tokens, r, prefix, np.random.default_rng(draw(st.integers(0, 2**32 - 1)))


def exact_metric(kind: str, batch: int, tokens: int, generator: np.random.Generator) -> np.ndarray:
    """Return metrics whose lengths and products are exact in half precision: equal scores tie in every program."""
    if kind == "equal":
        return np.ones((batch, tokens, 16))
    if kind == "zeros":
        return np.zeros((batch, tokens, 16))
    if kind == "axes":
        return np.eye(16)[generator.integers(0, 4, (batch, tokens))]
    return generator.choice([-1.0, 1.0], (batch, tokens, 16))


@pytest.mark.parametrize("precision", KINDS)
@settings(max_examples=80, deadline=None)
@given(shape=shapes(), kind=st.sampled_from(["signs", "axes", "equal", "zeros"]), sized=st.booleans())
def test_merge_equals_torch(
    precision: str, shape: tuple[int, int, int, int, np.random.Generator], kind: str, sized: bool
) -> None:
    batch, tokens, r, prefix, generator = shape
    number = KINDS[precision][1]
    # Multiples of 1/8 with sizes that are powers of two: weighted sums are exact, and so is the comparison.
    x = (generator.integers(-32, 33, (batch, tokens, 6)) / 8).astype(number)
    keys = in_heads(exact_metric(kind, batch, tokens, generator), int(generator.integers(1, 7))).astype(number)
    size = (2.0 ** generator.integers(0, 4, (batch, tokens, 1)) if sized else np.ones((batch, tokens, 1))).astype(
        np.float32
    )
    y, size_out, log_size = session("TokenMerge", r, prefix, tokens, False, precision).run(
        None, {"x": x, "keys": keys, "size": size}
    )
    want, want_size, want_log = token_merge(*map(torch.from_numpy, (x, keys, size)), r, prefix)
    np.testing.assert_array_equal(size_out, want_size.numpy())
    np.testing.assert_allclose(log_size, want_log.numpy(), rtol=1e-3 if precision == "fp16" else 1e-6)
    assert log_size.dtype == number
    np.testing.assert_allclose(y, want.numpy(), rtol=2e-3 if precision == "fp16" else 1e-6, atol=1e-5)
    assert y.dtype == number


@settings(max_examples=40, deadline=None)
@given(shape=shapes())
def test_merge_of_random_numbers_equals_torch(shape: tuple[int, int, int, int, np.random.Generator]) -> None:
    batch, tokens, r, prefix, generator = shape
    x = generator.standard_normal((batch, tokens, 12), dtype=np.float32)
    keys = generator.standard_normal((batch, 3, tokens, 12), dtype=np.float32)
    size = generator.integers(1, 9, (batch, tokens, 1)).astype(np.float32)
    y, size_out, _ = session("TokenMerge", r, prefix, tokens, False, "fp32").run(
        None, {"x": x, "keys": keys, "size": size}
    )
    want, want_size, _ = token_merge(*map(torch.from_numpy, (x, keys, size)), r, prefix)
    np.testing.assert_array_equal(size_out, want_size.numpy())
    np.testing.assert_allclose(y, want.numpy(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("precision", KINDS)
@settings(max_examples=80, deadline=None)
@given(shape=shapes(), fuse=st.booleans(), kind=st.sampled_from(["random", "tied", "equal", "zeros"]))
def test_prune_equals_torch(
    precision: str, shape: tuple[int, int, int, int, np.random.Generator], fuse: bool, kind: str
) -> None:
    batch, tokens, r, prefix, generator = shape
    number = KINDS[precision][1]
    x = generator.standard_normal((batch, tokens, 6)).astype(number)
    score = {
        "random": lambda: generator.random((batch, tokens)),
        "tied": lambda: generator.integers(0, 3, (batch, tokens)) / 8,
        "equal": lambda: np.full((batch, tokens), 0.25),
        "zeros": lambda: np.zeros((batch, tokens)),
    }[kind]().astype(np.float32)
    (y,) = session("TokenPrune", r, prefix, tokens, fuse, precision).run(None, {"x": x, "score": score})
    want = token_prune(torch.from_numpy(x), torch.from_numpy(score), r, prefix, fuse).numpy()
    exact = want.shape[1] - (1 if fuse else 0)
    np.testing.assert_array_equal(y[:, :exact], want[:, :exact])
    np.testing.assert_allclose(y, want, rtol=2e-3 if precision == "fp16" else 1e-5, atol=1e-5)


def test_the_names_of_a_function_are_in_no_graph() -> None:
    for function in (token_merge_function(), token_prune_function(fuse=True)):
        assert all(name.startswith("tocom_") for name in (*function.input, *function.output))


def test_the_bodies_use_nothing_that_tensorrt_refuses() -> None:
    functions = [
        token_merge_function(),
        token_merge_function("fp16"),
        token_merge_function("bf16"),
        token_prune_function(),
        token_prune_function("fp16", fuse=True),
    ]
    for function in functions:
        assert function.domain == DOMAIN
        assert {entry.version for entry in function.opset_import} == {OPSET}
        for node in function.node:
            assert node.domain == ""
            if node.op_type == "ScatterElements":
                assert {each.name for each in node.attribute} == {"axis"}, "a reduction"
            assert node.op_type not in {"ScatterND", "NonZero", "Loop", "If", "Scan", "Unique", "CumSum"}
