"""Calibration: what each degree costs and how right it is, measured on the device that will serve it."""

from __future__ import annotations

from tocom.calibration.accuracy import check_interval, collect_answers, images_needed, measure_accuracy, wilson_interval
from tocom.calibration.bench import bench
from tocom.calibration.blocks import block_times
from tocom.calibration.calibrate import calibrate, saved_profile
from tocom.calibration.latency import measure_latency, run_latency
from tocom.calibration.ranking import expected_accuracies, mcnemar
from tocom.calibration.report import write_report
from tocom.calibration.suggest import Suggestion, suggest_degrees

__all__ = [
    "Suggestion",
    "bench",
    "block_times",
    "calibrate",
    "check_interval",
    "collect_answers",
    "expected_accuracies",
    "images_needed",
    "mcnemar",
    "measure_accuracy",
    "measure_latency",
    "run_latency",
    "saved_profile",
    "suggest_degrees",
    "wilson_interval",
    "write_report",
]
