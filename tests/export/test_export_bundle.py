"""The bundle as a whole: shared weights, caps, fixed batch, half precision, and the same bytes every time."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from exported import CASES, SOURCE, Exported, places, run_onnx
from small_vits import busy_compensator, small_images, small_vit

from tocom import compress
from tocom.compression.macs import count_macs
from tocom.errors import CompensatorError, DegreeError, ExportError, TocomError
from tocom.export import export
from tocom.export.graph.templates import Templates
from tocom.export.graph.trace import Tracing, trace


@pytest.mark.slow
def test_six_degrees_of_a_real_width_stand_in_less_than_two_and_a_half_dense_models(tmp_path: Path) -> None:
    model = small_vit(side=112, depth=12, embed_dim=192, num_heads=3, num_classes=1000)
    bundle = export(
        model,
        tmp_path / "bundle",
        degrees=(0, 4, 8, 12, 16, 20),
        compensator=busy_compensator(model, groups=20),
        check=False,
    )
    dense = bundle.degree_bytes(0)
    assert dense > 20 << 20
    assert sum(file["size"] for file in bundle.manifest["files"].values()) <= 2.4 * dense
    assert sum(path.stat().st_size for path in bundle.path.iterdir()) <= 2.4 * dense


def test_without_a_compensator_all_weights_are_shared(tmp_path: Path) -> None:
    bundle = export(small_vit(), tmp_path / "bundle", degrees=(0, 3, 12), check=False)
    assert set(places(onnx.load(bundle.onnx_path(3), load_external_data=False)).values()) <= set(
        places(onnx.load(bundle.onnx_path(0), load_external_data=False)).values()
    )


@pytest.mark.parametrize("method", ["merge", "prune"])
def test_blocks_that_have_nothing_left_to_remove(tmp_path: Path, method: str) -> None:
    """Four patches in three blocks: at degree 2 they go 4, 2, 1, 1; only two blocks have a node."""
    model = small_vit(side=32)
    bundle = export(model, tmp_path / "bundle", degrees=(1, 2), method=method, batch=2)
    images = small_images(model).numpy()
    for degree, counts, nodes in ((1, (5, 4, 3, 2), 3), (2, (5, 3, 2, 2), 2)):
        assert bundle.degrees[degree].token_counts == counts
        graph = onnx.load(bundle.onnx_path(degree)).graph
        assert sum(node.domain == "tocom" for node in graph.node) == nodes
        with torch.inference_mode():
            want = compress(model, degree, method=method)(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(run_onnx(bundle.onnx_path(degree), images), want, rtol=1e-4, atol=1e-4)
        assert bundle.degrees[degree].macs == count_macs(model, np.subtract(counts[:-1], counts[1:]), method=method)


def test_a_fixed_batch_leaves_nothing_symbolic(plain: Exported, tmp_path: Path) -> None:
    bundle = export(plain.model, tmp_path / "bundle", degrees=(0, 3), batch=2)
    assert bundle.batch == (2, 2, 2)
    for degree in (0, 3):
        graph = onnx.load(bundle.onnx_path(degree)).graph
        for value in (*graph.input, *graph.output, *graph.value_info):
            dims = [dim.dim_value for dim in value.type.tensor_type.shape.dim]
            assert all(size > 0 for size in dims), value
        images = plain.images(2)
        with torch.inference_mode():
            want = compress(plain.model, degree)(torch.from_numpy(images)).numpy()
        np.testing.assert_allclose(run_onnx(bundle.onnx_path(degree), images), want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "case",
    [*(pytest.param(case, marks=pytest.mark.slow) for case in CASES[:2]), CASES[2]],
    ids=lambda case: case.name,
)
def test_half_precision_is_near(case: object, tmp_path: Path) -> None:
    model = case.build()  # type: ignore[attr-defined]
    bundle = export(model, tmp_path / "bundle", degrees=(0, 3), precision="fp16", **case.compression)  # type: ignore[attr-defined]
    assert bundle.precision == "fp16"
    assert bundle.manifest["kept_in_float32"] == []
    images = small_images(model, 1, seed=5).numpy()
    for degree in (0, 3):
        graph = onnx.load(bundle.onnx_path(degree)).graph
        wide = [each.name for each in graph.initializer if each.data_type == onnx.TensorProto.FLOAT]
        assert [name for name in wide if "weight" in name or "bias" in name] == []
        norms = [node for node in graph.node if node.op_type == "LayerNormalization"]
        assert norms
        assert not {name for node in norms for name in node.input} & set(wide)
        assert {value.type.tensor_type.elem_type for value in (*graph.input, *graph.output)} == {onnx.TensorProto.FLOAT}
        got = run_onnx(bundle.onnx_path(degree), images)
        with torch.inference_mode():
            want = compress(model, degree, **case.compression)(torch.from_numpy(images)).numpy()  # type: ignore[attr-defined]
        difference = np.abs(got - want).max()
        assert 0 < difference <= 3e-2 * max(1.0, np.abs(want).max())


def test_bfloat16_is_written_or_refused_in_one_line(tmp_path: Path) -> None:
    """ONNX Runtime's CPU has no bfloat16 products, so there the check cannot run; the file is for other runtimes."""
    with pytest.raises(ExportError, match=r"cannot run degree-03\.onnx \(bf16\) on this CPU.*--no-check") as caught:
        export(small_vit(), tmp_path / "bundle", degrees=(3,), precision="bf16")
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    bundle = export(small_vit(), tmp_path / "bundle", degrees=(3,), precision="bf16", check=False)
    onnx.checker.check_model(str(bundle.onnx_path(3)), full_check=True)
    elements = {tensor.data_type for tensor in onnx.load(bundle.onnx_path(3)).graph.initializer}
    assert onnx.TensorProto.BFLOAT16 in elements
    assert onnx.TensorProto.FLOAT16 not in elements


