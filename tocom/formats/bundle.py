"""The bundle: a folder with a manifest, one ONNX file per degree, and weights that stand once.

Reading needs the standard library alone. Every file is checked against the manifest's size and sha256 before
anything parses it, and nothing outside the manifest is opened.
"""

from __future__ import annotations

import errno
import hashlib
import os
import shlex
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from tocom.errors import BundleError, CalibrationError
from tocom.formats.manifest import MANIFEST_NAME, SCHEMA_VERSION, check_manifest
from tocom.formats.onnx.tensors import external_data, read_tensors, stored_tensors
from tocom.formats.profile import Profile, find_profiles
from tocom.formats.sealed_json import parse_sealed
from tocom.formats.signatures import PublicKey, signed_files
from tocom.system.cpu import usable_cores
from tocom.system.files import FileState, file_state, open_regular, read_most, sha256_open
from tocom.system.pools import submit

__all__ = ["MANIFEST_NAME", "SCHEMA_VERSION", "WEIGHTS_NAME", "Bundle", "DegreeEntry"]

WEIGHTS_NAME = "weights.bin"
_MAX_MANIFEST_BYTES = 16 << 20
# protobuf's own limit for an ONNX file; no other file that is read as a whole comes near it.
_MAX_READ_BYTES = (1 << 31) - 1


@dataclass(frozen=True)
class DegreeEntry:
    """One degree of a bundle.

    Attributes:
        degree: Tokens removed in every block.
        onnx: File name inside the bundle.
        token_counts: Tokens entering each block, and last those leaving the final block.
        macs: Multiply-accumulates of one image, matching included.
    """

    degree: int
    onnx: str
    token_counts: tuple[int, ...]
    macs: int


