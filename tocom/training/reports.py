"""What a training step reports, and its way to TensorBoard."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

from tocom.errors import RequestError

__all__ = ["StepReport", "scalars"]


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        source: The teacher's degree.
        target: The student's degree.
        loss: Loss of this step, over the whole batch.
        seconds: Since training began or was resumed.
        images_per_second: Mean since then, over all processes.
        seconds_left: At that rate.
        learning_rate: Learning rate of this step.
        gradient_norm: Gradient norm of this step.
        unreadable: Images passed over so far because they cannot be read.
    """

    step: int
    steps: int
    source: int
    target: int
    loss: float
    seconds: float
    images_per_second: float
    seconds_left: float
    learning_rate: float
    gradient_norm: float
    unreadable: int


@contextlib.contextmanager
def scalars(folder: Path | None, first: int) -> Iterator[Callable[[StepReport], None]]:
    """Yield what writes a report as TensorBoard scalars; what an interrupted run wrote after ``first`` is hidden.

    Raises:
        RequestError: TensorBoard is not installed.
    """
    if folder is None:
        yield lambda report: None
        return
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise RequestError("The 'scalars' parameter needs TensorBoard: pip install 'tocom[tensorboard]'.") from error

    with SummaryWriter(str(folder), purge_step=first + 1 if first else None) as writer:

        def record(report: StepReport) -> None:
            for name in ("loss", "learning_rate", "gradient_norm", "images_per_second", "source", "target"):
                writer.add_scalar(name, getattr(report, name), report.step)

        yield record
