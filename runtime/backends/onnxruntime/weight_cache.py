"""One copy of each weight for all degrees under ONNX Runtime: a per-machine cache of packed weights.

ONNX Runtime repacks every matrix for the processor when a session loads, into memory of that session: five degrees
hold five copies. It can save what it packed and map it from a file instead. This module lets it do so once per
degree, stores each distinct blob once in a file that all degrees share, and points the saved models at it. Pages of
a mapped file exist once, however many sessions map them.

The cache is a folder that anything may delete. Its key names the bundle, the ONNX Runtime and the processor, since
packed layouts differ by instruction set; degrees join it as they are first asked for. Its manifest holds the sha256 of
every file, of the weights piece by piece, so that all cores check them. It is as safe as the account that owns it: a
folder that others may write to is not used.

One process at a time builds a cache, under a lock beside it; whoever waited looks again first. Caches that were not
used for longest go once all of them together exceed :data:`MOST_BYTES`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import platform
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from copy import copy
from pathlib import Path
from typing import Any

from tocom.errors import OutputError
from tocom.formats.bundle import Bundle
from tocom.formats.onnx.tensors import rewrite_external_data
from tocom.formats.sealed_json import parse_json
from tocom.system.cache import cache_folder
from tocom.system.cpu import cpu_facts, usable_cores
from tocom.system.files import FileState, atomic_folder, file_state, open_regular, write_json
from tocom.system.locks import exclusive
from tocom.system.pools import submit

__all__ = ["MOST_BYTES", "WeightCache"]

log = logging.getLogger("tocom.runtime")

MOST_BYTES = 4 << 30
"""Most that the caches of all bundles may take on the disk, without the one in use."""

_VERSION = 4
_MANIFEST = "cache.json"
_WEIGHTS = "weights.bin"
_EXTERNAL_FROM_BYTES = 1024
_ALIGN_BYTES = 4096
_PIECE_BYTES = 16 << 20
_READ_BYTES = 1 << 20
_PACKED = re.compile(r"\|(\d+);(\d+);")

SaveSession = Callable[[int, dict[str, str], Path], None]
"""Opens a session of a degree with the given session configuration, writing the optimised model to the path."""


class WeightCache:
    """The packed models of some degrees of a bundle.

    Args:
        bundle: The bundle.
        degrees: Degrees that share weights.
        runtime_version: Version of ONNX Runtime.
        folder: Folder of all caches; None takes :func:`tocom.system.cache.cache_folder`.

    Raises:
        OutputError: There is no folder for caches.
    """

    def __init__(
        self, bundle: Bundle, degrees: Sequence[int], *, runtime_version: str, folder: Path | None = None
    ) -> None:
        self._bundle = bundle
        self._degrees = sorted(degrees)
        self._identity = {
            "version": _VERSION,
            "bundle": bundle.fingerprint,
            "onnxruntime": runtime_version,
            "processor": _processor_identity(),
        }
        key = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()[:16]
        self.path = (folder or cache_folder()) / "onnxruntime" / key
        self._models: dict[int, bytes] = {}
        self._weights: FileState | None = None

    def model(self, degree: int) -> bytes:
        """Return a degree's packed model: the very bytes that :meth:`ready` checked. Its weights lie in :attr:`path`.

        Raises:
            KeyError: The cache was not found ready, or is not of that degree.
        """
        return self._models[degree]

    def ready(self) -> bool:
        """Return whether the cache is there, is its owner's alone, and every file has the hash in its manifest."""
        try:
            status = self.path.stat()
            if status.st_uid not in (os.geteuid(), 0) or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
                return False
            manifest = parse_json((self.path / _MANIFEST).read_bytes())
            if manifest["identity"] != self._identity:
                return False
            models = {degree: (self.path / _model_name(degree)).read_bytes() for degree in self._degrees}
            for degree, model in models.items():
                if hashlib.sha256(model).hexdigest() != manifest["models"][_model_name(degree)]:
                    return False
            with open_regular(self.path / _WEIGHTS) as file:
                state = file_state(os.fstat(file.fileno()))
                if _piece_hashes(file.fileno(), state[2]) != manifest["weights"]:
                    return False
        except (OSError, ValueError, KeyError, TypeError):
            return False
        self._models, self._weights = models, state
        with contextlib.suppress(OSError):  # a cache that may only be read serves as well
            os.utime(_lock_of(self.path))  # used now: others go first
        return True

    def unchanged(self) -> bool:
        """Return whether the weights are those that :meth:`ready` checked: to be asked when they are mapped."""
        try:
            return file_state((self.path / _WEIGHTS).stat()) == self._weights
        except OSError:
            return False

    def build(self, save: SaveSession) -> None:
        """Fill the cache, whole or not at all, unless another process did so meanwhile; then :meth:`ready` holds.

        Args:
            save: Opens one session so that ONNX Runtime saves its optimised model.

        Raises:
            BundleError: A file of the bundle does not match its manifest.
            OutputError: The folder cannot be written, the disk is full, or what was written cannot be read.
        """
        self._bundle.require_verified()
        with exclusive(_lock_of(self.path)):
            if self.ready():
                return
            present = self._present()
            with atomic_folder(self.path, overwrite=True) as folder:
                with (folder / _WEIGHTS).open("wb") as weights:
                    store = _BlobStore(weights)
                    models = {} if present is None else present._moved_to(store)
                    models |= {degree: self._packed(degree, store, save, folder) for degree in self._degrees}
                for degree, model in models.items():
                    (folder / _model_name(degree)).write_bytes(model)
                with (folder / _WEIGHTS).open("rb") as file:
                    pieces = _piece_hashes(file.fileno(), os.fstat(file.fileno()).st_size)
                hashes = {_model_name(degree): hashlib.sha256(models[degree]).hexdigest() for degree in sorted(models)}
                write_json(folder / _MANIFEST, {"identity": self._identity, "models": hashes, "weights": pieces})
            if not self.ready():
                raise OutputError(f"the cache {self.path} does not hold what was just written to it")
        log.info("packed the weights of %d degrees once into %s", len(models), self.path)
        _remove_oldest(self.path)

    def _present(self) -> WeightCache | None:
        """Return what is there of other degrees of the bundle, if it is as it was written."""
        other = copy(self)
        try:
            names = parse_json((self.path / _MANIFEST).read_bytes())["models"]
            other._degrees = [degree for degree in self._bundle.degrees if _model_name(degree) in names]
        except (OSError, ValueError, KeyError, TypeError):
            return None
        return other if other.ready() else None

    def _moved_to(self, store: _BlobStore) -> dict[int, bytes]:
        """Copy the weights to a store; return the models that take them from there."""
        with open_regular(self.path / _WEIGHTS) as source:
            return {degree: _with_weights_in(store, model, source) for degree, model in self._models.items()}

    def _packed(self, degree: int, store: _BlobStore, save: SaveSession, folder: Path) -> bytes:
        with tempfile.TemporaryDirectory(dir=folder) as name:
            target = Path(name) / "model.onnx"
            config = {
                "session.optimized_model_external_initializers_file_name": "model.bin",
                "session.optimized_model_external_initializers_min_size_in_bytes": str(_EXTERNAL_FROM_BYTES),
                "session.save_external_prepacked_constant_initializers": "1",
            }
            save(degree, config, target)
            data = Path(name) / "model.bin"
            if not target.exists() or not data.exists():
                raise OutputError("this ONNX Runtime does not save packed weights; install onnxruntime >= 1.21")
            with data.open("rb") as source:
                return _with_weights_in(store, target.read_bytes(), source)