class Bundle:
    """A bundle on disk, opened for reading.

    Args:
        path: The bundle's folder.
        verify: Check size and sha256 of every file now; without it, :meth:`require_verified` does.
        trusted_keys: Refuse a bundle that none of these keys signed; None asks for no signature.

    Attributes:
        manifest: The manifest's content.
        fingerprint: sha256 of the manifest: names this exact bundle in profiles and engines.

    Raises:
        BundleError: The folder or manifest is missing, malformed, of another version, not signed by a trusted key, or
            a file does not match it.
    """

    def __init__(
        self, path: Path | str, *, verify: bool = True, trusted_keys: Sequence[PublicKey] | None = None
    ) -> None:
        self.path = Path(path)
        data = _read_manifest(self.path)
        self.fingerprint = hashlib.sha256(data).hexdigest()
        self._signed = None if trusted_keys is None else signed_files(self.path, trusted_keys)
        self.require_signed(MANIFEST_NAME, self.fingerprint)
        try:
            self.manifest: dict[str, Any] = parse_sealed(data)
        except ValueError as error:
            path = self.path / MANIFEST_NAME
            raise BundleError(f"{path} {error}. Copy the bundle again, or export it again.") from error
        check_manifest(self.path / MANIFEST_NAME, self.manifest)
        self._checks: dict[str, Future[FileState]] = {}
        if verify:
            self.require_verified()

    def __repr__(self) -> str:
        return f"Bundle({str(self.path)!r}, model={self.model_name!r}, degrees={list(self.degrees)})"

    @cached_property
    def degrees(self) -> dict[int, DegreeEntry]:
        """The degrees in ascending order."""
        return {
            entry["degree"]: DegreeEntry(entry["degree"], entry["onnx"], tuple(entry["token_counts"]), entry["macs"])
            for entry in sorted(self.manifest["degrees"], key=lambda entry: int(entry["degree"]))
        }

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
    def input_type(self) -> str:
        """``float32`` where images are normalised before, ``uint8`` where the graph does it."""
        return str(self.manifest["input"]["dtype"])

    @property
    def output_names(self) -> tuple[str, ...]:
        """Names of the outputs: ``logits``, ``features`` without a classifier, or both; then ``patch_features``."""
        return tuple(output["name"] for output in self.manifest["outputs"])

    @property
    def classes(self) -> int | None:
        """How many classes the logits have; None for a model without a classifier."""
        return next((int(out["shape"][-1]) for out in self.manifest["outputs"] if out["name"] == "logits"), None)

    @property
    def labels(self) -> list[str] | None:
        """Names of the classes, or None."""
        labels: list[str] | None = self.manifest.get("labels")
        return labels

    @cached_property
    def profiles(self) -> dict[Path, Profile | CalibrationError]:
        """The profiles beside it, as they are when this is first asked for; of one that cannot be used, why."""
        found: dict[Path, Profile | CalibrationError] = {}
        for path in find_profiles(self.path):
            try:
                found[path] = Profile.load(path)
            except CalibrationError as error:
                found[path] = error
        return found

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

    def read_onnx(self, degree: int) -> bytes:
        """Return a degree's ONNX file: the very bytes that were hashed, for whatever parses them.

        Raises:
            BundleError: The bundle does not hold the degree, the file does not match the manifest, or it takes
                weights from somewhere that the manifest does not name.
        """
        name = self.onnx_path(degree).relative_to(self.path).as_posix()
        data = self.read_file(name)
        self._check_external_data(name, data)
        return data

    def degree_bytes(self, degree: int) -> int:
        """Return what one degree would take alone: its ONNX file and the weights that it refers to, in bytes."""
        data = self.read_onnx(degree)
        return len(data) + sum(stored_tensors(read_tensors(data)).values())

    def read_file(self, name: str) -> bytes:
        """Return a file that the manifest names, of at most 2 GiB: the very bytes that were hashed.

        Raises:
            BundleError: The manifest does not name it, it is larger, cannot be read, or does not match the manifest.
        """
        if self.manifest["files"].get(name, {}).get("size", 0) > _MAX_READ_BYTES:
            raise BundleError(f"Bundle {self.path}: {name} has more than {_MAX_READ_BYTES} bytes: that is not read.")
        self.file(name)
        try:
            with _open_inside(self.path, name) as file:
                size = os.fstat(file.fileno()).st_size
                data = read_most(file, size) if size == self.manifest["files"][name]["size"] else b""
        except OSError as error:
            raise self._unreadable(name, error) from error
        self._compare(name, size, hashlib.sha256(data).hexdigest())
        return data

    def require_signed(self, name: str, sha256: str) -> None:
        """Check that a trusted key signed a file of this sha256; of a bundle opened without keys, do nothing.

        Raises:
            BundleError: None did.
        """
        if self._signed is not None and sha256 not in self._signed.get(name, ()):
            raise BundleError(
                f"Bundle {self.path}: no trusted key signed {name} with sha256 {sha256}. It was made or changed after "
                "the signing; check it, then sign the bundle again with 'tocom sign'."
            )

    def begin_verify(self) -> None:
        """Start to check every file, on threads of their own, beside whatever the caller does; once begun, do nothing.

        :meth:`require_verified` waits for the end of it.
        """
        names = [name for name in self.manifest["files"] if name not in self._checks]
        if names:
            # Hashing lets go of the interpreter, so files are hashed side by side.
            pool = ThreadPoolExecutor(min(len(names), usable_cores()), "tocom-verify")
            self._checks.update((name, submit(pool, self._check, name)) for name in names)
            pool.shutdown(wait=False)

    def end_verify(self) -> None:
        """Wait for what was begun, whatever it found: no thread outlives the call."""
        wait(self._checks.values())

    def require_verified(self) -> None:
        """Return once every file was checked since this object was made, now or before.

        Raises:
            BundleError: A file is missing or differs; the message names the file and both hashes.
        """
        for error in self.problems().values():
            if error is not None:
                raise error

    def problems(self) -> dict[str, BundleError | None]:
        """Return what is wrong with each file, or None, in the manifest's order; checked now or before."""
        self.begin_verify()
        self.end_verify()
        found: dict[str, BundleError | None] = {}
        for name in self.manifest["files"]:
            error = self._checks[name].exception()
            if error is not None and not isinstance(error, BundleError):
                raise error
            found[name] = error
        return found

    def check_unchanged(self) -> None:
        """Check that no file was replaced or written to since it was hashed: call it when all files are in use.

        Raises:
            BundleError: One was, or does not match the manifest.
        """
        self.require_verified()
        for name, check in self._checks.items():
            try:
                state = file_state((self.path / name).stat())
            except OSError as error:
                raise self._unreadable(name, error) from error
            if state != check.result():
                raise BundleError(
                    f"Bundle {self.path}: {name} was changed while the bundle was opened. Open it again, and replace a "
                    "bundle as a whole folder."
                )

    def _check(self, name: str) -> FileState:
        try:
            with _open_inside(self.path, name) as file:
                status = os.fstat(file.fileno())
                # The size first: it is free, and says more than a hash.
                same_size = status.st_size == self.manifest["files"][name]["size"]
                self._compare(name, status.st_size, sha256_open(file) if same_size else "")
        except OSError as error:
            raise self._unreadable(name, error) from error
        return file_state(status)

    def _compare(self, name: str, size: int, sha256: str) -> None:
        expected = self.manifest["files"][name]
        if size != expected["size"]:
            raise BundleError(
                f"Bundle {self.path}: {name} has {size} bytes, the manifest says {expected['size']}. "
                "The copy is incomplete or was changed; copy it again, or export it again."
            )
        if sha256 != expected["sha256"]:
            raise BundleError(
                f"Bundle {self.path}: {name} has sha256 {sha256}, the manifest says {expected['sha256']}. "
                "It was changed after the export; copy it again, or export it again."
            )

    def _check_external_data(self, name: str, model: bytes) -> None:
        """Check that an ONNX file takes weights from files of the manifest alone, and from within them."""
        try:
            outside = [(each, each.needed) for each in external_data(model)]
        except ValueError as error:
            raise BundleError(
                f"Bundle {self.path}: {name} is not an ONNX file ({error}). Export the bundle again."
            ) from error
        for each, needed in outside:
            file = (PurePosixPath(name).parent / each.location).as_posix()
            if file not in self.manifest["files"]:
                raise BundleError(
                    f"Bundle {self.path}: {name} takes weights from {each.location[:80]!r}, which the manifest "
                    "does not name. Do not use this bundle."
                )
            size = self.manifest["files"][file]["size"]
            if each.offset + each.length > size or each.length != needed:
                raise BundleError(
                    f"Bundle {self.path}: {name} takes {each.length} bytes at {each.offset} from {file}, which "
                    f"has {size}, for a tensor of {needed} bytes. Do not use this bundle."
                )

    def _unreadable(self, name: str, error: Exception) -> BundleError:
        if getattr(error, "errno", None) == errno.EXDEV:
            return BundleError(_linked(self.path, name))
        reason = getattr(error, "strerror", None) or error
        return BundleError(
            f"Bundle {self.path}: {name} cannot be read ({reason}). The manifest names it; "
            "copy the bundle again, or export it again."
        )


