"""Other names for a bundle's classes, without another export."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from tocom.errors import BundleError, RequestError
from tocom.formats.bundle import Bundle
from tocom.formats.manifest import MANIFEST_NAME
from tocom.formats.profile import Profile
from tocom.formats.sealed_json import write_sealed_json
from tocom.formats.signatures import SIGNATURES_FOLDER

__all__ = ["relabel"]


def relabel(path: Path | str, labels: Sequence[str]) -> Bundle:
    """Give a bundle's classes other names.

    Only the manifest changes; files, engines and reference answers stay. Its profiles are carried over: nothing that
    they measured computes in another way. Their accuracies are of class folders by the old names, so they go.

    Args:
        path: The bundle's folder.
        labels: One name per class, in the order of the head.

    Raises:
        BundleError: It is not a bundle, or is damaged.
        RequestError: The model has other classes, or the bundle is signed.
        OutputError: The folder cannot be written.
    """
    path = Path(path)
    bundle = Bundle(path, verify=False)
    if bundle.classes is None or len(labels) != bundle.classes:
        has = "gives features, so it has no classes" if bundle.classes is None else f"has {bundle.classes} classes"
        raise RequestError(f"The bundle {path} {has}. Got {len(labels)} labels.")
    if any((path / SIGNATURES_FOLDER).glob("*.json")):
        raise RequestError(
            f"The bundle {path} is signed, and a signature is of its manifest. Remove {path / SIGNATURES_FOLDER}, "
            "relabel, and sign again."
        )
    write_sealed_json(path / MANIFEST_NAME, {**bundle.manifest, "labels": list(labels)})
    renamed = Bundle(path, verify=False)
    if renamed.labels != list(labels):
        raise BundleError(f"The bundle {path} was changed while it was relabelled. Do it again.")
    for file, profile in bundle.profiles.items():  # one that no runtime would read either stays as it is
        if isinstance(profile, Profile) and profile.bundle_fingerprint == bundle.fingerprint:
            degrees = {degree: replace(entry, accuracy=None) for degree, entry in profile.degrees.items()}
            replace(profile, bundle_fingerprint=renamed.fingerprint, degrees=degrees).save(path)
            file.unlink(missing_ok=True)
    return renamed
