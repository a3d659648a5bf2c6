"""What ``infer`` costs over the session it runs: the benchmark's own measurement, on a small bundle."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
from small_bundles import SmallBundle, images_of

from tocom.runtime import Runtime

BENCHMARK = Path(__file__).parents[2] / "benchmarks" / "runtime_overhead.py"


@pytest.mark.serial
def test_infer_costs_at_most_100_microseconds(small_bundle: SmallBundle) -> None:
    spec = importlib.util.spec_from_file_location("runtime_overhead", BENCHMARK)
    assert spec is not None
    assert spec.loader is not None
    benchmark = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(benchmark)
    with Runtime.open(small_bundle.path, threads=1) as runtime:
        report = benchmark.overhead(runtime, images_of(1), 2000)
    assert report["overhead_p50_us"] <= 100


def test_without_a_backend_the_error_says_what_to_install(small_bundle: SmallBundle) -> None:
    script = f"""
import sys
for name in ("onnxruntime", "openvino", "tensorrt", "tensorrt_rtx", "tensorrt_rtx_bindings", "cuda", "pycuda"):
    sys.modules[name] = None
from tocom.errors import EngineError
from tocom.runtime import Runtime
try:
    Runtime.open({str(small_bundle.path)!r})
except EngineError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    (line,) = done.stdout.splitlines()
    assert "No backend can serve" in line
    assert "pip install 'tocom[runtime]'" in line
