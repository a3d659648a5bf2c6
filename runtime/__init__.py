"""The runtime: the engines of a bundle resident on the device, and the most accurate answer within each budget.

It needs numpy alone; a backend is imported when a bundle is opened.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tocom.system.dependencies import lazy_names

if TYPE_CHECKING:
    from tocom.runtime.answering import State
    from tocom.runtime.policy.choice import Candidate, Decision, choose, frontier
    from tocom.runtime.policy.controller import Controller, ControllerConfig
    from tocom.runtime.policy.latency import LatencyModel, ModelConfig
    from tocom.runtime.result import RankedClass, Result
    from tocom.runtime.runtime import Runtime
    from tocom.runtime.stream import Frame, Streams

__all__ = [
    "Candidate",
    "Controller",
    "ControllerConfig",
    "Decision",
    "Frame",
    "LatencyModel",
    "ModelConfig",
    "RankedClass",
    "Result",
    "Runtime",
    "State",
    "Streams",
    "choose",
    "frontier",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "tocom.runtime.answering": ("State",),
        "tocom.runtime.policy.choice": ("Candidate", "Decision", "choose", "frontier"),
        "tocom.runtime.policy.controller": ("Controller", "ControllerConfig"),
        "tocom.runtime.policy.latency": ("LatencyModel", "ModelConfig"),
        "tocom.runtime.result": ("RankedClass", "Result"),
        "tocom.runtime.runtime": ("Runtime",),
        "tocom.runtime.stream": ("Frame", "Streams"),
    },
)
