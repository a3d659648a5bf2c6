"""The comparison of docs/benchmarks.md: this project's bundle against what a user would run in its place.

    python benchmarks/compare.py [--device cpu|cuda] [--quick] [--models a,b] [--threads N] [--out FILE]

Writes ``benchmarks/results/compare-<device>.json``; ``compare_page.py`` makes the page of it. Weights are random: they
are right for latency and mean nothing for accuracy. All variants of one model and batch are timed in turns in one
process (see ``measuring.interleave``), so their ratios hold within the run. On two idle cores it takes at most 20
minutes: compiling by torch ends after ``--compile-minutes``, what is left then is written down as not compiled.
``--quick`` runs a small model with few rounds in about a minute, to see that everything works.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from measuring import RESULTS, first_line, folder_bytes, interleave, machine
from variants import (
    Timed,
    export_dense,
    onnxruntime_run,
    openvino_run,
    tocom_runs,
    torch_run,
)

from tocom.system.cpu import usable_cores
from tocom.system.files import write_json

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Group:
    """One model at one batch: what is timed in turns.

    Attributes:
        model: timm name.
        batch: Images per inference.
        degrees: Of the bundle, on each of its backends, and of eager torch.
        compiled: Degrees that torch compiles; each costs a minute or so.
        seconds: Of timing; rounds that have begun are finished.
    """

    model: str
    batch: int
    degrees: tuple[int, ...] = (0, 4, 8, 12, 16)
    compiled: tuple[int, ...] = (0, 16)
    seconds: float = 60.0


TINY, SMALL, BASE = (f"deit_{size}_patch16_224" for size in ("tiny", "small", "base"))
# Systems that are the bundle, and the backend of each.
ON_CPU = (("tocom", "onnxruntime"), ("tocom-openvino", "openvino"))
SMALLER = {SMALL: TINY, BASE: SMALL}
# The most telling first: what runs out of time is the last. The base model at batch 8 takes seconds per inference.
GROUPS = (
    Group(SMALL, 1, seconds=65),
    Group(SMALL, 8, seconds=95),
    Group(TINY, 1, seconds=25),
    Group(TINY, 8, seconds=35),
    Group(BASE, 1, seconds=60),
    Group(BASE, 8, degrees=(0, 8, 16), seconds=90),
)
QUICK = (Group("test_vit3", 1, (0, 4), (4,), 1.0), Group("test_vit3", 2, (0, 4), (), 1.0))


class Models:
    """Random models, their bundles and their plain ONNX files, each made once."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._models, self.exports = folder, {}, {}

    def torch(self, name: str) -> Any:
        if name not in self._models:
            from tocom import load_model

            # timm's own small model has 160 pixels and 100 tokens: enough for the degrees of --quick.
            self._models[name] = load_model(name, weights="random")
        return self._models[name]

    def dense_onnx(self, name: str, batch: int) -> Path:
        path = self.folder / f"{name}-{batch}.onnx"
        return path if path.exists() else export_dense(self.torch(name).model, path, batch=batch)

    def bundle(self, name: str, batch: int, degrees: tuple[int, ...] = ()) -> Path:
        """Return a bundle for one batch size, as who serves that size exports it; the model's first one is checked."""
        path = self.folder / f"{name}-{batch}-bundle"
        if not path.exists():
            from tocom.export import export

            if name in self.exports:
                export(self.torch(name), path, degrees=degrees, batch=(batch, batch, batch), check=False)
                return path
            marks: list[tuple[str, float]] = []
            export(
                self.torch(name),
                path,
                degrees=degrees,
                batch=(batch, batch, batch),
                progress=lambda what, done, total: marks.append((what, time.perf_counter())),
            )
            marks.append(("done", time.perf_counter()))
            spent = {what: round(b - a, 2) for (what, a), (_, b) in itertools.pairwise(marks)}
            dense = self.dense_onnx(name, 1)
            self.exports[name] = {
                "model": name,
                "degrees": list(degrees),
                "seconds": spent,
                "total_s": round(marks[-1][1] - marks[0][1], 2),
                "bundle_bytes": folder_bytes(path),
                "dense_onnx_bytes": dense.stat().st_size,
            }
        return path


