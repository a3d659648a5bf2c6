"""From a timm model to an ONNX graph that any degree can be made from: traced once, dense or compressed.

The traced graph stands for every degree: token counts enter it through the attributes of its ``tocom`` nodes alone
(see :mod:`tocom.export.graph.retarget`).
"""

from __future__ import annotations

import contextlib
import copy
import logging
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import onnx
import torch
from onnx import defs
from onnxscript import values
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tocom.compression import ops  # registers the ops that the table below translates
from tocom.compression.attention import SplitProjection
from tocom.compression.blocks import CompressedBlocks, layer_scale, replace_child, with_blocks, without_layer_scale
from tocom.compression.features import tokens_and_patches
from tocom.compression.surgery import input_tokens
from tocom.compression.tokens import removal_schedule
from tocom.errors import ExportError, first_line
from tocom.export.graph.functions import DOMAIN, DOMAIN_VERSION, OPSET
from tocom.export.graph.half import HalfPlan, widen
from tocom.formats.families import EVERY

__all__ = ["DTYPES", "Outputs", "Tracing", "projection_name", "trace"]

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}


def projection_name(block: int, name: str, kind: str) -> str:
    """Return the initializer's name of a projection: ``name`` of q, k, v; ``kind`` of weight, bias."""
    return f"blocks.{block}.attn.qkv.{name}_{kind}"


@dataclass(frozen=True)
class Outputs:
    """What a file gives beside the logits [batch, classes], or the features of a model without a classifier.

    Attributes:
        features: The pooled features [batch, channels] that the head reads.
        patches: Last, the features of every patch, [batch, patches, channels].
    """

    features: bool = False
    patches: bool = False

    def of(self, model: nn.Module, images: Tensor) -> tuple[Tensor, ...]:
        """Return the outputs of a model, dense or compressed, in the order of the ONNX file's.

        Args:
            model: A timm Vision Transformer.
            images: [batch, channels, height, width].
        """
        if not self.features and not self.patches:
            return (model(images),)
        tokens, every = tokens_and_patches(model, images) if self.patches else (model.forward_features(images), None)
        found = [model.forward_head(tokens)]
        if self.features:
            found.append(model.forward_head(tokens, pre_logits=True))
        return tuple(found if every is None else [*found, every])

    def names(self, model: VisionTransformer) -> list[str]:
        """Return the names of a model's outputs."""
        first = "features" if isinstance(model.head, nn.Identity) else "logits"
        return [first, *["features"] * self.features, *["patch_features"] * self.patches]

    def values(self, model: VisionTransformer) -> int:
        """Return how many values of one image's outputs are kept as reference answers."""
        own = model.head.out_features if isinstance(model.head, nn.Linear) else model.num_features
        return int(own + self.features * model.num_features + self.patches * model.patch_embed.num_patches)


@dataclass(frozen=True)
class Tracing:
    """How a graph is traced.

    Attributes:
        compressed: With a ``tocom`` node in every block that can remove tokens (at degree 1), else dense.
        method: ``merge`` or ``prune``.
        family: Which blocks remove tokens: see :mod:`tocom.formats.families`.
        fuse: With ``prune``: fuse the removed tokens.
        outputs: What the graph gives.
        precision: Type of weights and activations; the input and output stay float32.
        plan: What stays wide in half precision.
        pixels: Mean and std, where images enter as uint8 and the graph normalises them; None where they enter as
            float32.
    """

    compressed: bool
    method: str = "merge"
    family: str = EVERY
    fuse: bool = False
    outputs: Outputs = field(default_factory=Outputs)
    precision: str = "fp32"
    plan: HalfPlan = field(default_factory=HalfPlan)
    pixels: tuple[tuple[float, ...], tuple[float, ...]] | None = None


