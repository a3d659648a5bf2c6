"""Run a timm Vision Transformer at a token-compression degree.

Only ``compress`` rewires a model. It takes no copy of the weights: the result shares every
parameter with the model it came from, except q and v where a compensator is merged in.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from timm.layers import Attention, AttentionRope, PatchEmbed
from timm.models.eva import Eva, EvaAttention, EvaBlock, EvaBlockPostNorm
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn

from tocom.alignment.alignment import AlignedDropout, Alignment, Binding
from tocom.compensator.compensator import Compensator
from tocom.compression.attention import SplitProjection, layers, parts
from tocom.compression.blocks import CompressedBlocks, replace_child, with_blocks
from tocom.compression.tokens import removal_schedule
from tocom.errors import CompensatorError, DegreeError, ModelError
from tocom.formats.families import EVERY
from tocom.formats.methods import check_method

__all__ = ["MODELS", "check_supported", "compress", "input_tokens", "merge_compensator"]

MODELS = (VisionTransformer, Eva)


def compress(
    model: VisionTransformer,
    degree: int | Sequence[int],
    *,
    method: str = "merge",
    fuse: bool = False,
    family: str | None = None,
    compensator: Compensator | None = None,
    source_degree: int = 0,
    scale: float | None = None,
    alignment: Alignment | None = None,
    merged: bool = True,
) -> VisionTransformer:
    """Return the model as it runs at a degree; ``model`` itself is left as it is.

    Args:
        model: A timm Vision Transformer, plain or rotary.
        degree: Tokens to remove per block; 0 is the dense model, bit for bit. Or a list of one number per block.
        method: ``merge`` (ToMe) or ``prune`` (EViT).
        fuse: With ``prune``: put one fused token in the place of the removed ones.
        family: Which blocks remove how many times the degree: ``every``, or ``spaced:`` and their numbers from 0, as
            in ``spaced:1,4,7,10``. None is the compensator's, without one ``every``.
        compensator: Adds ``scale · ToCom(source_degree → degree)`` to the weights of q and v.
        source_degree: Degree that the model was fine-tuned at.
        scale: Overrides the scale stored in the compensator.
        alignment: Maps the pooled features that the head reads; fitted with the same arguments as these.
        merged: Add the compensator to copies of the q and v weights. False leaves it beside them, for training.

    Returns:
        A model with the same forward call and the same names in its state dict.

    Raises:
        ModelError: The model is not a supported Vision Transformer; the message says why.
        DegreeError: A degree or the method is out of range.
        CompensatorError: The compensator does not fit the model, the method, the family or the degrees, or the degree
            is a list.
        AlignmentError: The alignment was fitted on something else, or does not have the degree.
    """
    check_supported(model)
    check_method(method)
    if fuse and method != "prune":
        raise DegreeError("The 'fuse' parameter belongs to method 'prune': merging already keeps every token's share.")
    tokens, prefix, depth = input_tokens(model), model.num_prefix_tokens, len(model.blocks)
    family = family or (EVERY if compensator is None else compensator.family)
    if compensator is not None and not isinstance(degree, int):
        raise CompensatorError(
            f"A compensator has one group per step of the degree along its family, {compensator.family!r}: it says "
            "nothing of a list with a number per block. Run at a degree, or without the compensator."
        )
    removed = removal_schedule(tokens, depth, degree, prefix, family)
    removal_schedule(tokens, depth, source_degree, prefix, family)  # raises where the model has no such degree
    if alignment is not None:
        binding = Binding.of(
            model,
            compensator=compensator,
            scale=scale,
            method=method,
            fuse=fuse,
            family=family,
            source_degree=source_degree,
        )
        alignment.check_fits(binding, model.num_features)
        found = alignment.at(degree)
        if found is not None:
            model = replace_child(model, "head_drop", AlignedDropout(found, model.num_features, model.head_drop))
    if compensator is not None:
        compensator.check_fits(model, method=method, family=family)
        compensator.check_degrees(source_degree, degree)
        if source_degree == degree:
            compensator = None
        elif merged:
            model = merge_compensator(model, compensator, source_degree, degree, scale=scale)
            compensator = None
    if not any(removed) and compensator is None:
        return model
    blocks = CompressedBlocks(
        list(model.blocks.children()),
        removed,
        method=method,
        prefix=prefix,
        fuse=fuse,
        checkpointing=model.grad_checkpointing,
    )
    blocks.training = model.blocks.training
    if compensator is not None:
        blocks.compensate(compensator.adapters(), compensator.window(source_degree, degree, scale))
    twin = with_blocks(model, blocks)
    # timm's own way of checkpointing runs the blocks one by one; ours stands in the stack.
    twin.grad_checkpointing = False
    return twin


def merge_compensator(
    model: VisionTransformer, compensator: Compensator, source: int, target: int, *, scale: float | None = None
) -> VisionTransformer:
    """Return the model with ``W + s · ToCom(source → target)`` as the weights of q and v.

    The sum is taken in float32 and then cast. Everything else is shared with ``model``, which stays as it is.

    Raises:
        CompensatorError: The compensator does not fit the model, or a degree is out of its range.
    """
    compensator.check_fits(model)
    scale = compensator.check_scale(scale)
    delta = compensator.delta(source, target)
    blocks = type(model.blocks)()
    for index, block in enumerate(model.blocks):
        attention, weights = block.attn, {name: weight.detach() for name, (weight, _) in parts(block.attn).items()}
        for name in ("q", "v"):
            step = scale * delta[f"blocks.{index}.attn.{name}"].to(weights[name].device)
            weights[name] = (weights[name].float() + step).to(weights[name].dtype)
        whole = {"qkv": torch.cat([*weights.values()]), "q_proj": weights["q"], "v_proj": weights["v"]}
        for name, layer in layers(attention).items():
            if name in whole:  # keys stay
                attention = replace_child(attention, name, _with_weight(layer, whole[name]))
        blocks.append(replace_child(block, "attn", attention))
    # Not train(): that would reach into the blocks' parts, which are the model's own.
    blocks.training = model.blocks.training
    return replace_child(model, "blocks", blocks)


def _with_weight(layer: nn.Linear, weight: Tensor) -> nn.Linear:
    """Return a layer with another weight and the same bias."""
    other = nn.Linear(layer.in_features, layer.out_features, bias=layer.bias is not None, device="meta")
    other.weight = nn.Parameter(weight, requires_grad=layer.weight.requires_grad)
    if layer.bias is not None:
        other.bias = layer.bias
    other.training = layer.training
    return other


def input_tokens(model: VisionTransformer) -> int:
    """Return how many tokens enter the first block, the prefix included."""
    return int(model.patch_embed.num_patches) + int(model.num_prefix_tokens)


def check_supported(model: nn.Module) -> None:
    """Raise ModelError, with the reason, unless tokens can be removed between attention and MLP of every block."""
    name = type(model).__name__
    if not isinstance(model, MODELS):
        raise ModelError(
            f"{name} is not supported: tocom compresses plain and rotary ViTs (timm's VisionTransformer and Eva). "
            "Windowed and hierarchical models need every token on the grid, relative positions a table of pairs, and "
            "models of dynamic size (NaFlexVit) have no static token counts."
        )
    if isinstance(model.blocks, CompressedBlocks):
        raise ModelError("The model is compressed already. Give compress() the dense model and the degree you want.")
    if getattr(model, "dynamic_img_size", False):
        raise ModelError(
            f"{name} with dynamic_img_size has no static token counts. Create it with dynamic_img_size=False."
        )
    if not isinstance(model.patch_drop or nn.Identity(), nn.Identity):
        raise ModelError(f"{name} with patch dropout has no static token counts. Create it with patch_drop_rate=0.")
    if not isinstance(model.patch_embed, PatchEmbed):
        raise ModelError(
            f"{name} with a {type(model.patch_embed).__name__} is not supported: its tokens come from a convolutional "
            "network. Only models that cut the image into patches can be compressed, counted and exported."
        )
    for index, block in enumerate(model.blocks):
        if type(block) not in (Block, ResPostBlock, EvaBlock, EvaBlockPostNorm):
            raise ModelError(
                f"{name} is not supported: block {index} is a {type(block).__name__}. Only blocks with one attention "
                "followed by one MLP have a place between the two where tokens can go."
            )
        if type(block.attn) not in (Attention, EvaAttention, AttentionRope):
            raise ModelError(
                f"{name} is not supported: the attention of block {index} is a {type(block.attn).__name__}, not timm's "
                "plain Attention."
            )
        if getattr(block.attn, "num_kv_groups", 1) > 1:
            raise ModelError(
                f"{name} is not supported: heads of block {index} share keys and values in groups of "
                f"{block.attn.num_kv_groups}. A compensator's q and v are of one width."
            )
        # Only q and v differ by degree, so export takes them apart: layers of another type would be lost in silence.
        for layer_name, layer in layers(block.attn).items():
            if type(layer) not in (nn.Linear, SplitProjection):
                raise ModelError(
                    f"{name} is not supported: attn.{layer_name} of block {index} is a {type(layer).__name__} of "
                    f"{type(layer).__module__.partition('.')[0]}, not a plain nn.Linear. Merge an adapter into the "
                    "weights (peft: model.merge_and_unload()), remove parametrizations and quantization."
                )
