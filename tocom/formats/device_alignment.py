"""On-device alignments: maps of features that were fitted from the engines' own answers, beside the bundle.

Under ``bundle/alignments/`` lie two files, named by what they hold for: sealed JSON, which says what was fitted and
from what, and numbers alone, little-endian float32: per degree that uses its map, ascending, matrix [channels,
channels] and offset [channels]; then, where logits are an output, the head's matrix [channels, classes] and offset
[classes].
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import AlignmentError
from tocom.formats.profile import fingerprint
from tocom.formats.sealed_json import parse_sealed, sealed
from tocom.formats.typed_json import as_dataclass
from tocom.system.files import atomic_path, open_regular

__all__ = ["ALIGNMENTS_FOLDER", "DeviceAlignment", "FittedDegree", "Linear", "alignment_path", "find_alignments"]

ALIGNMENTS_FOLDER = "alignments"
_FORMAT, _VERSION = "tocom-device-alignment", 1
_MAX_JSON_BYTES, _MAX_NUMBERS = 1 << 20, 1 << 28
_AGAIN = "Fit it again: tocom calibrate BUNDLE --align --images FOLDER"


@dataclass(frozen=True)
class Linear:
    """``y = x @ matrix + offset``, float32: [inputs, outputs] and [outputs]."""

    matrix: NDArray[np.float32]
    offset: NDArray[np.float32]

    def __call__(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return values [batch, inputs] mapped, [batch, outputs] float32."""
        return np.asarray(values, np.float32) @ self.matrix + self.offset


@dataclass(frozen=True)
class FittedDegree:
    """What images said of a degree's map that it was not fitted on.

    Attributes:
        used: Whether it helps; where not, the degree's features stay as they are.
        strength: Strength of the penalty, as it was chosen.
        gap: Mean of one minus cosine to the aim's features, without the map, over the images that judge it.
        aligned_gap: With it; where no others judge, each image by a map that was fitted without its fifth of them.
        directions: In how many the degree's features differ from image to image; in all others the map is the identity.
    """

    used: bool
    strength: float
    gap: float
    aligned_gap: float
    directions: int

    @property
    def closed(self) -> float:
        """Share of the gap that the map closes on images that it was not fitted on; below zero where it opens it."""
        return 1 - self.aligned_gap / self.gap if self.gap > 0 else 0.0


@dataclass(frozen=True)
class _Content:
    """The JSON file, its seal aside."""

    format: str
    version: int
    identity: Mapping[str, Any]
    aim: Mapping[str, Any]
    images: int
    checked_on: int
    channels: int
    classes: int | None
    degrees: Mapping[int, FittedDegree]
    numbers_sha256: str
    fitted_by: str


