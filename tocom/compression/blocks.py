"""The stack of transformer blocks that removes tokens, and how a module replaces another."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from timm.models.eva import Eva, EvaBlockPostNorm
from timm.models.vision_transformer import ResPostBlock, VisionTransformer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from tocom.compression import merging, ops, pruning
from tocom.compression.attention import attend, project
from tocom.compression.rotary import Rotation, turn
from tocom.errors import CompensatorError, DegreeError

if TYPE_CHECKING:
    from tocom.compensator.low_rank import LowRank

__all__ = [
    "CompressedBlocks",
    "embed",
    "is_post_norm",
    "layer_scale",
    "replace_child",
    "with_blocks",
    "without_layer_scale",
]

# Merged tokens' sizes and their logarithm, as token_merge returns them; None while every token is one patch.
Sizes = tuple[Tensor, Tensor] | None


class _Carried(NamedTuple):
    """What goes from block to block beside the tokens.

    Attributes:
        sizes: Sizes of the tokens.
        positions: Positions of the tokens: :class:`tocom.compression.rotary.Rotation`; None without rotary positions.
        home: Where each patch is among the tokens, [batch, patches]; None while patches are tokens.
    """

    sizes: Sizes
    positions: Tensor | None
    home: Tensor | None


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

    def forward(self, x: Tensor, rotation: Rotation | None = None) -> Tensor:
        """Return the tokens behind the last block, [batch, remaining tokens, channels]; see :meth:`run`."""
        return self.run(x, rotation)[0]

    def run(self, x: Tensor, rotation: Rotation | None = None) -> tuple[Tensor, Tensor | None]:
        """Run all blocks.

        Args:
            x: [batch, tokens, channels].
            rotation: How the blocks turn queries and keys; None for models without rotary positions.

        Returns:
            [batch, remaining tokens, channels], and where each patch is among them, [batch, patches]; None where every
            patch is a token still. Where pruning fuses nothing, it means nothing.
        """
        carried = _Carried(None, None if rotation is None else rotation.positions, None)
        for index in range(len(self)):
            if self.checkpointing and torch.is_grad_enabled():
                x, carried = checkpoint(self._block, index, x, rotation, carried, use_reentrant=False)
            else:
                x, carried = self._block(index, x, rotation, carried)
        return x, carried.home

    def _block(self, index: int, x: Tensor, rotation: Rotation | None, carried: _Carried) -> tuple[Tensor, _Carried]:
        block, r, adapters, (sizes, positions, home) = self[index], self.removed[index], self._adapters[index], carried
        whole = sizes is None and (rotation is None or positions is rotation.positions)
        if r == 0 and whole and adapters is None and not torch.compiler.is_exporting():
            return (block(x) if rotation is None else block(x, rope=rotation.dense(index))), carried
        post_norm = is_post_norm(block)
        attended = x if post_norm else block.norm1(x)
        q, k, v = project(block.attn, attended, adapters, self._window)
        if rotation is not None and positions is not None:
            sine, cosine = rotation.at(index, positions)
            q, k = (turn(each, sine, cosine, half=rotation.half) for each in (q, k))
        bias = None if sizes is None else sizes[1].to(q.dtype)
        out = attend(block.attn, attended, q, k, v, bias)
        x = x + block.drop_path1(block.norm1(out) if post_norm else _scaled(block, 1, out))
        if r:
            width = x.shape[-1]
            if positions is not None:
                # Positions are merged as the tokens are, by the same op: as more channels of them.
                x = torch.cat([x, positions.to(x.dtype).expand(x.shape[0], -1, -1)], dim=-1)
            x, sizes, destination = self._remove(x, q, k, sizes, r, block.attn.scale)
            if positions is not None:
                x, positions = x[..., :width], x[..., width:]
            home = destination[:, self.prefix :] if home is None else destination.gather(1, home.long())
        mlp = block.mlp(x if post_norm else block.norm2(x))
        x = x + block.drop_path2(block.norm2(mlp) if post_norm else _scaled(block, 2, mlp))
        return x, _Carried(sizes, positions, home)

    def _remove(
        self, x: Tensor, q: Tensor, k: Tensor, sizes: Sizes, r: int, scale: float
    ) -> tuple[Tensor, Sizes, Tensor]:
        if torch.is_autocast_enabled(x.device.type):
            # Which tokens go is decided in float32 whatever the products around it are computed in.
            with torch.autocast(x.device.type, enabled=False):
                return self._remove(x, q.float(), k.float(), sizes, r, scale)
        # As an op the step stays one node in a traced graph; everywhere else plain functions are faster.
        exporting = torch.compiler.is_exporting()
        if self.method == "prune":
            score = pruning.attention_score(q * scale, k, self.prefix)
            x, destination = (ops if exporting else pruning).token_prune_mapped(x, score, r, self.prefix, self.fuse)
            return x, None, destination
        if sizes is None:
            size = torch.ones(x.shape[0], x.shape[1], 1, dtype=torch.float32, device=x.device)
        else:
            size = sizes[0]
        k = k.to(x.dtype)  # of another type where the sum alone is wide
        merge = (ops if exporting else merging).token_merge_mapped
        x, size, log_size, destination = merge(x, k, size, r, self.prefix)
        return x, (size, log_size), destination


class CompressedEva(Eva):
    """timm's Eva around a stack that runs its blocks together. Never constructed: see :func:`with_blocks`."""

    def forward_features(self, x: Tensor, attn_mask: Tensor | None = None, is_causal: bool = False) -> Tensor:
        """Return the tokens after the last norm, [batch, remaining tokens, channels].

        Raises:
            DegreeError: A mask is given.
        """
        if attn_mask is not None or is_causal:
            iter(self.blocks)  # which says why not
        tokens: Tensor = self.norm(self.blocks(*embed(self, x)))
        return tokens


