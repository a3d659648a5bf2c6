"""The runtime: the engines of a bundle resident on the device, and the most accurate answer within each budget.

Importing it needs numpy alone; a backend is imported when a bundle is opened.
"""

from __future__ import annotations

from tocom.runtime.policy import Candidate, Decision, choose, frontier
from tocom.runtime.result import Result
from tocom.runtime.runtime import Runtime

__all__ = ["Candidate", "Decision", "Result", "Runtime", "choose", "frontier"]
