"""Token merging in NumPy and plain loops, written from the paper's text (ToMe, arXiv 2210.09461, section 3).

Slow and obvious on purpose; it shares no line with :mod:`tocom.compression.merging`. One image at a time.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.floating]


def merge(
    x: Array, metric: Array, size: Array, r: int, prefix: int
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[int]]:
    """Return merged tokens [tokens - r, channels], their sizes [tokens - r], and where every token went."""
    tokens = len(x)
    unit = cosine_rows(metric)
    a = [place for place in range(prefix, tokens) if place % 2 == 0]
    b = [place for place in range(prefix, tokens) if place % 2 == 1]
    merged_into = pair_up(unit, a, b, r)
    outputs = [*range(prefix), *(place for place in a if place not in merged_into), *b]
    goes = [outputs.index(merged_into.get(place, place)) for place in range(tokens)]
    y = np.zeros((tokens - r, x.shape[1]))
    y_size = np.zeros(tokens - r)
    for place in range(tokens):
        y[goes[place]] += float(size[place]) * x[place].astype(np.float64)
        y_size[goes[place]] += float(size[place])
    return y / y_size[:, None], y_size, goes


def published_merge(x: Array, metric: Array, size: Array, r: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return what the bipartite form with one class token gives, as it was published.

    A is every second token from the class token on, B the others; the class token's own score is minus infinity, so
    it stands last in the order and is never merged. The unmerged A tokens are put back in ascending order, so the
    class token leads; B follows.
    """
    unit = cosine_rows(metric)
    a_places, b_places = list(range(len(x)))[::2], list(range(len(x)))[1::2]
    scores = np.array([[float(np.dot(unit[i], unit[j])) for j in b_places] for i in a_places])
    scores[0, :] = -np.inf
    best, partner = scores.max(axis=1), scores.argmax(axis=1)
    order = np.argsort(-best, kind="stable")
    unmerged, merged = sorted(order[r:]), order[:r]
    sum_b = {k: size[j] * x[j].astype(np.float64) for k, j in enumerate(b_places)}
    size_b = {k: float(size[j]) for k, j in enumerate(b_places)}
    for row in merged:
        sum_b[partner[row]] = sum_b[partner[row]] + size[a_places[row]] * x[a_places[row]].astype(np.float64)
        size_b[partner[row]] += float(size[a_places[row]])
    y = [x[a_places[row]].astype(np.float64) for row in unmerged] + [sum_b[k] / size_b[k] for k in sum_b]
    return np.stack(y), np.array([float(size[a_places[row]]) for row in unmerged] + list(size_b.values()))


def cosine_rows(metric: Array) -> NDArray[np.float64]:
    """Return the rows divided by their lengths; a row of zeros stays zeros."""
    wide = metric.astype(np.float64)
    return wide / np.maximum(np.sqrt((wide**2).sum(axis=1, keepdims=True)), 1e-12)


def pair_up(unit: NDArray[np.float64], a: list[int], b: list[int], r: int) -> dict[int, int]:
    """Return the ``r`` pairs, A token to B token: best match of each A token, then the best matched first."""
    candidates = []
    for i in a:
        best, partner = -np.inf, -1
        for j in b:
            score = float(np.dot(unit[i], unit[j]))
            if score > best:  # strictly: of equals the first stays
                best, partner = score, j
        candidates.append((-best, i, partner))
    return {i: partner for _, i, partner in sorted(candidates)[:r]}
