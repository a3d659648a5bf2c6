"""Metrics and logs of a runtime that serves."""