def prepare(group: Group, models: Models, options: argparse.Namespace, stack: ExitStack, deadline: float) -> Timed:
    """Make all variants of a group ready."""
    import torch

    cuda, threads, timed = options.device == "cuda", options.threads, Timed()
    model = models.torch(group.model).model
    images = np.random.default_rng(0).standard_normal((group.batch, 3, *model.patch_embed.img_size), np.float32)
    bundle = models.bundle(group.model, group.batch, group.degrees)
    if cuda:
        build_for_gpu(bundle, timed)
    for system, backend in (("tocom", "auto"),) if cuda else ON_CPU:
        try:
            runs = tocom_runs(bundle, group.degrees, images, backend=backend, threads=threads, stack=stack)
            for degree, run in runs.items():
                timed.add(system, degree, lambda run=run: run)
        except Exception as error:  # a backend that does not work here; the reason goes to the page
            timed.errors[system, group.degrees[0]] = first_line(error)
    for degree in group.degrees:
        timed.add("torch", degree, lambda degree=degree: torch_run(model, degree, images, compiled=False, cuda=cuda))
    dense = models.dense_onnx(group.model, group.batch)
    timed.add("onnxruntime", 0, lambda: onnxruntime_run(dense, images, threads=threads, cuda=cuda))
    if group.model in SMALLER:
        smaller = models.dense_onnx(SMALLER[group.model], group.batch)
        timed.add("smaller", 0, lambda: onnxruntime_run(smaller, images, threads=threads, cuda=cuda))
    if not cuda:
        timed.add("openvino", 0, lambda: openvino_run(dense, images, threads=threads))
    for degree in group.compiled:
        if time.perf_counter() > deadline:
            timed.errors["torch-compiled", degree] = "not compiled: the time for compiling was used up"
            continue
        torch._dynamo.reset()
        timed.add(
            "torch-compiled", degree, lambda degree=degree: torch_run(model, degree, images, compiled=True, cuda=cuda)
        )
    return timed


def build_for_gpu(bundle: Path, timed: Timed) -> None:
    """Build engines where TensorRT is installed; without it the runtime takes ONNX Runtime's CUDA provider."""
    from tocom.errors import TocomError
    from tocom.export.engines.builder import build

    try:
        build(bundle)
    except TocomError as error:
        timed.errors["tocom build", 0] = first_line(error)


