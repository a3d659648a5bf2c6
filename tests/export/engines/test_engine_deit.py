"""DeiT-S at the quickstart's degrees as TensorRT-RTX engines: what they hold, their size, and where asked the time."""

from __future__ import annotations

import time

import pytest

from tocom.compression.loading.model import load_model
from tocom.export import export
from tocom.export.engines.builder import build
from tocom.formats.bundle import Bundle

DEGREES = (0, 4, 8, 12, 16)
DEPTH = 12
BUILD_SECONDS, SECOND_BUILD_SECONDS = 15.0, 1.0
LARGEST_SHARE = 1.03

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("rtx", "no_gpu")]


@pytest.fixture(scope="module")
def deit(tmp_path_factory) -> Bundle:
    path = tmp_path_factory.mktemp("deit") / "bundle"
    return export(load_model("deit_small_patch16_224", weights="random"), path, degrees=list(DEGREES), check=False)


@pytest.fixture(scope="module")
def built(deit, op_plugin):
    """The engines, and the seconds that building them took."""
    begin = time.perf_counter()
    engines = build(deit, backend="tensorrt-rtx", op_plugin=op_plugin.path)
    return engines, time.perf_counter() - begin


def test_one_op_plugin_layer_per_merging_block_and_static_token_counts(built):
    engines, _ = built
    assert engines.built == DEGREES
    assert [record.op_plugin_layers for record in engines.records.values()] == [0, *[DEPTH] * 4]
    assert {record.tensors_dynamic_beyond_batch for record in engines.records.values()} == {0}


def test_engines_are_no_larger_than_the_dense_one(built):
    engines, _ = built
    sizes = {degree: record.engine.size_bytes for degree, record in engines.records.items()}
    assert max(sizes.values()) <= LARGEST_SHARE * sizes[0]
    # Unpacked they are: TensorRT-RTX keeps 130 kB of CUDA source for each of its own kernels, and every block of a
    # compressed model has its own shapes. This holds what was measured.
    contents = {degree: record.engine.content_bytes for degree, record in engines.records.items()}
    assert sizes[0] < contents[0]
    assert max(contents.values()) <= 1.15 * contents[0]


@pytest.mark.serial
def test_build_time(deit, built, op_plugin):
    _, seconds = built
    print(f"\nfive engines in {seconds:.1f} s")
    assert seconds <= BUILD_SECONDS

    begin = time.perf_counter()
    again = build(Bundle(deit.path), backend="tensorrt-rtx", op_plugin=op_plugin.path)
    seconds = time.perf_counter() - begin
    print(f"a second build in {seconds:.2f} s")
    assert again.built == ()
    assert seconds <= SECOND_BUILD_SECONDS


def test_native_lowering_has_no_op_plugin_layer(deit, built):
    engines = build(deit, backend="tensorrt-rtx", lowering="native", degrees=[8])
    assert engines.built == (8,)
    assert engines.records[8].op_plugin_layers == 0
    assert engines.records[8].tensors_dynamic_beyond_batch == 0
