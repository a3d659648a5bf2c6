"""Calibration: what each degree costs and how right it is, measured on the device that will serve it."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tocom.system.dependencies import lazy_names

if TYPE_CHECKING:
    from tocom.calibration.accuracy.answers import collect_answers
    from tocom.calibration.accuracy.intervals import check_interval, images_needed, wilson_interval
    from tocom.calibration.accuracy.ranking import expected_accuracies, mcnemar
    from tocom.calibration.agreement.check import check
    from tocom.calibration.alignment import align_engines
    from tocom.calibration.latency.block_times import block_times
    from tocom.calibration.latency.measure import run_latency
    from tocom.calibration.latency.throughput import bench
    from tocom.calibration.profiling import calibrate, saved_profile
    from tocom.calibration.report.page import write_report
    from tocom.calibration.suggest import Suggestion, suggest_degrees

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
    "run_latency",
    "saved_profile",
    "suggest_degrees",
    "wilson_interval",
    "write_report",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "tocom.calibration.accuracy.answers": ("collect_answers",),
        "tocom.calibration.accuracy.intervals": ("check_interval", "images_needed", "wilson_interval"),
        "tocom.calibration.accuracy.ranking": ("expected_accuracies", "mcnemar"),
        "tocom.calibration.agreement.check": ("check",),
        "tocom.calibration.alignment": ("align_engines",),
        "tocom.calibration.latency.block_times": ("block_times",),
        "tocom.calibration.latency.measure": ("run_latency",),
        "tocom.calibration.latency.throughput": ("bench",),
        "tocom.calibration.profiling": ("calibrate", "saved_profile"),
        "tocom.calibration.report.page": ("write_report",),
        "tocom.calibration.suggest": ("Suggestion", "suggest_degrees"),
    },
)
