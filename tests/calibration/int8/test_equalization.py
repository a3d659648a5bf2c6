"""Equalization: the same answers from even channels, the paper's scales, outliers that fit into eight bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper, numpy_helper
from quantize_cases import DEGREES, small_bundle, smooth_images, with_outlier, write_bundle
from small_vits import small_vit

from tocom.calibration.int8.equalization import LargestValues, equalization_scales, equalized, largest_values
from tocom.calibration.int8.quantizer import quantize
from tocom.calibration.int8.ranges import activations_of, open_session
from tocom.calibration.int8.trial import load_degree
from tocom.formats.bundle import Bundle

REACHED = {f"blocks.{block}.{name}" for block in range(3) for name in ("attn.qkv", "attn.proj", "mlp.fc1")}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("float") / "bundle")


def answers(model: onnx.ModelProto, images: np.ndarray) -> np.ndarray:
    session = open_session(model.SerializeToString(), Path("."))
    return np.concatenate([session.run(None, {"images": image[None]})[0] for image in images])


@settings(max_examples=12, deadline=None)
@given(seed=st.integers(0, 2**31), spread=st.sampled_from([0.1, 1.0, 3.0]), degree=st.sampled_from(DEGREES))
def test_any_scales_leave_the_answers_as_they_are(bundle: Bundle, seed: int, spread: float, degree: int) -> None:
    generator = np.random.default_rng(seed)
    model, images = load_degree(bundle, degree), smooth_images(2, seed=7)
    scales = {name: np.exp(spread * generator.standard_normal(64)).astype(np.float32) for name in REACHED}
    even = equalized(model, scales)
    expected, got = answers(model, images), answers(even, images)
    assert np.abs(got - expected).max() < 1e-4 * np.abs(expected).max()
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    changed = {
        t.name for t in even.graph.initializer if not np.array_equal(numpy_helper.to_array(t), constants[t.name])
    }
    # Per block: weight and bias of both layer norms, q, k, v and v's bias, the projection, the MLP's first layer.
    assert len(changed) == 3 * (4 + 3 + 1 + 1 + 1)


def test_scales_are_the_papers_and_make_channels_even(bundle: Bundle) -> None:
    images = smooth_images(3, seed=5)
    models = {degree: load_degree(bundle, degree) for degree in DEGREES}
    scales = equalization_scales([largest_values(model, bundle.path, images) for model in models.values()], 0.7)
    assert set(scales) == REACHED
    # A second reading of equation 4, from the tensors by their names in the graph and the model's own weights.
    torch_model = small_vit(seed=3)
    for block in range(3):
        inputs = []
        for model in models.values():
            node = next(n for n in model.graph.node if f"blocks.{block}.norm2.weight" in n.input)
            seen = np.concatenate([v[node.output[0]] for v in activations_of(model, bundle.path, images, node.output)])
            inputs.append(np.abs(seen).reshape(-1, 64).max(0))
        weight = np.abs(torch_model.blocks[block].mlp.fc1.weight.detach().numpy()).max(0)
        expected = np.max(inputs, 0) ** 0.7 / weight**0.3
        expected /= np.exp(np.log(expected).mean())
        assert np.allclose(scales[f"blocks.{block}.mlp.fc1"], expected, rtol=1e-3)
    even = largest_values(equalized(models[4], scales), bundle.path, images)
    before = largest_values(models[4], bundle.path, images)
    for name in REACHED:
        assert np.allclose(even.inputs[name], before.inputs[name] / scales[name], rtol=1e-3)


def test_all_degrees_share_the_largest() -> None:
    first = LargestValues({"a": np.array([4.0, 1.0])}, {"a": np.array([1.0, 1.0])})
    second = LargestValues({"a": np.array([1.0, 1.0])}, {"a": np.array([1.0, 4.0])})
    assert np.allclose(equalization_scales([first, second], 0.5)["a"], [2.0, 0.5])
    dead = LargestValues({"a": np.array([0.0, 1.0])}, {"a": np.array([1.0, 0.0])})
    assert np.isfinite(equalization_scales([dead], 0.5)["a"]).all()


def test_a_graph_that_it_cannot_reach_stays_as_it_is(bundle: Bundle) -> None:
    model = load_degree(bundle, 4)
    for node in model.graph.node:
        if node.op_type == "LayerNormalization" or (node.op_type == "MatMul" and "v_weight" in node.input[1]):
            node.op_type = "Elsewhere"
    found = largest_values(model, bundle.path, smooth_images(1))
    assert not found.inputs
    assert equalization_scales([found], 0.5) == {}


def test_what_something_else_uses_is_left_alone(bundle: Bundle) -> None:
    model = load_degree(bundle, 4)
    norm = next(node for node in model.graph.node if "blocks.1.norm2.weight" in node.input)
    model.graph.output.append(helper.make_tensor_value_info(norm.output[0], onnx.TensorProto.FLOAT, None))
    assert set(largest_values(model, bundle.path, smooth_images(1)).inputs) == REACHED - {"blocks.1.mlp.fc1"}
    for node in model.graph.node:
        # As if the second block had the first one's v.
        node.input[:] = [name.replace("blocks.1.attn.qkv.v", "blocks.0.attn.qkv.v") for name in node.input]
    left = {"blocks.1.mlp.fc1", "blocks.0.attn.qkv", "blocks.1.attn.qkv", "blocks.0.attn.proj", "blocks.1.attn.proj"}
    assert set(largest_values(model, bundle.path, smooth_images(1)).inputs) == REACHED - left


def test_an_outlier_channel_no_longer_costs_the_answers(tmp_path: Path) -> None:
    hard = write_bundle(tmp_path / "hard", with_outlier(small_vit(seed=3), factor=3000), (0, 4))
    samples = [(image, None) for image in smooth_images(40)]
    found, sizes = {}, set()
    for strength in (0.0, 0.5):
        made = quantize(
            hard, tmp_path / f"b{strength}", samples, method="min-max", equalize=strength, floor_points=100,
            seconds_per_degree=0,
        )  # fmt: skip
        facts = made.manifest["quantization"]
        assert (facts["equalize"], set(facts["equalized"])) == (strength, REACHED if strength else set())
        found[strength] = [entry["quantization"] for entry in made.manifest["degrees"]]
        sizes.add(made.manifest["files"]["weights.bin"]["size"])
    for plain, even in zip(found[0.0], found[0.5], strict=True):
        assert even["divergence"] < 0.1 * plain["divergence"]
        assert even["loss_points"] < plain["loss_points"]
    # One set of scales for both degrees: what they shared before they share still.
    assert len(sizes) == 1
