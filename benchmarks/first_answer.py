"""How long from a new process to its first answer, and what it holds then; one system, in a process of its own.

    python benchmarks/first_answer.py tocom BUNDLE [--degrees 0,4] [--backend NAME] | onnxruntime FILE | openvino FILE |
                                      torch MODEL --weights FILE  [--threads N]

Prints one line of JSON: seconds to import and to open (hashes, weights, sessions, warm-up: all that a service does
before it is ready), milliseconds of the first and the second answer, and the process's proportional set size. Run by
``compare.py``.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import numpy as np
from measuring import pss_bytes
from variants import onnxruntime_run, openvino_run, torch_run


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("system", choices=("tocom", "onnxruntime", "openvino", "torch"))
    parser.add_argument("source")
    parser.add_argument("--degrees", default="")
    parser.add_argument("--backend", default="onnxruntime")
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()

    begin = time.perf_counter()
    if options.system == "tocom":
        from tocom.runtime import Runtime
    elif options.system == "torch":
        import torch

        from tocom import load_model

        torch.set_num_threads(options.threads)
    else:
        __import__(options.system)
    imported = time.perf_counter()

    if options.system == "tocom":
        degrees = [int(part) for part in options.degrees.split(",")] if options.degrees else None
        runtime = Runtime.open(options.source, options.backend, degrees=degrees, threads=options.threads)
        images = np.zeros((1, *runtime.bundle.image_shape), np.float32)
        run = lambda: runtime.infer(images)  # noqa: E731
    elif options.system == "torch":
        model = load_model(options.source, weights=options.weights, image_size=options.image_size).model
        images = np.zeros((1, 3, *model.patch_embed.img_size), np.float32)
        run = torch_run(model, 0, images, compiled=False, cuda=False)
    else:
        images = np.zeros((1, 3, options.image_size or 224, options.image_size or 224), np.float32)
        start = onnxruntime_run if options.system == "onnxruntime" else openvino_run
        extra = {"cuda": False} if options.system == "onnxruntime" else {}
        run = start(Path(options.source), images, threads=options.threads, **extra)
    opened = time.perf_counter()

    answers = []
    for _ in range(2):
        start_s = time.perf_counter()
        run()
        answers.append((time.perf_counter() - start_s) * 1e3)
    print(
        json.dumps(
            {
                "import_s": round(imported - begin, 3),
                "open_s": round(opened - imported, 3),
                "first_ms": round(answers[0], 2),
                "second_ms": round(answers[1], 2),
                "pss_mib": round(pss_bytes() / 2**20, 1),
            }
        )
    )


if __name__ == "__main__":
    main()
