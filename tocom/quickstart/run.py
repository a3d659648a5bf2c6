"""The quickstart: every arrow of the way of the data, in order."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from tocom.calibration import block_times, calibrate, suggest_degrees, write_report
from tocom.compensator.tensor_file import save_tensors
from tocom.compression.blocks import replace_child
from tocom.compression.loading.model import LoadedModel
from tocom.compression.loading.preprocessing import input_config
from tocom.export import export
from tocom.export.graph.templates import Templates
from tocom.formats.bundle import Bundle
from tocom.quickstart.cells import HELD_OUT, LABELS, TEST, TRAIN, Cell, split_cells
from tocom.quickstart.figures import all_figures, first_rows, measured
from tocom.quickstart.head import fit_head
from tocom.quickstart.stream import budget_steps, stream
from tocom.quickstart.weights import BACKBONE, IMAGE_SIZE, read_backbone
from tocom.runtime import Runtime
from tocom.system.files import check_writable, write_json
from tocom.system.progress import Progress, silent
from tocom.training.config import TrainingConfig
from tocom.training.distillation import dense_answers
from tocom.training.image_files import ImageFiles
from tocom.training.trainer import train

__all__ = ["QuickstartConfig", "quickstart"]


@dataclass(frozen=True)
class QuickstartConfig:
    """Sizes of the quickstart; the defaults end about five minutes after the installation, on two cores.

    Attributes:
        degrees: Target degrees of the bundle; 0 is the gallery's.
        train: Cells that head and compensator learn from; the compensator sees no label. These, and those of the next
            two, are the first ones of :func:`split_cells`'s parts.
        held_out: Cells that rank the degrees.
        test: Cells that the figures are of.
        training: How the compensator is trained.
        latency_samples: Most timed inferences per degree; a p95 needs 72 for an interval.
        per_budget: Requests under each budget of the stream.
        seed: Seed of the split.
    """

    degrees: tuple[int, ...] = (0, 12, 16, 20)
    train: int = 400
    held_out: int = 60
    test: int = TEST
    training: TrainingConfig = field(
        default_factory=lambda: TrainingConfig(
            groups=20,
            hidden=1.0,
            steps=200,
            batch_size=2,
            learning_rate=5e-4,
            source_degree=0,
            far_targets=True,
            flip=False,
        )
    )
    latency_samples: int = 80
    per_budget: int = 30
    seed: int = 0


def quickstart(
    out: Path | str,
    config: QuickstartConfig | None = None,
    *,
    progress: Progress = silent,
    first: Callable[[list[dict[str, Any]]], None] | None = None,
) -> dict[str, Any]:
    """Convert, fit, export, train, export, calibrate and stream; write two bundles, all figures as JSON, and a picture.

    Args:
        out: Folder for ``bundle/``, ``bundle-without-compensator/``, ``model.safetensors``,
            ``compensator.safetensors``, ``figures.json``, ``quickstart.png`` and ``report/``. What of these is there is
            replaced.
        config: Sizes.
        progress: Called with the stage, the steps done, and all steps.
        first: Called before the training, with what merging alone does: a row per degree.

    Returns:
        The content of ``figures.json``.

    Raises:
        DataError: The packages with weights and images are not installed.
        OutputError: ``out`` cannot be written.
    """
    out, config = Path(out), config or QuickstartConfig()
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def stage(name: str) -> Progress:
        """Begin a stage; what is returned takes what is being done in it, steps done and all."""
        nonlocal began
        now = time.perf_counter()
        if seconds:
            seconds[list(seconds)[-1]] = round(now - began, 1)
        seconds[name], began = 0.0, now
        progress(name, 0, 1)
        return lambda what, done, total: progress(f"{name}: {what}", done, total)

    check_writable(out)
    stage("reading weights and images")
    # Whatever is measured on the rest of the cells beside it finds them untouched.
    split = split_cells(TRAIN, HELD_OUT, TEST, config.seed)
    train_cells, held_out = split.train[: config.train], split.held_out[: config.held_out]
    test = split.test[: config.test]
    model = timm.create_model(BACKBONE, pretrained=False, img_size=IMAGE_SIZE, num_classes=0).eval()
    model.load_state_dict(read_backbone(), strict=True)
    entry = input_config(model)
    model.reset_classifier(len(LABELS))
    loaded = LoadedModel(model.eval(), BACKBONE, "file", LABELS)
    templates = Templates()  # the model is traced once, for both exports

    # Through torch, not through ONNX Runtime: what the model computes on the way is the compensator's target later.
    trained_on = dense_answers(
        model,
        _files(train_cells, entry),
        progress=stage("features of the training cells, and a linear head on them"),
    )
    gallery = trained_on.outputs.numpy()
    head = fit_head(trained_on.outputs, [cell.label for cell in train_cells])
    model.head.load_state_dict(head.state_dict())
    save_tensors(out / "model.safetensors", model.state_dict(), {"labels": "\n".join(LABELS)})

    real = torch.stack(list(_files(test[:4], entry))).numpy()
    bundles: dict[str, Bundle] = {}

    def write(name: str, **options: Any) -> None:
        bundles[name] = export(
            loaded,
            out / name,
            degrees=config.degrees,
            features=True,
            check_images=real,
            overwrite=True,
            templates=templates,
            progress=stage(f"exporting {name}"),
            **options,
        )

    write("bundle-without-compensator", check=False)  # the other bundle's check is this one's too, except for q and v
    advance = stage("test cells by merging alone")
    with Runtime.open(bundles["bundle-without-compensator"].path, warm=False) as runtime:
        runtime.warm_up(expect_profile=False)
        alone = measured(runtime, test, advance)
    if first is not None:
        first(first_rows(bundles["bundle-without-compensator"], alone, gallery))

    stage("training the compensator")
    compensator = train(
        replace_child(model, "head", nn.Identity()),
        _files(train_cells, entry),
        config.training,
        teacher=trained_on,
        progress=lambda step: progress("training the compensator", step.step, step.steps),
    )
    compensator.save(out / "compensator.safetensors")
    write("bundle", compensator=compensator)

    profile = calibrate(
        bundles["bundle"].path,
        [(cell.path, cell.label) for cell in held_out],
        samples=config.latency_samples,
        progress=stage("calibrating on this machine"),
    )
    p50_ms = {degree: entry.latency.p50_ms for degree, entry in profile.degrees.items()}
    # At once: a device changes its speed within minutes, and the report shows both side by side.
    advance = stage("where the time goes")
    blocks = block_times(
        bundles["bundle"], config.degrees, threads=profile.threads, runs=5, p50_ms=p50_ms, progress=advance
    )
    advance = stage("test cells with the compensator")
    with Runtime.open(bundles["bundle"].path, degrees=[degree for degree in config.degrees if degree]) as runtime:
        compensated = measured(runtime, test, advance)

    advance = stage("streaming under a stepping budget")
    cells = [image.numpy()[None] for image in _files(test[:64], entry)]
    with Runtime.open(bundles["bundle"].path, profile=profile) as runtime:
        requests, budgets = stream(runtime, cells, budget_steps(profile), config.per_budget, advance)
        backend = f"{runtime.backend.name}: {runtime.backend.reason}"
    stage("done")
    figures = all_figures(
        bundles["bundle"],
        profile,
        alone=alone,
        compensated=compensated,
        gallery=gallery,
        scale=compensator.scale,
        backend=backend,
    )
    figures |= {
        "cells": {name: getattr(config, name) for name in ("train", "held_out", "test", "seed")},
        "blocks_over_p50": {str(each.degree): each.sum_ms / p50_ms[each.degree] for each in blocks},
        "budgets": budgets,
        "requests": requests,
        "seconds": {name: value for name, value in seconds.items() if name != "done"},
    }
    write_json(out / "figures.json", figures)
    from tocom.quickstart.picture import draw

    draw(figures, out / "quickstart.png")
    write_report(
        profile,
        bundles["bundle"],
        out / "report",
        suggestion=suggest_degrees(profile),
        blocks=blocks,
        feature_gap={row["degree"]: row["feature_gap"] for row in figures["degrees"] if row["feature_gap"]},
    )
    return figures


def _files(cells: list[Cell], entry: dict[str, Any]) -> ImageFiles:
    return ImageFiles([cell.path for cell in cells], entry)
