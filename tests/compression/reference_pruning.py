"""Token pruning in NumPy and plain loops, written from the paper's text (EViT, arXiv 2202.07800, section 3).

Shares no line with :mod:`tocom.compression.pruning`. One image at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def prune(x: Array, score: Array, r: int, prefix: int, fuse: bool) -> NDArray[np.float64]:
    """Return the prefix, the kept tokens in their order, and last (with ``fuse``) the mean of the others."""
    if r == 0:
        return x.astype(np.float64)
    worst_first = sorted(range(prefix, len(x)), key=lambda place: (float(score[place]), place))
    gone = worst_first[: r + 1 if fuse else r]
    rows = [x[place].astype(np.float64) for place in range(len(x)) if place not in gone]
    if fuse:
        total = sum(float(score[place]) for place in gone)
        weights = [float(score[place]) / total if total > 0 else 1 / len(gone) for place in gone]
        rows.append(sum(weight * x[place].astype(np.float64) for weight, place in zip(weights, gone, strict=True)))
    return np.stack(rows)


def attention_score(q: Array, k: Array, prefix: int) -> NDArray[np.float64]:
    """Return the class token's attention to every token, or (no prefix) the mean attention that each receives.

    Args:
        q: Queries of one image [heads, tokens, head_channels], scaled.
        k: Keys, of the same shape.
        prefix: Leading tokens; the first is the class token.
    """
    heads, tokens, _ = q.shape
    received = np.zeros(tokens)
    askers = [0] if prefix else list(range(tokens))
    for head in range(heads):
        for asker in askers:
            logits = np.array([float(q[head, asker].astype(np.float64) @ k[head, place]) for place in range(tokens)])
            weights = np.exp(logits - logits.max())
            received += weights / weights.sum() / (heads * len(askers))
    return received
