"""``tocom quantize``: a float32 bundle becomes an INT8 bundle, and both are timed on this device."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tocom.cli.app import show, table_of
from tocom.cli.options import SomeDegrees, one_of
from tocom.cli.progress import steps

if TYPE_CHECKING:
    from tocom.formats.bundle import Bundle
    from tocom.formats.profile import Profile

__all__ = ["quantize"]


def quantize(
    bundle: Annotated[Path, typer.Argument(help="A float32 bundle's folder.")],
    images: Annotated[
        Path, typer.Option(help="Images: one subfolder per class, or a flat folder (then agreement is what counts).")
    ],
    out: Annotated[Path, typer.Option(help="Folder to write the INT8 bundle to.")],
    degrees: SomeDegrees = None,
    floor: Annotated[float, typer.Option(help="Points of accuracy that a degree may lose to float32.")] = 1.0,
    activations: Annotated[
        str, one_of("'asymmetric' (ONNX Runtime), or 'symmetric' (TensorRT demands it).", "asymmetric", "symmetric")
    ] = "asymmetric",
    reduce_range: Annotated[
        bool | None, typer.Option(help="Weights of 7 bits, for x86 without VNNI; default: as this processor needs.")
    ] = None,
    range_images: Annotated[int, typer.Option(help="Most images that make ranges.")] = 64,
    held_out: Annotated[int, typer.Option(help="Most images that are held out, for the choice and the floor.")] = 1000,
    seconds: Annotated[float, typer.Option(help="Per degree, to look for layers that must stay in float32.")] = 300.0,
    samples: Annotated[int, typer.Option(help="Timed inferences per degree and precision; 0 times nothing.")] = 60,
    seed: Annotated[int, typer.Option(help="Seed of the choice of images.")] = 0,
    overwrite: Annotated[bool, typer.Option(help="Replace the output folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print manifest and profile as JSON.")] = False,
) -> None:
    """Write an INT8 bundle with ranges per degree, then measure it against float32 on this device."""
    from tocom.errors import RequestError

    try:
        from tocom.calibration import calibrate
        from tocom.calibration.int8.qdq import Scheme, default_scheme
        from tocom.calibration.int8.quantizer import quantize as run
    except ModuleNotFoundError as error:
        raise RequestError(
            f"Quantizing needs the package {error.name}. Install it: pip install 'tocom[quantize]'."
        ) from error
    reduced = default_scheme().reduce_range if reduce_range is None else reduce_range
    with steps() as progress:
        made = run(
            bundle,
            out,
            images,
            degrees=degrees,
            floor_points=floor,
            scheme=Scheme(activations, reduced),
            range_images=range_images,
            held_out_images=held_out,
            seconds_per_degree=seconds,
            seed=seed,
            overwrite=overwrite,
            progress=progress,
        )
        profile = None
        if samples:
            profile = calibrate(out, samples=samples, against=bundle, backend="onnxruntime", progress=progress)
    facts = {"manifest": made.manifest, "profile": None if profile is None else profile.to_json()}
    show(facts if as_json else _table(made, profile))


def _table(bundle: Bundle, profile: Profile | None) -> Table:
    facts: dict[str, Any] = bundle.manifest["quantization"]
    rows, notes = [], []
    for entry in bundle.manifest["degrees"]:
        found, degree = entry["quantization"], entry["degree"]
        measured = None if profile is None else profile.degrees.get(degree)  # what answers wrongly is not measured
        comparison = None if measured is None else measured.precisions
        ratio, winner = "not measured", ""
        if comparison is not None:
            int8, fp32 = comparison.candidates["int8"], comparison.candidates["fp32"]
            ratio, winner = f"{int8.p50_ms / fp32.p50_ms:.2f} × time", comparison.winner
        lost = f"{found['loss_points']:.2f}", f"{found['divergence']:.4f}"
        rows.append((degree, entry["precision"], len(found["excluded"]), *lost, ratio, winner))
        if found["kept_out"] is not None:
            notes.append(f"degree {degree} stays in float32: {found['kept_out']}")
    columns = ("degree", "precision", "float layers", "points lost", "divergence", "of fp32", "use here")
    title = f"{bundle.path}: {bundle.model_name}, {facts['held_out_images']} held-out images"
    table = table_of(columns, rows, title=title)
    table.caption = "; ".join(notes) or None
    return table
