"""What the ops of domain ``tocom`` mean, in standard ONNX ops: one model-local function each.

ONNX Runtime inlines the functions; the TensorRT parser uses them when no op plugin of that name is loaded. Both follow
:mod:`tocom.compression.merging` and :mod:`tocom.compression.pruning`, ties included (TopK prefers the lower index among
equals).

Every constant below follows from the attributes alone (``tokens`` is the static token count), so a runtime folds it
once at load.
No ScatterElements with a reduction (TensorRT-RTX refuses it): a one-hot matrix product sums the merged tokens.
"""

from __future__ import annotations

import onnx

__all__ = ["DOMAIN", "DOMAIN_VERSION", "OPSET", "token_merge_function", "token_prune_function"]

DOMAIN, DOMAIN_VERSION = "tocom", 1
# The newest opset that TensorRT 10.3 (JetPack 6) reads; Gelu is one node from here on.
OPSET = 20

# Shapes: x [B, N, C], keys [B, H, N, D], size [B, N, 1]; index tensors keep a last dimension of 1 for GatherND.
# Inputs and outputs have names that no graph has: before 10.8 TensorRT's parser binds a tensor of the graph to a
# function's input of the same name.
_TOKEN_MERGE = """
<opset_import: ["" : 20], domain: "tocom">
{name} <r, prefix, tokens, plugin_version, plugin_namespace> (tocom_x, tocom_keys, tocom_size)
    => (tocom_y, tocom_size_out, tocom_log_size{output})
{{
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    two = Constant <value_ints: ints = [2]> ()
    end = Constant <value_ints: ints = [1000000]> ()
    r_scalar = Constant <value_int: int = @r> ()
    r_vector = Reshape (r_scalar, one)
    prefix_scalar = Constant <value_int: int = @prefix> ()
    p = Reshape (prefix_scalar, one)
    half_p = Div (p, two)
    p_plus_1 = Add (p, one)
    half_p_up = Div (p_plus_1, two)
    first_a = Mul (half_p_up, two)
    twice_half_p = Mul (half_p, two)
    first_b = Add (twice_half_p, one)

    n_scalar = Constant <value_int: int = @tokens> ()
    n = Reshape (n_scalar, one)
    n_out = Sub (n, r_vector)
    zero_scalar = Squeeze (zero, zero)
    one_scalar = Squeeze (one, zero)
    position = Range (zero_scalar, n_scalar, one_scalar)
    half_position = Div (position, two)
    even_position = Mul (half_position, two)
    is_odd = Sub (position, even_position)
    is_protected = Less (position, p)
    shift = Mul (is_odd, n)
    shifted = Add (position, shift)
    order = Where (is_protected, position, shifted)
    order_shape = Concat <axis: int = 0> (one, n, one)
    order_3d = Reshape (order, order_shape)

    keys_float = Cast <to: int = 1> (tocom_keys)
    metric = ReduceMean <keepdims: int = 0> (keys_float, one)
    unit = LpNormalization <axis: int = 2, p: int = 2> (metric)
    a = Slice (unit, first_a, end, one, two)
    b = Slice (unit, first_b, end, one, two)
    b_transposed = Transpose <perm: ints = [0, 2, 1]> (b)
    scores = MatMul (a, b_transposed)
    best, partner = TopK <axis: int = 2> (scores, one)
    best_r, chosen = TopK <axis: int = 1> (best, r_vector)

    chosen_twice = Mul (chosen, two)
    merged = Add (chosen_twice, first_a)
    batch = Shape <start: int = 0, end: int = 1> (tocom_x)
    batch_shape = Concat <axis: int = 0> (batch, one, one)
    order_batch = Expand (order_3d, batch_shape)
    last = Add (merged, end)
    order_kept = ScatterElements <axis: int = 1> (order_batch, merged, last)
    order_sorted, kept = TopK <axis: int = 1, largest: int = 0> (order_kept, n_out)

    behind_b = Sub (n, first_b)
    behind_b_up = Add (behind_b, one)
    n_b = Div (behind_b_up, two)
    partner_chosen = GatherElements <axis: int = 1> (partner, chosen)
    first_out_b = Sub (n_out, n_b)
    into = Add (partner_chosen, first_out_b)
    into_2d = Squeeze (into, two)
    zero_one = Constant <value_floats: floats = [0.0, 1.0]> ()
    onehot = OneHot <axis: int = 1> (into_2d, n_out, zero_one)

    size_kept = GatherND <batch_dims: int = 1> (tocom_size, kept)
    size_merged = GatherND <batch_dims: int = 1> (tocom_size, merged)
    size_added = MatMul (onehot, size_merged)
    tocom_size_out = Add (size_kept, size_added)
    log_column = Log (tocom_size_out)
    log_row = Transpose <perm: ints = [0, 2, 1]> (log_column)
    log_float = Unsqueeze (log_row, one)
    tocom_log_size = Cast <to: int = {element}> (log_float)

    x_merged = GatherND <batch_dims: int = 1> (tocom_x, merged)
    x_merged_float = Cast <to: int = 1> (x_merged)
    x_weighted = Mul (x_merged_float, size_merged)
    x_added = MatMul (onehot, x_weighted)
    x_share = Div (x_added, tocom_size_out)
    x_kept = GatherND <batch_dims: int = 1> (tocom_x, kept)
    x_kept_float = Cast <to: int = 1> (x_kept)
    share = Div (size_kept, tocom_size_out)
    x_kept_share = Mul (x_kept_float, share)
    y_float = Add (x_kept_share, x_share)
    tocom_y = Cast <to: int = {element}> (y_float)
    {mapping}
}}
"""
# Where each token went: the rows of those that stayed, and the partners' of the others.
_MERGE_MAPPING = """everywhere = Expand (zero, batch_row)
    n_out_scalar = Squeeze (n_out, zero)
    row = Range (zero_scalar, n_out_scalar, one_scalar)
    kept_2d = Squeeze (kept, two)
    kept_shape = Shape (kept_2d)
    rows = Expand (row, kept_shape)
    stayed = ScatterElements <axis: int = 1> (everywhere, kept_2d, rows)
    merged_2d = Squeeze (merged, two)
    placed = ScatterElements <axis: int = 1> (stayed, merged_2d, into_2d)
    tocom_destination = Cast <to: int = 6> (placed)"""

