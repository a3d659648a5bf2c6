"""What a manifest must say before anything relies on it: types, ranges, and names that stay inside the bundle.

The JSON Schema beside this file says the same in full, for other tools. The limits are far above any real model and
far below what would exhaust a device, so that a hostile number is refused before something is made of its size.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tocom.errors import BundleError
from tocom.system.numbers import is_integer

__all__ = ["CROP_MODES", "INPUT_TYPES", "INTERPOLATIONS", "MANIFEST_NAME", "SCHEMA_VERSION", "check_manifest"]

MANIFEST_NAME = "bundle.json"
SCHEMA_VERSION = 1
# How an image gets to the model's size; timm's names. tocom.images does them all.
CROP_MODES = ("center", "squash", "border")
INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "box", "hamming", "lanczos")
# What an engine takes: images that are normalised already, or their pixels; then the graph normalises.
INPUT_TYPES = ("float32", "uint8")

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
# What other commands write beside the export's files is never the export's.
_RESERVED = ("engines", "profiles", "signatures")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MAX_FILES = 4096
_MAX_FILE_BYTES = 1 << 48
_MAX_DEGREES = 1024
_MAX_COUNT = 1 << 20
_MAX_MACS = 1 << 62
_MAX_REFERENCES = 1024
_MAX_REFERENCE_VALUES = 1 << 28
_MAX_INPUT_VALUES = 1 << 31


def check_manifest(path: Path, manifest: Any) -> None:
    """Check everything that reading a bundle relies on.

    Args:
        path: The manifest's file, for messages.
        manifest: Its content.

    Raises:
        BundleError: It is of another version, or a field is missing, of the wrong type or out of range.
    """
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if type(version) is not int or version != SCHEMA_VERSION:
        raise BundleError(
            f"{path} has schema version {_shown(version)}, this tocom reads {SCHEMA_VERSION}. "
            "Export the bundle again, or install the tocom that wrote it."
        )
    _expect(path, manifest, "model", dict)
    for key in ("name", "weights"):
        _expect(path, manifest["model"], key, str)
    for key, kind in (
        ("method", str),
        ("family", str),
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
    if not 1 <= smallest <= optimal <= largest <= _MAX_COUNT:
        raise BundleError(
            f"{path}: batch must be 1 ≤ min ≤ opt ≤ max ≤ {_MAX_COUNT}. Got {_shown(smallest)}, {_shown(optimal)}, "
            f"{_shown(largest)}. Export again."
        )
    _check_input(path, manifest["input"], largest)
    labels = manifest.get("labels")
    if labels is not None and not (isinstance(labels, list) and all(isinstance(label, str) for label in labels)):
        raise BundleError(f"{path}: 'labels' must be null or a list of names. Export the bundle again.")
    for output in _items(path, manifest, "outputs"):
        _expect(path, output, "name", str)
    _check_files(path, manifest["files"])
    _check_degrees(path, manifest)
    if manifest.get("references") is not None:
        _check_references(path, manifest)


def _check_files(path: Path, files: dict[str, Any]) -> None:
    if len(files) > _MAX_FILES:
        raise BundleError(f"{path} names {len(files)} files, the most is {_MAX_FILES}. Do not use this bundle.")
    for name, entry in files.items():
        if not _NAME.fullmatch(name) or name == MANIFEST_NAME or name.split("/")[0] in _RESERVED:
            raise BundleError(f"{path}: file name {_shown(name)} points out of the bundle. Do not use this bundle.")
        _expect(path, entry, "sha256", str)
        _expect(path, entry, "size", int)
        if not _SHA256.fullmatch(entry["sha256"]) or not 0 <= entry["size"] <= _MAX_FILE_BYTES:
            raise BundleError(
                f"{path}: {name} must have a sha256 of 64 hexadecimal digits and a size from 0 to {_MAX_FILE_BYTES}. "
                "Export the bundle again."
            )


def _check_degrees(path: Path, manifest: dict[str, Any]) -> None:
    degrees = _items(path, manifest, "degrees")
    if len(degrees) > _MAX_DEGREES:
        raise BundleError(f"{path} has {len(degrees)} degrees, the most is {_MAX_DEGREES}. Do not use this bundle.")
    seen: set[int] = set()
    for entry in degrees:
        _expect(path, entry, "onnx", str)
        _expect(path, entry, "token_counts", list)
        for key in ("degree", "macs"):
            _expect(path, entry, key, int)
        if not 0 <= entry["degree"] <= _MAX_COUNT or not 0 <= entry["macs"] <= _MAX_MACS:
            raise BundleError(
                f"{path}: a degree must be from 0 to {_MAX_COUNT}, its macs from 0 to {_MAX_MACS}. Got "
                f"{_shown(entry['degree'])} and {_shown(entry['macs'])}. Export the bundle again."
            )
        if not 1 <= len(entry["token_counts"]) <= _MAX_COUNT:
            raise BundleError(f"{path}: degree {entry['degree']} has no token counts. Export the bundle again.")
        check = entry.get("check")
        if check is not None and not (isinstance(check, dict) and _is_number(check.get("max_abs_difference"))):
            raise BundleError(
                f"{path}: the check of degree {entry['degree']} must be null or hold a number. Export again."
            )
        accuracy = entry.get("accuracy")
        if accuracy is not None and not (_is_number(accuracy) and 0 <= accuracy <= 1):
            raise BundleError(
                f"{path}: the accuracy of degree {entry['degree']} must be null or from 0 to 1. Export again."
            )
        if entry["degree"] in seen or not all(_is_count(n) for n in entry["token_counts"]):
            raise BundleError(f"{path}: degree {entry['degree']} is twice there, or has bad token counts.")
        if entry["onnx"] not in manifest["files"]:
            raise BundleError(f"{path}: degree {entry['degree']} names {entry['onnx']!r}, which is not under files.")
        seen.add(entry["degree"])


def _check_references(path: Path, manifest: dict[str, Any]) -> None:
    _expect(path, manifest, "references", dict)
    entry = manifest["references"]
    _expect(path, entry, "file", str)
    if entry["file"] not in manifest["files"]:
        raise BundleError(f"{path}: references names {_shown(entry['file'])}, which is not under files. Export again.")
    images, repeat = entry.get("images"), entry.get("repeat")
    if not (_is_count(images) and _is_count(repeat) and max(images, repeat) <= _MAX_REFERENCES):
        raise BundleError(
            f"{path}: references must have from 1 to {_MAX_REFERENCES} images, repeat likewise. Got {_shown(images)} "
            f"and {_shown(repeat)}. Export the bundle again."
        )
    _, channels, height, width = manifest["input"]["shape"]
    if images * channels * height * width > _MAX_REFERENCE_VALUES:
        raise BundleError(
            f"{path}: {images} reference images have more than {_MAX_REFERENCE_VALUES} values. Do not use this bundle."
        )
    for output in manifest["outputs"]:
        shape = output.get("shape")
        rank = 3 if output.get("name") == "patch_features" else 2
        if not (isinstance(shape, list) and len(shape) == rank and all(_is_count(size) for size in shape[1:])):
            wanted = "[batch, patches, channels]" if rank == 3 else "[batch, values]"
            raise BundleError(f"{path}: an output's shape must be {wanted}. Got {_shown(shape)}. Export again.")
    for each in _items(path, entry, "degrees"):
        _expect(path, each, "conclusive", list)
        tolerance, conclusive = each.get("tolerance"), each["conclusive"]
        if not (_is_number(tolerance) and 0 < tolerance <= 1):
            raise BundleError(f"{path}: a reference's tolerance must be above 0, at most 1. Got {_shown(tolerance)}.")
        if not conclusive or any(type(index) is not int or not 0 <= index < images for index in conclusive):
            raise BundleError(
                f"{path}: a degree's conclusive references must be some of 0 … {images - 1}. Got "
                f"{_shown(conclusive)}. Export the bundle again."
            )
    have, want = ([each.get("degree") for each in group] for group in (entry["degrees"], manifest["degrees"]))
    if any(type(degree) is not int for degree in have) or sorted(have) != sorted(want):
        raise BundleError(
            f"{path}: the references are of the degrees {_shown(have)}, the bundle has {_shown(want)}. Export again."
        )


def _check_input(path: Path, entry: dict[str, Any], largest_batch: int) -> None:
    for key, kind in (("shape", list), ("mean", list), ("std", list), ("interpolation", str)):
        _expect(path, entry, key, kind)
    shape, mean, std = entry["shape"], entry["mean"], entry["std"]
    crop: Any = entry.get("crop")
    if entry.get("dtype") not in INPUT_TYPES:
        raise BundleError(
            f"{path}: input.dtype must be one of {', '.join(INPUT_TYPES)}. Got {_shown(entry.get('dtype'))}. "
            "Export again."
        )
    if len(shape) != 4 or not all(_is_count(n) for n in shape[1:]):
        raise BundleError(f"{path}: input.shape must be [batch, channels, height, width]. Export again.")
    if largest_batch * shape[1] * shape[2] * shape[3] > _MAX_INPUT_VALUES:
        raise BundleError(
            f"{path}: the largest batch, {largest_batch} of {shape[1:]}, has more than {_MAX_INPUT_VALUES} values. "
            "Export with a smaller batch."
        )
    if not all(_is_number(value) for value in (*mean, *std)) or not len(mean) == len(std) == shape[1] or 0 in std:
        raise BundleError(f"{path}: input.mean and input.std must be {shape[1]} numbers each, std not 0. Export again.")
    if entry["interpolation"] not in INTERPOLATIONS:
        raise BundleError(
            f"{path}: input.interpolation must be one of {', '.join(INTERPOLATIONS)}. Got "
            f"{_shown(entry['interpolation'])}."
        )
    if not (_is_number(crop) and 0 < crop <= 1):
        raise BundleError(f"{path}: input.crop must be above 0 and at most 1. Got {_shown(crop)}. Export again.")
    if entry.get("crop_mode") not in CROP_MODES:
        raise BundleError(
            f"{path}: input.crop_mode must be one of {', '.join(CROP_MODES)}. Got {_shown(entry.get('crop_mode'))}. "
            "Export again."
        )


def _shown(value: Any) -> str:
    """Return a value for a message; a hostile one may be long, and may hold line ends."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _is_number(value: Any) -> bool:
    # Compared, not converted: JSON knows integers that no float can hold, and NaN compares with nothing.
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e30 < value < 1e30


def _is_count(value: Any) -> bool:
    return is_integer(value, 1, _MAX_COUNT)


def _expect(path: Path, mapping: Any, key: str, kind: type) -> None:
    value = mapping.get(key) if isinstance(mapping, Mapping) else None
    if not isinstance(value, kind) or isinstance(value, bool):
        raise BundleError(
            f"{path}: {key!r} must be of type {kind.__name__}. Got {_shown(value)} instead. Export again."
        )


def _items(path: Path, manifest: dict[str, Any], key: str) -> list[Any]:
    _expect(path, manifest, key, list)
    items: list[Any] = manifest[key]
    if not items:
        raise BundleError(f"{path}: {key!r} is empty. Export the bundle again.")
    return items
