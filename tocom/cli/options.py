"""Options that several verbs have, and how their text is read."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer

from tocom.errors import RequestError

__all__ = [
    "BackendName",
    "CheckFolder",
    "MergeBlocks",
    "Spacing",
    "TimeoutS",
    "TrustedKeys",
    "parse_batch",
    "parse_degrees",
    "parse_family",
    "parse_seconds",
    "reading",
]

CheckFolder = Annotated[
    Path | None,
    typer.Option(
        "--check",
        help="Folder of images of what will be answered, none of --images: refuse the alignment of degrees that it "
        "does not help on these. Default: each fifth of --images in turn.",
    ),
]
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
MergeBlocks = Annotated[
    str | None,
    typer.Option(help="Blocks that remove tokens, from 0: 1,4,7,10; they take over what the others would remove."),
]
Spacing = Annotated[
    int | None, typer.Option("--every", help="Remove tokens in every N-th block: 3 is blocks 1,4,7,10 of 12.")
]


def parse_family(merge_blocks: str | None, spacing: int | None, depth: int) -> str | None:
    """Return the family that two options ask for, of a model with so many blocks; None where neither is given.

    Raises:
        RequestError: Both are given, or the blocks are not numbers.
        DegreeError: Blocks or a spacing that the model does not have.
    """
    from tocom.formats.families import every_nth, spaced_family

    if merge_blocks is not None and spacing is not None:
        raise RequestError("Give --merge-blocks or --every, not both: each says which blocks remove tokens.")
    if spacing is not None:
        return every_nth(spacing, depth)
    if merge_blocks is None:
        return None
    with reading("merge-blocks", merge_blocks, "numbers of blocks (1,4,7,10)"):
        blocks = [int(part) for part in merge_blocks.split(",")]
    return spaced_family(blocks, depth)


@contextlib.contextmanager
def reading(option: str, text: str, expected: str) -> Iterator[None]:
    """Turn a ValueError while an option's text is read into a RequestError that says what was expected."""
    try:
        yield
    except ValueError as error:
        raise RequestError(f"The {option!r} option must be {expected}. Got {text!r} instead.") from error


def parse_degrees(text: str) -> list[int]:
    """Read ``0,4,8`` or ``first:last:step`` (last included).

    Raises:
        RequestError: It is neither.
    """
    with reading("degrees", text, "numbers (0,4,8) or first:last:step (0:16:4)"):
        if ":" in text:
            first, last, step = (int(part) for part in text.split(":"))
            return list(range(first, last + 1, step))
        return [int(part) for part in text.split(",")]


def parse_batch(text: str) -> int | tuple[int, int, int]:
    """Read ``N`` or ``min:opt:max``.

    Raises:
        RequestError: It is neither.
    """
    with reading("batch", text, "N or min:opt:max (1:4:8)"):
        sizes = [int(part) for part in text.split(":")]
        if len(sizes) == 1:
            return sizes[0]
        smallest, optimal, largest = sizes
        return smallest, optimal, largest


def parse_seconds(text: str) -> float | None:
    """Read a number of seconds greater than 0, or ``none``.

    Raises:
        RequestError: It is neither.
    """
    if text == "none":
        return None
    with reading("timeout-s", text, "a number of seconds greater than 0, or none"):
        if not 0 < (seconds := float(text)) < 1e6:
            raise ValueError(text)
        return seconds
