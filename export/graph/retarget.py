"""From the traced graph to the graph of one degree: set the counts, drop what removes nothing, infer static shapes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx
from onnx import helper, numpy_helper, shape_inference

from tocom.compression.tokens import removal_schedule, token_counts
from tocom.errors import ExportError
from tocom.export.graph.functions import DOMAIN, DOMAIN_VERSION, token_merge_function, token_prune_function
from tocom.formats.families import EVERY

__all__ = ["at_degree", "make_retargetable"]

# ONNX IR version 10 is what TensorRT 10.3 and ONNX Runtime 1.21 read.
_IR_VERSION = 10
# Stands for the logarithm of sizes that are all one, before any block merged.
_LOG_OF_ONES = "log of ones"
# Stands for where tokens went when none did.
_NOWHERE = "nowhere"
_MAPPED = "Mapped"  # ends the names of the ops that say where every token went


def make_retargetable(model: onnx.ModelProto) -> None:
    """Rewrite, in place, every constant that holds a token count to one that copies it from its input.

    A Reshape from [batch, 197, 384] to [batch, 197, 6, 64] has the shape [-1, 197, 6, 64]; with [-1, 0, 6, 64] it
    serves any token count.

    Raises:
        ExportError: A token count stands where it cannot be copied.
    """
    graph = model.graph
    shapes = {
        value.name: [dim.dim_value or dim.dim_param for dim in value.type.tensor_type.shape.dim]
        for value in (*graph.value_info, *graph.input, *graph.output)
    }
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    for node in model.graph.node:
        if node.op_type != "Reshape" or node.input[1] not in constants:
            continue
        wanted = numpy_helper.to_array(constants[node.input[1]]).tolist()
        source, result = shapes.get(node.input[0]), shapes.get(node.output[0])
        if source is None or result is None:
            raise ExportError(
                f"The exporter left no shape for Reshape {node.name!r}; its token count cannot be traced."
            )
        general = [
            0 if index and index < len(source) and source[index] == size == result[index] else size
            for index, size in enumerate(wanted)
        ]
        name = f"shape_{'_'.join(map(str, general)).replace('-', 'm')}"
        if name not in constants:
            constants[name] = numpy_helper.from_array(np.asarray(general, dtype=np.int64), name)
            model.graph.initializer.append(constants[name])
        node.input[1] = name
        del node.attribute[:]  # allowzero=1 would make 0 mean an empty dimension


def at_degree(
    template: onnx.ModelProto,
    removed: Sequence[int],
    *,
    tokens: int,
    prefix: int,
    family: str = EVERY,
    batch: int | None,
    precision: str = "fp32",
) -> onnx.ModelProto:
    """Return the graph of one degree, with the weights of the template.

    Args:
        template: From :func:`tocom.export.graph.trace.trace` and :func:`make_retargetable`.
        removed: Tokens that each block removes; ignored by a dense template.
        tokens: Tokens entering the first block.
        prefix: Protected leading tokens.
        family: Family that the template was traced with.
        batch: Fixed batch, or None to leave it symbolic.
        precision: Type of the tokens, for the function bodies.
    """
    model = onnx.ModelProto()
    model.CopyFrom(template)
    graph = model.graph
    sizes = {value.name: value for value in graph.value_info}
    del graph.value_info[:]
    counts = token_counts(tokens, removed)
    # Nodes of our domain stand in the order of the blocks. The template has degree 1, which leaves at least as
    # many tokens to every block as any other degree: it has a node wherever any degree needs one.
    blocks = (index for index, r in enumerate(removal_schedule(tokens, len(removed), 1, prefix, family)) if r)
    bypass: dict[str, str] = {}
    logarithms: dict[str, str] = {}  # by the name of the sizes
    kept: list[onnx.NodeProto] = []
    for node in graph.node:
        node.input[:] = [bypass.get(name, name) for name in node.input]
        if _LOG_OF_ONES in node.input:
            # The attention logits plus nothing.
            bypass[node.output[0]] = next(name for name in node.input if name != _LOG_OF_ONES)
            continue
        if node.op_type == "GatherElements" and node.input[0] == _NOWHERE:
            bypass[node.output[0]] = node.input[1]
            continue
        if node.domain != DOMAIN:
            kept.append(node)
            continue
        block = next(blocks)
        if removed[block] == 0:
            bypass[node.output[0]] = node.input[0]
            if node.op_type.startswith("TokenMerge"):
                bypass[node.output[1]] = node.input[2]
                bypass[node.output[2]] = logarithms.get(node.input[2], _LOG_OF_ONES)
            if node.op_type.endswith(_MAPPED):
                bypass[node.output[-1]] = _NOWHERE
            continue
        _set_counts(node, removed[block], counts[block])
        for name in node.output:
            is_destination = node.op_type.endswith(_MAPPED) and name == node.output[-1]
            graph.value_info.append(_with_tokens(sizes[name], counts[block + (not is_destination)]))
        if node.op_type.startswith("TokenMerge"):
            logarithms[node.output[1]] = node.output[2]
        kept.append(node)
    del graph.node[:]
    graph.node.extend(kept)
    _drop_unused(graph)
    for value in (*graph.input, *graph.output, *graph.value_info):
        dim = value.type.tensor_type.shape.dim[0]
        if batch is None:
            dim.dim_param = "batch"
        else:
            dim.dim_value = batch
    _finish(model, precision)
    return shape_inference.infer_shapes(model, data_prop=True)


def _set_counts(node: onnx.NodeProto, r: int, tokens: int) -> None:
    attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
    # The op plugin's creator is found by these two on every TensorRT version; the function bodies ignore them.
    attributes |= {"r": r, "tokens": tokens, "plugin_version": str(DOMAIN_VERSION), "plugin_namespace": DOMAIN}
    del node.attribute[:]
    node.attribute.extend(helper.make_attribute(name, value) for name, value in sorted(attributes.items()))


def _with_tokens(value: onnx.ValueInfoProto, tokens: int) -> onnx.ValueInfoProto:
    changed = onnx.ValueInfoProto()
    changed.CopyFrom(value)
    dims = changed.type.tensor_type.shape.dim
    dims[3 if len(dims) == 4 else 1].dim_value = tokens  # log_size is [batch, 1, 1, tokens]
    return changed


def _drop_unused(graph: onnx.GraphProto) -> None:
    """Drop nodes and initializers that no output needs."""
    needed = {value.name for value in graph.output}
    kept: list[onnx.NodeProto] = []
    for node in reversed(graph.node):
        if needed.intersection(node.output):
            kept.append(node)
            needed.update(node.input)
    del graph.node[:]
    graph.node.extend(reversed(kept))
    initializers = [tensor for tensor in graph.initializer if tensor.name in needed]
    del graph.initializer[:]
    graph.initializer.extend(initializers)


def _finish(model: onnx.ModelProto, precision: str) -> None:
    model.ir_version = _IR_VERSION
    model.producer_name = "tocom"
    model.producer_version = model.doc_string = ""
    del model.metadata_props[:]
    del model.graph.metadata_props[:]
    for node in model.graph.node:
        # The exporter notes where in the Python source each node came from: paths of the exporting machine.
        del node.metadata_props[:]
    used = {
        (node.op_type, any(attribute.name == "fuse" and attribute.i for attribute in node.attribute))
        for node in model.graph.node
        if node.domain == DOMAIN
    }
    del model.functions[:]
    for op_type, fuse in sorted(used):
        mapped = op_type.endswith(_MAPPED)
        if op_type.startswith("TokenMerge"):
            model.functions.append(token_merge_function(precision, mapped=mapped))
        else:
            model.functions.append(token_prune_function(precision, fuse=fuse, mapped=mapped))
    opsets = {entry.domain: entry.version for entry in model.opset_import}
    if not used:
        opsets.pop(DOMAIN, None)
    del model.opset_import[:]
    model.opset_import.extend(helper.make_opsetid(domain, version) for domain, version in opsets.items())
