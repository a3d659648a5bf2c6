"""Compare what a backend serves with ONNX Runtime on the same inputs, by Polygraphy's comparator.

    python benchmarks/gpu_engines.py [--backend auto] [--model deit_small_patch16_224] [--degrees 0,8]

Builds the engines of a model with random weights where the backend is TensorRT or TensorRT-RTX, then compares, per
degree: batch 1 and the largest; equal rows of one batch; batches of two sizes in turn, as CUDA graphs see them; and a
tensor in GPU memory that a busy stream is still writing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import OrderedDict
from pathlib import Path

import numpy as np
import torch
from polygraphy.backend.base import BaseRunner
from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx
from polygraphy.common import TensorMetadata
from polygraphy.comparator import Comparator, CompareFunc

from tocom.compression.loading.model import load_model
from tocom.export import export
from tocom.export.engines.backend import BACKENDS, find_backend
from tocom.export.engines.builder import build
from tocom.formats.bundle import Bundle
from tocom.runtime import Runtime

LARGEST = 8
TOLERANCE = 2e-2  # TF32 products; a wrong engine is off by the answers' own size


class Served(BaseRunner):
    """A degree as the runtime serves it."""

    def __init__(self, bundle: Bundle, backend: str, degree: int) -> None:
        super().__init__(f"tocom {backend}, degree {degree}")
        self._bundle, self._backend, self._degree = bundle, backend, degree

    def activate_impl(self) -> None:
        self._runtime = Runtime.open(self._bundle.path, self._backend, degrees=[self._degree])

    def deactivate_impl(self) -> None:
        self._runtime.close()

    def get_input_metadata_impl(self) -> TensorMetadata:
        return TensorMetadata().add("images", np.float32, ("batch", *self._bundle.image_shape))

    def infer_impl(self, feed_dict: dict[str, np.ndarray]) -> OrderedDict[str, np.ndarray]:
        return OrderedDict(self._runtime.infer(feed_dict["images"], degree=self._degree).outputs)

    def last_inference_time(self) -> float:
        return 0.0  # times are calibrate's


def feeds(bundle: Bundle) -> list[dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)
    one = generator.standard_normal((1, *bundle.image_shape), np.float32)
    many = generator.standard_normal((LARGEST, *bundle.image_shape), np.float32)
    return [{"images": images} for images in (one, many, one, many, np.repeat(one, LARGEST, axis=0))]


def failures(bundle: Bundle, backend: str, degree: int) -> list[str]:
    runners = [OnnxrtRunner(SessionFromOnnx(str(bundle.onnx_path(degree)))), Served(bundle, backend, degree)]
    results = Comparator.run(runners, data_loader=feeds(bundle))
    compared = Comparator.compare_accuracy(results, compare_func=CompareFunc.simple(atol=TOLERANCE, rtol=TOLERANCE))
    found = [] if bool(compared) else [f"degree {degree}: answers differ from ONNX Runtime's"]
    served = [iteration["logits"] for iteration in results[1][1]]
    if not all(np.array_equal(row, served[4][0]) for row in served[4]):
        found.append(f"degree {degree}: equal rows of one batch have different answers")
    if not (np.array_equal(served[0], served[2]) and np.array_equal(served[1], served[3])):
        found.append(f"degree {degree}: the same batch has another answer after one of another size")
    return found


def race(bundle: Bundle, backend: str, degree: int) -> list[str]:
    """Hand over a tensor that another stream has not written yet: the runtime must wait for it."""
    if not torch.cuda.is_available():
        return []
    images = torch.randn(1, *bundle.image_shape, generator=torch.Generator().manual_seed(1))
    with Runtime.open(bundle.path, backend, degrees=[degree]) as runtime:
        expected = runtime.infer(images.numpy(), degree=degree).outputs["logits"]
        for stream in (torch.cuda.default_stream(), torch.cuda.Stream()):
            with torch.cuda.stream(stream):
                late = torch.zeros(images.shape, device="cuda")
                torch.cuda.synchronize()
                torch.cuda._sleep(1_000_000_000)  # cycles: about half a second
                late.copy_(images.pin_memory(), non_blocking=True)
                got = runtime.infer(late, degree=degree).outputs["logits"]
            if not np.allclose(got, expected, atol=1e-4):
                return [f"degree {degree}: a tensor that a busy stream was still writing was read too early"]
    return []


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--backend", default="auto", help="tensorrt, tensorrt-rtx, auto; onnxruntime to rehearse")
    parser.add_argument("--model", default="deit_small_patch16_224")
    parser.add_argument("--degrees", default="0,8")
    chosen = parser.parse_args()
    degrees = [int(degree) for degree in chosen.degrees.split(",")]
    name = find_backend("auto").name if chosen.backend == "auto" else chosen.backend
    with tempfile.TemporaryDirectory(prefix="tocom-gpu-") as folder:
        bundle = export(
            load_model(chosen.model, weights="random"), Path(folder) / "bundle", degrees=degrees, batch=(1, 1, LARGEST)
        )
        if name in BACKENDS:
            build(bundle, backend=name)
        found = [line for degree in degrees for line in failures(bundle, name, degree)]
        if name in BACKENDS:
            found += race(bundle, name, degrees[-1])
    print(*(found or [f"{name}: degrees {chosen.degrees} answer as ONNX Runtime does"]), sep="\n")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