@dataclass(frozen=True)
class DeviceAlignment:
    """The maps of a bundle's degrees on one device.

    Attributes:
        identity: What it holds for: ``bundle``, ``precision``, ``backend`` and ``device``.
        aim: Whose features are the aim: ``bundle`` (fingerprint), ``precision`` and ``degree``.
        images: How many it was fitted on.
        checked_on: How many others said whether the maps help; 0 where each fifth of the images did.
        degrees: What the images said, per degree.
        maps: Maps of the degrees that use one.
        head: What makes logits of features; None where logits are not an output.
        fitted_by: Version of tocom.
    """

    identity: Mapping[str, Any]
    aim: Mapping[str, Any]
    images: int
    checked_on: int
    degrees: Mapping[int, FittedDegree]
    maps: Mapping[int, Linear]
    head: Linear | None
    fitted_by: str

    def describe(self) -> dict[str, Any]:
        """Return all but the numbers, as plain JSON content."""
        return {
            "identity": dict(self.identity),
            "aim": dict(self.aim),
            "images": self.images,
            "checked_on": self.checked_on,
            "degrees": {str(degree): asdict(each) for degree, each in self.degrees.items()},
            "fitted_by": self.fitted_by,
        }

    def save(self, bundle_path: Path | str) -> Path:
        """Write both files atomically under ``bundle_path/alignments/``, the JSON last, and return its path.

        Raises:
            OutputError: The folder cannot be written.
        """
        path = alignment_path(bundle_path, self.identity)
        numbers = b"".join(
            np.ascontiguousarray(part, "<f4").tobytes()
            for linear in _in_order(self.maps, self.head)
            for part in (linear.matrix, linear.offset)
        )
        some = next(iter(self.maps.values()), self.head)
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            **self.describe(),
            "channels": 0 if some is None else len(some.matrix),
            "classes": None if self.head is None else len(self.head.offset),
            "numbers_sha256": hashlib.sha256(numbers).hexdigest(),
        }
        for file, data in ((path.with_suffix(".bin"), numbers), (path, sealed(content))):
            with atomic_path(file) as beside:
                beside.write_bytes(data)
        return path

    @classmethod
    def load(cls, path: Path | str) -> tuple[DeviceAlignment, str]:
        """Read both files; return the alignment and the sha256 of its JSON file, which names the numbers' own.

        Raises:
            AlignmentError: One is missing, damaged, of another version, or not of the other.
        """
        path = Path(path)
        data = _read(path, _MAX_JSON_BYTES)
        try:
            members = {name: value for name, value in parse_sealed(data).items() if name != "sha256"}
            content = as_dataclass(_Content, members, "the file")
            if (content.format, content.version) != (_FORMAT, _VERSION):
                raise ValueError(f"is a {content.format} of version {content.version}, not {_FORMAT} {_VERSION}")
            widths = _widths(content)
            numbers = _read(path.with_suffix(".bin"), 4 * sum((content.channels + 1) * width for width in widths))
            if (got := hashlib.sha256(numbers).hexdigest()) != content.numbers_sha256:
                raise ValueError(f"says that its numbers have sha256 {content.numbers_sha256}, they have {got}")
            maps, head = _parse(np.frombuffer(numbers, "<f4"), content, widths)
        except (ValueError, AttributeError) as error:
            if isinstance(error, AlignmentError):
                raise
            raise AlignmentError(f"{path} {error}. {_AGAIN}") from error
        figures = content.images, content.checked_on, content.degrees
        found = cls(content.identity, content.aim, *figures, maps, head, content.fitted_by)
        return found, hashlib.sha256(data).hexdigest()

    def mismatch(self, identity: Mapping[str, Any]) -> str | None:
        """Return why it does not hold for ``identity``, or None where it does."""
        for name, value in identity.items():
            if self.identity.get(name) != value:
                return f"{name} is {value!r}, it was fitted with {self.identity.get(name)!r}"
        return None


def alignment_path(bundle_path: Path | str, identity: Mapping[str, Any]) -> Path:
    """Return where the alignment for an identity lies."""
    return Path(bundle_path) / ALIGNMENTS_FOLDER / f"{fingerprint(identity)}.json"


def find_alignments(bundle_path: Path | str) -> list[Path]:
    """Return the JSON files of the alignments beside a bundle, by name."""
    return sorted((Path(bundle_path) / ALIGNMENTS_FOLDER).glob("*.json"))


def _in_order(maps: Mapping[int, Linear], head: Linear | None) -> Iterator[Linear]:
    yield from (maps[degree] for degree in sorted(maps))
    if head is not None:
        yield head


def _widths(content: _Content) -> list[int]:
    """Return how many outputs each linear map in the numbers has."""
    used = [degree for degree, each in content.degrees.items() if each.used]
    widths = [content.channels] * len(used) + ([] if content.classes is None else [content.classes])
    if min([content.channels, *widths]) < 0 or (content.channels + 1) * sum(widths) > _MAX_NUMBERS:
        raise ValueError(f"says that it has {content.channels} channels and {content.classes} classes")
    return widths


def _parse(
    numbers: NDArray[np.float32], content: _Content, widths: list[int]
) -> tuple[dict[int, Linear], Linear | None]:
    """Return the maps and the head."""
    if len(numbers) != (content.channels + 1) * sum(widths):
        raise ValueError(f"has {len(numbers)} numbers for linear maps of {content.channels} channels to {widths}")
    if not np.isfinite(numbers).all():
        raise ValueError("holds numbers that are not finite")
    found, at = [], 0
    for width in widths:
        part = numbers[at : at + (content.channels + 1) * width].reshape(content.channels + 1, width)
        found.append(Linear(part[:-1], part[-1]))
        at += part.size
    head = None if content.classes is None else found.pop()
    used = sorted(degree for degree, each in content.degrees.items() if each.used)
    return dict(zip(used, found, strict=True)), head


def _read(path: Path, most: int) -> bytes:
    try:
        with open_regular(path) as file:
            data = file.read(most + 1)
    except OSError as error:
        raise AlignmentError(f"{path} cannot be read ({error.strerror}). {_AGAIN}") from error
    if len(data) > most:
        raise AlignmentError(f"{path} has more than {most} bytes: that is not an alignment. {_AGAIN}")
    return data
