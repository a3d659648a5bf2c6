"""Calibration: what each degree costs and how right it is, measured on the device that will serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tocom.system.dependencies import lazy_names

if TYPE_CHECKING:
    from tocom.calibration.accuracy.answers import collect_answers, measure_accuracy
    from tocom.calibration.accuracy.intervals import check_interval, images_needed, wilson_interval
    from tocom.calibration.accuracy.ranking import expected_accuracies, mcnemar
    from tocom.calibration.agreement.check import check
    from tocom.calibration.alignment import align_engines
    from tocom.calibration.latency.block_times import block_times
    from tocom.calibration.latency.measure import measure_latency, run_latency
    from tocom.calibration.latency.throughput import bench
    from tocom.calibration.profiling import calibrate, saved_profile
    from tocom.calibration.report.page import write_report
    from tocom.calibration.suggest import Suggestion, suggest_degrees

_HOMES = {
    "Suggestion": "tocom.calibration.suggest",
    "align_engines": "tocom.calibration.alignment",
    "bench": "tocom.calibration.latency.throughput",
    "block_times": "tocom.calibration.latency.block_times",
    "calibrate": "tocom.calibration.profiling",
    "check": "tocom.calibration.agreement.check",
    "check_interval": "tocom.calibration.accuracy.intervals",
    "collect_answers": "tocom.calibration.accuracy.answers",
    "expected_accuracies": "tocom.calibration.accuracy.ranking",
    "images_needed": "tocom.calibration.accuracy.intervals",
    "mcnemar": "tocom.calibration.accuracy.ranking",
    "measure_accuracy": "tocom.calibration.accuracy.answers",
    "measure_latency": "tocom.calibration.latency.measure",
    "run_latency": "tocom.calibration.latency.measure",
    "saved_profile": "tocom.calibration.profiling",
    "suggest_degrees": "tocom.calibration.suggest",
    "wilson_interval": "tocom.calibration.accuracy.intervals",
    "write_report": "tocom.calibration.report.page",
}

__all__ = [
    "Suggestion",
    "align_engines",
    "bench",
    "block_times",
    "calibrate",
    "check",
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


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