def measure_group(group: Group, models: Models, options: argparse.Namespace, compile_s: list[float]) -> dict[str, Any]:
    """Time one model at one batch; ``compile_s`` is the time for compiling that is left."""
    print(f"{group.model}, batch {group.batch}: making ready", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    with ExitStack() as stack:
        timed = prepare(group, models, options, stack, time.perf_counter() + compile_s[0])
        compile_s[0] -= sum(s for (system, _), s in timed.ready_s.items() if system == "torch-compiled")
        ready = time.perf_counter() - begin
        named = {f"{system}@{degree}": run for (system, degree), run in timed.runs.items()}
        print(f"{group.model}, batch {group.batch}: timing {len(named)} variants", file=sys.stderr, flush=True)
        times = interleave(named, seconds=group.seconds * options.share, least_rounds=options.least_rounds)
    rows = [
        {
            "system": system,
            "degree": degree,
            "ready_s": timed.ready_s[system, degree],
            "samples_ms": [round(value, 3) for value in times[f"{system}@{degree}"]],
        }
        for system, degree in timed.runs
    ]
    rows += [{"system": system, "degree": degree, "error": text} for (system, degree), text in timed.errors.items()]
    return {"model": group.model, "batch": group.batch, "ready_s": round(ready, 1), "rows": rows}


def first_answers(name: str, models: Models, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Start each system in processes of its own and return medians over them."""
    from safetensors.torch import save_file

    from tocom.calibration import calibrate
    from tocom.errors import TocomError

    bundle = models.bundle(name, 1)
    model = models.torch(name).model
    weights = models.folder / f"{name}.safetensors"
    save_file(model.state_dict(), weights)
    dense, side = str(models.dense_onnx(name, 1)), ["--image-size", str(model.patch_embed.img_size[0])]
    fresh = {"TOCOM_CACHE": str(models.folder / "fresh-cache")}
    begin = time.perf_counter()
    calibrate(bundle, samples=10, backend="onnxruntime", threads=options.threads)
    calibrated = round(time.perf_counter() - begin, 1)
    with contextlib.suppress(TocomError):  # its absence is told by the row that starts it
        calibrate(bundle, samples=10, backend="openvino", threads=options.threads)
    cases: list[tuple[str, list[str], dict[str, str], int]] = [
        ("tocom, all degrees, first start ever", ["tocom", str(bundle)], fresh, 1),
        ("tocom, all degrees", ["tocom", str(bundle)], {}, options.starts),
        ("tocom, dense alone", ["tocom", str(bundle), "--degrees", "0"], {}, options.starts),
        ("tocom, all degrees, OpenVINO", ["tocom", str(bundle), "--backend", "openvino"], {}, 1),
        ("ONNX Runtime, dense", ["onnxruntime", dense, *side], {}, options.starts),
        ("OpenVINO, dense", ["openvino", dense, *side], {}, options.starts),
        ("torch, dense, eager", ["torch", name, "--weights", str(weights), *side], {}, options.starts),
    ]
    samples: dict[str, list[dict[str, float]]] = {case[0]: [] for case in cases}
    errors: dict[str, str] = {}
    for turn in range(options.starts):
        for what, arguments, extra, times in cases:
            if turn >= times or what in errors:
                continue
            command = [sys.executable, str(HERE / "first_answer.py"), *arguments, "--threads", str(options.threads)]
            done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, **extra})
            if done.returncode:
                errors[what] = done.stderr.strip().splitlines()[-1][:300]
            else:
                samples[what].append(json.loads(done.stdout.strip().splitlines()[-1]))
    rows: list[dict[str, Any]] = []
    for what, found in samples.items():
        figures = {key: round(statistics.median(row[key] for row in found), 3) for key in found[0]} if found else {}
        rows.append(
            {"what": what, "starts": len(found), **figures, **({"error": errors[what]} if what in errors else {})}
        )
    return [{"model": name, "calibrate_10_samples_s": calibrated, "rows": rows}]


def build_engines(name: str, models: Models) -> dict[str, Any]:
    """Build TensorRT-RTX engines without a GPU and return the seconds and bytes of each degree."""
    from tocom.errors import TocomError
    from tocom.export.engines.builder import build

    print(f"{name}: building engines", file=sys.stderr, flush=True)
    begin = time.perf_counter()
    try:
        engines = build(models.bundle(name, 1), backend="tensorrt-rtx", batch=1)
    except TocomError as error:
        return {"model": name, "error": first_line(error)}
    return {
        "model": name,
        "backend": "tensorrt-rtx",
        "total_s": round(time.perf_counter() - begin, 1),
        "notes": list(engines.notes),
        "degrees": [
            {
                "degree": degree,
                "build_s": round(record.build_seconds, 2),
                "bytes": record.engine.size_bytes,
                "lowering": "plugin" if record.op_plugin_layers else "native",
            }
            for degree, record in engines.records.items()
        ],
    }


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--quick", action="store_true", help="A small model and few rounds.")
    parser.add_argument("--models", help="timm names, to measure a part.")
    parser.add_argument("--threads", type=int, default=usable_cores())
    parser.add_argument("--compile-minutes", type=float, default=5.5)
    parser.add_argument("--share", type=float, default=1.0, help="Share of the time for each group.")
    parser.add_argument("--starts", type=int, default=3, help="Processes started per system; 0 starts none.")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args(arguments)
    options.groups, options.least_rounds = (QUICK, 3) if options.quick else (GROUPS, 6)
    if options.models:
        options.groups = tuple(group for group in options.groups if group.model in options.models.split(","))
    if not options.groups:
        parser.error(f"no group is of --models {options.models}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory(prefix="tocom-compare-") as name:
        folder = Path(name)
        # Caches of earlier runs would make building look free. Read when first used, so before anything is compiled.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder / "inductor")
        os.environ["TOCOM_CACHE"] = str(folder / "cache")
        import torch

        torch.set_num_threads(options.threads)
        if options.device == "cuda" and not torch.cuda.is_available():
            sys.exit("--device cuda needs an NVIDIA GPU; torch sees none.")
        described = {**machine(), "threads": options.threads}
        if options.device == "cuda":
            described["gpu"] = torch.cuda.get_device_name()
        models, compile_s = Models(folder), [options.compile_minutes * 60]
        groups = [measure_group(group, models, options, compile_s) for group in options.groups]
        first, on_cpu = options.groups[0].model, options.device == "cpu"
        report = {
            "device": options.device,
            "weights": "random",
            "quick": options.quick,
            "machine": described,
            "groups": groups,
            "exports": list(models.exports.values()),
            "first_answers": first_answers(first, models, options) if on_cpu and options.starts else [],
            "engines": build_engines(first, models) if on_cpu and not options.quick else {},
        }
    report["minutes"] = round((time.perf_counter() - begin) / 60, 1)
    out = options.out or RESULTS / f"compare-{options.device}.json"
    write_json(out, report)
    print(f"wrote {out} after {report['minutes']} minutes; the page: python benchmarks/compare_page.py")


if __name__ == "__main__":
    main()
