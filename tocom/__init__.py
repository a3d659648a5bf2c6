"""Edge deployment toolchain for Vision Transformers: one engine per token-compression degree.

Importing this package loads no torch; the names below load what they need on first use.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from tocom.system.dependencies import lazy_names
from tocom.version import __version__

if TYPE_CHECKING:
    from tocom.alignment.alignment import Alignment
    from tocom.compensator.compensator import Compensator
    from tocom.compression.loading.model import load_model
    from tocom.compression.merging import token_merge
    from tocom.compression.pruning import token_prune
    from tocom.compression.surgery import compress
    from tocom.evaluation.pairs import evaluate
    from tocom.formats.bundle import Bundle
    from tocom.formats.profile import Profile
    from tocom.training.align import align
    from tocom.training.config import TrainingConfig
    from tocom.training.trainer import train

# ONNX Runtime reports what it runs to its maker, and reads this when it is imported (SECURITY.md). Here, because every
# module of ours is imported after this line; both names that its releases know; what the user set stays.
for _name in ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED"):
    os.environ.setdefault(_name, "1")

__all__ = [
    "Alignment",
    "Bundle",
    "Compensator",
    "Profile",
    "TrainingConfig",
    "__version__",
    "align",
    "compress",
    "evaluate",
    "load_model",
    "token_merge",
    "token_prune",
    "train",
]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "tocom.alignment.alignment": ("Alignment",),
        "tocom.compensator.compensator": ("Compensator",),
        "tocom.compression.loading.model": ("load_model",),
        "tocom.compression.merging": ("token_merge",),
        "tocom.compression.pruning": ("token_prune",),
        "tocom.compression.surgery": ("compress",),
        "tocom.evaluation.pairs": ("evaluate",),
        "tocom.formats.bundle": ("Bundle",),
        "tocom.formats.profile": ("Profile",),
        "tocom.training.align": ("align",),
        "tocom.training.config": ("TrainingConfig",),
        "tocom.training.trainer": ("train",),
        "tocom.version": ("__version__",),
    },
)