def _lock_of(cache: Path) -> Path:
    """Return the lock's file, which also tells when the cache was used last."""
    return cache.with_name(f"{cache.name}.lock")


def _model_name(degree: int) -> str:
    return f"degree-{degree:02d}.onnx"


def _piece_hashes(descriptor: int, size: int) -> list[str]:
    """Return the sha256 of each piece of an open file, hashed side by side."""

    def piece(offset: int) -> str:
        digest = hashlib.sha256()
        for start in range(offset, min(offset + _PIECE_BYTES, size), _READ_BYTES):
            digest.update(os.pread(descriptor, min(_READ_BYTES, offset + _PIECE_BYTES - start), start))
        return digest.hexdigest()

    with ThreadPoolExecutor(usable_cores(), "tocom-verify") as pool:
        return [each.result() for each in [submit(pool, piece, start) for start in range(0, size, _PIECE_BYTES)]]


class _BlobStore:
    """Appends each distinct blob once."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self._offsets: dict[bytes, int] = {}

    def put(self, content: bytes) -> int:
        """Return the offset of the blob, aligned to a page."""
        digest = hashlib.sha256(content).digest()
        if digest not in self._offsets:
            self._file.write(b"\0" * (-self._file.tell() % _ALIGN_BYTES))
            self._offsets[digest] = self._file.tell()
            self._file.write(content)
        return self._offsets[digest]


def _with_weights_in(store: _BlobStore, model: bytes, source: Any) -> bytes:
    """Return a packed model that takes its weights from the store, where they are copied to from its own file."""

    def move(entries: dict[str, str]) -> dict[str, str]:
        return {key: _moved(key, value, entries, source, store) for key, value in entries.items()}

    return rewrite_external_data(model, move)


def _remove_oldest(kept: Path) -> None:
    """Remove the caches beside ``kept`` that were not used for longest, until all together are small enough."""
    used: dict[Path, float] = {}
    size: dict[Path, int] = {}
    for cache in kept.parent.iterdir():
        with contextlib.suppress(OSError):  # another process may remove it meanwhile
            if (cache / _MANIFEST).exists():
                used[cache] = _lock_of(cache).stat().st_mtime
                size[cache] = sum(file.stat().st_size for file in cache.iterdir())
    for cache in sorted(size, key=lambda cache: used[cache]):
        if sum(size.values()) <= MOST_BYTES:
            return
        if cache != kept:
            shutil.rmtree(cache, ignore_errors=True)
            log.info("removed the cache %s, which was not used for longest", cache)
            del size[cache]


def _moved(key: str, value: str, entries: dict[str, str], source: Any, store: _BlobStore) -> str:
    """Return an external-data value that points at the blob in the shared file."""

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
    facts = cpu_facts("model name", "flags", "Features", "CPU part")
    digest = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:16]
    return f"{platform.machine()} {digest}"
