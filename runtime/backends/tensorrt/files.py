"""The engines beside a bundle: which folder fits this device, and whether its files are what their sidecars say."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tocom.errors import EngineError
from tocom.formats.bundle import Bundle
from tocom.formats.engine import engine_name, unpack_engine
from tocom.formats.sidecar import read_sidecar

__all__ = ["EngineFile", "EngineFolder", "any_engines", "find_engines"]

_BUILD = "Build it on this device: tocom build {bundle} --backend {backend}"


@dataclass(frozen=True)
class EngineFile:
    """One engine that may be deserialized: its hash was not checked yet.

    Attributes:
        degree: Its degree.
        path: The file.
        record: The sidecar's content.
    """

    degree: int
    path: Path
    record: Mapping[str, Any]

    @property
    def content_bytes(self) -> int:
        """Bytes that TensorRT is given: more than the file has where it is compact."""
        engine = self.record["engine"]
        return int(engine.get("content_bytes", engine["size_bytes"]))

    def read(self) -> bytes | bytearray:
        """Return the engine as TensorRT wrote it.

        Raises:
            EngineError: The file is missing, or is not what its sidecar says.
        """
        expected = self.record["engine"]
        try:
            content = self.path.read_bytes()
        except OSError as error:
            raise EngineError(f"The engine {self.path} cannot be read ({error.strerror}). Build it again.") from error
        if len(content) != expected["size_bytes"]:
            raise EngineError(
                f"The engine {self.path} has {len(content)} bytes, its sidecar says {expected['size_bytes']}: it was "
                "cut off or changed. Build it again."
            )
        # Of the bytes that will be deserialized: the file may be another by now.
        got = hashlib.sha256(content).hexdigest()
        if got != expected["sha256"]:
            raise EngineError(
                f"The engine {self.path} has sha256 {got}, its sidecar says {expected['sha256']}. Engines can carry "
                "code, so it is not loaded. Build it again."
            )
        if self.record["options"].get("compact"):
            return unpack_engine(content, self.content_bytes, self.path)
        return content


@dataclass(frozen=True)
class EngineFolder:
    """The engines of one bundle for one device."""

    path: Path
    engines: Mapping[int, EngineFile]

    def op_plugin(self) -> tuple[Path, str] | None:
        """Return the op plugin library that the engines need and its sha256; None when they need none."""
        for engine in self.engines.values():
            described = engine.record.get("op_plugin")
            if described and described.get("file"):
                return self.path / Path(described["file"]).name, described["sha256"]
        return None


def any_engines(bundle: Bundle, backend: str) -> bool:
    """Return whether the bundle has any folder of engines of a backend, whether or not they fit here."""
    return bool(_folders(bundle, backend))


def find_engines(bundle: Bundle, backend: str, version: str, device: Mapping[str, str]) -> EngineFolder:
    """Return the engines that this backend can load on this device.

    Args:
        bundle: The bundle; its hashes were checked.
        backend: ``tensorrt`` or ``tensorrt-rtx``.
        version: Version of the library that will load them.
        device: Name (``gpu``) and ``compute_capability`` of the GPU.

    Raises:
        BundleError: One fits, but no trusted key signed its sidecar where keys are asked for.
        EngineError: There are none; every folder that was looked at says why it does not fit.
    """
    refused = []
    for folder in _folders(bundle, backend):
        engines = {}
        for sidecar in sorted(folder.glob("degree-*.json")):
            entry, sha256 = _read(sidecar)
            why = _unfit(entry, bundle, backend, version, device)
            if why is not None:
                refused.append(f"{folder.name}/{sidecar.name}: {why}")
                continue
            bundle.require_signed(sidecar.relative_to(bundle.path).as_posix(), sha256)
            file = folder / engine_name(entry["degree"], compact=bool(entry["options"].get("compact")))
            engines[entry["degree"]] = EngineFile(entry["degree"], file, entry)
        if engines:
            return EngineFolder(folder, dict(sorted(engines.items())))
    build = _BUILD.format(bundle=bundle.path, backend=backend)
    seen = f" Looked at: {'; '.join(refused[:4])}." if refused else ""
    raise EngineError(f"{bundle.path} has no {backend} engine for {device['gpu']}.{seen} {build}.")


def _folders(bundle: Bundle, backend: str) -> list[Path]:
    """Return the backend's folders; those of one GPU before portable ones, as they were tuned on it."""
    found = [path for path in (bundle.path / "engines").glob(f"{backend}-[0-9]*") if path.is_dir()]
    return sorted(found, key=lambda path: (path.name.endswith("portable"), path.name))


def _read(sidecar: Path) -> tuple[dict[str, Any], str]:
    """Return a sidecar's content, empty where it is not readable, and the sha256 of the very bytes it was read from."""
    try:
        content, sha256 = read_sidecar(sidecar)
    except (OSError, ValueError):
        return {}, ""
    return content if isinstance(content, dict) else {}, sha256


def _unfit(
    record: Mapping[str, Any], bundle: Bundle, backend: str, version: str, device: Mapping[str, str]
) -> str | None:
    """Return why an engine does not fit, or None."""
    try:
        degree, onnx, engine = record["degree"], record["onnx"], record["engine"]
        built_on = record["device"]
        if degree not in bundle.degrees:
            return f"the bundle has no degree {degree}"
        expected = bundle.manifest["files"][bundle.degrees[degree].onnx]["sha256"]
        if onnx["sha256"] != expected:
            return "it was built from another ONNX file; build it again"
        weights = bundle.manifest["files"].get("weights.bin", {}).get("sha256")
        if onnx["weights_sha256"] != weights:
            return "it was built from other weights; build it again"
        if record["backend"] != backend:
            return f"it is of {record['backend']}"
        if other := _other_version(
            backend, record["backend_version"], version, record["options"]["version_compatible"]
        ):
            return other
        if backend == "tensorrt" and (op_plugin := record["op_plugin"]):
            made_for = op_plugin["tensorrt"].split(".")[0]
            if made_for != version.split(".")[0]:
                return f"its op plugin library is for TensorRT {made_for}.x, this is {version}"
        if built_on == "portable" and device["compute_capability"] not in record["compute_capabilities"]:
            covered = ", ".join(record["compute_capabilities"])
            return f"it is portable, for compute capability {covered}; this GPU has {device['compute_capability']}"
        capability = None if built_on == "portable" else built_on["compute_capability"]
        if capability not in (None, device["compute_capability"]) and not record["options"].get("hardware_compatible"):
            return f"it was built for compute capability {capability}, this GPU has {device['compute_capability']}"
        if not isinstance(engine["sha256"], str) or not isinstance(engine["size_bytes"], int):
            return "its sidecar has no hash"
    except (KeyError, TypeError, AttributeError) as error:
        return f"its sidecar is not readable ({type(error).__name__}: {error}); build it again"
    return None


def _other_version(backend: str, built: str, here: str, version_compatible: bool) -> str | None:
    """Return why an engine of one version does not load in another, or None."""
    # Engines fit one release, which has three numbers.
    theirs, ours = ([int(number) for number in re.findall(r"\d+", version)[:3]] for version in (built, here))
    if theirs == ours:
        return None
    if not version_compatible:
        return f"it was built by {backend} {built}, this is {here}"
    if theirs[0] != ours[0]:
        return f"it is version-compatible, which holds within {backend} {theirs[0]}.x; this is {here}"
    if theirs > ours:
        return f"it is version-compatible with {backend} {built} and newer; this is {here}"
    return None
