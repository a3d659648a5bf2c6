"""``calibrate --align``: maps of features fitted from the engines' own answers, on the device that will serve them."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.alignment.ridge import check_counts, fit_first
from tocom.calibration.accuracy.answers import stacked
from tocom.errors import AlignmentError, DegreeError
from tocom.formats.bundle import Bundle
from tocom.formats.device_alignment import ALIGNMENTS_FOLDER, DeviceAlignment, Linear
from tocom.images import image_files
from tocom.runtime import Runtime
from tocom.runtime.aligned import alignment_identity
from tocom.system.files import check_writable
from tocom.system.progress import Progress, silent
from tocom.version import __version__

__all__ = ["align_engines"]

_HEAD = ("head.weight", "head.bias")


def align_engines(
    bundle: Path | str,
    images: Path | str | Sequence[Any],
    *,
    check: Path | str | Sequence[Any] | None = None,
    against: Path | str | None = None,
    degrees: Sequence[int] | None = None,
    backend: str = "auto",
    threads: int | None = None,
    seed: int = 0,
    save: bool = True,
    trusted_keys: Sequence[Path | str] | None = None,
    progress: Progress = silent,
) -> DeviceAlignment:
    """Fit a map per degree from what its engine answers here to what the source degree's engine answers.

    So it mends what half precision and INT8 move as well. The runtime finds it from the next opening on.

    Args:
        bundle: The bundle's folder; its features must be an output.
        images: A folder of images of the kind that will be answered, its subfolders too; or such images (path, PIL
            image, or [channels, height, width] float32). No label is needed.
        check: Such images too, of what will be answered, none of ``images``: a degree that its map does not help on
            these is refused. None takes each fifth of ``images`` in turn.
        against: Bundle of the same model at a higher precision, whose source degree is the aim; None takes the
            bundle's own.
        degrees: To fit; None takes all but the aim itself.
        backend: A backend's name, or ``auto``.
        threads: CPU threads of one inference; None takes the usable physical cores.
        seed: Seed of the fifths of the images that are held out in turn.
        save: Write it to ``bundle/alignments/``; replaces what was fitted for the same engines.
        trusted_keys: As for :meth:`Runtime.open`.
        progress: Called with the stage, the images done and all of them.

    Raises:
        AlignmentError: The bundle gives no features, ``against`` is of another model, neither holds the source degree,
            fewer than 25 images, or features that are not finite.
        DataError: An image cannot be read.
        BundleError: A bundle is missing or was changed.
        DegreeError: A degree is not in the bundle.
        EngineError: A degree cannot be loaded or run.
        OutputError: It cannot be written: found before the work.
    """
    parts = [
        image_files(each) if isinstance(each, (str, Path)) else list(each)
        for each in (images, check)
        if each is not None
    ]
    check_counts(*map(len, parts))
    count, samples = len(parts[0]), list(chain(*parts))
    opened = Bundle(bundle, verify=False)
    aim = opened if against is None else Bundle(against, verify=False)
    source = int(aim.manifest["source_degree"])
    wanted = _check(opened, aim, source, degrees)
    if save:
        check_writable(opened.path / ALIGNMENTS_FOLDER)

    def features(path: Path, name: str, asked: Sequence[int], stage: str) -> tuple[dict[int, NDArray[Any]], Any]:
        with Runtime.open(
            path, name, degrees=asked, threads=threads, warm=False, trusted_keys=trusted_keys, alignment=False
        ) as runtime:
            runtime.warm_up(expect_profile=False)
            identity = alignment_identity(runtime.bundle, runtime.backend)
            return _features(runtime, samples, stage, progress), identity

    found, identity = features(
        opened.path, backend, wanted if against is not None else sorted({*wanted, source}), "features of every degree"
    )
    if against is None:
        if source not in found:
            raise AlignmentError(
                f"Degree {source} of {bundle}, the source degree, answers wrongly here, so nothing can be aligned to "
                f"it. See why: tocom check {bundle}; or give another bundle of the model: --against."
            )
        expected = found.pop(source)
    else:
        expected = features(aim.path, "auto", [source], f"features to aim at, {aim.precision}")[0][source]
    fitted = {degree: fit_first(each, expected, count, seed=seed) for degree, each in found.items()}
    alignment = DeviceAlignment(
        identity=identity,
        aim={"bundle": aim.fingerprint, "precision": aim.precision, "degree": source},
        images=count,
        checked_on=len(samples) - count,
        degrees={degree: each.judged for degree, each in fitted.items()},
        maps={degree: each.linear for degree, each in fitted.items() if each.linear is not None},
        head=_head(aim, source) if "logits" in opened.output_names else None,
        fitted_by=f"tocom {__version__}",
    )
    if save:
        alignment.save(opened.path)
    return alignment


def _check(bundle: Bundle, aim: Bundle, source: int, degrees: Sequence[int] | None) -> list[int]:
    """Return the degrees to fit, once it is clear that they can be."""
    for each in (bundle, aim):
        if "features" not in each.output_names:
            raise AlignmentError(
                f"{each.path} gives {', '.join(each.output_names)}, no features, and an alignment is of features. "
                "Export it with both: tocom export … --features. Or merge an alignment into its heads: tocom align, "
                "then tocom export … --alignment FILE."
            )
    if bundle.manifest["model"]["fingerprint"] != aim.manifest["model"]["fingerprint"]:
        raise AlignmentError(
            f"{bundle.path} and {aim.path} are not of one model. Give --against the bundle of the same model."
        )
    if source not in aim.degrees:
        raise AlignmentError(
            f"{aim.path} has no degree {source}, the source degree, which is the aim. It has {sorted(aim.degrees)}. "
            f"Export it with degree {source} too, or give a bundle of the model that has it: --against."
        )
    if unknown := [degree for degree in degrees or () if degree not in bundle.degrees]:
        raise DegreeError(f"The 'degrees' parameter must name degrees of {bundle.path}. Got {unknown[0]}.")
    # The aim itself needs no map; the same degree at a lower precision does.
    own = {source} if aim.fingerprint == bundle.fingerprint else set()
    wanted = sorted(set(bundle.degrees if degrees is None else degrees) - own)
    if not wanted:
        raise AlignmentError(f"{bundle.path} has no degree to align beside degree {source}, which is the aim.")
    return wanted


def _features(
    runtime: Runtime, samples: Sequence[Any], stage: str, progress: Progress
) -> dict[int, NDArray[np.float32]]:
    """Return the features of all images [count, channels] per resident degree."""
    found: dict[int, list[NDArray[np.float32]]] = {degree: [] for degree in runtime.degrees}
    for batch in stacked(runtime, samples, runtime.bundle.batch[1], stage, progress):
        for degree, parts in found.items():
            parts.append(np.asarray(runtime.infer(batch, degree=degree).outputs["features"], np.float32))
    return {degree: np.concatenate(parts) for degree, parts in found.items()}


def _head(bundle: Bundle, degree: int) -> Linear:
    """Return what makes logits of features, from the ONNX file of a degree.

    Raises:
        AlignmentError: It is not one layer with a bias.
    """
    import onnx
    from onnx import numpy_helper

    model = onnx.load_model_from_string(bundle.read_onnx(degree))
    held = {tensor.name: tensor for tensor in model.graph.initializer}
    if not all(name in held for name in _HEAD):
        raise AlignmentError(
            f"{bundle.path}: the logits are not one layer with a bias behind the features, so they cannot follow them. "
            "Export the model without its head: tocom export … --num-classes 0."
        )
    folder = str(bundle.onnx_path(degree).parent)
    weight, bias = (np.asarray(numpy_helper.to_array(held[name], folder), np.float32) for name in _HEAD)
    return Linear(np.ascontiguousarray(weight.T), bias)
