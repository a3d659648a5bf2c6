"""A rotary Vision Transformer that merges or prunes, in NumPy and plain loops, one image at a time.

Every token keeps the list of patches that it stands for, with their weights; where it is follows from that list alone:
the weighted mean of its patches' sines and cosines, or with mixed frequencies of their rows and columns. Shares no line
with :mod:`tocom.compression`.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from reference_merging import cosine_rows, pair_up
from reference_pruning import attention_score

Array = NDArray[np.float64]


def forward(
    model: Any, tokens: Array, r: int, *, method: str = "merge", fuse: bool = False
) -> tuple[Array, list[dict[int, float]]]:
    """Return the tokens after the last block, and for each the patches that it stands for, with weights of sum one.

    Args:
        model: timm's Eva, pre-norm blocks, MLP of two layers.
        tokens: [tokens, channels] before the first block.
        r: Tokens to remove in each block.
        method: ``merge`` or ``prune``.
        fuse: With ``prune``.
    """
    prefix = model.num_prefix_tokens
    x = tokens
    # The prefix stands for no patch.
    shares: list[dict[int, float]] = [{} if place < prefix else {place - prefix: 1.0} for place in range(len(x))]
    size = np.ones(len(x))
    for index, block in enumerate(model.blocks):
        attention, read = block.attn, _norm(block.norm1, x)
        heads, width = attention.num_heads, attention.head_dim
        q, k, v = (part.reshape(len(x), heads, width) for part in _projections(attention, read))
        for head in range(heads):
            for place, share in enumerate(shares):
                if share:
                    sine, cosine = _turn(model, index, head, share)
                    for part in (q, k):
                        part[place, head] = _turned(part[place, head], sine, cosine, half=attention.rotate_half)
        out = np.zeros((len(x), heads, width))
        for head in range(heads):
            logits = q[:, head] @ k[:, head].T * width**-0.5
            if method == "merge":
                logits = logits + np.log(size)
            weights = np.exp(logits - logits.max(axis=1, keepdims=True))
            out[:, head] = weights / weights.sum(axis=1, keepdims=True) @ v[:, head]
        x = x + _scaled(block.gamma_1, _linear(attention.proj, out.reshape(len(x), -1)))
        if not r:
            pass
        elif method == "merge":
            x, size, shares = _merged(x, k.mean(axis=1), size, shares, r, prefix)
        else:
            score = attention_score(q.transpose(1, 0, 2) * width**-0.5, k.transpose(1, 0, 2), prefix)
            x, shares = _pruned(x, score, shares, r, prefix, fuse)
            size = np.ones(len(x))
        hidden = _linear(block.mlp.fc1, _norm(block.norm2, x))
        x = x + _scaled(block.gamma_2, _linear(block.mlp.fc2, _gelu(hidden)))
    return x, shares


def _merged(
    x: Array, metric: Array, size: Array, shares: list[dict[int, float]], r: int, prefix: int
) -> tuple[Array, Array, list[dict[int, float]]]:
    unit = cosine_rows(metric)
    a = [place for place in range(prefix, len(x)) if place % 2 == 0]
    b = [place for place in range(prefix, len(x)) if place % 2 == 1]
    into = pair_up(unit, a, b, r)
    kept = [*range(prefix), *(place for place in a if place not in into), *b]
    rows, sizes, lists = [], [], []
    for place in kept:
        group = [place, *(other for other, target in into.items() if target == place)]
        total = sum(size[member] for member in group)
        rows.append(sum(size[member] * x[member] for member in group) / total)
        sizes.append(total)
        patches = {patch for member in group for patch in shares[member]}
        lists.append({patch: 1 / len(patches) for patch in patches})  # a size is a number of patches
    return np.stack(rows), np.array(sizes), lists


def _pruned(
    x: Array, score: Array, shares: list[dict[int, float]], r: int, prefix: int, fuse: bool
) -> tuple[Array, list[dict[int, float]]]:
    worst_first = sorted(range(prefix, len(x)), key=lambda place: (float(score[place]), place))
    gone = worst_first[: r + 1 if fuse else r]
    kept = [place for place in range(len(x)) if place not in gone]
    rows, lists = [x[place] for place in kept], [shares[place] for place in kept]
    if fuse:
        total = sum(score[place] for place in gone)
        rows.append(sum(score[place] / total * x[place] for place in gone))
        fused: dict[int, float] = {}
        for place in gone:
            for patch, part in shares[place].items():
                fused[patch] = fused.get(patch, 0.0) + part * float(score[place] / total)
        lists.append(fused)
    return np.stack(rows), lists


def _turn(model: Any, block: int, head: int, share: dict[int, float]) -> tuple[Array, Array]:
    """Return the sine and cosine of each pair of channels for a token."""
    if model.rope_mixed:
        place = sum(part * _place(model, patch) for patch, part in share.items())
        across, down = model.rope.freqs[:, block, head].detach().double().numpy()
        angle = place[0] * across + place[1] * down
        return np.sin(angle), np.cos(angle)
    angles = {patch: _angles(model, patch) for patch in share}
    sine = sum(part * np.sin(angles[patch]) for patch, part in share.items())
    cosine = sum(part * np.cos(angles[patch]) for patch, part in share.items())
    return sine, cosine


def _place(model: Any, patch: int) -> Array:
    """Return row and column of a patch, in the order of the model's two coordinates."""
    row, column = divmod(patch, model.patch_embed.grid_size[1])
    return np.array([column, row] if model.rope.grid_indexing == "xy" else [row, column], dtype=np.float64)


