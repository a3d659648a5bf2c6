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

_HOMES = {
    "Candidate": "tocom.runtime.policy.choice",
    "Controller": "tocom.runtime.policy.controller",
    "ControllerConfig": "tocom.runtime.policy.controller",
    "Decision": "tocom.runtime.policy.choice",
    "Frame": "tocom.runtime.stream",
    "LatencyModel": "tocom.runtime.policy.latency",
    "ModelConfig": "tocom.runtime.policy.latency",
    "RankedClass": "tocom.runtime.result",
    "Result": "tocom.runtime.result",
    "Runtime": "tocom.runtime.runtime",
    "State": "tocom.runtime.answering",
    "Streams": "tocom.runtime.stream",
    "choose": "tocom.runtime.policy.choice",
    "frontier": "tocom.runtime.policy.choice",
}

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


__getattr__ = lazy_names(__name__, _HOMES)


def __dir__() -> list[str]:
    return sorted(__all__)