def _read_manifest(folder: Path) -> bytes:
    try:
        with _open_inside(folder, MANIFEST_NAME) as file:
            return read_most(file, _MAX_MANIFEST_BYTES)
    except OSError as error:
        if error.errno == errno.EXDEV:
            raise BundleError(_linked(folder, MANIFEST_NAME)) from error
        raise BundleError(
            f"No bundle at {folder}: {MANIFEST_NAME} cannot be read ({error.strerror}). Make one with 'tocom export'."
        ) from error


def _linked(folder: Path, name: str) -> str:
    return (
        f"Bundle {folder}: {name} is a link out of the bundle, and what is outside may change behind its back. "
        f"Copy it with its links followed, and open the copy: cp -rL {shlex.quote(str(folder))} COPY. A hub's snapshot "
        "is laid out so; downloading into a folder of your own gives files."
    )


def _open_inside(folder: Path, name: str) -> BinaryIO:
    """Open a regular file of the folder; a link must stay inside.

    Raises:
        OSError: It is missing, unreadable, no regular file, or a link out of the folder.
    """
    try:
        path = (folder / name).resolve()
    except RuntimeError as error:  # a link to itself, before Python 3.13
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error
    if not path.is_relative_to(folder.resolve()):
        raise OSError(errno.EXDEV, "it is a link out of the bundle")
    return open_regular(path)
