"""A degree's graph with explicit Q/DQ: which layers, and how ONNX Runtime's quantizer writes them.

Quantized are the products of the blocks with weights: q, k, v, the attention's projection and the two layers of the
MLP. They hold nearly all of the weights and of the work. Left in float32:

- layer norm, softmax, GELU, the sizes of merged tokens and the matching (``tocom::TokenMerge``): they decide by small
  differences, and the products of activations with activations (q·kᵀ, attention·v) with them;
- the patch embedding, which ONNX Runtime's CPU runs as a float convolution either way, and the classifier: together
  about one percent of the weights.
"""

from __future__ import annotations

import platform
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from tocom.system.cpu import cpu_facts

__all__ = ["Layer", "Range", "Scheme", "default_scheme", "quantizable_layers", "with_qdq"]

Range = tuple[float, float]
_PRODUCTS = ("MatMul", "Gemm")
_HEAD = "head"


@dataclass(frozen=True)
class Layer:
    """A product of activations with weights.

    Attributes:
        name: Such as ``blocks.3.mlp.fc1``; the same at every degree.
        node: Name of its node in this graph.
        input: Name of its activations; q, k and v share theirs.
        weight: Name of its weights.
        weight_count: How many weights.
    """

    name: str
    node: str
    input: str
    weight: str
    weight_count: int

    @property
    def group(self) -> str:
        """Layers with one input are quantized together: ``blocks.3.attn.qkv`` for q, k and v."""
        return self.name.rsplit(".", 1)[0] if self.name.rsplit(".", 1)[-1] in ("q", "k", "v") else self.name


@dataclass(frozen=True)
class Scheme:
    """How numbers become eight bits. Weights are int8, symmetric, one scale per output channel.

    Attributes:
        activations: ``asymmetric``: uint8 with a zero point, which uses all codes after GELU and is what ONNX
            Runtime's CPU is fastest at (twice int8 with AVX-512 VNNI); ``symmetric``: int8 without, which TensorRT
            demands.
        reduce_range: Weights of seven bits: x86 without VNNI adds two products in 16 bits, which overflow with eight.
    """

    activations: str = "asymmetric"
    reduce_range: bool = False


def default_scheme() -> Scheme:
    """Return what fits ONNX Runtime on this processor."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return Scheme()
    flags = " ".join(cpu_facts("flags"))
    return Scheme(reduce_range="avx512_vnni" not in flags and "avx_vnni" not in flags)


def quantizable_layers(graph: onnx.GraphProto) -> list[Layer]:
    """Return the layers to quantize, in the order of the graph. Bodies of functions hold none."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    users: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            users.setdefault(name, []).append(node)
    layers = []
    for node in graph.node:
        if node.domain or node.op_type not in _PRODUCTS or node.input[1] not in constants:
            continue
        weight = constants[node.input[1]]
        if weight.data_type != onnx.TensorProto.FLOAT or len(weight.dims) != 2 or node.input[0] in constants:
            continue
        name = _layer_name(node, constants, users)
        if not name.startswith(_HEAD):
            layers.append(Layer(name, node.name, node.input[0], weight.name, int(np.prod(weight.dims))))
    return layers


def with_qdq(
    model: onnx.ModelProto, ranges: Mapping[str, Range], scheme: Scheme, *, exclude: Collection[str] = ()
) -> onnx.ModelProto:
    """Return a copy of a float32 model with Q/DQ around its layers.

    Args:
        model: With its weights loaded.
        ranges: Per layer the least and the largest activation to represent; others saturate.
        scheme: How numbers become eight bits.
        exclude: Groups of layers (:attr:`Layer.group`) that stay in float32.
    """
    from onnxruntime.quantization import QuantType
    from onnxruntime.quantization.calibrate import CalibrationMethod, TensorData, TensorsData
    from onnxruntime.quantization.qdq_quantizer import QDQQuantizer

    copied = onnx.ModelProto()
    copied.CopyFrom(model)
    layers = [layer for layer in quantizable_layers(copied.graph) if layer.group not in exclude]
    if not layers:
        return copied
    symmetric = scheme.activations == "symmetric"
    tensors = {
        layer.input: TensorData(lowest=np.float32(ranges[layer.name][0]), highest=np.float32(ranges[layer.name][1]))
        for layer in layers
    }
    options: dict[str, Any] = {
        # A product's output goes on in float32: what follows are biases, GELU, softmax and sums over the residual.
        "OpTypesToExcludeOutputQuantization": list(_PRODUCTS),
        "QuantizeBias": False,
        "ActivationSymmetric": symmetric,
        "WeightSymmetric": True,
    }
    quantizer = QDQQuantizer(
        copied,
        per_channel=True,
        reduce_range=scheme.reduce_range,
        weight_qType=QuantType.QInt8,
        activation_qType=QuantType.QInt8 if symmetric else QuantType.QUInt8,
        tensors_range=TensorsData(CalibrationMethod.MinMax, tensors),
        nodes_to_quantize=[layer.node for layer in layers],
        nodes_to_exclude=[],
        op_types_to_quantize=list(_PRODUCTS),
        extra_options=options,
    )
    quantizer.quantize_model()
    quantizer.model.topological_sort()
    quantized: onnx.ModelProto = quantizer.model.model
    _keep_products_apart(quantized.graph, {layer.node for layer in layers})
    quantized.producer_name, quantized.producer_version = model.producer_name, model.producer_version
    return quantized


def _keep_products_apart(graph: onnx.GraphProto, nodes: Collection[str]) -> None:
    """Give biases two leading dimensions of one.

    ONNX Runtime folds a product and a bias of one dimension into a Gemm before it looks for Q/DQ, and then runs the
    Gemm in float: 1.7 times slower than float32 alone, where the integer product is 2.1 times faster.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    ranks = {value.name: len(value.type.tensor_type.shape.dim) for value in graph.value_info}
    products = {node.output[0] for node in graph.node if node.name in nodes and node.op_type == "MatMul"}
    for node in graph.node:
        if node.op_type != "Add" or not products.intersection(node.input) or ranks.get(node.output[0]) != 3:
            continue
        for name in node.input:
            if name in constants and len(constants[name].dims) == 1:
                constants[name].dims[:] = [1, 1, constants[name].dims[0]]


def _layer_name(
    node: onnx.NodeProto, constants: Mapping[str, onnx.TensorProto], users: Mapping[str, list[onnx.NodeProto]]
) -> str:
    """Return the layer's name in the model: of its weight, or where the exporter transposed that, of its bias."""
    names = [node.input[1]]
    for user in users.get(node.output[0], ()):
        names += [name for name in user.input if user.op_type == "Add" and name in constants]
    for kind in (".weight", "_weight", ".bias"):
        for name in names:
            if name.endswith(kind):
                return str(name.removesuffix(kind))
    return str(node.name)
