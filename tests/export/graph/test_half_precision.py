"""fp16 bundles of models whose values come near to half precision's end, in real half arithmetic."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from small_vits import busy_compensator, small_images, small_vit
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from tocom import compress
from tocom.errors import ExportError
from tocom.export import export, pipeline
from tocom.export.graph.half import LIMIT, HalfPlan, magnitudes, plan_half
from tocom.export.graph.half_arithmetic import run_in_half


def large_residual(block: int = 1, size: float = 1e5) -> VisionTransformer:
    """Return a model whose MLP of one block puts ``size`` on one channel of the residual sum."""
    model = small_vit(num_classes=10)
    with torch.no_grad():
        model.blocks[block].mlp.fc2.bias[3] = size
    return model


def test_the_evaluator_overflows_where_onnxruntime_does_not(tmp_path: Path) -> None:
    half = np.float16
    nodes = [
        helper.make_node("Cast", ["images"], ["x"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["x", "large"], ["beyond"]),
        helper.make_node("MatMul", ["beyond", "small"], ["back"]),
        helper.make_node("Cast", ["back"], ["logits"], to=TensorProto.FLOAT),
    ]
    tensors = [
        onnx.numpy_helper.from_array(np.full((2, 2), 300, half), "large"),
        onnx.numpy_helper.from_array(np.full((2, 2), 1 / 512, half), "small"),
    ]
    ends = [[helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 2])] for name in ("images", "logits")]
    graph = helper.make_graph(nodes, "g", *ends, tensors)
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=9), tmp_path / "m.onnx")
    assert np.isinf(run_in_half(tmp_path / "m.onnx", np.full((1, 2), 200, np.float32), batch=None)).all()
    assert run_in_half(tmp_path / "m.onnx", np.ones((1, 2), np.float32), batch=None)[0, 0] == pytest.approx(2.34375)


def test_magnitudes_are_those_of_the_model() -> None:
    model = large_residual()
    found = magnitudes(model, small_images(model, 2).numpy())
    assert found[2, "residual sum"] == pytest.approx(1e5, rel=1e-3)
    assert found[1, "MLP's output"] == pytest.approx(1e5, rel=1e-3)
    assert found[1, "residual sum"] < 100
    assert not model.blocks[0].norm1._forward_pre_hooks, "no hook may stay"
    assert not plan_half([magnitudes(small_vit(), small_images(model, 2).numpy())], model)


@pytest.mark.fault(
    "a ViT whose values overflow half precision",
    outcome="export keeps what comes within a factor of eight of 65,504 in float32, and names the blocks",
)
@pytest.mark.parametrize("method", ["merge", pytest.param("prune", marks=pytest.mark.slow)])
def test_a_residual_sum_of_1e5_survives_half_precision(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str
) -> None:
    model = large_residual()
    compensator = busy_compensator(model, method=method)
    options = {"degrees": [3], "compensator": compensator, "method": method, "precision": "fp16", "batch": (1, 1, 2)}
    bundle = export(model, tmp_path / "wide", **options)
    kept = {(entry["block"], entry["what"]): entry for entry in bundle.manifest["kept_in_float32"]}
    assert kept[2, "residual sum"]["largest"] == pytest.approx(1e5, rel=1e-2)
    assert "scaled by 1/16" in kept[1, "MLP's output"]["how"]
    assert not any(block == 0 for block, _ in kept)
    images = small_images(model, 3, seed=3).numpy()
    with torch.no_grad():
        expected = compress(model, 3, method=method, compensator=compensator)(torch.from_numpy(images)).numpy()
    got = run_in_half(bundle.onnx_path(3), images, batch=None)
    assert np.abs(got - expected).max() <= 3e-2 * max(1, np.abs(expected).max())
    with monkeypatch.context() as without:
        without.setattr(pipeline, "plan_half", lambda *_: HalfPlan())
        with pytest.raises(ExportError, match=r"not finite in half arithmetic|differs from torch by nan"):
            export(model, tmp_path / "narrow", **options)
        narrow = export(model, tmp_path / "narrow", check=False, **options)
    assert not np.isfinite(run_in_half(narrow.onnx_path(3), images[:1], batch=None)).all()


@pytest.mark.parametrize("what", ["attention's q, k and logits", pytest.param("MLP", marks=pytest.mark.slow)])
def test_large_values_inside_a_branch_keep_it_in_float32(tmp_path: Path, what: str) -> None:
    model = small_vit(num_classes=10)
    with torch.no_grad():
        if what == "MLP":
            model.blocks[1].mlp.fc1.bias[0] = 2e4
            model.blocks[1].mlp.fc2.weight[:, 0] = 1e-4
        else:
            qkv = model.blocks[1].attn.qkv
            qkv.bias[:64] = 0
            qkv.weight[:128] *= 90
    plan = plan_half([magnitudes(model, small_images(model, 4).numpy())], model)
    assert 1 in (plan.mlp if what == "MLP" else plan.attention)
    bundle = export(model, tmp_path / "bundle", degrees=[2], precision="fp16")
    assert (1, what) in {(entry["block"], entry["what"]) for entry in bundle.manifest["kept_in_float32"]}


def test_the_limit_is_an_eighth_of_the_end() -> None:
    assert LIMIT == 65504 / 8
    assert isinstance(small_vit().norm, nn.LayerNorm)
