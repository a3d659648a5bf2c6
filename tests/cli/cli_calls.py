from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

MODEL = "test_vit3"  # timm's own small model: nine blocks of 96 channels


@dataclass(frozen=True)
class Answer:
    """What a command did: its exit code, stdout and stderr."""

    code: int
    out: str
    err: str


Tocom = Callable[..., Answer]
