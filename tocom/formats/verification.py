"""``verify``: what a bundle's folder holds, whether each file is what it should be, and who signed it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from tocom.errors import AlignmentError, BundleError, CalibrationError, EngineError
from tocom.formats.bundle import MANIFEST_NAME, Bundle
from tocom.formats.device_alignment import DeviceAlignment, find_alignments
from tocom.formats.sidecar import read_sidecar
from tocom.formats.signatures import PublicKey, read_signatures, signed_files
from tocom.system.files import open_regular, sha256_open

__all__ = ["Checked", "Verification", "verify"]

Signed = dict[str, frozenset[str]] | None


@dataclass(frozen=True)
class Checked:
    """One file.

    Attributes:
        file: Its name inside the bundle.
        kind: ``manifest``, ``export``, ``engine``, ``op plugin``, ``profile``, ``alignment``, ``signature``,
            or ``other``: a file that nothing names and nothing opens.
        by: What vouches for it: ``seal``, ``manifest``, ``sidecar``; with keys also ``signature``. Empty for others.
        problem: What is wrong with it, or None.
    """

    file: str
    kind: str
    by: str
    problem: str | None = None


@dataclass(frozen=True)
class Verification:
    """What was found.

    Attributes:
        bundle: The folder.
        schema_version: Schema version of the manifest.
        sha256: sha256 of the manifest; names this exact bundle.
        signed_by: Trusted keys that signed the manifest as it is; None where no key was given.
        files: Every file.
    """

    bundle: str
    schema_version: int
    sha256: str
    signed_by: list[str] | None
    files: list[Checked]

    @property
    def problems(self) -> list[Checked]:
        """The files that are not what they should be."""
        return [file for file in self.files if file.problem is not None]

    def to_json(self) -> dict[str, Any]:
        """Return all of it as plain JSON content."""
        return {**asdict(self), "ok": not self.problems}


def verify(path: Path | str, keys: Sequence[PublicKey] | None = None) -> Verification:
    """Check every file of a bundle, its engines, profiles and signatures.

    Args:
        path: The bundle's folder.
        keys: Trusted public keys; without them, signatures are listed but not checked.

    Raises:
        BundleError: The manifest cannot be used, or no trusted key signed it; a single damaged file is not an error
            here, but a problem in what is returned.
    """
    bundle = Bundle(path, verify=False, trusted_keys=keys)
    signed = None if keys is None else signed_files(path, keys)
    files = [
        Checked(MANIFEST_NAME, "manifest", "signature" if keys else "seal" if "sha256" in bundle.manifest else ""),
        *_export(bundle),
        *_engines(bundle, signed),
        *_profiles(bundle),
        *_alignments(bundle, signed),
    ]
    by: list[str] | None = None if keys is None else []
    for signature in read_signatures(path):
        key = next((key for key in keys or () if key.key_id == signature.key_id), None)
        files.append(Checked(_name(bundle, signature.path), "signature", "" if key is None else "signature"))
        if by is not None and key is not None and signature.files.get(MANIFEST_NAME) == bundle.fingerprint:
            by.append(key.key_id)
    seen = {checked.file for checked in files}
    files += [
        Checked(_name(bundle, other), "other", "")
        for other in sorted(bundle.path.rglob("*"))
        if _name(bundle, other) not in seen and not other.is_dir()
    ]
    return Verification(str(path), bundle.manifest["schema_version"], bundle.fingerprint, by, files)


def _export(bundle: Bundle) -> Iterator[Checked]:
    problems = {name: None if error is None else str(error) for name, error in bundle.problems().items()}
    for entry in bundle.degrees.values():
        if problems[entry.onnx] is None:
            try:
                bundle.read_onnx(entry.degree)
            except BundleError as error:
                problems[entry.onnx] = str(error)
    for name, problem in problems.items():
        yield Checked(name, "export", "manifest", problem)


def _engines(bundle: Bundle, signed: Signed) -> Iterator[Checked]:
    """Yield engines and op plugins by what their sidecars say; with keys, a sidecar must be signed."""
    seen = set()
    for sidecar in sorted(bundle.path.glob("engines/*/degree-*.json")):
        by = "sidecar" if signed is None else "signature"
        try:
            engine, digest = read_sidecar(sidecar)
        except EngineError as error:
            yield Checked(_name(bundle, sidecar), "engine", by, str(error))
            continue
        wanted = [(engine.engine.file, "engine", engine.engine.sha256)]
        if engine.op_plugin is not None:
            wanted.append((engine.op_plugin.file, "op plugin", engine.op_plugin.sha256))
        name = _name(bundle, sidecar)
        yield Checked(name, "engine", by, _unsigned(signed, name, digest))
        for file, kind, sha256 in wanted:
            path = sidecar.parent / file
            if path not in seen:  # degrees share one op plugin library
                seen.add(path)
                yield Checked(_name(bundle, path), kind, by, _differs(path, sha256))


def _differs(path: Path, sha256: str) -> str | None:
    try:
        with open_regular(path) as file:
            got = sha256_open(file)
    except OSError as error:
        return f"it cannot be read ({error.strerror}); build it again"
    return None if got == sha256 else f"it has sha256 {got}, its sidecar says {sha256}; build it again"


def _profiles(bundle: Bundle) -> Iterator[Checked]:
    for path, found in bundle.profiles.items():
        problem = str(found) if isinstance(found, CalibrationError) else None
        yield Checked(_name(bundle, path), "profile", "seal", problem)


def _alignments(bundle: Bundle, signed: Signed) -> Iterator[Checked]:
    """Yield each; with keys, it must be signed."""
    by = "seal" if signed is None else "signature"
    for path in find_alignments(bundle.path):
        name = _name(bundle, path)
        try:
            problem = _unsigned(signed, name, DeviceAlignment.load(path)[1])
        except AlignmentError as error:
            problem = str(error)
        yield Checked(name, "alignment", by, problem)


def _unsigned(signed: Signed, name: str, sha256: str) -> str | None:
    """Return what is wrong with a file that no trusted key signed; nothing where no keys are asked for."""
    if signed is None or sha256 in signed.get(name, ()):
        return None
    return "no trusted key signed it: sign the bundle again with 'tocom sign'"


def _name(bundle: Bundle, path: Path) -> str:
    return path.relative_to(bundle.path).as_posix()
