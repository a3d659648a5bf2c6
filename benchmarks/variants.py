"""The systems that ``compare.py`` times, each as a function of one inference.

    torch, torch-compiled        eager and compiled, dense or merging by ``tocom.compress``; inference mode
    onnxruntime                  the dense model by a plain ``torch.onnx.export``, all options at their defaults
    openvino                     the same file under OpenVINO, latency hint, float32
    tocom, tocom-openvino        this project's bundle through ``Runtime.infer``, one degree pinned, on either backend
    smaller                      the next smaller dense model, exported and run as ``onnxruntime``

On a GPU the torch variants run there, ``onnxruntime`` takes its CUDA provider, ``tocom`` the backend that ``auto``
finds after ``tocom build``, and OpenVINO is left out. Every call takes images in host memory and gives logits there.
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

Run = Callable[[], Any]


@dataclass
class Timed:
    """What is ready to run, what could not be made ready and why, and how long making ready took, in seconds."""

    runs: dict[tuple[str, int], Run] = field(default_factory=dict)
    errors: dict[tuple[str, int], str] = field(default_factory=dict)
    ready_s: dict[tuple[str, int], float] = field(default_factory=dict)

    def add(self, system: str, degree: int, make: Callable[[], Run]) -> None:
        """Make a variant ready and run it twice; an error ends this variant, not the benchmark."""
        from measuring import first_line

        begin = time.perf_counter()
        try:
            run = make()
            run()
            self.ready_s[system, degree] = round(time.perf_counter() - begin, 2)
            run()
        except Exception as error:  # other people's compilers fail in all kinds of ways; the reason goes to the page
            self.errors[system, degree] = first_line(error)
        else:
            self.runs[system, degree] = run


def torch_run(model: Any, degree: int, images: np.ndarray, *, compiled: bool, cuda: bool) -> Run:
    """Return dense or merging torch, eager or compiled."""
    import torch

    from tocom import compress

    network = compress(model, degree)
    if cuda:
        network = network.to("cuda")
    if compiled:
        network = torch.compile(network, dynamic=False)
    host = torch.from_numpy(images)

    def run() -> np.ndarray:
        with torch.inference_mode():
            return network(host.to("cuda") if cuda else host).cpu().numpy()

    return run


def export_dense(model: Any, path: Path, *, batch: int) -> Path:
    """Write a model as a user would without this project: a plain ``torch.onnx.export`` of what timm gives."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            (torch.zeros(batch, 3, *model.patch_embed.img_size),),
            str(path),
            input_names=["images"],
            output_names=["logits"],
            dynamo=True,
            external_data=False,
            verbose=False,
        )
    return path


def onnxruntime_run(path: Path, images: np.ndarray, *, threads: int, cuda: bool) -> Run:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if cuda else ["CPUExecutionProvider"]
    session = onnxruntime.InferenceSession(str(path), options, providers=providers)
    return lambda: session.run(None, {"images": images})[0]


def openvino_run(path: Path, images: np.ndarray, *, threads: int) -> Run:
    import openvino

    core = openvino.Core()
    model = core.read_model(path)
    model.reshape(list(images.shape))
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": str(threads),
        "INFERENCE_PRECISION_HINT": "f32",
    }
    request = core.compile_model(model, "CPU", options).create_infer_request()
    return lambda: next(iter(request.infer({0: images}).values()))


def tocom_runs(
    bundle: Path, degrees: Iterable[int], images: np.ndarray, *, backend: str, threads: int, stack: ExitStack
) -> dict[int, Run]:
    """Return one run per degree of a bundle, all resident in one runtime."""
    from tocom.runtime import Runtime

    runtime = stack.enter_context(Runtime.open(bundle, backend, degrees=list(degrees), threads=threads))

    def at(degree: int) -> Run:
        return lambda: runtime.infer(images, degree=degree).outputs["logits"]

    return {degree: at(degree) for degree in degrees}
