"""Options that several verbs have, and how their text is read."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Annotated

import typer

from tocom.errors import RequestError

__all__ = ["BackendName", "TimeoutS", "TrustedKeys", "parse_batch", "parse_degrees", "parse_seconds"]

TrustedKeys = Annotated[
    list[Path] | None,
    typer.Option("--trusted-key", help="A public key; repeatable. Refuse what none of them signed."),
]


BackendName = Annotated[
    str, typer.Option(help="auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime, or openvino (on the CPU).")
]


TimeoutS = Annotated[
    str | None,
    typer.Option(
        help="Seconds until a device that does not answer is given up, or 'none'; default: 60 on a GPU, none on a CPU."
    ),
]


def parse_degrees(text: str) -> list[int]:
    """Read ``0,4,8`` or ``first:last:step`` (last included).

    Raises:
        RequestError: It is neither.
    """
    try:
        if ":" in text:
            first, last, step = (int(part) for part in text.split(":"))
            return list(range(first, last + 1, step))
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise RequestError(
            f"The 'degrees' option must be numbers (0,4,8) or first:last:step (0:16:4). Got {text!r} instead."
        ) from error


def parse_batch(text: str) -> int | tuple[int, int, int]:
    """Read ``N`` or ``min:opt:max``.

    Raises:
        RequestError: It is neither.
    """
    try:
        sizes = [int(part) for part in text.split(":")]
        if len(sizes) == 1:
            return sizes[0]
        smallest, optimal, largest = sizes
        return smallest, optimal, largest
    except ValueError as error:
        raise RequestError(f"The 'batch' option must be N or min:opt:max (1:4:8). Got {text!r} instead.") from error


def parse_seconds(text: str) -> float | None:
    """Read a number of seconds greater than 0, or ``none``.

    Raises:
        RequestError: It is neither.
    """
    if text == "none":
        return None
    with contextlib.suppress(ValueError):
        if 0 < (seconds := float(text)) < 1e6:
            return seconds
    raise RequestError(f"The 'timeout-s' option must be a number of seconds greater than 0, or none. Got {text!r}.")
