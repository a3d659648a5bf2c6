"""On-device alignments: maps of features that were fitted from the engines' own answers, beside the bundle.

A file under ``bundle/alignments/`` is sealed JSON, named by what it holds for: what was fitted and from what, and the
numbers, little-endian float32 in base64: per degree that uses its map, ascending, matrix [channels, channels] and
offset [channels]; then, where logits are an output, the head's matrix [channels, classes] and offset [classes].
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.errors import AlignmentError
from tocom.formats.profile import fingerprint
from tocom.formats.sealed_json import parse_sealed, write_sealed_json
from tocom.formats.typed_json import as_dataclass
from tocom.system.files import read_regular

__all__ = ["ALIGNMENTS_FOLDER", "DeviceAlignment", "FittedDegree", "Linear", "alignment_path", "find_alignments"]

ALIGNMENTS_FOLDER = "alignments"
_FORMAT, _VERSION = "tocom-device-alignment", 1
_MAX_BYTES = 1 << 28
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
    numbers: str
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
        """Write the file atomically under ``bundle_path/alignments/`` and return its path.

        Raises:
            OutputError: The folder cannot be written.
        """
        path = alignment_path(bundle_path, self.identity)
        linears = [self.maps[degree] for degree in sorted(self.maps)] + ([] if self.head is None else [self.head])
        numbers = b"".join(
            np.ascontiguousarray(part, "<f4").tobytes() for each in linears for part in (each.matrix, each.offset)
        )
        content = {
            "format": _FORMAT,
            "version": _VERSION,
            **self.describe(),
            "channels": len(linears[0].matrix) if linears else 0,
            "classes": None if self.head is None else len(self.head.offset),
            "numbers": base64.b64encode(numbers).decode(),
        }
        write_sealed_json(path, content)
        return path

    @classmethod
    def load(cls, path: Path | str) -> tuple[DeviceAlignment, str]:
        """Read a file; return the alignment and the file's sha256.

        Raises:
            AlignmentError: It is missing, damaged, or of another version.
        """
        path = Path(path)
        try:
            data = read_regular(path, _MAX_BYTES)
            members = {name: value for name, value in parse_sealed(data).items() if name != "sha256"}
            content = as_dataclass(_Content, members, "the file")
            if (content.format, content.version) != (_FORMAT, _VERSION):
                raise ValueError(f"is a {content.format} of version {content.version}, not {_FORMAT} {_VERSION}")
            maps, head = _parse(np.frombuffer(base64.b64decode(content.numbers, validate=True), "<f4"), content)
        except OSError as error:
            raise AlignmentError(f"{path} cannot be read ({error.strerror}). {_AGAIN}") from error
        except (ValueError, AttributeError) as error:
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


def _parse(numbers: NDArray[np.float32], content: _Content) -> tuple[dict[int, Linear], Linear | None]:
    """Return the maps and the head."""
    used = sorted(degree for degree, each in content.degrees.items() if each.used)
    widths = [content.channels] * len(used) + ([] if content.classes is None else [content.classes])
    if min([content.channels, *widths]) < 0 or len(numbers) != (content.channels + 1) * sum(widths):
        raise ValueError(f"has {len(numbers)} numbers for linear maps of {content.channels} channels to {widths}")
    if not np.isfinite(numbers).all():
        raise ValueError("holds numbers that are not finite")
    found, at = [], 0
    for width in widths:
        part = numbers[at : at + (content.channels + 1) * width].reshape(content.channels + 1, width)
        found.append(Linear(part[:-1], part[-1]))
        at += part.size
    head = None if content.classes is None else found.pop()
    return dict(zip(used, found, strict=True)), head
