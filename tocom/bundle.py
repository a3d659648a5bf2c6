"""The bundle: a folder with a manifest, one ONNX file per degree, and weights that stand once.

Reading needs the standard library alone. Every file is checked against the manifest's size and sha256 before
anything parses it, and nothing outside the manifest is opened.
"""

from __future__ import annotations

import json
import stat
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any

from tocom.errors import BundleError
from tocom.files import sha256_file

__all__ = ["MANIFEST_NAME", "SCHEMA_VERSION", "WEIGHTS_NAME", "Bundle", "DegreeEntry"]

MANIFEST_NAME = "bundle.json"
WEIGHTS_NAME = "weights.bin"
SCHEMA_VERSION = 1
_MAX_MANIFEST_BYTES = 16 << 20
_INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")


@dataclass(frozen=True)
class DegreeEntry:
    """One degree of a bundle.

    Attributes:
        degree: Tokens removed in every block.
        onnx: File name inside the bundle.
        token_counts: Tokens entering each block, and last those leaving the final block.
        macs: Multiply-accumulates of one image, matching included.
        accuracy: Share of correct answers in 0…1 where the export knew it, else None.
    """

    degree: int
    onnx: str
    token_counts: tuple[int, ...]
    macs: int
    accuracy: float | None = None


class Bundle:
    """A bundle on disk, opened for reading.

    Args:
        path: The bundle's folder.
        verify: Check size and sha256 of every file now. Only a caller that just did so should turn it off.

    Raises:
        BundleError: The folder or manifest is missing, malformed, of another version, or a file does not match it.
    """

    def __init__(self, path: Path | str, *, verify: bool = True) -> None:
        self.path = Path(path)
        self.manifest = _read_manifest(self.path)
        if verify:
            self.verify()

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, model={self.model_name!r}, degrees={list(self.degrees)})"

    @cached_property
    def degrees(self) -> dict[int, DegreeEntry]:
        """The degrees in ascending order."""
        entries = [
            DegreeEntry(
                degree=entry["degree"],
                onnx=entry["onnx"],
                token_counts=tuple(entry["token_counts"]),
                macs=entry["macs"],
                accuracy=entry.get("accuracy"),
            )
            for entry in self.manifest["degrees"]
        ]
        return {entry.degree: entry for entry in sorted(entries, key=lambda entry: entry.degree)}

    @property
    def model_name(self) -> str:
        """The timm name of the model."""
        return str(self.manifest["model"]["name"])

    @property
    def precision(self) -> str:
        """``fp32``, ``fp16``, ``bf16`` or ``int8``."""
        return str(self.manifest["precision"])

    @property
    def batch(self) -> tuple[int, int, int]:
        """Smallest, optimal and largest batch."""
        batch = self.manifest["batch"]
        return batch["min"], batch["opt"], batch["max"]

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of one image."""
        channels, height, width = self.manifest["input"]["shape"][1:]
        return channels, height, width

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs: ``logits``, or ``features`` for a model without a classifier."""
        return tuple(output["name"] for output in self.manifest["outputs"])

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes, or None."""
        labels: list[str] | None = self.manifest.get("labels")
        return labels

    @cached_property
    def fingerprint(self) -> str:
        """sha256 of the manifest: names this exact bundle in profiles and engines."""
        return sha256_file(self.path / MANIFEST_NAME)

    def file(self, name: str) -> Path:
        """Return the path of a file that the manifest names.

        Raises:
            BundleError: The manifest does not name it.
        """
        if name not in self.manifest["files"]:
            raise BundleError(f"Bundle {self.path} has no file {name!r}. It has: {', '.join(self.manifest['files'])}.")
        return self.path / name

    def onnx_path(self, degree: int) -> Path:
        """Return the path of a degree's ONNX file.

        Raises:
            BundleError: The bundle does not hold the degree.
        """
        if degree not in self.degrees:
            have = ", ".join(map(str, self.degrees))
            raise BundleError(f"Bundle {self.path} has no degree {degree}. It has: {have}. Export it to add it.")
        return self.file(self.degrees[degree].onnx)

    def verify(self) -> None:
        """Check size and sha256 of every file in the manifest.

        Raises:
            BundleError: A file is missing or differs; the message names the file and both hashes.
        """
        for name, expected in self.manifest["files"].items():
            path = self.path / name
            try:
                if not path.resolve().is_relative_to(self.path.resolve()):
                    raise BundleError(f"Bundle {self.path}: {name} is a link out of the bundle. Copy the bundle anew.")
                status = path.stat()
            except (OSError, RuntimeError) as error:  # RuntimeError: a link to itself, before Python 3.13
                raise self._unreadable(name, error) from error
            if not stat.S_ISREG(status.st_mode):
                raise BundleError(f"Bundle {self.path}: {name} is no regular file. Copy the bundle anew.")
            size = status.st_size
            if size != expected["size"]:
                raise BundleError(
                    f"Bundle {self.path}: {name} has {size} bytes, the manifest says {expected['size']}. "
                    "The copy is incomplete or was changed; copy it again, or export it anew."
                )
            try:
                got = sha256_file(path)
            except OSError as error:
                raise self._unreadable(name, error) from error
            if got != expected["sha256"]:
                raise BundleError(
                    f"Bundle {self.path}: {name} has sha256 {got}, the manifest says {expected['sha256']}. "
                    "It was changed after the export; copy it again, or export it anew."
                )

    def _unreadable(self, name: str, error: Exception) -> BundleError:
        reason = getattr(error, "strerror", None) or error
        return BundleError(
            f"Bundle {self.path}: {name} cannot be read ({reason}). The manifest names it; "
            "copy the bundle again, or export it anew."
        )


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST_NAME
    try:
        if path.stat().st_size > _MAX_MANIFEST_BYTES:
            raise BundleError(f"{path} has more than {_MAX_MANIFEST_BYTES} bytes: that is no bundle manifest.")
        manifest = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BundleError(
            f"No bundle at {folder}: {MANIFEST_NAME} cannot be read ({error.strerror}). Make one with 'tocom export'."
        ) from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"{path} is no valid JSON ({error}). Copy the bundle again, or export it anew.") from error
    _check_manifest(path, manifest)
    return manifest  # type: ignore[no-any-return]  # _check_manifest has seen that it is a dict


def _check_manifest(path: Path, manifest: Any) -> None:
    """Check what reading relies on. The JSON Schema beside this file says the same in full, for other tools."""
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {version!r}, this tocom reads {SCHEMA_VERSION}. "
            "Export the bundle anew, or install the tocom that wrote it."
        )
    _expect(path, manifest, "model", dict)
    for key in ("name", "weights"):
        _expect(path, manifest["model"], key, str)
    for key, kind in (
        ("method", str),
        ("precision", str),
        ("batch", dict),
        ("input", dict),
        ("outputs", list),
        ("files", dict),
    ):
        _expect(path, manifest, key, kind)
    for key in ("min", "opt", "max"):
        _expect(path, manifest["batch"], key, int)
    smallest, optimal, largest = (manifest["batch"][key] for key in ("min", "opt", "max"))
    if not 1 <= smallest <= optimal <= largest:
        raise BundleError(
            f"{path}: batch must be 1 ≤ min ≤ opt ≤ max. Got {smallest}, {optimal}, {largest}. Export anew."
        )
    _check_input(path, manifest["input"])
    labels = manifest.get("labels")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise BundleError(f"{path}: 'labels' must be null or a list of names. Export the bundle anew.")
    for output in _items(path, manifest, "outputs"):
        _expect(path, output, "name", str)
    for name, entry in manifest["files"].items():
        parts = PurePosixPath(name)
        if parts.is_absolute() or ".." in parts.parts or str(parts) in (".", MANIFEST_NAME) or "\0" in name:
            raise BundleError(f"{path}: file name {name!r} points out of the bundle. Do not use this bundle.")
        _expect(path, entry, "sha256", str)
        _expect(path, entry, "size", int)
    seen: set[int] = set()
    for entry in _items(path, manifest, "degrees"):
        _expect(path, entry, "onnx", str)
        _expect(path, entry, "token_counts", list)
        for key in ("degree", "macs"):
            _expect(path, entry, key, int)
        if not entry["token_counts"]:
            raise BundleError(f"{path}: degree {entry['degree']} has no token counts. Export the bundle anew.")
        check = entry.get("check")
        if check is not None and not (isinstance(check, dict) and _is_number(check.get("max_abs_difference"))):
            raise BundleError(
                f"{path}: the check of degree {entry['degree']} must be null or hold a number. Export anew."
            )
        accuracy = entry.get("accuracy")
        if accuracy is not None and not (_is_number(accuracy) and 0 <= accuracy <= 1):
            raise BundleError(
                f"{path}: the accuracy of degree {entry['degree']} must be null or from 0 to 1. Export anew."
            )
        if entry["degree"] < 0 or entry["degree"] in seen or not all(_is_count(n) for n in entry["token_counts"]):
            raise BundleError(f"{path}: degree {entry['degree']} is negative, twice there, or has bad token counts.")
        if entry["onnx"] not in manifest["files"]:
            raise BundleError(f"{path}: degree {entry['degree']} names {entry['onnx']!r}, which is not under files.")
        seen.add(entry["degree"])


def _check_input(path: Path, entry: dict[str, Any]) -> None:
    for key, kind in (("shape", list), ("mean", list), ("std", list), ("interpolation", str)):
        _expect(path, entry, key, kind)
    shape, mean, std = entry["shape"], entry["mean"], entry["std"]
    crop: Any = entry.get("crop")
    if len(shape) != 4 or not all(_is_count(n) for n in shape[1:]):
        raise BundleError(f"{path}: input.shape must be [batch, channels, height, width]. Export anew.")
    if not all(_is_number(value) for value in (*mean, *std)) or not len(mean) == len(std) == shape[1] or 0 in std:
        raise BundleError(f"{path}: input.mean and input.std must be {shape[1]} numbers each, std not 0. Export anew.")
    if entry["interpolation"] not in _INTERPOLATIONS:
        raise BundleError(
            f"{path}: input.interpolation must be one of {', '.join(_INTERPOLATIONS)}. Got {entry['interpolation']!r}."
        )
    if not (_is_number(crop) and 0 < crop <= 1):
        raise BundleError(f"{path}: input.crop must be above 0 and at most 1. Got {crop!r}. Export anew.")


def _is_number(value: Any) -> bool:
    # Compared, not converted: JSON knows integers that no float can hold, and NaN compares with nothing.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e30 < value < 1e30


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _expect(path: Path, mapping: Any, key: str, kind: type) -> None:
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(f"{path}: {key!r} must be of type {kind.__name__}. Got {value!r} instead. Export anew.")


def _items(path: Path, manifest: dict[str, Any], key: str) -> list[Any]:
    _expect(path, manifest, key, list)
    items: list[Any] = manifest[key]
    if not items:
        raise BundleError(f"{path}: {key!r} is empty. Export the bundle anew.")
    return items
