"""The op plugins through TensorRT's C++ interface, driven by ``testing/plugin_harness.cpp`` without TensorRT."""

from __future__ import annotations

import ctypes
import subprocess

import numpy as np
import pytest
from kernel_cases import SOURCES

from tocom.export.op_plugin.toolchain import find_headers, find_toolkit

FLOAT, HALF, INT8, INT32, BF16 = 0, 1, 2, 3, 7
FIELDS = {"TokenMerge": "r,prefix", "TokenPrune": "r,prefix,fuse"}
FIELDS |= {f"{name}Mapped": fields for name, fields in FIELDS.items()}


class Plugins:
    def __init__(self, harness, library):
        self._harness = ctypes.CDLL(str(harness))
        self._harness.tocom_plugin_open.restype = ctypes.c_void_p
        self._harness.tocom_plugin_log.restype = ctypes.c_char_p
        self._library = ctypes.c_void_p(self._harness.tocom_plugin_open(str(library).encode()))

    @property
    def log(self):
        return self._harness.tocom_plugin_log().decode()

    def describe(self, name):
        text = ctypes.create_string_buffer(200)
        assert self._harness.tocom_plugin_describe(self._library, name.encode(), text, len(text)) == 0
        return text.value.decode()

    def round_trip(self, name, values, *, wrong_type=False):
        out = (ctypes.c_int32 * 8)()
        count = self._harness.tocom_plugin_round_trip(
            self._library, name.encode(), _ints(values), len(values), ctypes.c_bool(wrong_type), out
        )
        return list(out[:count]) if count >= 0 else count

    def supports(self, name, values, types, inputs, position, *, linear=True):
        return self._harness.tocom_plugin_supports(
            self._library,
            name.encode(),
            _ints(values),
            len(values),
            position,
            _ints(types),
            inputs,
            len(types) - inputs,
            ctypes.c_bool(linear),
        )

    def shapes(self, name, values, shapes, outputs):
        flat = [size for shape in shapes for size in shape]
        return self._harness.tocom_plugin_shapes(
            self._library,
            name.encode(),
            _ints(values),
            len(values),
            (ctypes.c_int64 * len(flat))(*flat),
            _ints([len(shape) for shape in shapes]),
            len(shapes),
            outputs,
        )


def _ints(values):
    return (ctypes.c_int32 * len(values))(*values)


@pytest.fixture(scope="session")
def plugins(op_plugin, tmp_path_factory):
    toolkit, headers = find_toolkit(), find_headers()
    path = tmp_path_factory.mktemp("interface") / "libtocom_plugin_harness.so"
    flags = ["-std=c++17", "-shared", "-cudart=none", "-Xcompiler=-fPIC,-Wall,-Wextra,-Werror"]
    folders = [f"-isystem={folder}" for folder in (headers.include, *toolkit.include)]
    source = str(SOURCES / "testing" / "plugin_harness.cpp")
    subprocess.run([str(toolkit.nvcc), *flags, *folders, source, "-o", str(path), "-ldl"], check=True)
    return Plugins(path, op_plugin.path)


@pytest.mark.parametrize("name", FIELDS)
def test_creators_describe_themselves(plugins, name):
    assert plugins.describe(name) == f"{name};1;tocom;{FIELDS[name]}"


@pytest.mark.parametrize(
    ("name", "values"), [("TokenMerge", [16, 1]), ("TokenPrune", [13, 0, 1]), ("TokenPruneMapped", [13, 0, 1])]
)
def test_attributes_survive_clones_and_serialization(plugins, name, values):
    assert plugins.round_trip(name, values) == values


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("TokenMerge", [0, 1], "TokenMerge node 'test': attribute 'r' must be at least 1, got 0"),
        ("TokenMerge", [4, -1], "attribute 'prefix' must be at least 0, got -1"),
        ("TokenMerge", [4], "attribute 'prefix' is missing"),
        ("TokenPrune", [4, 1, 2], "TokenPrune node 'test': attribute 'fuse' must be at most 1, got 2"),
        ("TokenPrune", [4, 1], "attribute 'fuse' is missing"),
        ("TokenPruneMapped", [4, 1, 0], "attribute 'fuse' must be at least 1, got 0"),
    ],
)
def test_bad_attributes_are_refused_with_a_reason(plugins, name, values, message):
    assert plugins.round_trip(name, values) == -1
    assert plugins.log.endswith(message)


