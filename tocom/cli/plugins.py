"""``tocom plugins``: the op plugin library for TensorRT and TensorRT-RTX."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from tocom.cli.app import console, print_json
from tocom.cli.options import read_by, reading

__all__ = ["plugins"]

plugins = typer.Typer(help="The op plugin library for TensorRT and TensorRT-RTX.", no_args_is_help=True)


def parse_architectures(text: str) -> tuple[int, ...]:
    """Return the architectures in ``text``, such as ``80,86``.

    Raises:
        RequestError: It is not a list of numbers.
    """
    with reading("--arch", text, "numbers such as 87 or 80,86"):
        parts = [part.strip().removeprefix("sm_") for part in text.split(",")]
        if not all(part.isdecimal() for part in parts):
            raise ValueError(text)
        return tuple(map(int, parts))


@plugins.command()
def build(
    arch: Annotated[
        Any,
        read_by(
            parse_architectures,
            "Compute capabilities times ten, such as 87 or 80,86; default: all that the toolkit knows.",
        ),
    ] = None,
    tensorrt_include: Annotated[Path | None, typer.Option(help="Folder of TensorRT's headers.")] = None,
    nvcc: Annotated[Path | None, typer.Option(help="The CUDA compiler.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Compile the op plugin library, or take it from the cache."""
    from tocom.export.op_plugin.library import build_library

    library = build_library(
        architectures=arch,
        tensorrt_include=tensorrt_include,
        nvcc=nvcc,
        say=lambda line: console.print(line, soft_wrap=True),
    )
    _show(library, as_json)


@plugins.command()
def inspect(
    library: Annotated[Path, typer.Argument(help="An op plugin library.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Tell what an op plugin library was compiled for, without loading it."""
    from tocom.export.op_plugin.library import read_library

    _show(read_library(library), as_json)


def _show(library: Any, as_json: bool) -> None:
    facts: dict[str, Any] = {
        "path": str(library.path),
        "sha256": library.sha256,
        "tensorrt": ".".join(map(str, library.tensorrt)),
        "cuda": ".".join(map(str, library.cuda)),
        "architectures": list(library.architectures),
        "machine": library.machine,
        "size_bytes": library.path.stat().st_size,
        "build_seconds": round(library.build_seconds, 3),
    }
    if as_json:
        print_json(facts)
    else:
        typer.echo(facts["path"])
