"""Time TokenMerge and TokenPrune on a GPU: the kernels, eager torch, torch.compile, and the bandwidth floor.

    python benchmarks/op_plugin.py [--out benchmarks/results/op_plugin-<gpu>.json] [--quick | --rehearse]

Every figure is the median over repeats of a CUDA graph (eager torch: of plain calls, as eager code runs) timed with
CUDA events, in microseconds. "floor" is the time in which a device copy moves the bytes that the op must move; "share"
is floor / time, the share of the measured copy bandwidth. Run it on an idle GPU with locked clocks where they can be.
``--rehearse`` goes the same way on the emulated device, without a GPU: its times mean nothing and are not written.
"""

from __future__ import annotations

import argparse
import datetime
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "export" / "op_plugin"))

from device_kernels import DeviceKernels, EmulatedKernels, compile_device_kernels, compile_emulated_kernels  # noqa: E402

from tocom.compression.merging import token_merge  # noqa: E402
from tocom.compression.pruning import token_prune  # noqa: E402

# batch, tokens, channels, channels of a head, r
SHAPES = [
    (1, 197, 192, 64, 16),
    (1, 197, 384, 64, 16),
    (8, 197, 384, 64, 16),
    (64, 197, 384, 64, 16),
    (1, 197, 768, 64, 16),
    (8, 197, 768, 64, 16),
    (64, 197, 768, 64, 16),
    (1, 577, 1024, 64, 32),
    (8, 577, 1024, 64, 32),
    (1, 1370, 1280, 80, 64),
    (1, 4096, 1408, 88, 256),
]
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
PREFIX = 1
DEVICE = "cuda"
# What the issue asks of a Hopper-class GPU.
GOALS = {"merge_197x384_batch1_us": 8.0, "times_faster_than_eager": 10.0, "share_of_copy_bandwidth_batch64": 0.6}


def time_us(run: Callable[[], Any], *, repeats: int, inner: int, graph: bool) -> float:
    """Return the median microseconds of one ``run``, over ``repeats`` measurements of ``inner`` runs each."""
    if DEVICE == "cpu":
        begin = time.perf_counter()
        run()
        return (time.perf_counter() - begin) * 1e6
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for _ in range(5):
            run()
        stream.synchronize()
        captured = None
        if graph:
            captured = torch.cuda.CUDAGraph()
            with torch.cuda.graph(captured, stream=stream):
                for _ in range(inner):
                    run()
        samples = []
        for _ in range(repeats):
            begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            begin.record(stream)
            if captured is not None:
                captured.replay()
            else:
                for _ in range(inner):
                    run()
            end.record(stream)
            end.synchronize()
            samples.append(begin.elapsed_time(end) * 1e3 / inner)
    return statistics.median(samples)


def copy_bytes_per_us(repeats: int) -> float:
    """Return the bandwidth of a large device copy, bytes read and written per microsecond."""
    source = torch.empty(1 << (30 if DEVICE == "cuda" else 20), dtype=torch.uint8, device=DEVICE)
    target = torch.empty_like(source)
    return 2 * source.numel() / time_us(lambda: target.copy_(source), repeats=repeats, inner=4, graph=True)


def measure(variants: dict[str, Callable[[], Any]], moved_bytes: int, bandwidth: float, repeats: int) -> dict[str, Any]:
    """Time every variant; one that cannot run says why instead."""
    floor = moved_bytes / bandwidth
    result: dict[str, Any] = {"moved_bytes": moved_bytes, "floor_us": round(floor, 3)}
    for name, run in variants.items():
        try:
            us = time_us(run, repeats=repeats, inner=20, graph=name != "eager")
            result[name] = {"us": round(us, 3), "share": round(floor / us, 3)}
        except Exception as error:  # A compiler that fails on one shape must not end the rest.
            result[name] = {"error": f"{type(error).__name__}: {error}".splitlines()[0]}
    if all("us" in result[name] for name in ("kernels", "eager")):
        result["times_faster_than_eager"] = round(result["eager"]["us"] / result["kernels"]["us"], 2)
    return result


def merge_variants(kernels: DeviceKernels, x: Tensor, keys: Tensor, size: Tensor, r: int) -> dict[str, Any]:
    """Return what runs merging; the kernels write to buffers that exist, as under TensorRT."""
    batch, tokens, channels = x.shape
    y = torch.empty(batch, tokens - r, channels, dtype=x.dtype, device=DEVICE)
    size_out = torch.empty(batch, tokens - r, 1, device=DEVICE)
    log_size = torch.empty(batch, 1, 1, tokens - r, dtype=x.dtype, device=DEVICE)
    workspace = torch.empty(kernels.workspace_bytes(batch, tokens, PREFIX), dtype=torch.uint8, device=DEVICE)
    compiled = torch.compile(token_merge, dynamic=False)
    return {
        "kernels": lambda: kernels.merge_into(x, keys, size, y, size_out, log_size, workspace, r, PREFIX),
        "eager": lambda: token_merge(x, keys, size, r, PREFIX),
        "compiled": lambda: compiled(x, keys, size, r, PREFIX),
    }


