"""The runtime: the engines of a bundle resident on the device, and the most accurate answer within each budget.

Importing it needs numpy alone; a backend is imported when a bundle is opened.
"""

from __future__ import annotations

from tocom.runtime.controller import Controller, ControllerConfig
from tocom.runtime.latency import LatencyModel, ModelConfig
from tocom.runtime.policy import Candidate, Decision, choose, frontier
from tocom.runtime.result import Result
from tocom.runtime.runtime import Runtime, State
from tocom.runtime.stream import Frame

__all__ = [
    "Candidate",
    "Controller",
    "ControllerConfig",
    "Decision",
    "Frame",
    "LatencyModel",
    "ModelConfig",
    "Result",
    "Runtime",
    "State",
    "choose",
    "frontier",
]
