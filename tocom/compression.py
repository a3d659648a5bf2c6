"""Run a timm Vision Transformer at a token-compression degree.

``compress`` is the one place where a model is rewired. It takes no copy of the weights: the result shares every
parameter with the model it came from, except q and v where a compensator is merged in.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import torch
from timm.layers import Attention, PatchEmbed
from timm.models.vision_transformer import Block, ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tocom import merging, ops, pruning
from tocom.attention import attend, project
from tocom.errors import CompensatorError, DegreeError, ModelError
from tocom.tokens import check_method, removal_schedule

if TYPE_CHECKING:
    from tocom.compensator import Compensator, LowRank

__all__ = ["CompressedBlocks", "check_supported", "compress", "input_tokens"]


def compress(
    model: VisionTransformer,
    degree: int | Sequence[int],
    *,
    method: str = "merge",
    fuse: bool = False,
    schedule: str = "constant",
    compensator: Compensator | None = None,
    source_degree: int = 0,
    scale: float | None = None,
    merged: bool = True,
) -> VisionTransformer:
    """Return the model as it runs at a degree; ``model`` itself is left as it is.

    Args:
        model: A plain timm Vision Transformer.
        degree: Tokens to remove in every block; 0 is the dense model, bit for bit. Or one number per block.
        method: ``merge`` (ToMe) or ``prune`` (EViT).
        fuse: With ``prune``: put one fused token in the place of the removed ones.
        schedule: ``constant``, or ``decreasing``: from twice the degree in the first block to none in the last.
        compensator: Adds ``scale · ToCom(source_degree → degree)`` to the weights of q and v.
        source_degree: Degree that the model was fine-tuned at.
        scale: Overrides the scale stored in the compensator.
        merged: Add the compensator to copies of the q and v weights. False leaves it beside them, for training.

    Returns:
        A model with the same forward call and the same names in its state dict.

    Raises:
        ModelError: The model is no plain Vision Transformer; the message says why.
        DegreeError: A degree or the method is out of range.
        CompensatorError: The compensator does not fit the model, the method, or the degrees, or the schedule is not
            constant.
    """
    check_supported(model)
    check_method(method)
    if fuse and method != "prune":
        raise DegreeError("The 'fuse' parameter belongs to method 'prune': merging already keeps every token's share.")
    tokens, prefix, depth = input_tokens(model), model.num_prefix_tokens, len(model.blocks)
    removed = removal_schedule(tokens, depth, degree, prefix, schedule)
    if compensator is not None and (schedule != "constant" or not isinstance(degree, int)):
        raise CompensatorError(
            "A compensator has one group per step of a degree that is the same in every block: it says nothing of "
            f"{schedule if isinstance(degree, int) else 'per-block'} schedules. Run at a constant degree, or without "
            "the compensator."
        )
    if compensator is not None:
        compensator.check_fits(model, method=method)
        compensator.check_degrees(source_degree, degree)
        if source_degree == degree:
            compensator = None
        elif merged:
            model = compensator.merge_into(model, source_degree, degree, scale=scale)
            compensator = None
    elif source_degree:
        removal_schedule(tokens, depth, source_degree, prefix)
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
        blocks.compensate(compensator, source_degree, degree, scale)
    twin = replace_child(model, "blocks", blocks)
    # timm's own way of checkpointing runs the blocks one by one; ours stands in the stack.
    twin.grad_checkpointing = False
    return twin


class CompressedBlocks(nn.Module):
    """A stack of transformer blocks that removes tokens between attention and MLP.

    Its children are the original blocks under their original names, so state dicts fit both ways.

    Args:
        blocks: The model's blocks.
        removed: Tokens to remove in each.
        method: ``merge`` or ``prune``.
        prefix: Protected leading tokens.
        fuse: With ``prune``: fuse the removed tokens into one.
        checkpointing: Recompute activations in the backward pass.
    """

    def __init__(
        self,
        blocks: list[nn.Module],
        removed: tuple[int, ...],
        *,
        method: str,
        prefix: int,
        fuse: bool = False,
        checkpointing: bool = False,
    ) -> None:
        super().__init__()
        for index, block in enumerate(blocks):
            self.add_module(str(index), block)
        self.removed, self.method, self.prefix, self.fuse = removed, method, prefix, fuse
        self.checkpointing = checkpointing
        self._adapters: list[dict[str, LowRank] | None] = [None] * len(blocks)
        self._window = (0, 0, 0.0)

    def __len__(self) -> int:
        return len(self.removed)

    def __getitem__(self, index: int) -> nn.Module:
        return self.get_submodule(str(range(len(self))[index]))

    def __iter__(self) -> Iterator[nn.Module]:
        # timm runs the blocks one by one for masks and intermediate features; that would be the dense model.
        raise DegreeError(
            "A compressed model runs its blocks together: attention masks and intermediate features are of the dense "
            "model alone. Call the model that compress() was given for those, and turn on gradient checkpointing "
            "there, before compress()."
        )

    def extra_repr(self) -> str:
        """Show what the swap did."""
        return f"method={self.method!r}, removed={list(self.removed)}, prefix={self.prefix}, fuse={self.fuse}"

    def compensate(self, compensator: Compensator, source: int, target: int, scale: float | None) -> None:
        """Run with ``ToCom(source → target)`` beside the weights of q and v. The compensator is not a child."""
        low, high = sorted((source, target))
        sign = 1.0 if source < target else -1.0
        self._window = (low, high, sign * compensator.check_scale(scale))
        self._adapters = [{"q": block.attn.q, "v": block.attn.v} for block in compensator.blocks]

    def forward(self, x: Tensor) -> Tensor:
        """Run all blocks.

        Args:
            x: [batch, tokens, channels].

        Returns:
            [batch, remaining tokens, channels].
        """
        size: Tensor | None = None
        for index in range(len(self)):
            if self.checkpointing and torch.is_grad_enabled():
                x, size = checkpoint(self._block, index, x, size, use_reentrant=False)
            else:
                x, size = self._block(index, x, size)
        return x

    def _block(self, index: int, x: Tensor, size: Tensor | None) -> tuple[Tensor, Tensor | None]:
        block, r, adapters = self[index], self.removed[index], self._adapters[index]
        if r == 0 and size is None and adapters is None and not torch.compiler.is_exporting():
            return block(x), None
        post_norm = isinstance(block, ResPostBlock)
        attended = x if post_norm else block.norm1(x)
        q, k, v = project(block.attn, attended, adapters, self._window)
        bias = None if size is None else size.log().transpose(1, 2).unsqueeze(1).to(q.dtype)
        out = attend(block.attn, attended, q, k, v, bias)
        x = x + block.drop_path1(block.norm1(out) if post_norm else block.ls1(out))
        if r:
            x, size = self._remove(x, q, k, size, r, block.attn.scale)
        mlp = block.norm2(block.mlp(x)) if post_norm else block.ls2(block.mlp(block.norm2(x)))
        return x + block.drop_path2(mlp), size

    def _remove(
        self, x: Tensor, q: Tensor, k: Tensor, size: Tensor | None, r: int, scale: float
    ) -> tuple[Tensor, Tensor | None]:
        if torch.is_autocast_enabled(x.device.type):
            # Which tokens go is decided in float32 whatever the products around it are computed in.
            with torch.autocast(x.device.type, enabled=False):
                return self._remove(x, q.float(), k.float(), size, r, scale)
        # As an op the step stays one node in a traced graph; everywhere else plain functions are faster.
        exporting = torch.compiler.is_exporting()
        if self.method == "prune":
            prune = ops.token_prune if exporting else pruning.token_prune
            score = pruning.attention_score(q * scale, k, self.prefix)
            return prune(x, score, r, self.prefix, self.fuse), None
        merge = ops.token_merge if exporting else merging.token_merge
        if size is None:
            size = torch.ones(x.shape[0], x.shape[1], 1, dtype=torch.float32, device=x.device)
        return merge(x, k.mean(dim=1), size, r, self.prefix)


def input_tokens(model: VisionTransformer) -> int:
    """Return how many tokens enter the first block, the prefix included."""
    return int(model.patch_embed.num_patches) + int(model.num_prefix_tokens)


def check_supported(model: nn.Module) -> None:
    """Raise ModelError, with the reason, unless tokens can be removed between attention and MLP of every block."""
    name = type(model).__name__
    if not isinstance(model, VisionTransformer):
        raise ModelError(
            f"{name} is not supported: tocom compresses plain ViTs (timm's VisionTransformer). Windowed, "
            "hierarchical and rotary-position models need each token's place on the grid, which merging gives up."
        )
    if isinstance(model.blocks, CompressedBlocks):
        raise ModelError("The model is compressed already. Give compress() the dense model and the degree you want.")
    if getattr(model, "dynamic_img_size", False):
        raise ModelError(f"{name} with dynamic_img_size has no static token counts. Create it without that option.")
    if not isinstance(model.patch_drop, nn.Identity):
        raise ModelError(f"{name} with patch dropout has no static token counts. Create it with patch_drop_rate=0.")
    if not isinstance(model.patch_embed, PatchEmbed):
        raise ModelError(
            f"{name} with a {type(model.patch_embed).__name__} is not supported: its tokens come from a convolutional "
            "network. Only models that cut the image into patches can be compressed, counted and exported."
        )
    for index, block in enumerate(model.blocks):
        if type(block) not in (Block, ResPostBlock):
            raise ModelError(
                f"{name} is not supported: block {index} is a {type(block).__name__}. Only blocks with one attention "
                "followed by one MLP have a place between the two where tokens can go."
            )
        if type(block.attn) is not Attention:
            raise ModelError(
                f"{name} is not supported: the attention of block {index} is a {type(block.attn).__name__}, not timm's "
                "plain Attention."
            )


def replace_child(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """Return a module that shares everything with ``module`` but one child."""
    twin = copy.copy(module)
    # copy.copy shares the dicts, so writing to the twin's would rewire the original.
    for attribute in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[attribute] = dict(module.__dict__[attribute])
    if name not in twin._modules:
        raise CompensatorError(f"{type(module).__name__} has no child {name!r}.")
    twin._modules[name] = child
    return twin
