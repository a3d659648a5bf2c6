"""INT8 on a small real ViT: what is quantized, by which ranges, what ONNX Runtime makes of it, what the bundle says."""

from __future__ import annotations

import json
import os
import shutil
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from quantize_cases import DEGREES, labelled, small_bundle, smooth_images, with_outlier, write_bundle
from small_vits import busy_compensator, small_vit
from typer.testing import CliRunner
from wheels import needs_cells

from tocom.calibration import calibrate
from tocom.calibration.int8.qdq import Scheme, quantizable_layers
from tocom.calibration.int8.quantizer import quantize
from tocom.calibration.int8.ranges import collect_ranges
from tocom.calibration.int8.trial import load_degree
from tocom.cli import add_verbs
from tocom.compression.surgery import compress
from tocom.errors import BundleError, CalibrationError, DataError, RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.profile import Profile
from tocom.runtime import Runtime


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return small_bundle(tmp_path_factory.mktemp("float") / "bundle")


@pytest.fixture(scope="module")
def made(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    samples = labelled(bundle, smooth_images(80))
    return quantize(bundle, tmp_path_factory.mktemp("int8") / "bundle", samples, floor_points=10, range_images=20)


def test_only_products_with_weights_are_quantized(made: Bundle) -> None:
    for degree in DEGREES:
        graph = onnx.load(made.onnx_path(degree), load_external_data=False).graph
        producers = {name: node for node in graph.node for name in node.output}
        of_weights = {"MatMul": 0, "other": 0}
        for node in graph.node:
            kinds = [producers[name].op_type for name in node.input if name in producers]
            if "DequantizeLinear" in kinds:
                assert node.op_type == "MatMul"
                assert kinds == ["DequantizeLinear", "DequantizeLinear"]
                of_weights["MatMul"] += 1
            elif node.op_type == "MatMul":
                of_weights["other"] += 1
        assert of_weights == {"MatMul": 3 * 6, "other": 3 * 2}  # q·kᵀ and attention·v stay as they are


def test_the_op_and_its_function_survive(bundle: Bundle, made: Bundle) -> None:
    for degree in DEGREES:
        before = onnx.load(bundle.onnx_path(degree), load_external_data=False)
        after = onnx.load(made.onnx_path(degree), load_external_data=False)
        assert list(after.functions) == list(before.functions)
        assert [node for node in after.graph.node if node.domain] == [node for node in before.graph.node if node.domain]
        assert {each.domain for each in after.opset_import} == {each.domain for each in before.opset_import}
        onnx.checker.check_model(str(made.onnx_path(degree)))


def test_onnxruntime_runs_integer_products(made: Bundle, tmp_path: Path) -> None:
    for degree in DEGREES:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        options.log_severity_level = 3
        onnxruntime.InferenceSession(str(made.onnx_path(degree)), options, providers=["CPUExecutionProvider"])
        graph = onnx.load(tmp_path / "optimized.onnx", load_external_data=False).graph
        assert sum(node.op_type == "MatMulIntegerToFloat" for node in graph.node) == 18


@pytest.mark.parametrize("degree", DEGREES)
def test_ranges_are_those_of_the_degrees_own_activations(bundle: Bundle, degree: int) -> None:
    images = smooth_images(6, seed=5)
    ranges = collect_ranges(onnx.load(bundle.onnx_path(degree), load_external_data=False), bundle.path, images)
    reference = small_vit(seed=3)
    model = compress(reference, degree, compensator=busy_compensator(reference))
    seen: dict[str, torch.Tensor] = {}
    for index, block in enumerate(model.blocks.children()):
        for name, part in (("attn.qkv.q", block.norm1), ("mlp.fc1", block.norm2), ("mlp.fc2", block.mlp.act)):
            part.register_forward_hook(
                lambda module, inputs, output, key=f"blocks.{index}.{name}": seen.__setitem__(key, output)
            )
    with torch.no_grad():
        model(torch.from_numpy(images))
    assert len(seen) == 9
    for name, values in seen.items():
        assert ranges[name] == pytest.approx((float(values.min()), float(values.max())), rel=1e-3, abs=1e-4)
    assert ranges["blocks.0.attn.qkv.q"] == ranges["blocks.0.attn.qkv.v"]


def test_the_runtime_answers_nearly_as_float32(bundle: Bundle, made: Bundle) -> None:
    images = smooth_images(40, seed=9)
    with Runtime.open(bundle.path) as dense, Runtime.open(made.path) as small:
        assert small.degrees == DEGREES
        for degree in DEGREES:
            expected = np.concatenate([dense.infer(i[None], degree=degree).outputs["logits"] for i in images])
            got = np.concatenate([small.infer(i[None], degree=degree).outputs["logits"] for i in images])
            # A near-tie in the matching may merge other tokens, so single images may part further.
            assert np.median(np.abs(got - expected)) < 0.05 * expected.std()
            assert (got.argmax(-1) == expected.argmax(-1)).mean() >= 0.9


def test_what_the_manifest_says(bundle: Bundle, made: Bundle) -> None:
    schema = json.loads(files("tocom.formats.schemas").joinpath("bundle-v1.schema.json").read_text())
    jsonschema.validate(made.manifest, schema)
    assert made.precision == "int8"
    facts = made.manifest["quantization"]
    assert facts["source"] == bundle.fingerprint
    assert (facts["range_images"], facts["held_out_images"], facts["labelled"]) == (20, 60, True)
    for entry in made.manifest["degrees"]:
        found = entry["quantization"]
        assert entry["precision"] == "int8"
        assert found["loss_points"] <= 10
        assert found["kept_out"] is None
    assert made.manifest["model"] == bundle.manifest["model"]


def test_weights_take_a_byte_and_stand_once(bundle: Bundle, made: Bundle) -> None:
    sizes = [made.degree_bytes(degree) for degree in DEGREES]
    floats = [bundle.degree_bytes(degree) for degree in DEGREES]
    layers = quantizable_layers(onnx.load(bundle.onnx_path(0), load_external_data=False).graph)
    saved = 3 * sum(layer.weight_count for layer in layers)
    for size, whole in zip(sizes, floats, strict=True):
        assert size < whole - saved + 40_000  # scales, and the nodes themselves
    weights = made.manifest["files"]["weights.bin"]["size"]
    assert weights < 0.7 * sum(sizes)  # q and v alone differ by degree


def test_the_same_images_give_the_same_bytes(bundle: Bundle, tmp_path: Path) -> None:
    samples = labelled(bundle, smooth_images(24))
    for name in ("one", "two"):
        quantize(bundle, tmp_path / name, samples, degrees=[4], floor_points=50, range_images=4)
    assert (tmp_path / "one" / "bundle.json").read_bytes() == (tmp_path / "two" / "bundle.json").read_bytes()
    assert list(Bundle(tmp_path / "one").degrees) == [4]


def test_symmetric_activations_have_no_zero_point(bundle: Bundle, tmp_path: Path) -> None:
    samples = [(image, None) for image in smooth_images(24)]
    scheme = Scheme("symmetric")
    made = quantize(bundle, tmp_path / "b", samples, degrees=[2], floor_points=50, scheme=scheme)
    graph = onnx.load(made.onnx_path(2)).graph
    constants = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    points = [constants[node.input[2]] for node in graph.node if node.op_type == "QuantizeLinear"]
    assert points
    assert all(point.dtype == np.int8 and not point.any() for point in points)
    assert made.manifest["quantization"]["labelled"] is False


def test_a_copy_by_hard_links_is_read(bundle: Bundle, tmp_path: Path) -> None:
    def weights(model: onnx.ModelProto) -> dict[str, bytes]:
        return {tensor.name: numpy_helper.to_array(tensor).tobytes() for tensor in model.graph.initializer}

    original = shutil.copytree(bundle.path, tmp_path / "original")
    linked = shutil.copytree(original, tmp_path / "linked", copy_function=os.link)
    assert weights(load_degree(Bundle(linked), 2)) == weights(onnx.load(bundle.onnx_path(2)))


@pytest.fixture(scope="module")
def hard(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A bundle that eight bits spoil: one channel of one block is thousands of times the others."""
    return write_bundle(
        tmp_path_factory.mktemp("hard") / "bundle", with_outlier(small_vit(seed=3), factor=3000), (0, 4)
    )


def test_the_layer_that_costs_the_accuracy_stays_in_float32(hard: Bundle, tmp_path: Path) -> None:
    samples = [(image, None) for image in smooth_images(70)]
    said: list[str] = []
    made = quantize(
        hard, tmp_path / "b", samples, degrees=[4], floor_points=10,
        progress=lambda what, *_: said.append(what),
    )  # fmt: skip
    found = made.manifest["degrees"][0]["quantization"]
    assert found["loss_points"] <= 10
    assert found["excluded"] == ["blocks.1.attn.qkv"]
    assert max(found["sensitivity"], key=found["sensitivity"].__getitem__) in ("blocks.1", "blocks.1.attn.qkv")
    assert any("sensitivity of blocks.1 (2 of 3)" in what for what in said)


def test_below_the_floor_float32_stays_and_the_reason_is_noted(hard: Bundle, tmp_path: Path) -> None:
    samples = [(image, None) for image in smooth_images(70)]
    common: dict[str, Any] = {"seconds_per_degree": 0, "overwrite": True}
    made = quantize(hard, tmp_path / "b", samples, floor_points=100, **common)
    lost = {entry["degree"]: entry["quantization"]["loss_points"] for entry in made.manifest["degrees"]}
    assert lost[0] != lost[4]
    better, worse = sorted(lost, key=lost.__getitem__)
    made = quantize(hard, tmp_path / "b", samples, floor_points=(lost[0] + lost[4]) / 2, **common)
    found = {entry["degree"]: entry for entry in made.manifest["degrees"]}
    assert (found[better]["precision"], found[worse]["precision"]) == ("int8", "fp32")
    assert found[better]["quantization"]["kept_out"] is None
    assert "out of time" in found[worse]["quantization"]["kept_out"]
    # The degree serves on, as the float32 bundle does.
    image = smooth_images(1, seed=4)
    with Runtime.open(hard.path) as before, Runtime.open(made.path) as after:
        expected = before.infer(image, degree=worse).outputs["logits"]
        assert np.allclose(after.infer(image, degree=worse).outputs["logits"], expected, atol=1e-4)
    profile = calibrate(made.path, samples=2, against=hard.path)
    comparison = profile.degrees[worse].precisions
    assert comparison is not None
    assert (comparison.winner, comparison.candidates["int8"].excluded) == (
        "fp32",
        found[worse]["quantization"]["kept_out"],
    )
    with pytest.raises(CalibrationError, match=r"floor of 2 points at no degree: 0: INT8 loses .*out of time"):
        quantize(hard, tmp_path / "none", samples, floor_points=2, **common)
    assert not (tmp_path / "none").exists()


def test_the_winner_is_in_the_profile(bundle: Bundle, made: Bundle) -> None:
    profile = calibrate(made.path, samples=12, against=bundle.path)
    assert Profile.from_json(profile.to_json()) == profile
    for entry in profile.degrees.values():
        comparison = entry.precisions
        assert comparison is not None
        assert set(comparison.candidates) == {"int8", "fp32"}
        faster = comparison.candidates["int8"].p50_ms < comparison.candidates["fp32"].p50_ms
        assert comparison.winner == "fp32" or faster
        assert "of fp32's median here" in comparison.reason
    with Runtime.open(made.path) as runtime:
        assert runtime.profile == profile
    with pytest.raises(RequestError, match="both in fp32"):
        calibrate(bundle.path, samples=1, against=bundle.path, save=False)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (
            {"floor_points": 1},
            DataError,
            "at least 100 held-out images.*Got 18 of 24 images. Add about 110",
        ),
        ({"floor_points": 0}, RequestError, "'floor_points' parameter must be above 0"),
        ({"degrees": [3]}, BundleError, "no degree 3"),
        ({"range_images": 0}, RequestError, "'range_images' and 'held_out_images'"),
    ],
)
def test_bad_requests(
    bundle: Bundle, tmp_path: Path, arguments: dict[str, Any], error: type[Exception], message: str
) -> None:
    samples = [(image, None) for image in smooth_images(24)]
    with pytest.raises(error, match=message):
        quantize(bundle, tmp_path / "out", samples, **{"floor_points": 50, **arguments})
    assert not (tmp_path / "out").exists()


def test_bad_images_and_bundles(bundle: Bundle, made: Bundle, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="holds no image"):
        quantize(bundle, tmp_path / "out", tmp_path / "empty")
    one_class = [(image, 2) for image in smooth_images(24)]
    with pytest.raises(DataError, match="of one class, 2"):
        quantize(bundle, tmp_path / "out", one_class, floor_points=50)
    with pytest.raises(RequestError, match="is in int8: quantize a float32 bundle"):
        quantize(made, tmp_path / "out", one_class)


def test_the_command(bundle: Bundle, tmp_path: Path) -> None:
    from PIL import Image

    for index, image in enumerate(smooth_images(30)):
        pixels = ((image - image.min()) / np.ptp(image) * 255).astype(np.uint8).transpose(1, 2, 0)
        (tmp_path / "images").mkdir(exist_ok=True)
        Image.fromarray(pixels).resize((90 + index, 80)).convert("L" if index % 2 else "RGB").save(
            tmp_path / "images" / f"{index}.png"
        )
    import typer

    app = typer.Typer()
    add_verbs(app, "quantize")
    done = CliRunner().invoke(
        app,
        [str(bundle.path), "--images", str(tmp_path / "images"), "--out", str(tmp_path / "out"), "--degrees", "0,4",
         "--floor", "20", "--samples", "3", "--json"],
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    told = json.loads(done.stdout)
    assert told["manifest"] == Bundle(tmp_path / "out").manifest
    assert [entry["degree"] for entry in told["profile"]["degrees"]] == [0, 4]
    assert told["profile"]["degrees"][0]["precisions"]["winner"] in ("int8", "fp32")


@needs_cells
def test_photographs_of_solar_cells_at_their_own_sizes(bundle: Bundle, tmp_path: Path) -> None:
    """Real images through the whole way: folders, preprocessing, ranges, the floor; the labels are the dataset's."""
    from tocom.quickstart.cells import split_cells

    cells = split_cells(20, 30, 1).held_out
    folder = tmp_path / "cells"
    for index, cell in enumerate(cells):
        (folder / f"class{cell.label}").mkdir(parents=True, exist_ok=True)
        shutil.copy(cell.path, folder / f"class{cell.label}" / f"{index}.png")
    made = quantize(bundle, tmp_path / "out", folder, degrees=[4], floor_points=20, range_images=8, seed=1)
    found = made.manifest["degrees"][0]["quantization"]
    assert made.manifest["quantization"]["labelled"] is True
    assert (found["accuracy"]["count"], made.manifest["quantization"]["range_images"]) == (23, 7)
    assert 0 <= found["divergence"] < 0.1
    assert abs(found["loss_points"]) <= 20