def _angles(model: Any, patch: int) -> Array:
    """Return the angle of each pair of channels: first those of the first coordinate, then of the second."""
    quarter = model.rope.dim // 4
    place, temperature = _place(model, patch), float(model.rope.temperature)
    if type(model.rope).__name__ == "RotaryEmbeddingDinoV3":
        height, width = model.patch_embed.grid_size
        sides = np.array([width, height] if model.rope.grid_indexing == "xy" else [height, width])
        place = 2 * (place + 0.5) / sides - 1
        return np.concatenate([2 * math.pi * at / temperature ** (np.arange(quarter) / quarter) for at in place])
    return np.concatenate([at / temperature ** (np.arange(quarter) / quarter) for at in place])


def _turned(x: Array, sine: Array, cosine: Array, *, half: bool) -> Array:
    out, pairs = np.empty_like(x), len(x) // 2
    for pair in range(pairs):
        first, second = (pair, pair + pairs) if half else (2 * pair, 2 * pair + 1)
        out[first] = x[first] * cosine[pair] - x[second] * sine[pair]
        out[second] = x[second] * cosine[pair] + x[first] * sine[pair]
    return out


def _projections(attention: Any, x: Array) -> list[Array]:
    if attention.qkv is None:
        return [_linear(getattr(attention, f"{name}_proj"), x) for name in "qkv"]
    fused = _linear(attention.qkv, x)
    if getattr(attention, "q_bias", None) is not None:
        biases = (attention.q_bias, attention.k_bias, attention.v_bias)
        fused = fused + np.concatenate([bias.detach().double().numpy() for bias in biases])
    return np.split(fused, 3, axis=1)


def _linear(layer: Any, x: Array) -> Array:
    out = x @ layer.weight.detach().double().numpy().T
    return out if layer.bias is None else out + layer.bias.detach().double().numpy()


def _norm(layer: Any, x: Array) -> Array:
    spread = np.sqrt(x.var(axis=1, keepdims=True) + layer.eps)
    weight, bias = (each.detach().double().numpy() for each in (layer.weight, layer.bias))
    return (x - x.mean(axis=1, keepdims=True)) / spread * weight + bias


def _scaled(gamma: Any, x: Array) -> Array:
    return x if gamma is None else gamma.detach().double().numpy() * x


def _gelu(x: Array) -> Array:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