def trace(model: VisionTransformer, how: Tracing) -> onnx.ModelProto:
    """Trace a model to ONNX with a symbolic batch.

    Args:
        model: Dense, in evaluation mode; left as it is.
        how: See :class:`Tracing`.

    Returns:
        Input ``images`` [batch, channels, height, width]; output ``logits`` or ``features``, or both. q, k
        and v are products with initializers of their own, named by :func:`projection_name`; the scale of the attention
        stands in q's.

    Raises:
        ExportError: torch cannot trace the model.
    """
    prefix, tokens = model.num_prefix_tokens, input_tokens(model)
    removed = removal_schedule(tokens, len(model.blocks), int(how.compressed), prefix, how.family)
    blocks = [_prepare(block, index) for index, block in enumerate(model.blocks)]
    stack = CompressedBlocks(blocks, removed, method=how.method, prefix=prefix, fuse=how.fuse)
    traced: nn.Module = _Typed(with_blocks(model, stack.eval()), how)
    images = torch.zeros(2, model.patch_embed.proj.in_channels, *model.patch_embed.img_size)
    if how.pixels is not None:
        traced, images = _Normalised(traced, *how.pixels), images.to(torch.uint8)
    batch = torch.export.Dim("batch")
    try:
        with torch.no_grad(), _quiet():
            program = torch.export.export(traced, (images,), dynamic_shapes=({0: batch},))
            exported = torch.onnx.export(
                program,
                dynamo=True,
                opset_version=OPSET,
                custom_translation_table=_TRANSLATIONS,
                input_names=["images"],
                output_names=how.outputs.names(model),
                optimize=True,
                verbose=False,
            )
    except Exception as error:  # torch.export and the ONNX exporter raise all kinds
        raise ExportError(f"torch could not trace {type(model).__name__} to ONNX: {first_line(error)}") from error
    assert exported is not None  # dynamo=True always returns a program
    proto = exported.model_proto
    wrapper = _WRAPPER if how.pixels is None else f"{_WRAPPER}{_WRAPPER}"
    for tensor in proto.graph.initializer:
        tensor.name = tensor.name.removeprefix(wrapper)
    for node in proto.graph.node:
        node.input[:] = [name.removeprefix(wrapper) for name in node.input]
    if how.pixels is not None:
        _cast_first(proto.graph)
    _name_mapped(proto.graph)
    return proto


_WRAPPER = "model."


def _cast_first(graph: onnx.GraphProto) -> None:
    """Let all that reads the pixels read their cast: TensorRT takes eight bits as an input, and only into a cast."""
    cast = next(node for node in graph.node if node.op_type == "Cast" and node.input[0] == "images")
    nodes = [cast, *(node for node in graph.node if node is not cast)]
    for node in nodes[1:]:  # such as the Shape that the class tokens are as many as
        node.input[:] = [cast.output[0] if name == "images" else name for name in node.input]
    ordered = onnx.GraphProto()
    ordered.node.extend(nodes)
    del graph.node[:]
    graph.node.extend(ordered.node)


def _name_mapped(graph: onnx.GraphProto) -> None:
    """Name the nodes ``…Mapped`` where it is read where every token went; leave that output out where it is not."""
    read = {name for node in graph.node for name in node.input}
    for node in graph.node:
        if node.domain == DOMAIN and node.output[-1] in read:
            node.op_type += "Mapped"
        elif node.domain == DOMAIN:
            del node.output[-1]