def test_the_same_export_is_the_same_bytes(plain: Exported, tmp_path: Path) -> None:
    again = export(
        plain.model,
        tmp_path / "elsewhere",
        degrees=list(plain.bundle.degrees),
        compensator=plain.compensator,
        source_degree=SOURCE,
        batch=(1, 2, 4),
    )
    for path in plain.bundle.path.iterdir():
        assert (again.path / path.name).read_bytes() == path.read_bytes(), path.name
    assert again.fingerprint == plain.bundle.fingerprint


def test_small_tensors_stay_in_the_onnx_file(plain: Exported) -> None:
    for degree in plain.bundle.degrees:
        proto = plain.graph(degree)
        outside = places(proto)
        assert min(length for _, length in outside.values()) >= 1024
        assert all(offset % 64 == 0 for offset, _ in outside.values())
        assert plain.bundle.onnx_path(degree).stat().st_size < 200_000


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"degrees": []}, DegreeError, "at least one degree"),
        ({"degrees": [0, 13]}, DegreeError, "integer from 0 to 12 for 26 tokens with 1 protected"),
        ({"degrees": [-1]}, DegreeError, "integer from 0 to 12"),
        ({"source_degree": 13}, DegreeError, "integer from 0 to 12"),
        ({"method": "drop"}, DegreeError, "one of merge, prune"),
        ({"fuse": True}, DegreeError, "'fuse' parameter belongs to method 'prune'"),
        ({"precision": "fp8"}, ExportError, r"one of fp32, fp16, bf16\. Got 'fp8'"),
        ({"batch": 0}, ExportError, "each at least 1, ascending"),
        ({"batch": (1, 4, 2)}, ExportError, "each at least 1, ascending"),
        ({"labels": ["a", "b"]}, ExportError, r"must name 10 classes, as the model has\. Got 2"),
        ({"groups": 2}, CompensatorError, r"reaches degrees 0 to 2\. Got degree 3"),
        ({"groups": 4, "method": "prune"}, CompensatorError, "trained for method 'merge', asked for is 'prune'"),
        ({"groups": 4, "scale": float("nan")}, CompensatorError, "must be a finite number"),
        (
            {"groups": 4, "trained_at": "64x64"},
            CompensatorError,
            "trained at image size 64x64, the model runs at 80x80",
        ),
    ],
)
def test_bad_requests_end_before_anything_is_written(
    tmp_path: Path, options: dict[str, object], error: type[TocomError], message: str
) -> None:
    model = small_vit()
    options = {"degrees": [0, 3], **options}
    if "groups" in options:
        options["compensator"] = busy_compensator(model, groups=options.pop("groups"))  # type: ignore[arg-type]
    if "trained_at" in options:
        options["compensator"].metadata["image_size"] = options.pop("trained_at")  # type: ignore[attr-defined]
    with pytest.raises(error, match=message) as caught:
        export(model, tmp_path / "bundle", **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


def test_exports_that_share_templates_trace_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With and without a compensator, behind another head, at another degree: the same files as on their own."""
    traced = []

    def counting(model: Any, how: Tracing) -> onnx.ModelProto:
        traced.append(how.compressed)
        return trace(model, how)

    monkeypatch.setattr("tocom.export.graph.templates.trace", counting)
    model, shared = small_vit(side=32, depth=1, num_classes=3), Templates()
    with torch.no_grad():
        model.head.bias.zero_()  # which the exporter would fold away
    export(model, tmp_path / "plain", degrees=(0, 1), templates=shared)
    torch.nn.init.normal_(model.head.bias)
    options = {"degrees": (2,), "compensator": busy_compensator(model)}
    again = export(model, tmp_path / "again", templates=shared, **options)  # checks itself
    assert traced == [False, True]
    alone = export(model, tmp_path / "alone", **options)
    assert traced == [False, True, True]
    assert again.manifest["files"] == alone.manifest["files"]
    torch.nn.init.normal_(model.blocks[0].mlp.fc1.bias)
    export(model, tmp_path / "changed", degrees=(0,), templates=shared)
    assert traced == [False, True, True, False]


@pytest.mark.parametrize(
    "what", [*(pytest.param(what, marks=pytest.mark.slow) for what in ("heads", "places")), "pooling"]
)
def test_templates_tell_models_of_equal_weights_apart(what: str, tmp_path: Path) -> None:
    """What no weight says. The check against torch would see another model's graph."""
    first = small_vit("vit_small_patch16_rope_224" if what == "places" else "vit_tiny_patch16_224", side=32, depth=1)
    second = copy.deepcopy(first)
    if what == "heads":
        second = small_vit(side=32, depth=1, num_heads=8)
        second.load_state_dict(first.state_dict())
    elif what == "pooling":
        second.global_pool = "avg"
    else:
        second.rope.pos_embed.neg_()
    shared = Templates()
    for name, model in (("first", first), ("second", second)):
        export(model, tmp_path / name, degrees=(1,), templates=shared)  # checks itself
