"""The stack of transformer blocks that removes tokens, and the way a module is put in another's place."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from timm.models.vision_transformer import ResPostBlock
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tocom.compression import merging, ops, pruning
from tocom.compression.attention import attend, project
from tocom.errors import CompensatorError, DegreeError

if TYPE_CHECKING:
    from tocom.compensator.low_rank import LowRank

__all__ = ["CompressedBlocks", "replace_child"]

# Merged tokens' sizes and their logarithm, as token_merge returns them; None while every token is one patch.
Sizes = tuple[Tensor, Tensor] | None


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
        self._adapters: list[Mapping[str, LowRank] | None] = [None] * len(blocks)
        self._window = (0, 0, 0.0)

    def __len__(self) -> int:
        return len(self.removed)

    def __getitem__(self, index: int) -> nn.Module:
        return getattr(self, str(range(len(self))[index]))  # torch 2.6 cannot trace get_submodule

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

    def compensate(self, adapters: Sequence[Mapping[str, LowRank]], window: tuple[int, int, float]) -> None:
        """Add low-rank deltas beside the weights of q and v. The adapters do not become children.

        Args:
            adapters: For each block, ``q`` and ``v`` to their low-rank groups.
            window: First group, the one behind the last, and the factor of their sum.
        """
        self._adapters, self._window = list(adapters), window

    def forward(self, x: Tensor) -> Tensor:
        """Run all blocks.

        Args:
            x: [batch, tokens, channels].

        Returns:
            [batch, remaining tokens, channels].
        """
        sizes: Sizes = None
        for index in range(len(self)):
            if self.checkpointing and torch.is_grad_enabled():
                x, sizes = checkpoint(self._block, index, x, sizes, use_reentrant=False)
            else:
                x, sizes = self._block(index, x, sizes)
        return x

    def _block(self, index: int, x: Tensor, sizes: Sizes) -> tuple[Tensor, Sizes]:
        block, r, adapters = self[index], self.removed[index], self._adapters[index]
        if r == 0 and sizes is None and adapters is None and not torch.compiler.is_exporting():
            return block(x), None
        post_norm = isinstance(block, ResPostBlock)
        attended = x if post_norm else block.norm1(x)
        q, k, v = project(block.attn, attended, adapters, self._window)
        bias = None if sizes is None else sizes[1].to(q.dtype)
        out = attend(block.attn, attended, q, k, v, bias)
        x = x + block.drop_path1(block.norm1(out) if post_norm else block.ls1(out))
        if r:
            x, sizes = self._remove(x, q, k, sizes, r, block.attn.scale)
        mlp = block.norm2(block.mlp(x)) if post_norm else block.ls2(block.mlp(block.norm2(x)))
        return x + block.drop_path2(mlp), sizes

    def _remove(self, x: Tensor, q: Tensor, k: Tensor, sizes: Sizes, r: int, scale: float) -> tuple[Tensor, Sizes]:
        if torch.is_autocast_enabled(x.device.type):
            # Which tokens go is decided in float32 whatever the products around it are computed in.
            with torch.autocast(x.device.type, enabled=False):
                return self._remove(x, q.float(), k.float(), sizes, r, scale)
        # As an op the step stays one node in a traced graph; everywhere else plain functions are faster.
        exporting = torch.compiler.is_exporting()
        if self.method == "prune":
            prune = ops.token_prune if exporting else pruning.token_prune
            score = pruning.attention_score(q * scale, k, self.prefix)
            return prune(x, score, r, self.prefix, self.fuse), None
        merge = ops.token_merge if exporting else merging.token_merge
        if sizes is None:
            size = torch.ones(x.shape[0], x.shape[1], 1, dtype=torch.float32, device=x.device)
        else:
            size = sizes[0]
        x, *merged = merge(x, k.to(x.dtype), size, r, self.prefix)  # of another type where the sum alone is wide
        return x, tuple(merged)


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
