"""Calibration: what each degree costs and how right it is, measured on the device that will serve it."""

from __future__ import annotations

from tocom.calibration.accuracy import check_interval, collect_answers, images_needed, measure_accuracy, wilson_interval
from tocom.calibration.bench import bench
from tocom.calibration.calibrate import calibrate
from tocom.calibration.latency import measure_latency
from tocom.calibration.ranking import expected_accuracies, mcnemar

__all__ = [
    "bench",
    "calibrate",
    "check_interval",
    "collect_answers",
    "expected_accuracies",
    "images_needed",
    "mcnemar",
    "measure_accuracy",
    "measure_latency",
    "wilson_interval",
]
