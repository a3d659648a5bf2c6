"""``export --input uint8``: the image enters as pixels, and the graph normalises them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from PIL import Image
from small_vits import busy_compensator, small_vit

from tocom import compress
from tocom.calibration import calibrate
from tocom.calibration.int8.quantizer import quantize
from tocom.errors import DataError, ExportError
from tocom.export import export
from tocom.formats.bundle import Bundle
from tocom.formats.references import read_references
from tocom.runtime import Runtime


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return small_vit(depth=2, num_classes=6)


@pytest.fixture(scope="module")
def bundle(model: torch.nn.Module, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    out = tmp_path_factory.mktemp("pixels") / "bundle"
    return export(
        model, out, degrees=(0, 3), input_type="uint8", batch=(1, 2, 4), compensator=busy_compensator(model, groups=3)
    )


def test_pixels_give_what_torch_gives_to_what_they_are_normalised_to(bundle: Bundle, model: torch.nn.Module) -> None:
    entry = bundle.manifest["input"]
    assert entry["dtype"] == bundle.input_type == "uint8"
    pixels = np.random.default_rng(0).integers(0, 256, (3, *bundle.image_shape), np.uint8)
    mean, std = (np.asarray(entry[key], np.float32)[:, None, None] for key in ("mean", "std"))
    normalised = torch.from_numpy((pixels.astype(np.float32) / 255 - mean) / std)
    with Runtime.open(bundle.path, "onnxruntime") as runtime:
        for degree in bundle.degrees:
            reference = compress(model, degree, compensator=busy_compensator(model, groups=3))
            with torch.inference_mode():
                expected = reference(normalised).numpy()
            np.testing.assert_allclose(runtime.infer(pixels, degree=degree).outputs["logits"], expected, atol=1e-4)


def test_the_graph_takes_eight_bits_and_casts_them_first(bundle: Bundle) -> None:
    """TensorRT takes uint8 as a network's input alone, and only into a cast to a float type."""
    for degree in bundle.degrees:
        graph = onnx.load(bundle.onnx_path(degree), load_external_data=False).graph
        assert graph.input[0].type.tensor_type.elem_type == onnx.TensorProto.UINT8
        readers = [node for node in graph.node if "images" in node.input]
        assert [node.op_type for node in readers] == ["Cast"]
        assert readers[0].attribute[0].i == onnx.TensorProto.FLOAT


def test_photographs_are_prepared_as_pixels_and_calibrated(bundle: Bundle, tmp_path: Path) -> None:
    pixels = np.random.default_rng(1).integers(0, 256, (80, 100, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    with Runtime.open(bundle.path, "onnxruntime") as runtime:
        prepared = runtime.preprocess(tmp_path / "a.png")
        assert prepared.dtype == np.uint8
        assert prepared.shape == (1, *bundle.image_shape)
        assert np.abs(runtime.preprocess(pixels).astype(int) - prepared).max() <= 1
    images = [(tmp_path / "a.png", 0), (prepared[0], 1)]
    profile = calibrate(bundle.path, images, samples=8, backend="onnxruntime", save=False)
    assert set(profile.degrees) == set(bundle.degrees)
    floats = [(np.zeros(bundle.image_shape, np.float32), 0)]
    with pytest.raises(DataError, match=r"takes uint8 images\. Got an array of float32"):
        calibrate(bundle.path, floats, samples=8, backend="onnxruntime", save=False)


def test_it_is_quantized_to_int8_and_served(bundle: Bundle, tmp_path: Path) -> None:
    generator = np.random.default_rng(2)
    images = [(generator.integers(0, 256, bundle.image_shape, np.uint8), place % 6) for place in range(12)]
    made = quantize(bundle, tmp_path / "int8", images, floor_points=100)
    assert made.input_type == "uint8"
    with Runtime.open(made.path, "onnxruntime") as runtime:  # which compares with the references
        assert runtime.degrees == (0, 3)


def test_reference_images_are_the_pixels_themselves(bundle: Bundle) -> None:
    references = read_references(bundle)
    assert references.images.dtype == np.uint8
    assert references.images.shape[1:] == bundle.image_shape


def test_half_precision_takes_pixels_too(model: torch.nn.Module, tmp_path: Path) -> None:
    half = export(model, tmp_path / "half", degrees=(3,), input_type="uint8", precision="fp16")
    with Runtime.open(half.path, "onnxruntime") as runtime:  # which compares with the references
        assert runtime.degrees == (3,)


def test_other_types_are_refused_before_the_work(model: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"'input_type' parameter must be one of float32, uint8\. Got 'int8'"):
        export(model, tmp_path / "bundle", degrees=(0,), input_type="int8")
