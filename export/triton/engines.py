"""The engines of a bundle that Triton can serve: which folder, and whether its files are what their sidecars say."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from tocom.errors import EngineError
from tocom.formats.bundle import Bundle
from tocom.formats.sidecar import Sidecar, read_sidecar

__all__ = ["find_servable", "op_plugin_of"]

_BUILD = "Build them on the device that serves: 'tocom build --backend tensorrt'."


def find_servable(bundle: Bundle, folder: Path | str | None = None) -> tuple[Path, dict[int, Sidecar]]:
    """Return the folder of the bundle's TensorRT engines, and their sidecars by degree, ascending.

    There are none where the bundle has none and no folder is named.

    Args:
        bundle: The bundle; its trusted keys, if it has any, must have signed the sidecars.
        folder: The engines' folder; None takes the only one of TensorRT.

    Raises:
        BundleError: No trusted key signed a sidecar.
        EngineError: The folder has no engine, one that Triton cannot load or one of another bundle; or there are
            several folders and none was named.
    """
    if folder is None:
        # TensorRT-RTX's begin alike, but with letters behind the dash.
        found = sorted(path for path in (bundle.path / "engines").glob("tensorrt-[0-9]*") if path.is_dir())
        if not found:
            return bundle.path, {}
        if len(found) > 1:
            raise EngineError(
                f"{bundle.path} has engines for {len(found)} devices: {', '.join(path.name for path in found)}. Name "
                "the folder to serve: --engines FOLDER."
            )
        folder = found[0]
    engines = [_open(bundle, sidecar) for sidecar in sorted(Path(folder).glob("degree-*.json"))]
    if not engines:
        raise EngineError(f"{folder} has no engines. {_BUILD}")
    return Path(folder), {engine.degree: engine for engine in sorted(engines, key=lambda engine: engine.degree)}


def op_plugin_of(folder: Path, engines: Sequence[Sidecar]) -> tuple[str, bytes] | None:
    """Return name and bytes of the op plugin library that the engines need; None where they need none.

    Raises:
        EngineError: They need different ones, of which a process can load one; or it is not what it was.
    """
    needed = {engine.op_plugin.file: engine for engine in engines if engine.op_plugin}
    if len(needed) > 1:
        raise EngineError(
            f"The engines in {folder} need different op plugin libraries ({', '.join(sorted(needed))}), and Triton can "
            "load one. Build all degrees again: 'tocom build'."
        )
    return next((engine.read_op_plugin(folder) for engine in needed.values()), None)


def _open(bundle: Bundle, path: Path) -> Sidecar:
    """Read a sidecar and check that its engine is of this bundle, for Triton, and signed where keys are asked for."""
    sidecar, sha256 = read_sidecar(path)
    if sidecar.backend != "tensorrt":
        raise EngineError(
            f"{path.parent} holds engines of {sidecar.backend}; Triton loads engines of TensorRT alone. "
            f"{_BUILD} Or serve the ONNX files: --backend onnxruntime."
        )
    if sidecar.mismatch(bundle) is not None:
        raise EngineError(f"{path} is of an engine of another bundle, or of this one before a change. {_BUILD}")
    inside, outer = path.resolve(), bundle.path.resolve()
    name = inside.relative_to(outer).as_posix() if inside.is_relative_to(outer) else path.name
    bundle.require_signed(name, sha256)
    return sidecar
