"""Signatures: who vouches for a bundle. Ed25519, in files of their own under ``bundle/signatures/``.

A signature names files by their sha256: the manifest, which itself names every file of the export, and the sidecars of
engines, which name engines and op plugins. What is signed is a plain text that ``sha256sum`` and ``openssl`` can
make again; ``docs/formats.md`` gives the recipe. The package cryptography (``tocom[sign]``) is imported when a key is.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tocom.errors import BundleError, OutputError, RequestError
from tocom.formats.manifest import MANIFEST_NAME
from tocom.formats.sealed_json import parse_sealed, write_sealed_json
from tocom.system.files import open_regular, read_regular, sha256_open

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

__all__ = [
    "SIGNATURES_FOLDER",
    "PublicKey",
    "Signature",
    "load_public_keys",
    "new_key",
    "read_signatures",
    "sign",
    "signed_files",
]

FORMAT, VERSION, ALGORITHM = "tocom-signature", 1, "ed25519"
SIGNATURES_FOLDER = "signatures"
_MAX_BYTES = 1 << 20
_MAX_SIGNATURES = 64


@dataclass(frozen=True)
class PublicKey:
    """A key that signatures are checked with.

    Attributes:
        key_id: 16 hexadecimal digits: the start of the sha256 of the key's 32 bytes.
        key: The key.
    """

    key_id: str
    key: Ed25519PublicKey


@dataclass(frozen=True)
class Signature:
    """A signature file.

    Attributes:
        path: The file.
        key_id: Which key made it, as the file says.
        files: The signed files: name inside the bundle to sha256.
        value: The signature, 64 bytes.
    """

    path: Path
    key_id: str
    files: Mapping[str, str]
    value: bytes

    def holds(self, key: PublicKey) -> bool:
        """Return whether the key made it over exactly these files."""
        from cryptography.exceptions import InvalidSignature

        try:
            key.key.verify(self.value, _statement(self.key_id, self.files))
        except InvalidSignature:
            return False
        return self.key_id == key.key_id


def new_key(path: Path | str) -> PublicKey:
    """Make a key pair: the private key at ``path``, readable by its owner alone, the public one at ``path`` + ``.pub``.

    Raises:
        OutputError: One of the files exists already, or cannot be written.
        RequestError: The package cryptography is missing.
    """
    serialization, ed25519 = _cryptography()
    private = ed25519.Ed25519PrivateKey.generate()
    pem = serialization.Encoding.PEM
    secret = private.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    public = private.public_key().public_bytes(pem, serialization.PublicFormat.SubjectPublicKeyInfo)
    beside = Path(f"{path}.pub")
    for file, content, mode in ((Path(path), secret, 0o600), (beside, public, 0o644)):
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            # Never over an existing file: a private key that is lost cannot be had again.
            descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
            with os.fdopen(descriptor, "wb") as opened:
                opened.write(content)
                opened.flush()
                os.fsync(descriptor)
        except OSError as error:
            raise OutputError(
                f"Cannot write the key {file}: {error.strerror or error}. Choose another path, or free some space."
            ) from error
    return _named(private.public_key())


def sign(bundle_path: Path | str, key: Path | str) -> Signature:
    """Sign the manifest, engines' sidecars and alignments that are there now; replaces what this key signed before.

    The caller has checked the bundle: what is signed is what lies there.

    Args:
        bundle_path: The bundle's folder.
        key: File with an Ed25519 private key, PEM without a passphrase.

    Raises:
        BundleError: A file to sign cannot be read.
        OutputError: The signature cannot be written.
        RequestError: The key cannot be used, or the package cryptography is missing.
    """
    folder = Path(bundle_path)
    private = _load_private(Path(key))
    key_id = _named(private.public_key()).key_id
    made = [*folder.glob("engines/*/degree-*.json"), *folder.glob("alignments/*.json")]
    names = [MANIFEST_NAME, *(file.relative_to(folder).as_posix() for file in made)]
    files = {}
    for name in sorted(names):
        try:
            with open_regular(folder / name) as file:
                files[name] = sha256_open(file)
        except OSError as error:
            raise BundleError(f"Bundle {folder}: {name} cannot be read ({error.strerror}), so not signed.") from error
    value = private.sign(_statement(key_id, files))
    path = folder / SIGNATURES_FOLDER / f"{key_id}.json"
    content = {
        "format": FORMAT,
        "version": VERSION,
        "algorithm": ALGORITHM,
        "key_id": key_id,
        "files": files,
        "signature": base64.b64encode(value).decode(),
    }
    write_sealed_json(path, content)
    return Signature(path, key_id, files, value)


def load_public_keys(paths: Iterable[Path | str]) -> tuple[PublicKey, ...]:
    """Read Ed25519 public keys, PEM.

    Raises:
        RequestError: None is named, one cannot be read or is not such a key, or the package cryptography is missing.
    """
    serialization, ed25519 = _cryptography()
    keys = []
    for path in paths:
        key = _load_key(Path(path), serialization.load_pem_public_key)
        if not isinstance(key, ed25519.Ed25519PublicKey):
            raise RequestError(
                f"{path} must be an Ed25519 public key in PEM, such as 'tocom sign --new-key' writes beside the "
                "private one, with the ending .pub."
            )
        keys.append(_named(key))
    if not keys:
        raise RequestError("The 'trusted_keys' parameter must name at least one public key. Got none.")
    return tuple(keys)


def read_signatures(bundle_path: Path | str) -> list[Signature]:
    """Return the signatures of a bundle, by key id; none was checked yet.

    Raises:
        BundleError: A signature file is damaged, or there are more than 64.
    """
    folder = Path(bundle_path) / SIGNATURES_FOLDER
    paths = sorted(folder.glob("*.json"))
    if len(paths) > _MAX_SIGNATURES:
        raise BundleError(f"{folder} has {len(paths)} signatures, the most is {_MAX_SIGNATURES}. Remove some.")
    return [_read_signature(path) for path in paths]


def signed_files(bundle_path: Path | str, keys: Sequence[PublicKey]) -> dict[str, frozenset[str]]:
    """Return what trusted keys vouch for: file name to the sha256 values that one of them signed.

    Raises:
        BundleError: No trusted key signed the bundle, or a signature in a trusted key's name is wrong.
    """
    known = {key.key_id: key for key in keys}
    signatures = read_signatures(bundle_path)
    files: dict[str, frozenset[str]] = {}
    for signature in signatures:
        key = known.get(signature.key_id)
        if key is None:
            continue
        if not signature.holds(key):
            raise BundleError(
                f"The signature {signature.path} is not of the key {key.key_id} that it names: it or what it lists was "
                "changed. Do not use this bundle; get it again from who signed it."
            )
        for name, sha256 in signature.files.items():
            files[name] = files.get(name, frozenset()) | {sha256}
    if not files:
        found = ", ".join(signature.key_id for signature in signatures) or "none"
        raise BundleError(
            f"Bundle {bundle_path} is signed by no trusted key. Trusted: {', '.join(known)}; found: {found}. Sign it "
            "with 'tocom sign', or trust the key that signed it."
        )
    return files


def _statement(key_id: str, files: Mapping[str, str]) -> bytes:
    """Return the signed text: a line that names format and key, then one ``sha256sum`` line per file, by name."""
    lines = [f"{FORMAT} {VERSION} {ALGORITHM} {key_id}", *(f"{files[name]}  {name}" for name in sorted(files))]
    return "".join(f"{line}\n" for line in lines).encode()


def _read_signature(path: Path) -> Signature:
    try:
        content = parse_sealed(read_regular(path, _MAX_BYTES))
        said = tuple(content.get(name) for name in ("format", "version", "algorithm"))
        if said != (FORMAT, VERSION, ALGORITHM):
            raise ValueError(f"is of {said}, this tocom reads {(FORMAT, VERSION, ALGORITHM)}")
        key_id, files, text = content["key_id"], content["files"], content["signature"]
        if not (isinstance(key_id, str) and isinstance(text, str) and isinstance(files, dict)):
            raise ValueError("has a member of the wrong type")
        if not all(isinstance(sha256, str) and "\n" not in name + sha256 for name, sha256 in files.items()):
            raise ValueError("names a file without its sha256")
        return Signature(path, key_id, files, base64.b64decode(text, validate=True))
    except OSError as error:
        raise BundleError(f"The signature {path} cannot be read ({error.strerror}). Copy the bundle again.") from error
    except (ValueError, KeyError, AttributeError, binascii.Error) as error:
        raise BundleError(
            f"The signature {path} is damaged (it {error}). Copy the bundle again, or sign it again with 'tocom sign'."
        ) from error


def _load_private(path: Path) -> Ed25519PrivateKey:
    serialization, ed25519 = _cryptography()
    key = _load_key(path, lambda content: serialization.load_pem_private_key(content, password=None))
    if not isinstance(key, ed25519.Ed25519PrivateKey):
        raise RequestError(
            f"{path} must be an Ed25519 private key in PEM without a passphrase. Make one with 'tocom sign --new-key "
            "PATH', or with 'openssl genpkey -algorithm ed25519'."
        )
    found: Ed25519PrivateKey = key
    return found


def _load_key(path: Path, load: Callable[[bytes], Any]) -> Any:
    """Return what a file holds, None where it is not a key."""
    try:
        with path.open("rb") as file:
            return load(file.read(_MAX_BYTES))
    except OSError as error:
        raise RequestError(f"The key {path} cannot be read ({error.strerror}). Give the path of a PEM file.") from error
    except Exception:  # cryptography raises many kinds; what it says could repeat the file, so it is not shown
        return None


def _named(key: Ed25519PublicKey) -> PublicKey:
    return PublicKey(hashlib.sha256(key.public_bytes_raw()).hexdigest()[:16], key)


def _cryptography() -> tuple[Any, Any]:
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric import ed25519
    except ImportError as error:
        raise RequestError(
            "Signatures need the package cryptography. Install it: pip install 'tocom[sign]'."
        ) from error
    return serialization, ed25519
