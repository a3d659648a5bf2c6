"""Open a bundle and answer with every degree; runs on both machines: answers.py BUNDLE IMAGES.npy OUT.npz."""

from __future__ import annotations

import sys

import numpy as np

from tocom.runtime import Runtime


def main() -> None:
    bundle, images, out = sys.argv[1:]
    answers = {}
    with Runtime.open(bundle, "onnxruntime", threads=1) as runtime:
        for degree in runtime.bundle.degrees:
            found = runtime.infer(np.load(images), degree=degree)
            answers[str(degree)] = found.outputs["logits"]
    np.savez(out, **answers)


if __name__ == "__main__":
    main()
