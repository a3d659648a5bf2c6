"""Small real bundles: a stack of matrix products per degree, fewer at higher degrees, weights shared in weights.bin."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from tocom.formats.bundle import MANIFEST_NAME, SCHEMA_VERSION, WEIGHTS_NAME
from tocom.formats.pixels import normalise
from tocom.formats.references import REFERENCES_NAME, write_references
from tocom.formats.sealed_json import write_sealed_json
from tocom.system.files import sha256_file

SIZE = 8
CLASSES = 5
PAGE = 4096


@dataclass(frozen=True)
class SmallBundle:
    """A bundle on disk and the weights that its answers can be computed from."""

    path: Path
    weights: dict[str, np.ndarray]
    layers: dict[int, int]

    def reference(self, images: np.ndarray, degree: int) -> np.ndarray:
        """Return the logits that a degree must give, computed in NumPy."""
        hidden = images.reshape(len(images), -1) @ self.weights["embed"]
        for _ in range(self.layers[degree]):
            hidden = np.maximum(hidden @ self.weights["block"], 0)
        return hidden @ self.weights["head"] + np.float32(degree)


def write_small_bundle(
    path: Path,
    *,
    degrees: Sequence[int] = (0, 4, 8),
    width: int = 64,
    layers: Sequence[int] | None = None,
    batch: tuple[int, int, int] = (1, 1, 4),
    labels: list[str] | None = None,
    input_type: str = "float32",
    seed: int = 0,
) -> SmallBundle:
    """Write a bundle whose degree ``r`` has ``layers`` matrix products and adds ``r`` to every logit."""
    generator = np.random.default_rng(seed)
    # Far enough apart that a short measurement on a busy machine never orders them wrongly.
    layers = layers or [3 ** (len(degrees) - place) for place in range(len(degrees))]
    inputs = 3 * SIZE * SIZE
    weights = {
        "embed": generator.standard_normal((inputs, width), np.float32) / np.sqrt(inputs),
        "block": generator.standard_normal((width, width), np.float32) * np.sqrt(2 / width),
        "head": generator.standard_normal((width, CLASSES), np.float32) / np.sqrt(width),
    }
    weights = {name: value.astype(np.float32) for name, value in weights.items()}
    path.mkdir(parents=True, exist_ok=True)
    places = _write_weights(path / WEIGHTS_NAME, weights)
    for degree, count in zip(degrees, layers, strict=True):
        model = _model(degree, count, weights, places, input_type)
        (path / _onnx_name(degree)).write_bytes(model.SerializeToString())
    names = [WEIGHTS_NAME, *map(_onnx_name, degrees)]
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "created_by": "tests",
        "model": {"name": "small", "fingerprint": "0" * 64, "weights": "random", "prefix_tokens": 1},
        "method": "merge",
        "family": "every",
        "source_degree": 0,
        "compensator": None,
        "precision": "fp32",
        "batch": dict(zip(("min", "opt", "max"), batch, strict=True)),
        "input": {
            "name": "images",
            "dtype": input_type,
            "shape": ["batch", 3, SIZE, SIZE],
            "mean": [0.5, 0.5, 0.5],
            "std": [0.5, 0.5, 0.5],
            "interpolation": "bicubic",
            "crop": 1.0,
            "crop_mode": "center",
        },
        "outputs": [{"name": "logits", "shape": ["batch", CLASSES]}],
        "labels": labels,
        "degrees": [
            {
                "degree": degree,
                "onnx": _onnx_name(degree),
                "token_counts": [17, 17 - min(degree, 8)],
                "macs": 1000 * count,
                "check": None,
            }
            for degree, count in zip(degrees, layers, strict=True)
        ],
        "files": {name: {"sha256": sha256_file(path / name), "size": (path / name).stat().st_size} for name in names},
    }
    bundle = SmallBundle(path, weights, dict(zip(degrees, layers, strict=True)))
    put_references(path, bundle.reference, manifest)
    return bundle


def put_references(
    path: Path,
    answer: Callable[[np.ndarray, int], np.ndarray],
    manifest: dict[str, Any] | None = None,
    *,
    count: int = 4,
    tolerance: float = 3e-2,
) -> None:
    """Give a bundle reference answers that ``answer(images, degree)`` computes; its manifest is written again."""
    manifest = manifest or json.loads((path / MANIFEST_NAME).read_text())
    pixels = np.random.default_rng(11).integers(0, 256, (count, SIZE, SIZE, 3), np.uint8)
    images = normalise(pixels, manifest["input"])
    degrees = [entry["degree"] for entry in manifest["degrees"]]
    write_references(path / REFERENCES_NAME, pixels, {degree: answer(images, degree) for degree in degrees})
    manifest["references"] = {
        "file": REFERENCES_NAME,
        "images": count,
        "repeat": 1,
        "source": "smooth",
        "degrees": [{"degree": degree, "tolerance": tolerance, "conclusive": list(range(count))} for degree in degrees],
    }
    seal_bundle(path, manifest)


def seal_bundle(path: Path, manifest: dict[str, Any]) -> None:
    """Write a manifest over the files as they are now: whatever they hold, their hashes fit."""
    names = {*manifest["files"], *([REFERENCES_NAME] if manifest.get("references") else [])}
    manifest["files"] = {
        name: {"sha256": sha256_file(path / name), "size": (path / name).stat().st_size} for name in sorted(names)
    }
    manifest.pop("sha256", None)
    write_sealed_json(path / MANIFEST_NAME, manifest)


def images_of(batch: int, seed: int = 0) -> np.ndarray:
    """Return random images for a small bundle."""
    return np.random.default_rng(seed).standard_normal((batch, 3, SIZE, SIZE), np.float32)


def _onnx_name(degree: int) -> str:
    return f"degree-{degree:02d}.onnx"


def _write_weights(path: Path, weights: dict[str, np.ndarray]) -> dict[str, tuple[int, int]]:
    places, content = {}, b""
    for name, value in weights.items():
        content += b"\0" * (-len(content) % PAGE)
        places[name] = (len(content), value.nbytes)
        content += value.tobytes()
    path.write_bytes(content)
    return places


def _model(
    degree: int,
    layers: int,
    weights: dict[str, np.ndarray],
    places: dict[str, tuple[int, int]],
    input_type: str = "float32",
) -> onnx.ModelProto:
    tensors = []
    nodes = []
    source = "images"
    if input_type == "uint8":
        nodes = [
            helper.make_node("Cast", ["images"], ["cast"], to=TensorProto.FLOAT),
            helper.make_node("Mul", ["cast", "slope"], ["sloped"]),
            helper.make_node("Add", ["sloped", "shift"], ["normalised"]),
        ]
        tensors = [
            helper.make_tensor("slope", TensorProto.FLOAT, [1], [2 / 255]),
            helper.make_tensor("shift", TensorProto.FLOAT, [1], [-1.0]),
        ]
        source = "normalised"
    nodes += [
        helper.make_node("Reshape", [source, "flat_shape"], ["flat"]),
        helper.make_node("MatMul", ["flat", "embed"], ["hidden0"]),
    ]
    for layer in range(layers):
        nodes.append(helper.make_node("MatMul", [f"hidden{layer}", "block"], [f"product{layer}"]))
        nodes.append(helper.make_node("Relu", [f"product{layer}"], [f"hidden{layer + 1}"]))
    nodes.append(helper.make_node("MatMul", [f"hidden{layers}", "head"], ["scores"]))
    nodes.append(helper.make_node("Add", ["scores", "degree"], ["logits"]))
    tensors += [
        helper.make_tensor("flat_shape", TensorProto.INT64, [2], [0, -1]),
        helper.make_tensor("degree", TensorProto.FLOAT, [1], [float(degree)]),
    ]
    for name, value in weights.items():
        tensor = TensorProto(name=name, data_type=TensorProto.FLOAT, dims=value.shape)
        tensor.data_location = TensorProto.EXTERNAL
        offset, length = places[name]
        for key, text in (("location", WEIGHTS_NAME), ("offset", offset), ("length", length)):
            tensor.external_data.add(key=key, value=str(text))
        tensors.append(tensor)
    kind = TensorProto.UINT8 if input_type == "uint8" else TensorProto.FLOAT
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("images", kind, ["batch", 3, SIZE, SIZE])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", CLASSES])],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
