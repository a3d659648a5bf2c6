"""``tocom export``: a checkpoint and a compensator become a bundle."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from tocom.cli.app import show, table_of
from tocom.cli.model_options import CompressionOptions, ModelOptions, print_loaded, read_labels, with_option_groups
from tocom.cli.options import Degrees, one_of, parse_batch, read_by
from tocom.cli.progress import steps

if TYPE_CHECKING:
    from tocom.formats.bundle import Bundle

__all__ = ["bundle_table", "export"]


@with_option_groups
def export(
    degrees: Degrees,
    out: Annotated[Path, typer.Option(help="Folder to write the bundle to.")],
    source: ModelOptions,
    way: CompressionOptions,
    weights: Annotated[
        str, typer.Option(help="Checkpoint (file or folder), 'pretrained' (timm's hub), or 'random' (for timing only).")
    ] = "pretrained",
    alignment: Annotated[Path | None, typer.Option(help="Alignment file, fitted with the same options.")] = None,
    features: Annotated[bool, typer.Option(help="Beside the logits give the pooled features.")] = False,
    patch_features: Annotated[bool, typer.Option(help="Last, give features for every patch.")] = False,
    precision: Annotated[str, one_of("'fp32', 'fp16' or 'bf16'.", "fp32", "fp16", "bf16")] = "fp32",
    input_type: Annotated[
        str, one_of("'float32', or 'uint8': pixels, which the graph normalises.", "float32", "uint8", name="--input")
    ] = "float32",
    batch: Annotated[Any, read_by(parse_batch, "Batch: N, or min:opt:max.")] = "1",
    labels: Annotated[Path | None, typer.Option(help="Class names: text with one per line, or JSON.")] = None,
    check: Annotated[bool, typer.Option(help="Compare every degree with torch.")] = True,
    check_images: Annotated[Path | None, typer.Option(help="Images for the check; default: synthetic ones.")] = None,
    overwrite: Annotated[bool, typer.Option(help="Replace the output folder.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Write a bundle: one ONNX file per degree, the compensator merged in, weights stored once."""
    names = None if labels is None else read_labels(labels)

    import numpy as np

    from tocom.alignment.alignment import Alignment
    from tocom.export import export as run
    from tocom.images import image_files, read_image

    along = way.read()
    aligned = None if alignment is None else Alignment.load(alignment)
    paths = [] if check_images is None else image_files(check_images)[:8]
    loaded = source.load(weights)
    images = np.stack([read_image(path, loaded.input_entry) for path in paths]) if paths else None
    with steps() as progress:
        bundle = run(
            loaded,
            out,
            degrees=degrees,
            alignment=aligned,
            **along(loaded),
            features=features,
            patch_features=patch_features,
            precision=precision,
            input_type=input_type,
            batch=batch,
            labels=names,
            check=check,
            check_images=images,
            overwrite=overwrite,
            progress=progress,
        )
    show(bundle.manifest if as_json else bundle_table(bundle))
    if not as_json:
        print_loaded(loaded)


def bundle_table(bundle: Bundle) -> Table:
    """Return the degrees of a bundle as a table."""
    manifest: dict[str, Any] = bundle.manifest
    random = " (random weights: for timing only)" if manifest["model"]["weights"] == "random" else ""
    along = f"{manifest['method']}, {manifest['family']}"
    rows = []
    for entry in manifest["degrees"]:
        counts, check = entry["token_counts"], entry.get("check")
        rows.append(
            (
                entry["degree"],
                f"{counts[0]} … {counts[-1]}",
                f"{entry['macs'] / 1e9:.2f}",
                f"{manifest['files'][entry['onnx']]['size'] / 1024:.0f}",
                "not checked" if check is None else f"{check['max_abs_difference']:.1e}",
            )
        )
    title = f"{bundle.path}: {bundle.model_name}{random}, {along}, {bundle.precision}"
    table = table_of(("degree", "tokens", "GMACs", "ONNX KiB", "largest difference to torch"), rows, title=title)
    total = sum(file["size"] for file in manifest["files"].values())
    table.caption = f"{total / 2**20:.1f} MiB in all; weights stand once"
    for kept in manifest.get("kept_in_float32", []):
        table.caption += f"\nblock {kept['block']}: the {kept['what']} reaches {kept['largest']:.3g}: {kept['how']}"
    return table