class _Normalised(nn.Module):
    """A model behind pixels: [batch, channels, height, width], uint8."""

    def __init__(self, model: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.model = model
        for name, each in (("mean", mean), ("std", std)):
            self.register_buffer(name, torch.tensor(each, dtype=torch.float32)[:, None, None])

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.model((images.float() / 255 - self.mean) / self.std)
        return found


class _Typed(nn.Module):
    """A model computing in one float type behind float32 input and outputs."""

    def __init__(self, model: nn.Module, how: Tracing) -> None:
        super().__init__()
        dtype = DTYPES[how.precision]
        self.model, self.image_dtype, self.outputs = model, dtype, how.outputs
        if dtype != torch.float32:
            self.model = copy.deepcopy(model).to(dtype)
        if how.plan:
            widen(self.model, model, how.plan)
        if dtype == torch.bfloat16:
            # ONNX knows no convolution in bfloat16 before opset 22.
            self.image_dtype = torch.float32
            self.model.patch_embed.proj = _Float32(copy.deepcopy(model.patch_embed.proj), dtype)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(output.float() for output in self.outputs.of(self.model, images.to(self.image_dtype)))


class _Float32(nn.Module):
    """A layer that computes in float32, before a model of another type."""

    def __init__(self, layer: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.layer, self.dtype = layer, dtype

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).to(self.dtype)


def _prepare(block: nn.Module, index: int) -> nn.Module:
    """Return a twin of a block that exports to fewer nodes: q, k, v apart; scales folded into weights."""
    projection = SplitProjection(block.attn)
    attention = replace_child(block.attn, "qkv", projection)
    for name in ("q_proj", "k_proj", "v_proj", "q_bias", "v_bias"):  # what the projection stands for
        attention._modules.pop(name, None)
        attention._parameters.pop(name, None)
    if isinstance(attention.q_norm, nn.Identity):
        # softmax(scale · q·kᵀ): the scale moves into q's weights, which export.weights writes with the same factor.
        projection.q_weight.mul_(attention.scale)
        if projection.q_bias is not None:
            projection.q_bias.mul_(attention.scale)
        attention.scale = 1.0
    # The exporter shares equal initializers; random ones are never equal, so q and v keep their names. The real
    # values are put in per degree.
    generator = torch.Generator().manual_seed(index)
    for weight in (projection.q_weight, projection.v_weight):
        weight.copy_(torch.rand(weight.shape, generator=generator))
    block = replace_child(block, "attn", attention)
    for branch, part, name in ((1, "attn", "proj"), (2, "mlp", "fc2")):
        whole, gamma = getattr(block, part), layer_scale(block, branch)
        last = getattr(whole, name, None)
        if gamma is not None and isinstance(last, nn.Linear):
            block = replace_child(block, part, replace_child(whole, name, _scaled(last, gamma)))
            block = without_layer_scale(block, branch)
    return block


def _scaled(layer: nn.Linear, gamma: Tensor) -> nn.Linear:
    """Return ``gamma · layer(x)`` as one layer."""
    scaled = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    scaled.weight = nn.Parameter(layer.weight.detach() * gamma.detach()[:, None], requires_grad=False)
    if layer.bias is not None:
        scaled.bias = nn.Parameter(layer.bias.detach() * gamma.detach(), requires_grad=False)
    return scaled


def _op(name: str, inputs: list[str], outputs: list[str], attributes: list[str]) -> values.Op:
    """Return an onnxscript op of our domain. Types are left open: the function bodies state them."""
    formal = defs.OpSchema.FormalParameter
    schema = defs.OpSchema(
        name,
        DOMAIN,
        DOMAIN_VERSION,
        "",
        inputs=[formal(each, f"T_{each}") for each in inputs],
        outputs=[formal(each, f"T_{each}") for each in outputs],
        type_constraints=[(f"T_{each}", _TYPES, "") for each in inputs + outputs],
        attributes=[defs.OpSchema.Attribute(each, defs.OpSchema.AttrType.INT, "") for each in attributes],
    )
    return values.Op(values.Opset(DOMAIN, DOMAIN_VERSION), name, schema)


_TYPES = ["tensor(float)", "tensor(float16)", "tensor(bfloat16)", "tensor(int32)"]
_MERGE = _op("TokenMerge", ["x", "keys", "size"], ["y", "size_out", "log_size", "destination"], ["r", "prefix"])
_PRUNE = _op("TokenPrune", ["x", "score"], ["y", "destination"], ["r", "prefix", "fuse"])
_ONNX = values.Opset("", OPSET)


def _translate_merge(x, keys, size, r, prefix):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return _MERGE(x, keys, size, r=r, prefix=prefix)


def _translate_prune(x, score, r, prefix, fuse):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    return _PRUNE(x, score, r=r, prefix=prefix, fuse=int(fuse))


def _translate_gather(x, index):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202
    indices = _ONNX.Unsqueeze(_ONNX.Cast(index, to=onnx.TensorProto.INT64), _ONNX.Constant(value_ints=[2]))
    return _ONNX.GatherND(x, indices, batch_dims=1)


_TRANSLATIONS = {
    torch.ops.tocom.token_merge.default: _translate_merge,
    torch.ops.tocom.token_prune.default: _translate_prune,
    torch.ops.tocom.gather_tokens.default: _translate_gather,
}
assert ops  # imported for its registrations


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep the exporter's remarks about itself from the user; what fails, raises."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