def test_an_attribute_of_another_type_is_refused(plugins):
    assert plugins.round_trip("TokenMerge", [4, 1], wrong_type=True) == -1
    assert plugins.log.endswith("attribute 'r' must be one int32")


@pytest.mark.parametrize("token_type", [FLOAT, HALF, BF16])
def test_types_of_merging(plugins, token_type):
    right = [token_type, token_type, FLOAT, token_type, FLOAT, token_type]
    for position in range(6):
        assert plugins.supports("TokenMerge", [4, 1], right, 3, position) == 1
        assert plugins.supports("TokenMerge", [4, 1], right, 3, position, linear=False) == 0
        wrong = [*right[:position], INT32, *right[position + 1 :]]
        assert plugins.supports("TokenMerge", [4, 1], wrong, 3, position) == 0
    if token_type != FLOAT:
        # Sizes stay float32 whatever the tokens are.
        assert plugins.supports("TokenMerge", [4, 1], [token_type] * 6, 3, 2) == 0


def test_types_of_where_tokens_went(plugins):
    for position in range(7):
        assert plugins.supports("TokenMergeMapped", [4, 1], [HALF, HALF, FLOAT, HALF, FLOAT, HALF, INT32], 3, position)
    assert plugins.supports("TokenMergeMapped", [4, 1], [FLOAT] * 7, 3, 6) == 0
    assert plugins.supports("TokenPruneMapped", [4, 1, 1], [HALF, FLOAT, HALF, INT32], 2, 3) == 1
    assert plugins.supports("TokenPruneMapped", [4, 1, 1], [HALF, FLOAT, HALF, HALF], 2, 3) == 0


def test_types_of_pruning(plugins):
    assert plugins.supports("TokenPrune", [4, 1, 0], [HALF, FLOAT, HALF], 2, 2) == 1
    assert plugins.supports("TokenPrune", [4, 1, 0], [HALF, HALF, HALF], 2, 1) == 0
    assert plugins.supports("TokenPrune", [4, 1, 0], [INT8, FLOAT, INT8], 2, 0) == 0
    assert plugins.supports("TokenPrune", [4, 1, 0], [HALF, FLOAT, HALF], 1, 0) == 0


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ([(2, 197, 384), (2, 6, 197, 64), (2, 197, 1)], None),
        (
            [(2, 8, 384), (2, 6, 8, 64), (2, 8, 1)],
            "attribute 'r' must be at most 3 for 8 tokens with 1 protected, got 4",
        ),
        ([(2, -1, 384), (2, 6, -1, 64), (2, -1, 1)], "got [2, -1, 384] (-1: not static)"),
        ([(2, 4097, 384), (2, 6, 4097, 64), (2, 4097, 1)], "must be [batch, 1 to 4096 tokens, channels]"),
        ([(2, 197), (2, 6, 197, 64), (2, 197, 1)], "input 'x' must have 3 dimensions, got 2"),
        ([(2, 197, 384), (2, 6, 196, 64), (2, 197, 1)], "dimension 2 of input 'keys' must be 197, got 196"),
        ([(2, 197, 384), (2, 6, 197, 64), (2, 197, 2)], "dimension 2 of input 'size' must be 1, got 2"),
    ],
)
def test_shapes_of_merging(plugins, shapes, message):
    status = plugins.shapes("TokenMerge", [4, 1], shapes, 3)
    assert (status == 0) == (message is None)
    if message is not None:
        assert message in plugins.log


def test_shapes_of_pruning(plugins):
    assert plugins.shapes("TokenPrune", [4, 1, 1], [(1, 50, 8), (1, 50)], 1) == 0
    assert plugins.shapes("TokenPrune", [4, 1, 1], [(1, 50, 8), (2, 50)], 1) != 0
    assert "dimension 0 of input 'score' must be 1, got 2" in plugins.log
    assert plugins.shapes("TokenPrune", [4, 1, 1], [(1, 50, 8)], 1) != 0
    assert "TokenPrune takes 2 inputs and gives 1 outputs; the network has 1 and 1" in plugins.log


def test_random_attributes_round_trip(plugins):
    rng = np.random.default_rng(0)
    for _ in range(100):
        values = [int(rng.integers(1, 2000)), int(rng.integers(0, 10)), int(rng.integers(0, 2))]
        assert plugins.round_trip("TokenPrune", values) == values
