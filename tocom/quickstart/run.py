"""The quickstart: every arrow of the way of the data, in order."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import timm
import torch
from numpy.typing import NDArray
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tocom.alignment.ridge import feature_gaps
from tocom.calibration import block_times, calibrate, measure_accuracy, suggest_degrees, write_report
from tocom.compensator.compensator import Compensator
from tocom.compensator.tensor_file import save_tensors
from tocom.compression.features import pooled, pooled_features
from tocom.compression.loading.model import LoadedModel
from tocom.compression.loading.preprocessing import input_config
from tocom.compression.surgery import compress
from tocom.export import export
from tocom.export.graph.projections import tensor_bytes
from tocom.formats.bundle import Bundle
from tocom.quickstart.cells import HELD_OUT, LABELS, TEST, TRAIN, Cell, split_cells
from tocom.quickstart.head import fit_head
from tocom.quickstart.stream import budget_steps, stream
from tocom.quickstart.weights import BACKBONE, IMAGE_SIZE, read_backbone
from tocom.runtime import Runtime
from tocom.system.cpu import cpu_identity
from tocom.system.files import check_writable, write_json
from tocom.system.progress import Progress
from tocom.training.config import TrainingConfig
from tocom.training.image_files import ImageFiles
from tocom.training.trainer import train

__all__ = ["QuickstartConfig", "quickstart"]

# ToCom tries these at use and keeps the best on held-out data.
_SCALES = (0.08, 0.1, 0.12)


@dataclass(frozen=True)
class QuickstartConfig:
    """Sizes of the quickstart; the defaults end within ten minutes on two cores.

    Attributes:
        degrees: Target degrees of the bundle.
        train: Cells that head and compensator learn from; the compensator sees no label.
        held_out: Cells that choose the scale and rank the degrees.
        test: Cells that the figures are of.
        training: Of the compensator.
        scale_images: Held-out cells that choose the compensator's scale.
        latency_samples: Most timed inferences per degree; a p95 needs 72 for an interval.
        per_budget: Requests under each budget of the stream.
        seed: Of the split.
    """

    degrees: tuple[int, ...] = (0, 4, 8, 12, 16, 20)
    train: int = TRAIN
    held_out: int = HELD_OUT
    test: int = TEST
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            groups=20, hidden=1.0, steps=300, batch_size=2, learning_rate=5e-4, source_degree=0, far_targets=True
        )
    )
    scale_images: int = 32
    latency_samples: int = 80
    per_budget: int = 40
    seed: int = 0


def quickstart(
    out: Path | str, config: QuickstartConfig | None = None, *, progress: Progress | None = None
) -> dict[str, Any]:
    """Convert, fit, train, export, calibrate and stream; write a bundle, all figures as JSON, and a picture.

    Args:
        out: Folder for ``bundle/``, ``bundle-without-compensator/``, ``model.safetensors``,
            ``compensator.safetensors``, ``figures.json``, ``quickstart.png`` and ``report/``. What of these is there is
            replaced.
        config: Sizes.
        progress: Called with the stage, the steps done, and all steps.

    Returns:
        The content of ``figures.json``.

    Raises:
        DataError: The packages with weights and images are not installed.
        OutputError: ``out`` cannot be written.
    """
    out, config = Path(out), config or QuickstartConfig()
    report = progress or (lambda *_: None)
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def stage(name: str, total: int = 1) -> Callable[[int, int], None]:
        nonlocal began
        now = time.perf_counter()
        if seconds:
            seconds[list(seconds)[-1]] = round(now - began, 1)
        seconds[name], began = 0.0, now
        report(name, 0, total)
        return lambda done, total: report(name, done, total)

    check_writable(out)
    stage("reading weights and images")
    split = split_cells(config.train, config.held_out, config.test, config.seed)
    model = timm.create_model(BACKBONE, pretrained=False, img_size=IMAGE_SIZE, num_classes=0).eval()
    model.load_state_dict(read_backbone(), strict=True)
    entry = input_config(model)

    advance = stage("fitting a linear head on frozen features")
    inputs = pooled_features(model, _files(split.train, entry), advance)
    head = fit_head(inputs, [cell.label for cell in split.train])

    stage("training the compensator")
    compensator = train(
        model,
        _files(split.train, entry),
        config.training,
        progress=lambda step: report("training the compensator", step.step, step.steps),
    )

    advance = stage("choosing the compensator's scale")
    choosing = torch.stack(list(_files(split.held_out[: config.scale_images], entry)))
    scales = _choose_scale(model, compensator, choosing, config.degrees, advance)
    compensator.metadata["scale_chosen_by"] = f"feature gap on {config.scale_images} held-out images"
    compensator.save(out / "compensator.safetensors")

    model.reset_classifier(len(LABELS))
    model.head.load_state_dict(head.state_dict())
    save_tensors(out / "model.safetensors", model.state_dict(), {"labels": "\n".join(LABELS)})
    loaded = LoadedModel(model.eval(), BACKBONE, "file", LABELS)
    real = torch.stack(list(_files(split.test[:4], entry))).numpy()
    bundles: dict[str, Bundle] = {}
    for name, part in (("bundle", compensator), ("bundle-without-compensator", None)):
        label = f"exporting {name}"
        stage(label)
        bundles[name] = export(
            loaded,
            out / name,
            degrees=config.degrees,
            compensator=part,
            features=True,
            check_images=real,
            overwrite=True,
            progress=lambda what, done, total, label=label: report(f"{label}: {what}", done, total),
        )

    stage("calibrating on this machine")
    profile = calibrate(
        bundles["bundle"].path,
        [(cell.path, cell.label) for cell in split.held_out],
        samples=config.latency_samples,
        progress=lambda what, done, total: report(f"calibrating: {what}", done, total),
    )
    test = [(cell.path, cell.label) for cell in split.test]
    accuracy = {}
    features: dict[str, dict[int, list[NDArray[np.float32]]]] = {}
    for name, bundle in bundles.items():
        label = f"accuracy and feature gap on test cells, {name}"
        stage(label)
        # Degree 0 is the same in both.
        wanted = [degree for degree in config.degrees if degree or name == "bundle"]
        with Runtime.open(bundle.path, degrees=wanted) as runtime:
            of_degree = features[name] = {degree: [] for degree in wanted}
            runtime.add_hook(lambda result, kept=of_degree: kept[result.degree].append(result.outputs["features"]))
            accuracy[name] = measure_accuracy(
                runtime, test, progress=lambda what, done, total, label=label: report(label, done, total)
            )

    advance = stage("streaming under a stepping budget")
    cells = [image.numpy()[None] for image in _files(split.test[:64], entry)]
    with Runtime.open(bundles["bundle"].path, profile=profile) as runtime:
        requests, budgets = stream(runtime, cells, budget_steps(profile), config.per_budget, advance)
        backend = f"{runtime.backend.name}: {runtime.backend.reason}"
    stage("done")

    found = {name: {d: np.concatenate(parts) for d, parts in by.items()} for name, by in features.items()}
    gaps = {
        degree: {
            f"{word}_compensator": float(feature_gaps(found["bundle"][0], found[name][degree]).mean())
            for word, name in (("without", "bundle-without-compensator"), ("with", "bundle"))
        }
        for degree in config.degrees
        if degree
    }
    bundle, plain = bundles["bundle"], accuracy["bundle-without-compensator"]
    dense_bytes = tensor_bytes(bundle.onnx_path(0))
    rows = [
        {
            "degree": degree,
            "token_counts": list(entry.token_counts),
            "macs": entry.macs,
            "bytes": tensor_bytes(bundle.onnx_path(degree)),
            "accuracy": vars(accuracy["bundle"][degree]),
            "accuracy_without_compensator": vars(plain[degree] if degree in plain else accuracy["bundle"][degree]),
            "feature_gap": gaps.get(degree),
            "p50_ms": profile.degrees[degree].latency.p50_ms,
            "p95_ms": profile.degrees[degree].latency.p95_ms,
            "held_out_accuracy": vars(profile.degrees[degree].accuracy),
            "largest_difference_to_torch": bundle.manifest["degrees"][index]["check"]["max_abs_difference"],
        }
        for index, (degree, entry) in enumerate(bundle.degrees.items())
    ]
    figures = {
        "machine": _machine(backend),
        "cells": {
            "train": config.train,
            "held_out": config.held_out,
            "test": config.test,
            "seed": config.seed,
        },
        "scale": compensator.scale,
        "share_of_gap_closed_by_scale": scales,
        "degrees": rows,
        "bundle_bytes": sum(file["size"] for file in bundle.manifest["files"].values()),
        "dense_bytes": dense_bytes,
        "budgets": budgets,
        "requests": requests,
        "seconds": {name: value for name, value in seconds.items() if name != "done"},
    }
    write_json(out / "figures.json", figures)
    from tocom.quickstart.picture import draw

    draw(figures, out / "quickstart.png")
    shown = [config.degrees[0], config.degrees[len(config.degrees) // 2], config.degrees[-1]]
    write_report(
        profile,
        bundle,
        out / "report",
        suggestion=suggest_degrees(profile),
        blocks=block_times(bundle, list(dict.fromkeys(shown)), threads=profile.threads, runs=5),
        feature_gap=gaps,
    )
    return figures


def _files(cells: list[Cell], entry: dict[str, Any]) -> ImageFiles:
    return ImageFiles([cell.path for cell in cells], entry)


def _choose_scale(
    model: VisionTransformer,
    compensator: Compensator,
    images: Tensor,
    degrees: Sequence[int],
    progress: Callable[[int, int], None],
) -> dict[float, float]:
    """Give the compensator the scale that closes most of the feature gap of these images.

    Returns:
        Per scale the share that it closes of the gap at the upper half of the degrees, where the gap is.
    """
    compressed = [degree for degree in degrees if degree]
    upper = compressed[len(compressed) // 2 :]
    total, done = 1 + len(upper) * (1 + len(_SCALES)), 0

    def run(degree: int, scale: float | None = None) -> NDArray[np.float32]:
        nonlocal done
        at = compress(model, degree, compensator=None if scale is None else compensator, scale=scale)
        found = torch.cat([pooled(at, part) for part in images.split(8)]).numpy()
        done += 1
        progress(done, total)
        return found

    def gap(degree: int, scale: float | None = None) -> float:
        return float(feature_gaps(dense, run(degree, scale)).mean())

    with torch.no_grad():
        dense = run(0)
        without = sum(gap(degree) for degree in upper)
        closed = {scale: 1 - sum(gap(degree, scale) for degree in upper) / without for scale in _SCALES}
    compensator.scale = max(closed, key=closed.__getitem__)
    return closed


def _machine(backend: str) -> dict[str, str]:
    return {
        "processor": cpu_identity()["processor"],
        "cores": str(len(os.sched_getaffinity(0))),
        "backend": backend,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "onnxruntime": onnxruntime.__version__,
    }
