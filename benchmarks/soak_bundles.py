"""Make what the soak serves: two small real bundles, images, and what torch answers to them at every degree.

    python benchmarks/soak_bundles.py FOLDER

Run in a process of its own, so that the one that is measured never loads torch. Writes ``a`` and ``b`` (bundles of
timm's test_vit3 with different random weights, calibrated here), ``broken`` (``a`` with one bit of its weights
flipped) and ``expected.npz``.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np
import timm
import torch

from tocom import compress
from tocom.calibration import calibrate
from tocom.export import export
from tocom.runtime import Runtime

MODEL, SIZE, DEGREES = "test_vit3", 160, (0, 4, 8)
IMAGES = 16
TOLERANCE = 1e-3


def bundle(path: Path, images: np.ndarray, seed: int) -> np.ndarray:
    """Export and calibrate one bundle; return torch's answers, [degree, image, class]."""
    torch.manual_seed(seed)
    model = timm.create_model(MODEL, pretrained=False, img_size=SIZE).eval()
    with torch.no_grad():
        for parameter in model.parameters():  # timm starts many at zero, where a wrong degree would go unseen
            parameter.add_(torch.randn_like(parameter) * 0.05)
    export(model, path, degrees=DEGREES, batch=(1, 1, 2))
    calibrate(path, samples=30)
    with torch.inference_mode():
        return np.stack([compress(model, degree)(torch.from_numpy(images)).numpy() for degree in DEGREES])


def undecided(path: Path, images: np.ndarray, expected: np.ndarray) -> set[int]:
    """Return the images at which rounding decides a near-tie between tokens: there is no one right answer to them."""
    with Runtime.open(path) as runtime:
        return {
            index
            for row, degree in enumerate(DEGREES)
            for index in range(len(images))
            if not np.allclose(
                runtime.infer(images[index : index + 1], degree=degree).outputs["logits"][0],
                expected[row, index],
                atol=TOLERANCE,
            )
        }


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    folder.mkdir(parents=True, exist_ok=True)
    images = np.random.default_rng(0).standard_normal((IMAGES, 3, SIZE, SIZE), np.float32)
    expected = {name: bundle(folder / name, images, seed) for seed, name in enumerate("ab")}
    left_out = set().union(*(undecided(folder / name, images, expected[name]) for name in "ab"))
    kept = [index for index in range(IMAGES) if index not in left_out]
    if len(kept) < IMAGES // 2:
        raise SystemExit(f"{len(left_out)} of {IMAGES} images differ from torch: that is not a near-tie")
    answers = np.stack([expected[name][:, kept] for name in "ab"]).reshape(2 * len(DEGREES), len(kept), -1)
    for one in range(len(answers)):
        for other in range(one):
            # Else an answer of the wrong degree or bundle would pass for the right one.
            apart = np.abs(answers[one] - answers[other]).max(-1).min()
            if apart < 10 * TOLERANCE:
                raise SystemExit(f"answers {one} and {other} differ by {apart} only: a mix-up would go unseen")
    shutil.copytree(folder / "a", folder / "broken")
    weights = folder / "broken" / "weights.bin"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    np.savez(folder / "expected.npz", images=images[kept], **{name: expected[name][:, kept] for name in "ab"})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
