"""This process among those that train together; ``torchrun`` starts them, torch.distributed connects them."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from tocom.errors import RequestError, TrainingError, first_line

__all__ = ["Processes", "choose_device", "joined"]


@dataclass(frozen=True)
class Processes:
    """The processes of a run.

    Attributes:
        rank: This process's number.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def current(cls) -> Processes:
        """Return the initialised group, or a group of one."""
        if dist.is_available() and dist.is_initialized():
            return cls(dist.get_rank(), dist.get_world_size())
        return cls()

    @property
    def first(self) -> bool:
        """Whether this process writes files and shows progress."""
        return self.rank == 0

    def mean(self, value: Tensor) -> Tensor:
        """Return the mean of ``value``, of any shape, over the processes; the same on each, NaN included."""
        if self.count > 1:
            dist.all_reduce(value)
            value /= self.count
        return value

    def gather(self, value: Any) -> list[Any]:
        """Return what every process gave, by rank."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        dist.all_gather_object(values, value)
        return values

    def check_equal(self, name: str, value: Any) -> None:
        """Raise TrainingError unless all processes have the same value."""
        values = self.gather(value)
        if any(other != values[0] for other in values):
            raise TrainingError(
                f"The processes differ in {name}: {values}, by rank. Give each the same options and the same files."
            )


def choose_device(name: str = "auto") -> torch.device:
    """Return the device to train on: ``auto`` is this process's GPU where there is one, else the CPU.

    Raises:
        RequestError: torch knows no such device, or it is not there.
    """
    local = int(os.environ.get("LOCAL_RANK", "0"))
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    try:
        device = torch.device(name)
        if device.type == "cuda" and device.index is None:
            device = torch.device("cuda", local)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(
            f"The 'device' parameter must be auto, cpu or cuda. Got {name!r}: {first_line(error)}"
        ) from error
    return device


@contextlib.contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """Join the processes that ``torchrun`` started, if it did: NCCL between GPUs, Gloo between CPUs.

    Args:
        device: Device of this process.
    """
    started = "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1
    if not started or dist.is_initialized():
        yield Processes.current()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield Processes.current()
    finally:
        dist.destroy_process_group()
