"""What a camera's frame costs before the model sees it: ``Runtime.preprocess`` beside Pillow, as timm does it.

    python benchmarks/preprocess.py

A frame of noise, 1080 rows of 1920 RGB pixels, to 224 × 224, bicubic, normalised.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image

from tocom.images import preprocess
from tocom.runtime.preprocessing import prepare

RUNS = 40
ENTRY: dict[str, Any] = {
    "dtype": "float32",
    "shape": [1, 3, 224, 224],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bicubic",
    "crop": 0.9,
    "crop_mode": "center",
}


def times_ms(call: Callable[[], object]) -> np.ndarray:
    """Return the milliseconds of each run, the first few left out."""
    found = []
    for _ in range(RUNS + 5):
        begin = time.perf_counter()
        call()
        found.append((time.perf_counter() - begin) * 1e3)
    return np.array(found[5:])


def main() -> None:
    frame = np.random.default_rng(0).integers(0, 256, (1080, 1920, 3), np.uint8)
    for name, entry in (("float32", ENTRY), ("uint8", {**ENTRY, "dtype": "uint8"})):
        fast = times_ms(lambda entry=entry: prepare(frame, entry))  # type: ignore[misc]
        slow = times_ms(lambda entry=entry: preprocess(Image.fromarray(frame), entry))  # type: ignore[misc]
        print(
            f"1080p to 224, {name}: {np.median(fast):.2f} ms (p95 {np.quantile(fast, 0.95):.2f}); "
            f"Pillow {np.median(slow):.2f} ms"
        )


if __name__ == "__main__":
    main()
