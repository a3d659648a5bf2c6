"""``tocom build``: a bundle becomes engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from tocom.cli.app import console, print_json
from tocom.cli.options import TrustedKeys, parse_batch, parse_degrees, parse_seconds
from tocom.cli.progress import steps

__all__ = ["build"]


def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    backend: Annotated[str, typer.Option(help="'tensorrt', 'tensorrt-rtx' or 'auto'.")] = "auto",
    lowering: Annotated[
        str | None,
        typer.Option(help="'plugin' or 'native'; default: the op plugin, native where its library cannot be built."),
    ] = None,
    degrees: Annotated[str | None, typer.Option(help="Degrees: 0,4,8 or first:last:step; default: all.")] = None,
    batch: Annotated[str | None, typer.Option(help="Batch: N, or min:opt:max; default: the bundle's.")] = None,
    workspace_mib: Annotated[int | None, typer.Option(help="Most scratch memory of a layer, in MiB.")] = None,
    optimization_level: Annotated[int | None, typer.Option(help="0 (fast build) to 5 (fast engine).")] = None,
    version_compatible: Annotated[
        bool, typer.Option(help="Engines that newer versions of the same TensorRT major load.")
    ] = False,
    hardware_compatible: Annotated[bool, typer.Option(help="Engines for GPUs of other architectures too.")] = False,
    compact: Annotated[
        bool | None,
        typer.Option(
            "--compact/--plain",
            help="Engines with their text deflated, or as TensorRT wrote them, for trtexec and other tools; "
            "default: compact for TensorRT-RTX.",
        ),
    ] = None,
    op_plugin: Annotated[Path | None, typer.Option(help="An op plugin library built elsewhere.")] = None,
    timeout_s: Annotated[
        str, typer.Option(help="Seconds that one engine may take until its build is killed; 'none' for no limit.")
    ] = "3600",
    memory_limit_mib: Annotated[
        int | None, typer.Option(help="Most memory of the process that builds, in MiB; it is killed beyond it.")
    ] = None,
    trusted_key: TrustedKeys = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the engines' sidecars as JSON.")] = False,
) -> None:
    """Build one engine per degree; engines that are current are kept."""
    from tocom.export.engines.builder import build as run
    from tocom.formats.bundle import Bundle
    from tocom.formats.signatures import load_public_keys

    with steps() as progress:
        engines = run(
            Bundle(bundle, trusted_keys=load_public_keys(trusted_key) if trusted_key else None),
            backend=backend,
            lowering=lowering,
            degrees=None if degrees is None else parse_degrees(degrees),
            batch=None if batch is None else parse_batch(batch),
            workspace_mib=workspace_mib,
            optimization_level=optimization_level,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            compact=compact,
            op_plugin=op_plugin,
            timeout_s=parse_seconds(timeout_s),
            memory_limit_mib=memory_limit_mib,
            progress=progress,
            say=lambda line: console.print(line, soft_wrap=True),
        )
    if as_json:
        print_json(
            {
                "folder": str(engines.folder),
                "built": list(engines.built),
                "notes": list(engines.notes),
                "engines": [sidecar.to_json() for sidecar in engines.records.values()],
            }
        )
        return
    table = Table("degree", "tokens", "layers", "op plugin layers", "MB", "seconds", "answers", "")
    for degree, sidecar in engines.records.items():
        table.add_row(
            str(degree),
            f"{sidecar.token_counts[0]} … {sidecar.token_counts[-1]}",
            str(sidecar.layers),
            str(sidecar.op_plugin_layers),
            f"{sidecar.engine.size_bytes / 1e6:.1f}",
            f"{sidecar.build_seconds:.1f}",
            sidecar.answers.state,
            "built" if degree in engines.built else "current",
        )
    console.print(table)
    typer.echo(str(engines.folder))
