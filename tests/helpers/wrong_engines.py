"""Engines that answer wrongly by construction: as functions on the answers, and as nodes at the end of ONNX files.

Whatever is changed here, every hash of the bundle fits afterwards: only the answers are wrong.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
from onnx import NodeProto, TensorProto, helper, numpy_helper
from small_bundles import CLASSES, PAGE, seal_bundle

from tocom.formats.bundle import MANIFEST_NAME, WEIGHTS_NAME

# Turns every pair of classes by an angle whose cosine is 0.9; the last class stays.
TURN = np.eye(CLASSES, dtype=np.float32)
for _first in range(0, CLASSES - 1, 2):
    _cosine, _sine = 0.9, np.sqrt(1 - 0.9**2)
    TURN[_first : _first + 2, _first : _first + 2] = [[_cosine, -_sine], [_sine, _cosine]]
PERMUTED = np.roll(np.arange(CLASSES), 1)

WRONG: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "zeros": np.zeros_like,
    "NaN": lambda answers: np.full_like(answers, np.nan),
    "classes permuted": lambda answers: answers[:, PERMUTED],
    "cosine 0.9": lambda answers: answers @ TURN,
    "rows swapped": lambda answers: answers[::-1],
    "wrong above batch 1": lambda answers: answers + np.float32(len(answers) - 1),
}


def make_wrong(bundle: Path, kind: str, degrees: tuple[int, ...] | None = None) -> None:
    """Make degrees of a small bundle, or all, answer wrongly; a kind of :data:`WRONG`, or ``another model``."""
    manifest = json.loads((bundle / MANIFEST_NAME).read_text())
    if kind == "another model":
        weights = np.fromfile(bundle / WEIGHTS_NAME, np.uint8)
        floats = weights[: len(weights) // PAGE * PAGE].view(np.float32)
        floats[:] = np.roll(floats, 7)
        weights.tofile(bundle / WEIGHTS_NAME)
    else:
        for entry in manifest["degrees"]:
            if degrees is None or entry["degree"] in degrees:
                path = bundle / entry["onnx"]
                path.write_bytes(_with_wrong_end(path.read_bytes(), kind))
    seal_bundle(bundle, manifest)


def _with_wrong_end(content: bytes, kind: str) -> bytes:
    model = onnx.load_model_from_string(content)
    last = next(node for node in model.graph.node if "logits" in node.output)
    last.output[:] = ["right"]
    nodes, constants = _ENDS[kind]
    model.graph.node.extend(nodes)
    model.graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in constants.items())
    return model.SerializeToString()


def _node(kind: str, *inputs: str, to: str = "logits", **attributes: int) -> NodeProto:
    return helper.make_node(kind, list(inputs), [to], **attributes)


_ENDS: dict[str, tuple[list[NodeProto], dict[str, np.ndarray]]] = {
    "zeros": ([_node("Mul", "right", "zero")], {"zero": np.zeros(1, np.float32)}),
    "NaN": ([_node("Add", "right", "nan")], {"nan": np.full(1, np.nan, np.float32)}),
    "classes permuted": ([_node("Gather", "right", "order", axis=1)], {"order": PERMUTED}),
    "cosine 0.9": ([_node("MatMul", "right", "turn")], {"turn": TURN}),
    "rows swapped": (
        [_node("Slice", "right", "from", "until", "axis", "step")],
        {
            "from": np.array([-1]),
            "until": np.array([np.iinfo(np.int64).min]),
            "axis": np.array([0]),
            "step": np.array([-1]),
        },
    ),
    "wrong above batch 1": (
        [
            _node("Shape", "right", to="shape"),
            _node("Gather", "shape", "first", to="rows", axis=0),
            helper.make_node("Cast", ["rows"], ["rows_float"], to=TensorProto.FLOAT),
            _node("Sub", "rows_float", "one", to="above"),
            _node("Add", "right", "above"),
        ],
        {"first": np.array([0]), "one": np.ones(1, np.float32)},
    ),
}
