"""The engines beside a bundle: which folder fits this device, and whether its files are what their sidecars say."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from tocom.errors import EngineError
from tocom.formats.bundle import Bundle
from tocom.formats.sidecar import Sidecar, read_sidecar

__all__ = ["EngineFolder", "any_engines", "find_engines"]

_BUILD = "Build it on this device: tocom build {bundle} --backend {backend}"


@dataclass(frozen=True)
class EngineFolder:
    """The engines of one bundle for one device."""

    path: Path
    engines: Mapping[int, Sidecar]

    def op_plugin(self) -> tuple[Path, str] | None:
        """Return the op plugin library that the engines need and its sha256; None when they need none."""
        for engine in self.engines.values():
            if engine.op_plugin is not None:
                return self.path / engine.op_plugin.file, engine.op_plugin.sha256
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
            try:
                engine, sha256 = read_sidecar(sidecar)
            except EngineError as error:
                refused.append(str(error))
                continue
            why = _unfit(engine, bundle, backend, version, device)
            if why is not None:
                refused.append(f"{folder.name}/{sidecar.name}: {why}")
                continue
            bundle.require_signed(sidecar.relative_to(bundle.path).as_posix(), sha256)
            engines[engine.degree] = engine
        if engines:
            return EngineFolder(folder, dict(sorted(engines.items())))
    build = _BUILD.format(bundle=bundle.path, backend=backend)
    seen = f" Looked at: {'; '.join(refused[:4])}." if refused else ""
    raise EngineError(f"{bundle.path} has no {backend} engine for {device['gpu']}.{seen} {build}.")


def _folders(bundle: Bundle, backend: str) -> list[Path]:
    """Return the backend's folders; those of one GPU before portable ones, as they were tuned on it."""
    found = [path for path in (bundle.path / "engines").glob(f"{backend}-[0-9]*") if path.is_dir()]
    return sorted(found, key=lambda path: (path.name.endswith("portable"), path.name))


def _unfit(engine: Sidecar, bundle: Bundle, backend: str, version: str, device: Mapping[str, str]) -> str | None:
    """Return why an engine does not fit, or None."""
    if (why := engine.mismatch(bundle)) is not None:
        return why
    if engine.backend != backend:
        return f"it is of {engine.backend}"
    if other := _other_version(backend, engine.backend_version, version, engine.options.version_compatible):
        return other
    if backend == "tensorrt" and engine.op_plugin is not None:
        made_for = engine.op_plugin.tensorrt.split(".")[0]
        if made_for != version.split(".")[0]:
            return f"its op plugin library is for TensorRT {made_for}.x, this is {version}"
    capability, covered = device["compute_capability"], ", ".join(engine.compute_capabilities)
    if engine.gpu is None and capability not in engine.compute_capabilities:
        return f"it is portable, for compute capability {covered}; this GPU has {capability}"
    if capability not in engine.compute_capabilities and not engine.options.hardware_compatible:
        return f"it was built for compute capability {covered}, this GPU has {capability}"
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