_TOKEN_PRUNE = """
<opset_import: ["" : 20], domain: "tocom">
{name} <r, prefix, tokens, fuse, plugin_version, plugin_namespace> (tocom_x, tocom_score) => (tocom_y{output})
{{
    zero = Constant <value_ints: ints = [0]> ()
    one = Constant <value_ints: ints = [1]> ()
    two = Constant <value_ints: ints = [2]> ()
    end = Constant <value_ints: ints = [1000000]> ()
    r_scalar = Constant <value_int: int = @r> ()
    r_vector = Reshape (r_scalar, one)
    prefix_scalar = Constant <value_int: int = @prefix> ()
    p = Reshape (prefix_scalar, one)
    n_scalar = Constant <value_int: int = @tokens> ()
    n = Reshape (n_scalar, one)
    n_patches = Sub (n, p)
    {dropped_count}

    patch_score = Slice (tocom_score, p, end, one)
    score_sorted, order = TopK <axis: int = 1, largest: int = 0> (patch_score, n_patches)
    kept_count = Sub (n_patches, dropped)
    kept_unordered = Slice (order, dropped, end, one)
    kept_patch, kept_rank = TopK <axis: int = 1, largest: int = 0> (kept_unordered, kept_count)
    kept = Add (kept_patch, p)
    kept_3d = Unsqueeze (kept, two)
    x_kept = GatherND <batch_dims: int = 1> (tocom_x, kept_3d)
    x_prefix = Slice (tocom_x, zero, p, one)
    {result}
}}
"""
_KEEP = ("dropped = Identity (r_vector)", "tocom_y = Concat <axis: int = 1> (x_prefix, x_kept)")
_FUSE = (
    "dropped = Add (r_vector, one)",
    """gone_patch = Slice (order, zero, dropped, one)
    gone = Add (gone_patch, p)
    gone_3d = Unsqueeze (gone, two)
    x_gone = GatherND <batch_dims: int = 1> (tocom_x, gone_3d)
    x_gone_float = Cast <to: int = 1> (x_gone)
    gone_score = Slice (score_sorted, zero, dropped, one)
    total = ReduceSum (gone_score, one)
    nothing = Constant <value_float: float = 0.0> ()
    some = Greater (total, nothing)
    dropped_float = Cast <to: int = 1> (dropped)
    even = Reciprocal (dropped_float)
    unit = Constant <value_float: float = 1.0> ()
    safe_total = Where (some, total, unit)
    by_score = Div (gone_score, safe_total)
    weight = Where (some, by_score, even)
    weight_3d = Unsqueeze (weight, one)
    fused_float = MatMul (weight_3d, x_gone_float)
    fused = Cast <to: int = {element}> (fused_float)
    tocom_y = Concat <axis: int = 1> (x_prefix, x_kept, fused)""",
)

