"""One copy of each weight for all degrees under ONNX Runtime: a per-machine cache of packed weights.

ONNX Runtime repacks every matrix for the processor when a session loads, into memory of that session: five degrees
hold five copies. It can save what it packed and map it from a file instead. This module lets it do so once per
degree, stores each distinct blob once in a file that all degrees share, and points the saved models at it. Pages of
a mapped file exist once, however many sessions map them.

The cache is a folder that anything may delete. Its key names the bundle, the degrees, the ONNX Runtime and the
processor, since packed layouts differ by instruction set; its manifest holds the sha256 of every file.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import platform
import re
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tocom.bundle import Bundle
from tocom.errors import OutputError
from tocom.files import atomic_folder, sha256_file, write_json
from tocom.runtime.backends.onnx_wire import rewrite_external_data

__all__ = ["WeightCache", "default_cache_folder"]

log = logging.getLogger("tocom.runtime")

_VERSION = 1
_MANIFEST = "cache.json"
_WEIGHTS = "weights.bin"
_EXTERNAL_FROM_BYTES = 1024
_ALIGN_BYTES = 4096
_PACKED = re.compile(r"\|(\d+);(\d+);")

SaveSession = Callable[[Path, dict[str, str], Path], None]
"""Opens a session of the ONNX file with the given session configuration, writing the optimised model to the path."""


def default_cache_folder() -> Path:
    """Return ``$TOCOM_CACHE``, else ``$XDG_CACHE_HOME/tocom``, else ``~/.cache/tocom``."""
    if folder := os.environ.get("TOCOM_CACHE"):
        return Path(folder)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "tocom"


class WeightCache:
    """The packed models of some degrees of a bundle.

    Args:
        bundle: The bundle; its files were verified.
        degrees: Degrees that share weights.
        runtime_version: Version of ONNX Runtime.
        folder: Folder of all caches; None takes :func:`default_cache_folder`.
    """

    def __init__(
        self, bundle: Bundle, degrees: Sequence[int], *, runtime_version: str, folder: Path | None = None
    ) -> None:
        self._bundle = bundle
        self._degrees = sorted(degrees)
        self._identity = {
            "version": _VERSION,
            "bundle": bundle.fingerprint,
            "degrees": self._degrees,
            "onnxruntime": runtime_version,
            "processor": _processor_identity(),
        }
        key = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (folder or default_cache_folder()) / "onnxruntime" / key

    def model(self, degree: int) -> Path:
        """Return the path of a degree's packed model."""
        return self.path / f"degree-{degree:02d}.onnx"

    def ready(self) -> bool:
        """Return whether the cache is there and every file has the size and sha256 of its manifest."""
        try:
            manifest = json.loads((self.path / _MANIFEST).read_text(encoding="utf-8"))
            if manifest["identity"] != self._identity:
                return False
            return all(
                (self.path / name).stat().st_size == entry["size"] and sha256_file(self.path / name) == entry["sha256"]
                for name, entry in manifest["files"].items()
            )
        except (OSError, ValueError, KeyError, TypeError):
            return False

    def build(self, save: SaveSession) -> None:
        """Fill the cache, whole or not at all.

        Args:
            save: Opens one session so that ONNX Runtime saves its optimised model.

        Raises:
            OutputError: The folder cannot be written, or the disk is full.
        """
        with atomic_folder(self.path, overwrite=True) as folder:
            with (folder / _WEIGHTS).open("wb") as weights:
                store = _BlobStore(weights)
                for degree in self._degrees:
                    (folder / self.model(degree).name).write_bytes(self._packed(degree, store, save, folder))
            names = [_WEIGHTS, *(self.model(degree).name for degree in self._degrees)]
            files = {
                name: {"size": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)} for name in names
            }
            write_json(folder / _MANIFEST, {"identity": self._identity, "files": files})
        log.info("packed the weights of %d degrees once into %s", len(self._degrees), self.path)

    def _packed(self, degree: int, store: _BlobStore, save: SaveSession, folder: Path) -> bytes:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            target = Path(name) / "model.onnx"
            config = {
                "session.optimized_model_external_initializers_file_name": "model.bin",
                "session.optimized_model_external_initializers_min_size_in_bytes": str(_EXTERNAL_FROM_BYTES),
                "session.save_external_prepacked_constant_initializers": "1",
            }
            save(self._bundle.onnx_path(degree), config, target)
            data = Path(name) / "model.bin"
            if not target.exists() or not data.exists():
                raise OutputError("this ONNX Runtime does not save packed weights; install onnxruntime >= 1.21")
            with data.open("rb") as source:

                def move(entries: dict[str, str]) -> dict[str, str]:
                    return {key: _moved(key, value, entries, source, store) for key, value in entries.items()}

                return rewrite_external_data(target.read_bytes(), move)


class _BlobStore:
    """Appends each distinct blob once."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._places: dict[bytes, int] = {}

    def put(self, content: bytes) -> int:
        """Return the offset of the blob, aligned to a page."""
        digest = hashlib.sha256(content).digest()
        if digest not in self._places:
            self._file.write(b"\0" * (-self._file.tell() % _ALIGN_BYTES))
            self._places[digest] = self._file.tell()
            self._file.write(content)
        return self._places[digest]


def _moved(key: str, value: str, entries: dict[str, str], source: Any, store: _BlobStore) -> str:
    """Return an external-data value that points at the blob's place in the shared file."""

    def put(offset: int, length: int) -> int:
        source.seek(offset)
        return store.put(source.read(length))

    if key == "location":
        return _WEIGHTS
    if key == "offset":
        return str(put(int(value), int(entries["length"])))
    if key.startswith("prepacked"):
        return _PACKED.sub(lambda found: f"|{put(int(found[1]), int(found[2]))};{found[2]};", value)
    return value


def _processor_identity() -> str:
    """Return what decides the packed layout: architecture, processor and its instruction sets."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        lines = []
    keys = ("model name", "flags", "Features", "CPU part")
    facts = sorted({line for line in lines if line.startswith(keys)})
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    return f"{platform.machine()} {digest}"
