"""Random inputs whose scores float32 represents exactly, so that every order of summation gives the same ones."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

SOURCES = Path(__file__).parents[3] / "export" / "op_plugin" / "native"


@dataclass(frozen=True)
class MatchCase:
    metric: np.ndarray
    r: int
    prefix: int


@dataclass(frozen=True)
class PruneCase:
    score: np.ndarray
    r: int
    prefix: int
    fuse: bool


def match_case(rng: np.random.Generator, *, most_tokens: int = 80) -> MatchCase:
    """Rows of 1, 4 or 16 entries of plus or minus a power of two: their lengths are powers of two, ties abound."""
    prefix = int(rng.integers(0, 6))
    tokens = int(rng.integers(prefix + 2, most_tokens))
    batch, channels = int(rng.integers(1, 4)), int(rng.choice([1, 3, 4, 8, 16, 20]))
    entries = int(rng.choice([n for n in (1, 4, 16) if n <= channels]))
    metric = np.zeros((batch, tokens, channels), np.float32)
    places = rng.random((batch, tokens, channels)).argsort(axis=-1)[..., :entries]
    np.put_along_axis(metric, places, rng.choice([-1.0, 1.0], places.shape).astype(np.float32), axis=-1)
    metric *= (2.0 ** rng.integers(-3, 4, (batch, tokens, 1))).astype(np.float32)
    if rng.random() < 0.2:
        # Rows of zeros have no direction: their scores are all 0.
        metric[:, rng.integers(0, tokens)] = 0.0
    if rng.random() < 0.1:
        metric[:] = metric[:, :1]
    cap = (tokens - prefix) // 2
    return MatchCase(metric, int(rng.choice([1, cap, rng.integers(1, cap + 1)])), prefix)


def prune_case(rng: np.random.Generator, *, most_tokens: int = 300) -> PruneCase:
    """Scores from a small set, so that ties abound, or all different."""
    prefix = int(rng.integers(0, 6))
    tokens = int(rng.integers(prefix + 2, most_tokens))
    batch = int(rng.integers(1, 4))
    if rng.random() < 0.7:
        score = rng.integers(0, int(rng.integers(1, 40)), (batch, tokens)).astype(np.float32) / 64.0
    else:
        score = rng.random((batch, tokens), np.float32)
    if rng.random() < 0.1:
        score *= np.where(rng.random(score.shape) < 0.5, -0.0, 0.0).astype(np.float32)
    cap = (tokens - prefix) // 2
    return PruneCase(score, int(rng.choice([1, cap, rng.integers(1, cap + 1)])), prefix, bool(rng.random() < 0.5))
