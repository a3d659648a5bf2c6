"""Every exported degree computes what torch computes, and holds what the design says it holds."""

from __future__ import annotations

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from exported import SOURCE, Exported, places, run_onnx
from onnx import TensorProto, helper
from small_vits import small_images, small_vit

import tocom.formats.schemas
from tocom.compression.surgery import compress, input_tokens
from tocom.compression.tokens import removal_schedule, token_counts
from tocom.errors import ExportError
from tocom.export import export
from tocom.formats.bundle import MANIFEST_NAME, WEIGHTS_NAME, Bundle


def test_onnx_runtime_equals_torch_at_every_degree(exported: Exported) -> None:
    images = exported.images(4)
    outputs = {}
    for degree in exported.bundle.degrees:
        outputs[degree] = run_onnx(exported.bundle.onnx_path(degree), images)
        want = exported.expected(degree, images)
        np.testing.assert_allclose(outputs[degree], want, rtol=0, atol=1e-4 * max(1.0, np.abs(want).max()))
    assert all(np.abs(outputs[0] - outputs[degree]).max() > 1e-2 for degree in outputs if degree)


def test_every_batch_within_the_range_gives_the_same_answers(exported: Exported) -> None:
    images = exported.images(4)
    path = exported.bundle.onnx_path(3)
    together = run_onnx(path, images)
    for batch in (1, 3):
        np.testing.assert_allclose(run_onnx(path, images[:batch]), together[:batch], rtol=1e-4, atol=1e-4)


def test_only_the_batch_is_symbolic(exported: Exported) -> None:
    for degree in exported.bundle.degrees:
        graph = exported.graph(degree).graph
        known = {value.name for value in (*graph.input, *graph.output, *graph.value_info)}
        known |= {tensor.name for tensor in graph.initializer}
        unknown = [name for node in graph.node for name in node.output if name and name not in known]
        assert unknown == []
        for value in (*graph.input, *graph.output, *graph.value_info):
            dims = value.type.tensor_type.shape.dim
            # Attention pooling stacks keys and values in front of the batch, so its place varies.
            assert sum(dim.dim_value <= 0 for dim in dims) <= 1, value
        assert {value.type.tensor_type.shape.dim[0].dim_param for value in (*graph.input, *graph.output)} == {"batch"}


def test_one_node_per_block_that_removes_tokens(exported: Exported) -> None:
    model, case = exported.model, exported.case
    tokens, prefix = input_tokens(model), model.num_prefix_tokens
    for degree in exported.bundle.degrees:
        proto = exported.graph(degree)
        nodes = [node for node in proto.graph.node if node.domain == "tocom"]
        removed = removal_schedule(tokens, len(model.blocks), degree, prefix, case.family)
        counts = token_counts(tokens, removed)
        want = [
            {
                "r": r,
                "prefix": prefix,
                "tokens": count,
                "plugin_version": b"1",
                "plugin_namespace": b"tocom",
                **({"fuse": int(case.fuse)} if case.method == "prune" else {}),
            }
            for r, count in zip(removed, counts[:-1], strict=True)
            if r
        ]
        got = [{each.name: helper.get_attribute_value(each) for each in node.attribute} for node in nodes]
        assert got == want
        assert {node.op_type for node in nodes} <= {"TokenMerge" if case.method == "merge" else "TokenPrune"}
        assert [function.domain for function in proto.functions] == (["tocom"] if degree else [])
        assert any(entry.domain == "tocom" for entry in proto.opset_import) == (degree > 0)
        assert not any(node.op_type == "ScatterElements" and len(node.attribute) > 1 for node in proto.graph.node)


def test_the_file_is_valid_onnx_for_older_runtimes(exported: Exported) -> None:
    for degree in exported.bundle.degrees:
        onnx.checker.check_model(exported.bundle.onnx_path(degree))
        proto = exported.graph(degree)
        assert proto.ir_version == 10
        assert max(entry.version for entry in proto.opset_import) == 20
        assert {value.name for value in proto.graph.input} == {"images"}
        assert all(value.type.tensor_type.elem_type == TensorProto.FLOAT for value in proto.graph.input)


def test_q_and_v_differ_by_degree_and_nothing_else(exported: Exported) -> None:
    dense = places(exported.graph(0))
    adapted = {f"blocks.{block}.attn.qkv.{name}_weight" for block in range(len(exported.model.blocks)) for name in "qv"}
    assert adapted <= dense.keys()
    low, cap = sorted(exported.bundle.degrees)[2::1]
    compressed = {degree: places(exported.graph(degree)) for degree in (low, cap)}
    assert {name for name in compressed[low] if compressed[low][name] != compressed[cap][name]} == adapted
    assert set(compressed[low].values()) - set(dense.values()) == {compressed[low][name] for name in adapted}
    at_source = places(exported.graph(SOURCE))
    assert not {at_source[name] for name in adapted} & {dense[name] for name in adapted}


