"""The calibration report: one HTML page."""
