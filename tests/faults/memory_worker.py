"""Load a bundle with only so many MiB of address space left, then answer from what was loaded. Run by tests.

Usage: memory_worker.py BUNDLE MIB BACKEND
"""

from __future__ import annotations

import resource
import sys
from importlib import import_module
from pathlib import Path

import numpy as np
from small_bundles import SIZE

from tocom.errors import EngineError
from tocom.runtime import Runtime


def main(bundle: str, mib: str, backend: str) -> None:
    # Loaded before the limit: it is the bundle that must not fit.
    if backend == "openvino":
        import_module("onnx.inliner")
        assert import_module("openvino").Core().available_devices
    else:
        import_module(backend)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limit = now + int(float(mib) * (1 << 20))
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
    images = np.ones((1, 3, SIZE, SIZE), np.float32)
    try:
        with Runtime.open(bundle, backend, threads=1, warm=False) as runtime:
            runtime.warm_up()
            result = runtime.infer(images)
            print("served", len(runtime.degrees), result.degree, *map(float, result.outputs["logits"][0]))
    except EngineError as error:
        print("refused", error)


if __name__ == "__main__":
    main(*sys.argv[1:])
