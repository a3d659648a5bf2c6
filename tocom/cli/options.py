"""Options that several verbs have, and how their text is read: with the command line, before anything is opened."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tocom.errors import RequestError

if TYPE_CHECKING:
    from tocom.formats.bundle import Bundle

__all__ = [
    "BackendName",
    "CheckFolder",
    "Degrees",
    "Device",
    "MergeBlocks",
    "Method",
    "SomeDegrees",
    "Spacing",
    "Threads",
    "TimeoutS",
    "TrustedKeys",
    "asked_family",
    "one_of",
    "parse_batch",
    "parse_degrees",
    "parse_seconds",
    "read_by",
    "reading",
    "trusted_bundle",
]


@contextlib.contextmanager
def reading(option: str, text: str, expected: str) -> Iterator[None]:
    """Turn a ValueError while an option's text is read into a RequestError that says what was expected."""
    try:
        yield
    except ValueError as error:
        raise RequestError(f"The {option!r} option must be {expected}. Got {text!r} instead.") from error


def parse_degrees(text: str) -> list[int]:
    """Read ``0,4,8`` or ``first:last:step`` (last included); each degree once.

    Raises:
        RequestError: It is neither.
    """
    with reading("degrees", text, "numbers (0,4,8) or first:last:step (0:16:4)"):
        if ":" in text:
            first, last, step = (int(part) for part in text.split(":"))
            if not (degrees := list(range(first, last + 1, step))):
                raise ValueError(text)
            return degrees
        return list(dict.fromkeys(int(part) for part in text.split(",")))


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


def parse_blocks(text: str) -> list[int]:
    """Read ``1,4,7,10``.

    Raises:
        RequestError: It is not a list of numbers.
    """
    with reading("merge-blocks", text, "numbers of blocks (1,4,7,10)"):
        return [int(part) for part in text.split(",")]


def read_by(parse: Callable[[str], Any], help: str, *, absent: Any = None) -> Any:
    """Return an option whose text is read at once, so that a typing error shows first.

    Args:
        parse: Reads the text.
        help: Help of the option.
        absent: Its value where it is not given.
    """
    return typer.Option(
        help=help, parser=str, metavar="TEXT", callback=lambda text: absent if text is None else parse(text)
    )


def one_of(help: str, *allowed: str, name: str | None = None) -> Any:
    """Return an option whose text, where given, must be one of these: with its help and, where it has one, its name."""

    def check(param: typer.CallbackParam, value: str | None) -> str | None:
        if value is not None and value not in allowed:
            words = " or ".join(filter(None, (", ".join(allowed[:-1]), allowed[-1])))
            raise RequestError(f"The {param.opts[0].lstrip('-')!r} option must be {words}. Got {value!r} instead.")
        return value

    return typer.Option(*filter(None, (name,)), help=help, callback=check)


def asked_family(merge_blocks: list[int] | None, spacing: int | None) -> Callable[[int], str | None]:
    """Return what gives the family that two options ask for, of a model with so many blocks; None for neither.

    Raises:
        RequestError: Both are given.
        DegreeError: Blocks or a spacing that the model does not have; by what is returned.
    """
    if merge_blocks is not None and spacing is not None:
        raise RequestError("Give --merge-blocks or --every, not both: each says which blocks remove tokens.")

    def family(depth: int) -> str | None:
        from tocom.formats.families import every_nth, spaced_family

        if spacing is not None:
            return every_nth(spacing, depth)
        return None if merge_blocks is None else spaced_family(merge_blocks, depth)

    return family


def trusted_bundle(path: Path, keys: list[Path] | None) -> Bundle:
    """Return a bundle that one of these keys signed, its files not hashed yet; without keys ask for no signature."""
    from tocom.formats.bundle import Bundle
    from tocom.formats.signatures import load_public_keys

    return Bundle(path, verify=False, trusted_keys=load_public_keys(keys) if keys else None)


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
Degrees = Annotated[Any, read_by(parse_degrees, "Target degrees: 0,4,8 or first:last:step.")]
SomeDegrees = Annotated[Any, read_by(parse_degrees, "Degrees: 0,4,8 or first:last:step; default: all.")]
Device = Annotated[str, typer.Option(help="'auto', 'cpu' or 'cuda'.")]
Method = Annotated[str, one_of("'merge' or 'prune'.", "merge", "prune")]
Threads = Annotated[int | None, typer.Option(help="CPU threads of one inference; default: physical cores.")]
TimeoutS = Annotated[
    Any,
    read_by(
        parse_seconds,
        "Seconds until a device that does not answer is given up, or 'none'; default: 60 on a GPU, none on a CPU.",
        absent="auto",
    ),
]
MergeBlocks = Annotated[
    Any,
    read_by(
        parse_blocks,
        "Blocks that remove tokens, from 0: 1,4,7,10; they take over what the others would remove.",
    ),
]
Spacing = Annotated[
    int | None, typer.Option("--every", help="Remove tokens in every N-th block: 3 is blocks 1,4,7,10 of 12.")
]
