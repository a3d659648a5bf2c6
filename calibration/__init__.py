"""Calibration: what each degree costs and how right it is, measured on the device that will serve it."""

from __future__ import annotations

from tocom.calibration.accuracy import measure_accuracy, wilson_interval
from tocom.calibration.bench import bench
from tocom.calibration.calibrate import calibrate
from tocom.calibration.latency import measure_latency

__all__ = ["bench", "calibrate", "measure_accuracy", "measure_latency", "wilson_interval"]