def test_weights_stand_once_and_nothing_else_does(exported: Exported) -> None:
    size = (exported.bundle.path / WEIGHTS_NAME).stat().st_size
    spans = sorted({span for degree in exported.bundle.degrees for span in places(exported.graph(degree)).values()})
    ends = [offset + length for offset, length in spans]
    assert all(offset >= end for (offset, _), end in zip(spans[1:], ends, strict=False)), "tensors overlap"
    padding = size - sum(length for _, length in spans)
    assert ends[-1] == size
    assert padding <= 64 * len(spans), "there is something between the tensors that no degree uses"
    content = (exported.bundle.path / WEIGHTS_NAME).read_bytes()
    stored = [content[offset : offset + length] for offset, length in spans]
    assert len(set(stored)) == len(stored)


def test_the_manifest_fits_its_schema_and_says_what_is_there(exported: Exported) -> None:
    schema = json.loads(Path(tocom.formats.schemas.__path__[0], "bundle-v1.schema.json").read_text())
    manifest = json.loads((exported.bundle.path / MANIFEST_NAME).read_text())
    jsonschema.Draft202012Validator(schema).validate(manifest)
    bundle = Bundle(exported.bundle.path)  # every hash checked
    assert {path.name for path in bundle.path.iterdir()} == {*manifest["files"], MANIFEST_NAME}
    model = exported.model
    assert manifest["model"]["prefix_tokens"] == model.num_prefix_tokens
    assert bundle.batch == (1, 2, 4)
    assert bundle.image_shape == (3, *model.patch_embed.img_size)
    assert (manifest["method"], manifest["family"], manifest["fuse"], manifest["source_degree"]) == (
        exported.case.method,
        exported.case.family,
        exported.case.fuse,
        SOURCE,
    )
    assert manifest["compensator"]["scale"] == 0.1
    for degree, entry in bundle.degrees.items():
        removed = removal_schedule(
            input_tokens(model), len(model.blocks), degree, model.num_prefix_tokens, exported.case.family
        )
        assert entry.token_counts == token_counts(input_tokens(model), removed)
        output = exported.graph(degree).graph.output[0]
        assert output.name == bundle.output_names[0] == ("features" if model.num_classes == 0 else "logits")
    assert [entry["check"]["images"] > 0 for entry in manifest["degrees"]] == [True] * 4
    macs = [entry.macs for entry in bundle.degrees.values()]
    assert macs == sorted(macs, reverse=True)


def test_no_path_of_this_machine_stands_in_any_file(exported: Exported) -> None:
    traces = {
        str(Path.home()),
        str(Path(tocom.formats.schemas.__path__[0]).parents[2]),
        "site-packages",
        ".py",
        "/tmp/",
    }
    for path in exported.bundle.path.iterdir():
        if path.name != WEIGHTS_NAME:
            content = path.read_bytes()
            assert [trace for trace in traces if trace.encode() in content] == []


@pytest.mark.parametrize("degree", [0, 3])
def test_the_model_is_left_as_it_was(exported: Exported, degree: int) -> None:
    """The export prepares blocks with random weights for tracing; none of it may reach the model."""
    fresh = exported.case.build()
    for name, tensor in exported.model.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), fresh.state_dict()[name].numpy(), err_msg=name)
    assert [type(module) for module in fresh.modules()] == [type(module) for module in exported.model.modules()]
    assert all(parameter.requires_grad for parameter in exported.model.parameters())


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "deit_tiny_distilled_patch16_224"])
def test_features_beside_the_logits(name: str, tmp_path: Path) -> None:
    model = small_vit(name, depth=1)
    images = small_images(model, 3)
    bundle = export(
        model, tmp_path / "bundle", degrees=[4], features=True, batch=(1, 1, 4), check_images=images.numpy()
    )
    assert bundle.output_names == ("logits", "features")
    session = onnxruntime.InferenceSession(bundle.onnx_path(4), providers=["CPUExecutionProvider"])
    logits, features = session.run(None, {"images": images.numpy()})
    compressed = compress(model, 4)
    with torch.no_grad():
        want = compressed(images).numpy(), compressed.forward_head(compressed.forward_features(images), pre_logits=True)
    np.testing.assert_allclose(logits, want[0], rtol=0, atol=1e-4)
    np.testing.assert_allclose(features, want[1].numpy(), rtol=0, atol=1e-4)
    with pytest.raises(ExportError, match="gives features alone"):
        export(small_vit(name, depth=1, num_classes=0), tmp_path / "other", degrees=[4], features=True)
