"""On-device alignments at run time: which one holds here, and engines whose features it maps."""

from __future__ import annotations

import logging
from typing import Any

from numpy.typing import NDArray

from tocom.errors import AlignmentError
from tocom.formats.bundle import Bundle
from tocom.formats.device_alignment import ALIGNMENTS_FOLDER, DeviceAlignment, Linear, alignment_path, find_alignments
from tocom.runtime.backends.base import Backend, Engine, Wrapper

__all__ = ["AlignedEngine", "alignment_identity", "matching_alignment"]

log = logging.getLogger("tocom.runtime")


class AlignedEngine(Wrapper):
    """An engine whose features are mapped, and whose logits, where it has some, are the head's of these.

    Args:
        engine: Gives ``features``.
        mapped: Map of its degree.
        head: What makes logits of features; None where it gives none.
    """

    def __init__(self, engine: Engine, mapped: Linear, head: Linear | None) -> None:
        super().__init__(engine)
        self._map, self._head = mapped, head

    def run(self, images: Any) -> dict[str, NDArray[Any]]:
        """Return the outputs by name, in the engine's order."""
        outputs = dict(self._engine.run(images))
        features = outputs["features"] = self._map(outputs["features"])
        if self._head is not None:
            outputs["logits"] = self._head(features)
        return outputs


def alignment_identity(bundle: Bundle, backend: Backend) -> dict[str, Any]:
    """Return what an alignment must hold for: other engines round otherwise."""
    return {
        "bundle": bundle.fingerprint,
        "precision": bundle.precision,
        "backend": backend.name,
        "device": dict(backend.device),
    }


def matching_alignment(bundle: Bundle, backend: Backend) -> DeviceAlignment | None:
    """Return the alignment that was fitted for this bundle on this backend and device; None where there is none.

    Raises:
        AlignmentError: It is damaged, or was fitted for something else.
        BundleError: The bundle was opened with trusted keys, and none of them signed it.
    """
    identity = alignment_identity(bundle, backend)
    path = alignment_path(bundle.path, identity)
    if not path.exists():
        others = find_alignments(bundle.path)
        if others:
            log.warning(
                "no alignment of %s holds for %s on this device, so answers stay as the engines give them (there are "
                "%s): tocom calibrate %s --align --images FOLDER",
                bundle.path,
                backend.name,
                ", ".join(other.name for other in others),
                bundle.path,
            )
        return None
    found, sha256 = DeviceAlignment.load(path)
    bundle.require_signed(f"{ALIGNMENTS_FOLDER}/{path.name}", sha256)
    why = found.mismatch(identity)
    names = set(bundle.output_names)
    if why is None and (("features" not in names and found.maps) or ("logits" in names) != (found.head is not None)):
        why = f"the bundle gives {', '.join(bundle.output_names)}"
    if why is not None:
        raise AlignmentError(
            f"{path} does not hold here: {why}. Fit it again: tocom calibrate {bundle.path} --align --images FOLDER; "
            "or open the bundle with alignment=False."
        )
    return found
