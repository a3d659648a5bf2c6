"""What a reader is given and what it returns, and the sizes that tensors tell."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import timm
from torch import Tensor, nn

from tocom.compression.loading.preprocessing import Preprocessing
from tocom.errors import ModelError

__all__ = ["Found", "Part", "named_by_size", "norm_layer", "sizes"]

# Heads by width, of the Vision Transformers that were published; no file of tensors says them.
_HEADS = {192: 3, 384: 6, 768: 12, 1024: 16, 1280: 16, 1536: 24}
_WORDS = {192: "tiny", 384: "small", 768: "base", 1024: "large", 1280: "huge", 1536: "giant"}


@dataclass(frozen=True)
class Part:
    """One set of weights in a checkpoint.

    Attributes:
        tensors: Its tensors, the prefix taken off.
        prefix: What stood before their names.
        beside: The other tensors of the checkpoint, by their whole names.
        config: What a ``config.json`` beside the file says.
        facts: What stands beside the tensors in the file.
    """

    tensors: dict[str, Tensor]
    prefix: str = ""
    beside: dict[str, Tensor] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def sibling(self, name: str) -> Tensor | None:
        """Return a tensor that stands beside the backbone: ``classifier.weight`` beside ``vit.…``."""
        parent = self.prefix.rpartition(".")[0].rpartition(".")[0]
        return self.beside.get(f"{parent}.{name}" if parent else name)

    def renamed(self, names: Iterable[tuple[str, str]]) -> dict[str, Tensor]:
        """Return the tensors, each pattern replaced in their names, in this order."""
        state = {}
        for key, tensor in self.tensors.items():
            for old, new in names:
                key = re.sub(old, new, key)
            state[key] = tensor
        return state


@dataclass(frozen=True)
class Found:
    """Weights by timm's names.

    Attributes:
        family: What they are, for people.
        state: The tensors, as timm's ``checkpoint_filter_fn`` takes them.
        name: timm name, where the checkpoint says it or its sizes do.
        sizes: Options of ``create_model`` that give the model its size; for a name that was not asked for.
        options: Options that the weights need under any name.
        preprocessing: What the family does to images, where it is known.
        left_out: Names of tensors, or groups of them, that were not taken.
        taken: Names of tensors beside the backbone that were taken.
    """

    family: str
    state: dict[str, Tensor]
    name: str | None = None
    sizes: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    preprocessing: Preprocessing | None = None
    left_out: tuple[str, ...] = ()
    taken: tuple[str, ...] = ()


def sizes(state: Mapping[str, Tensor], *, prefix: int, heads: int | None = None) -> dict[str, Any]:
    """Return width, depth, patch size, heads, MLP ratio and image size of tensors with timm's names.

    The image size is the side in pixels of the square that the positions are of, None where they make no square.

    Args:
        state: With ``patch_embed.proj.weight``, ``pos_embed`` and ``blocks.…``.
        prefix: Positions before those of the patches.
        heads: Heads of the attention; without them, those that published models of this width have.
    """
    width, _, patch, _ = state["patch_embed.proj.weight"].shape
    heads = heads or _HEADS.get(width)
    if heads is None:
        raise ModelError(
            f"The checkpoint does not say how many attention heads its {width} channels make. Pass the timm name "
            "(--model), or --model-kwargs num_heads=N."
        )
    hidden = state["blocks.0.mlp.fc1.weight"].shape[0]
    depth = 1 + max(int(key.split(".")[1]) for key in state if key.startswith("blocks."))
    patches = state["pos_embed"].shape[1] - prefix
    side = round(patches**0.5)
    return {
        "embed_dim": width,
        "depth": depth,
        "num_heads": heads,
        "patch_size": patch,
        "mlp_ratio": (hidden + 0.5) / width,  # timm truncates the product
        "img_size": side * patch if side * side == patches else None,
    }


def named_by_size(pattern: str, fallback: str, facts: Mapping[str, Any]) -> str:
    """Return a timm name of a family by width and patch size, or the fallback, whose sizes are then overridden.

    Args:
        pattern: With ``{word}`` and ``{patch}``: ``vit_{word}_patch{patch}_224``.
        fallback: A name of the family.
        facts: From :func:`sizes`.
    """
    name = pattern.format(word=_WORDS.get(facts["embed_dim"], ""), patch=facts["patch_size"])
    return name if timm.is_model(name.partition(".")[0]) else fallback


def norm_layer(eps: float) -> Any:
    """Return timm's option for layer norms with an epsilon."""
    return partial(nn.LayerNorm, eps=eps)