# What was not kept went to the fused token, the last.
_PRUNE_MAPPING = """
    batch = Shape <start: int = 0, end: int = 1> (tocom_x)
    n_out = Sub (n, r_vector)
    last = Sub (n_out, one)
    all_shape = Concat <axis: int = 0> (batch, n_patches)
    all_last = Expand (last, all_shape)
    zero_scalar = Squeeze (zero, zero)
    one_scalar = Squeeze (one, zero)
    last_scalar = Squeeze (last, zero)
    row = Range (prefix_scalar, last_scalar, one_scalar)
    kept_shape = Shape (kept_patch)
    rows = Expand (row, kept_shape)
    patches_placed = ScatterElements <axis: int = 1> (all_last, kept_patch, rows)
    prefix_row = Range (zero_scalar, prefix_scalar, one_scalar)
    prefix_shape = Concat <axis: int = 0> (batch, p)
    prefix_rows = Expand (prefix_row, prefix_shape)
    placed = Concat <axis: int = 1> (prefix_rows, patches_placed)
    tocom_destination = Cast <to: int = 6> (placed)"""

_ELEMENTS = {"fp32": onnx.TensorProto.FLOAT, "fp16": onnx.TensorProto.FLOAT16, "bf16": onnx.TensorProto.BFLOAT16}


def token_merge_function(precision: str = "fp32", *, mapped: bool = False) -> onnx.FunctionProto:
    """Return the function ``tocom::TokenMerge``, or ``TokenMergeMapped``, for tokens of a precision.

    Inputs: x [batch, tokens, channels] and keys [batch, heads, tokens, head_channels], both of the precision's type,
    and sizes [batch, tokens, 1], float32. Outputs: y [batch, tokens - r, channels], sizes [batch, tokens - r, 1], and
    their logarithm [batch, 1, 1, tokens - r] of the precision's type; ``mapped`` adds where every token went, [batch,
    tokens], int32.
    """
    mapping = "batch_row = Concat <axis: int = 0> (batch, n)\n    " + _MERGE_MAPPING if mapped else ""
    return onnx.parser.parse_function(
        _TOKEN_MERGE.format(element=_ELEMENTS[precision], **_named("TokenMerge", mapped), mapping=mapping)
    )


def token_prune_function(precision: str = "fp32", *, fuse: bool = False, mapped: bool = False) -> onnx.FunctionProto:
    """Return the function ``tocom::TokenPrune``; ``fuse`` decides its body, as it decides the node's attribute.

    Inputs: x [batch, tokens, channels] and scores [batch, tokens], float32; output: ``tokens - r`` tokens. With
    ``mapped``, ``TokenPruneMapped``, which fuses, adds where every token went, [batch, tokens], int32.
    """
    dropped_count, result = _FUSE if fuse or mapped else _KEEP
    result = result.format(element=_ELEMENTS[precision]) + (_PRUNE_MAPPING if mapped else "")
    return onnx.parser.parse_function(
        _TOKEN_PRUNE.format(dropped_count=dropped_count, result=result, **_named("TokenPrune", mapped))
    )


def _named(op: str, mapped: bool) -> dict[str, str]:
    return {"name": f"{op}Mapped", "output": ", tocom_destination"} if mapped else {"name": op, "output": ""}
