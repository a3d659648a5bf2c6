"""Keys for tests whose mean over heads is known."""

from __future__ import annotations

import numpy as np


def in_heads(metric: np.ndarray, heads: int) -> np.ndarray:
    """Return keys [batch, heads, tokens, channels] whose mean over heads is the metric, exactly."""
    keys = np.repeat(metric[:, None], heads, axis=1)
    keys[:, : heads - heads % 2 : 2] *= 2
    keys[:, 1::2] = 0
    return keys
