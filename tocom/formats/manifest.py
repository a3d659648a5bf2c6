"""What a manifest must say before anything relies on it: types, ranges, and names that stay inside the bundle.

Types and ranges are those of the JSON Schema beside this file. Its limits are far above any real model and far below
what would exhaust a device, so that a hostile number is refused before something is made of its size.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from tocom.errors import BundleError
from tocom.formats.schema import check_schema, shown

__all__ = [
    "CROP_MODES",
    "INPUT_TYPES",
    "INTERPOLATIONS",
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "check_input_value",
    "check_manifest",
]

MANIFEST_NAME = "bundle.json"
_SCHEMA = json.loads((Path(__file__).parent / "schemas" / "bundle-v1.schema.json").read_text(encoding="utf-8"))
_INPUT = _SCHEMA["properties"]["input"]["properties"]
SCHEMA_VERSION = 1
# How an image gets to the model's size; timm's names. tocom.images does them all.
CROP_MODES: tuple[str, ...] = tuple(_INPUT["crop_mode"]["enum"])
INTERPOLATIONS: tuple[str, ...] = tuple(_INPUT["interpolation"]["enum"])
# What an engine takes: images that are normalised already, or their pixels; then the graph normalises.
INPUT_TYPES: tuple[str, ...] = tuple(_INPUT["dtype"]["enum"])

_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*(/[A-Za-z0-9_][A-Za-z0-9._-]*)*")
# What other commands write beside the export's files is never the export's.
_RESERVED = ("alignments", "engines", "profiles", "signatures")
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
            f"{path} has schema version {shown(version)}, this tocom reads {SCHEMA_VERSION}. "
            "Export the bundle again, or install the tocom that wrote it."
        )
    try:
        check_schema(manifest, _SCHEMA)
        _check_together(manifest)
        if "references" in manifest:
            _check_references(manifest)
    except ValueError as error:
        raise BundleError(f"{path}: {error}. Do not use this bundle: copy it again, or export it again.") from error


def check_input_value(name: str, value: Any) -> None:
    """Raise ValueError unless ``value`` can stand in a manifest's ``input`` under ``name``, ``crop`` say."""
    check_schema(value, _INPUT[name], name)


def _check_together(manifest: dict[str, Any]) -> None:
    """Check what no schema says of a field alone."""
    for name in manifest["files"]:
        if not _NAME.fullmatch(name) or name == MANIFEST_NAME or name.split("/")[0] in _RESERVED:
            raise ValueError(f"file name {shown(name)} points out of the bundle")
    smallest, optimal, largest = (manifest["batch"][key] for key in ("min", "opt", "max"))
    if not smallest <= optimal <= largest:
        raise ValueError(f"batch must be min ≤ opt ≤ max. Got {smallest}, {optimal}, {largest}")
    (_, channels, height, width), mean, std = (manifest["input"][key] for key in ("shape", "mean", "std"))
    if largest * channels * height * width > _MAX_INPUT_VALUES:
        raise ValueError(f"the largest batch, {largest} images, has more than {_MAX_INPUT_VALUES} values")
    if not len(mean) == len(std) == channels:
        raise ValueError(f"input.mean and input.std must be {channels} numbers each")
    degrees = [entry["degree"] for entry in manifest["degrees"]]
    if len(set(degrees)) != len(degrees):
        raise ValueError(f"a degree is twice there: {shown(degrees)}")
    for entry in manifest["degrees"]:
        if entry["onnx"] not in manifest["files"]:
            raise ValueError(f"degree {entry['degree']} names {shown(entry['onnx'])}, which is not under files")
    for output in manifest["outputs"]:
        wanted = "[batch, patches, channels]" if output["name"] == "patch_features" else "[batch, values]"
        if len(output["shape"]) != wanted.count(",") + 1:
            raise ValueError(f"an output's shape must be {wanted}. Got {shown(output['shape'])}")


def _check_references(manifest: dict[str, Any]) -> None:
    entry = manifest["references"]
    if entry["file"] not in manifest["files"]:
        raise ValueError(f"references names {shown(entry['file'])}, which is not under files")
    _, channels, height, width = manifest["input"]["shape"]
    if entry["images"] * channels * height * width > _MAX_REFERENCE_VALUES:
        raise ValueError(f"{entry['images']} reference images have more than {_MAX_REFERENCE_VALUES} values")
    for each in entry["degrees"]:
        if max(each["conclusive"]) >= entry["images"]:
            raise ValueError(f"a degree's conclusive references must be below {entry['images']}. Got {shown(each)}")
    have, want = ([each["degree"] for each in group] for group in (entry["degrees"], manifest["degrees"]))
    if sorted(have) != sorted(want):
        raise ValueError(f"the references are of the degrees {shown(have)}, the bundle has {shown(want)}")
