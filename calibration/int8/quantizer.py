"""``quantize``: a float32 bundle and some images become an INT8 bundle, degree by degree, above a floor of accuracy."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime

from tocom.calibration.accuracy.answers import Samples, as_input, read_samples
from tocom.calibration.accuracy.intervals import share_of
from tocom.calibration.int8.exclusion import search_exclusions
from tocom.calibration.int8.qdq import Scheme, default_scheme
from tocom.calibration.int8.references import carry_references, int8_tolerance
from tocom.calibration.int8.trial import DegreeModel
from tocom.errors import CalibrationError, DataError, RequestError
from tocom.formats.bundle import MANIFEST_NAME, WEIGHTS_NAME, Bundle
from tocom.formats.manifest import SCHEMA_VERSION
from tocom.formats.sealed_json import write_sealed_json
from tocom.formats.weights import WeightStore
from tocom.system.files import atomic_folder, sha256_file
from tocom.system.progress import Progress, silent
from tocom.version import __version__

__all__ = ["quantize"]

# protobuf's own limit of a message; candidates are tried with their weights inside.
_MOST_BYTES = 2**31 - 1


def quantize(
    bundle: Bundle | Path | str,
    out: Path | str,
    images: Samples,
    *,
    held_out: Samples | None = None,
    degrees: Sequence[int] | None = None,
    floor_points: float = 1.0,
    scheme: Scheme | None = None,
    range_images: int = 64,
    held_out_images: int = 1000,
    seconds_per_degree: float = 300.0,
    seed: int = 0,
    overwrite: bool = False,
    progress: Progress = silent,
) -> Bundle:
    """Write an INT8 bundle: every degree with explicit Q/DQ, its ranges collected at that degree.

    A degree that loses more than the floor stays in float32, and the manifest says why.

    Args:
        bundle: A float32 bundle, or its folder.
        out: Folder to write. It appears whole or not at all.
        images: What :func:`tocom.calibration.collect_answers` takes. A part makes the ranges, the rest is held out to
            hold the floor; without labels, by the answers that equal float32's.
        held_out: Other images for the second purpose; then all of ``images`` may make ranges.
        degrees: Degrees to write; None takes all.
        floor_points: Most accuracy that a degree may lose to float32 at the same degree, in percentage points.
        scheme: How numbers become eight bits; None takes what fits this processor.
        range_images: Most images that make ranges.
        held_out_images: Most images that are held out.
        seconds_per_degree: Time for looking for layers that must stay in float32, where the floor is not held.
        seed: Seed of the choice of images.
        overwrite: Replace ``out`` when it exists.
        progress: Called with what is being done, the steps done, and all steps.

    Raises:
        BundleError: The bundle is missing, was changed, or lacks a degree.
        DataError: The images cannot be read or used, or are too few; the message says how many are needed.
        RequestError: The bundle is not in float32, or another argument is out of its range.
        CalibrationError: No degree holds the floor.
        EngineError: ONNX Runtime refuses a model.
        OutputError: ``out`` cannot be written.
    """
    _check_numbers(floor_points, range_images, held_out_images, seconds_per_degree)
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle, verify=False)
    chosen = sorted(set(bundle.degrees if degrees is None else degrees))
    for degree in chosen:
        bundle.onnx_path(degree)  # raises when it is not there
    if bundle.precision != "fp32":
        raise RequestError(
            f"{bundle.path} is in {bundle.precision}: quantize a float32 bundle. Export one with --precision fp32."
        )
    bundle.require_verified()
    largest = max(bundle.degree_bytes(degree) for degree in bundle.degrees)
    if largest > _MOST_BYTES:
        raise RequestError(f"A degree of {bundle.path} takes {largest} bytes; above 2 GiB quantizing is not supported.")
    scheme = scheme or default_scheme()
    entry = bundle.manifest["input"]
    for_ranges, for_choice = _split_images(
        read_samples(images, bundle.labels),
        None if held_out is None else read_samples(held_out, bundle.labels),
        range_images=range_images,
        held_out_images=held_out_images,
        floor_points=floor_points,
        seed=seed,
    )
    pixels = np.stack([as_input(image, entry) for image, _ in for_ranges])
    chosen_on = np.stack([as_input(image, entry) for image, _ in for_choice])
    labels = None if for_choice[0][1] is None else np.array([label for _, label in for_choice], np.int64)
    kind = "agreement" if labels is None else "top1"
    entries: dict[int, dict[str, Any]] = {}
    with atomic_folder(out, overwrite=overwrite) as folder:
        tolerances: dict[int, float] = {}
        with WeightStore(folder / WEIGHTS_NAME) as store:
            for index, degree in enumerate(chosen):

                def say(what: str, step: int = 3, index: int = index, degree: int = degree) -> None:
                    progress(f"degree {degree}: {what}", 3 * index + step, 3 * len(chosen))

                say(f"float32 answers of {len(chosen_on)} images", 0)
                model = DegreeModel(bundle, degree, chosen_on, labels, scheme)
                say(f"ranges of {len(pixels)} images", 1)
                ranges = model.ranges(pixels)
                say(f"INT8 answers of {len(chosen_on)} images", 2)
                best, sensitivity, note = model.trial(ranges), dict[str, float](), ""
                if best.loss_points > floor_points:
                    best, sensitivity, note = search_exclusions(
                        model, best, ranges, floor_points, seconds=seconds_per_degree, progress=say
                    )
                is_kept = best.loss_points <= floor_points
                proto = model.quantized(ranges, best.exclude) if is_kept else model.model
                if is_kept and "references" in bundle.manifest:
                    tolerances[degree] = int8_tolerance(bundle, degree, proto.SerializeToString())
                for tensor in proto.graph.initializer:
                    store.take(tensor)
                onnx.save(proto, folder / bundle.degrees[degree].onnx)
                lost = f"INT8 loses {best.loss_points:.2f} points, the floor is {floor_points:g} ({note})"
                entries[degree] = {
                    "precision": "int8" if is_kept else "fp32",
                    "quantization": {
                        "excluded": list(best.exclude),
                        "loss_points": round(best.loss_points, 4),
                        "divergence": best.divergence,
                        "accuracy": vars(share_of(best.right, kind)),
                        "accuracy_float32": vars(share_of(model.right, kind)),
                        "sensitivity": {name: round(gain, 6) for name, gain in sensitivity.items()},
                        "kept_out": None if is_kept else lost,
                    },
                }
        if not any(found["precision"] == "int8" for found in entries.values()):
            reasons = "; ".join(f"{degree}: {found['quantization']['kept_out']}" for degree, found in entries.items())
            raise CalibrationError(
                f"INT8 holds the floor of {floor_points:g} points at no degree: {reasons}. No bundle was written. Give "
                "other or more images, a wider --floor, or stay at float32."
            )
        manifest = copy.deepcopy(bundle.manifest)
        if "references" in bundle.manifest:
            manifest["references"] = carry_references(bundle, folder, chosen, tolerances)
        manifest |= {
            "schema_version": SCHEMA_VERSION,
            "created_by": f"tocom {__version__}",
            "precision": "int8",
            "quantization": {
                "source": bundle.fingerprint,
                "weights": "int8, symmetric, one scale per output channel",
                "activations": f"{'int8' if scheme.activations == 'symmetric' else 'uint8'}, {scheme.activations}",
                "reduce_range": scheme.reduce_range,
                "ranges": "min-max, collected at each degree, on its own graph",
                "range_images": len(pixels),
                "held_out_images": len(chosen_on),
                "labelled": labels is not None,
                "floor_points": floor_points,
                "seed": seed,
                "onnxruntime": onnxruntime.__version__,
            },
            "files": {
                file.name: {"sha256": sha256_file(file), "size": file.stat().st_size}
                for file in sorted(folder.iterdir())
            },
        }
        manifest["degrees"] = [
            {**each, "check": None, **entries[each["degree"]]}
            for each in manifest["degrees"]
            if each["degree"] in entries
        ]
        write_sealed_json(folder / MANIFEST_NAME, manifest)
    return Bundle(out)


def _split_images(
    images: Sequence[tuple[Any, int | None]],
    held_out: Sequence[tuple[Any, int | None]] | None,
    *,
    range_images: int,
    held_out_images: int,
    floor_points: float,
    seed: int,
) -> tuple[list[tuple[Any, int | None]], list[tuple[Any, int | None]]]:
    """Return the samples that make ranges and those that are held out; at random by the seed.

    Raises:
        DataError: So few would be held out that one image is more than the floor.
    """
    order = np.random.default_rng(seed).permutation(len(images))
    shuffled = [images[int(index)] for index in order]
    # Ranges settle with few images; a floor is held by many.
    count = min(range_images, max(1, len(shuffled) // 4) if held_out is None else len(shuffled))
    rest = (shuffled[count:] if held_out is None else held_out)[:held_out_images]
    least = math.ceil(100 / floor_points)
    if len(rest) < least:
        missing = least - len(rest)
        missing = missing if held_out is not None else math.ceil(missing * 4 / 3)
        raise DataError(
            f"A floor of {floor_points:g} points needs at least {least} held-out images, so that one image is not more "
            f"than it. Got {len(rest)} of {len(images)} images. Add about {missing} images, or give a wider --floor."
        )
    return shuffled[:count], list(rest)


def _check_numbers(floor_points: float, range_images: int, held_out_images: int, seconds: float) -> None:
    if not 0 < floor_points <= 100:
        raise RequestError(f"The 'floor_points' parameter must be above 0 and at most 100. Got {floor_points!r}.")
    if range_images < 1 or held_out_images < 1 or not seconds >= 0:
        raise RequestError(
            "The 'range_images' and 'held_out_images' parameters must be at least 1, 'seconds_per_degree' at least 0. "
            f"Got {range_images!r}, {held_out_images!r} and {seconds!r}."
        )