def bench_shape(
    kernels: DeviceKernels, shape: tuple[int, ...], kind: str, bandwidth: float, repeats: int
) -> list[dict[str, Any]]:
    """Time both ops at one shape and type."""
    batch, tokens, channels, head_channels, r = shape
    dtype = TYPES[kind]
    torch.manual_seed(0)
    x = torch.randn(batch, tokens, channels, device=DEVICE).to(dtype)
    keys = torch.randn(batch, channels // head_channels, tokens, head_channels, device=DEVICE).to(dtype)
    size = torch.ones(batch, tokens, 1, device=DEVICE)
    score = torch.rand(batch, tokens, device=DEVICE)
    item = x.element_size()
    gathered = batch * (2 * tokens - r) * channels * item
    facts = {"batch": batch, "tokens": tokens, "channels": channels, "r": r, "dtype": kind}
    merge_bytes = gathered + keys.numel() * item + (2 * tokens - r) * batch * 4
    prune_bytes = batch * 2 * (tokens - r) * channels * item + score.numel() * 4
    compiled = torch.compile(token_prune, dynamic=False)
    prune = {
        "kernels": lambda: kernels.prune(x, score, r, PREFIX, False),
        "eager": lambda: token_prune(x, score, r, PREFIX, False),
        "compiled": lambda: compiled(x, score, r, PREFIX, False),
    }
    return [
        {
            "op": "TokenMerge",
            **facts,
            "head_channels": head_channels,
            **measure(merge_variants(kernels, x, keys, size, r), merge_bytes, bandwidth, repeats),
        },
        {"op": "TokenPrune", **facts, **measure(prune, prune_bytes, bandwidth, repeats)},
    ]


def judge(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the figures that the goals speak of."""
    merges = [row for row in rows if row["op"] == "TokenMerge" and "us" in row["kernels"] and row["channels"] == 384]
    single = [row for row in merges if row["batch"] == 1]
    many = [row for row in merges if row["batch"] == 64]
    return {
        "merge_197x384_batch1_us": max((row["kernels"]["us"] for row in single), default=None),
        "times_faster_than_eager": min((row.get("times_faster_than_eager", 0.0) for row in single), default=None),
        "share_of_copy_bandwidth_batch64": min((row["kernels"]["share"] for row in many), default=None),
    }


def rehearse() -> int:
    """Go through every function once without a GPU; return the exit code."""
    global DEVICE
    DEVICE = "cpu"
    with tempfile.TemporaryDirectory() as folder:
        kernels = EmulatedKernels(compile_emulated_kernels(Path(folder)))
    kernels.configure(2, False)
    bandwidth = copy_bytes_per_us(1)
    rows = bench_shape(kernels, (1, 33, 64, 16, 4), "float32", bandwidth, 1)
    judge([{**row, "channels": 384} for row in rows])
    wrong = [f"{row['op']}: {what['error']}" for row in rows for what in row.values() if "error" in str(what)]
    print(*wrong, sep="\n")
    return 1 if wrong else 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, help="JSON file; default: benchmarks/results/op_plugin-<gpu>.json")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--quick", action="store_true", help="Few shapes and repeats, to see that it runs.")
    parser.add_argument("--rehearse", action="store_true", help="On the emulated device; writes nothing.")
    options = parser.parse_args()
    if options.rehearse:
        return rehearse()
    if not torch.cuda.is_available():
        print("This benchmark needs an NVIDIA GPU; torch sees none.", file=sys.stderr)
        return 1
    repeats = 5 if options.quick else options.repeats
    major, minor = torch.cuda.get_device_capability()
    name = torch.cuda.get_device_name()
    with tempfile.TemporaryDirectory() as folder:
        kernels = DeviceKernels(compile_device_kernels(Path(folder), major * 10 + minor))
    bandwidth = copy_bytes_per_us(repeats)
    rows: list[dict[str, Any]] = []
    for shape in SHAPES[:4] if options.quick else SHAPES:
        for kind in TYPES:
            # Compiled functions are kept per shape and type; without this the cache's limit ends compilation.
            torch._dynamo.reset()
            rows += bench_shape(kernels, shape, kind, bandwidth, repeats)
            print(json.dumps(rows[-2]), json.dumps(rows[-1]), sep="\n", flush=True)
    report = {
        "gpu": name,
        "compute_capability": f"{major}.{minor}",
        "driver_cuda": torch.version.cuda,
        "torch": torch.__version__,
        "host": platform.machine(),
        "measured": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "unit": "us: median microseconds of one op, CUDA graph of 20 (eager: 20 plain calls); share: of copy bandwidth",
        "repeats": repeats,
        "copy_gb_per_s": round(bandwidth / 1e3, 1),
        "goals": GOALS,
        "measured_against_goals": judge(rows),
        "rows": rows,
    }
    slug = "".join(c if c.isalnum() else "-" for c in name.lower())
    out = options.out or ROOT / "benchmarks" / "results" / f"op_plugin-{slug}.json"
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"wrote {out}; against the goals: {report['measured_against_goals']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
