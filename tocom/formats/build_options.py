"""What a build was asked for, checked once."""

from __future__ import annotations

from dataclasses import dataclass

from tocom.errors import RequestError

__all__ = ["LOWERINGS", "BuildOptions"]

LOWERINGS = ("plugin", "native")
_LEVELS = range(6)


@dataclass(frozen=True)
class BuildOptions:
    """Options that decide what an engine is. All of them are part of its key.

    Attributes:
        lowering: ``plugin`` runs TokenMerge and TokenPrune in the op plugin, ``native`` in TensorRT's own layers; None
            where there are none of them.
        batch: Smallest, optimal and largest batch.
        workspace_mib: Most scratch memory that a layer may use; None leaves TensorRT's default (all of the device's).
        optimization_level: Builder optimization level 0 … 5; None leaves TensorRT's default.
        version_compatible: Engines that newer versions of the same TensorRT major version load.
        hardware_compatible: Engines that run on GPUs of other architectures too (Ampere and newer).
        compact: Store the engine in a ZIP file with its text deflated (:mod:`tocom.formats.engine`).
        float32: What a bundle in half precision computes in float32: ``none``, what is ``fragile`` (layer norm, softmax
            and the residual sum), or ``all``.
    """

    lowering: str | None = "plugin"
    batch: tuple[int, int, int] = (1, 1, 1)
    workspace_mib: int | None = None
    optimization_level: int | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    compact: bool = False
    float32: str = "none"

    def __post_init__(self) -> None:
        """Check every option.

        Raises:
            RequestError: An option is out of its range.
        """
        if self.lowering is not None and self.lowering not in LOWERINGS:
            raise RequestError(
                f"The 'lowering' parameter must be {' or '.join(LOWERINGS)}. Got {self.lowering!r} instead."
            )
        if self.float32 not in ("none", "fragile", "all"):
            raise RequestError(f"The 'float32' parameter must be none, fragile or all. Got {self.float32!r} instead.")
        if len(self.batch) != 3 or not 1 <= self.batch[0] <= self.batch[1] <= self.batch[2]:
            raise RequestError(
                f"The 'batch' parameter must be min:opt:max with 1 <= min <= opt <= max. Got {self.batch!r} instead."
            )
        if self.workspace_mib is not None and self.workspace_mib < 1:
            raise RequestError(f"The 'workspace_mib' parameter must be at least 1. Got {self.workspace_mib!r} instead.")
        if self.optimization_level is not None and self.optimization_level not in _LEVELS:
            raise RequestError(
                f"The 'optimization_level' parameter must be from 0 to 5. Got {self.optimization_level!r} instead."
            )