def embed(model: VisionTransformer | Eva, images: Tensor) -> tuple[Tensor, Rotation | None]:
    """Return what enters the blocks, [batch, tokens, channels], and how they turn queries and keys.

    Args:
        model: Dense or compressed.
        images: [batch, channels, height, width].
    """
    x = model.patch_embed(images)
    if not isinstance(model, Eva):
        return model.norm_pre(model.patch_drop(model._pos_embed(x))), None
    x, rope = model._pos_embed(x)
    return model.norm_pre(x), None if rope is None else Rotation.of(model, rope)


def with_blocks(model: VisionTransformer | Eva, blocks: CompressedBlocks) -> VisionTransformer | Eva:
    """Return a model that shares everything with ``model`` but its blocks."""
    twin = replace_child(model, "blocks", blocks)
    if isinstance(twin, Eva):
        twin.__class__ = CompressedEva  # Eva runs its blocks one by one
    return twin


def is_post_norm(block: nn.Module) -> bool:
    """Return whether a block's norms stand behind attention and MLP, not before."""
    return isinstance(block, (ResPostBlock, EvaBlockPostNorm))


def layer_scale(block: nn.Module, branch: int) -> Tensor | None:
    """Return what a block multiplies the output of attention (1) or MLP (2) with, [channels], or None."""
    if hasattr(block, f"gamma_{branch}"):
        return getattr(block, f"gamma_{branch}")  # type: ignore[no-any-return]
    return getattr(getattr(block, f"ls{branch}", None), "gamma", None)


def without_layer_scale(block: nn.Module, branch: int) -> nn.Module:
    """Return a block that shares everything with ``block`` but a layer scale, which it has not."""
    if hasattr(block, f"ls{branch}"):
        return replace_child(block, f"ls{branch}", nn.Identity())
    twin = _twin(block)
    twin._parameters[f"gamma_{branch}"] = None
    return twin


def _scaled(block: nn.Module, branch: int, x: Tensor) -> Tensor:
    gamma = layer_scale(block, branch)
    return x if gamma is None else gamma * x


def replace_child(module: nn.Module, name: str, child: nn.Module) -> nn.Module:
    """Return a module that shares everything with ``module`` but one child."""
    if not hasattr(module, name):
        raise CompensatorError(f"{type(module).__name__} has no child {name!r}.")
    twin = _twin(module)
    twin.__dict__.pop(name, None)  # timm says None where there is none
    twin._modules[name] = child
    return twin


def _twin(module: nn.Module) -> nn.Module:
    twin = copy.copy(module)
    # copy.copy shares the dicts, so writing to the twin's would rewire the original.
    for attribute in ("_parameters", "_buffers", "_modules"):
        twin.__dict__[attribute] = dict(module.__dict__[attribute])
    return twin
