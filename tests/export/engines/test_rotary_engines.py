"""Rotary models under TensorRT-RTX: places and patches cost no op plugin layer of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from families import ROTARY, Family
from small_vits import busy_compensator

from tocom.compression.surgery import input_tokens
from tocom.compression.tokens import removal_schedule, token_counts
from tocom.export import export
from tocom.export.engines.builder import build
from tocom.export.op_plugin.library import OpPluginLibrary

pytestmark = pytest.mark.usefixtures("rtx", "no_gpu")
DEGREE = 4


def _parameter(family: Family, method: str, patches: bool, *, slow: bool):
    marks = [pytest.mark.skipif(not family.known, reason="this timm has no such model")]
    marks += [pytest.mark.slow] if slow else []
    return pytest.param(family, method, patches, id=f"{family.name}-{method}-{patches}", marks=marks)


_CASES = [
    _parameter(ROTARY[0], "merge", True, slow=False),
    _parameter(ROTARY[0], "prune", True, slow=True),
    *(_parameter(family, "merge", False, slow=True) for family in ROTARY),
]


@pytest.mark.parametrize(("family", "method", "patches"), _CASES)
def test_one_op_plugin_layer_per_merging_block(
    family: Family, method: str, patches: bool, op_plugin: OpPluginLibrary, tmp_path: Path
) -> None:
    model = family.build()
    bundle = export(
        model,
        tmp_path / "bundle",
        degrees=(DEGREE,),
        compensator=busy_compensator(model, method=method),
        method=method,
        fuse=method == "prune",
        patch_features=patches,
    )
    check = bundle.manifest["degrees"][0]["check"]
    assert check["max_abs_difference"] <= 1e-4, "ONNX Runtime on the CPU against torch"
    engines = build(bundle.path, backend="tensorrt-rtx", op_plugin=op_plugin.path)
    record = engines.records[DEGREE]
    removed = removal_schedule(input_tokens(model), 3, DEGREE, family.prefix)
    assert record.op_plugin_layers == sum(count > 0 for count in removed) == 3
    assert record.token_counts == token_counts(input_tokens(model), removed)
    assert record.tensors_dynamic_beyond_batch == 0
