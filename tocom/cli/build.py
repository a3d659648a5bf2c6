"""``tocom build``: a bundle becomes engines."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tocom.cli.app import console, print_json, table_of
from tocom.cli.options import SomeDegrees, TrustedKeys, parse_batch, parse_seconds, read_by, trusted_bundle
from tocom.cli.progress import steps

__all__ = ["build"]


def build(
    bundle: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    backend: Annotated[str, typer.Option(help="'tensorrt', 'tensorrt-rtx' or 'auto'.")] = "auto",
    lowering: Annotated[
        str | None,
        typer.Option(help="'plugin' or 'native'; default: the op plugin, native where its library cannot be built."),
    ] = None,
    degrees: SomeDegrees = None,
    batch: Annotated[Any, read_by(parse_batch, "Batch: N, or min:opt:max; default: the bundle's.")] = None,
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
        Any, read_by(parse_seconds, "Seconds that one engine may take until its build is killed; 'none' for no limit.")
    ] = "3600",
    memory_limit_mib: Annotated[
        int | None, typer.Option(help="Most memory of the process that builds, in MiB; it is killed beyond it.")
    ] = None,
    trusted_key: TrustedKeys = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the engines' sidecars as JSON.")] = False,
) -> None:
    """Build one engine per degree; engines that are current are kept."""
    from tocom.export.engines.builder import build as run

    with steps() as progress:
        engines = run(
            trusted_bundle(bundle, trusted_key),
            backend=backend,
            lowering=lowering,
            degrees=degrees,
            batch=batch,
            workspace_mib=workspace_mib,
            optimization_level=optimization_level,
            version_compatible=version_compatible,
            hardware_compatible=hardware_compatible,
            compact=compact,
            op_plugin=op_plugin,
            timeout_s=timeout_s,
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
    columns = ("degree", "tokens", "layers", "op plugin layers", "MB", "seconds", "answers", "")
    rows = [
        (
            degree,
            f"{each.token_counts[0]} … {each.token_counts[-1]}",
            each.layers,
            each.op_plugin_layers,
            f"{each.engine.size_bytes / 1e6:.1f}",
            f"{each.build_seconds:.1f}",
            each.answers.state,
            "built" if degree in engines.built else "current",
        )
        for degree, each in engines.records.items()
    ]
    console.print(table_of(columns, rows, left=columns))
    typer.echo(str(engines.folder))
