"""What is at chance is not called an accuracy; agreement with the references stands in the profile."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from small_bundles import CLASSES, SIZE, write_small_bundle
from wrong_engines import make_wrong

from tocom.calibration import calibrate
from tocom.calibration.accuracy.intervals import check_above_chance, wilson_interval
from tocom.errors import CalibrationError
from tocom.formats.profile import Accuracy


def accuracy(right: int, count: int, kind: str = "top1") -> Accuracy:
    low, high = wilson_interval(right, count)
    return Accuracy(kind, right / count, count, low, high)


@pytest.mark.parametrize(("right", "count", "classes"), [(20, 200, 10), (3, 30, 10), (26, 50, 2)])
def test_what_is_at_chance_is_refused(right: int, count: int, classes: int) -> None:
    with pytest.raises(CalibrationError, match=r"that is not an accuracy\. The weights are random"):
        check_above_chance({0: accuracy(right, count), 8: accuracy(right - 1, count)}, classes)


@pytest.mark.parametrize(
    ("found", "classes"),
    [
        (accuracy(40, 200), 10),
        (accuracy(2, 20), 10),  # too few to tell
        (accuracy(20, 200, "agreement"), 10),
    ],
)
def test_what_is_told_to_be_better_or_cannot_be_told_passes(found: Accuracy, classes: int) -> None:
    check_above_chance({0: found}, classes)


def test_calibrate_tells_the_references_and_refuses_chance(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", layers=(3, 2, 1))
    make_wrong(bundle.path, "zeros", degrees=(4,))
    generator = np.random.default_rng(0)
    images = [generator.standard_normal((3, SIZE, SIZE)).astype(np.float32) for _ in range(60)]
    right = [(image, int(bundle.reference(image[None], 0).argmax())) for image in images]
    profile = calibrate(bundle.path, right, samples=8, backend="onnxruntime", threads=1)
    assert {degree: each["right"] for degree, each in profile.measured["reference_answers"].items()} == {
        "0": True, "4": False, "8": True
    }  # fmt: skip
    assert list(profile.degrees) == [0, 8]
    guessed = [(image, place % CLASSES) for place, image in enumerate(images)]
    with pytest.raises(CalibrationError, match=r"guessing one of 5 classes on 20\.0%"):
        calibrate(bundle.path, guessed, samples=8, backend="onnxruntime", threads=1)
