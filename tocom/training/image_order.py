"""Which images each training step sees: a function of the seed and the step alone, and of no process."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import warnings
from collections.abc import Iterator
from itertools import islice
from multiprocessing.context import BaseContext
from pickle import PicklingError

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tocom.errors import DataError, TrainingError
from tocom.training.config import TrainingConfig
from tocom.training.distributed import Processes

__all__ = ["batches", "fingerprint", "unreadable_between"]

Key = tuple[int, bool]  # an image's number, and whether to mirror it


def order(count: int, *, batch_size: int, steps: int, flip: bool, seed: int) -> Iterator[list[Key]]:
    """Yield the batch of every step: all images in random order, then again in another.

    Args:
        count: Images.
        batch_size: Images per step, over all processes.
        steps: Steps of the whole run.
        flip: Mirror half of the images.
        seed: Seed of the run.
    """
    generator = torch.Generator().manual_seed(seed)
    queue: list[int] = []
    for _ in range(steps):
        while len(queue) < batch_size:
            queue += torch.randperm(count, generator=generator).tolist()
        numbers, queue = queue[:batch_size], queue[batch_size:]
        mirrored = (torch.rand(batch_size, generator=generator) < 0.5).tolist() if flip else [False] * batch_size
        yield list(zip(numbers, mirrored, strict=True))


# Batches that torch's DataLoader lets each reader make in advance.
_PREFETCHED = 2


def batches(
    images: Dataset[Tensor],
    config: TrainingConfig,
    *,
    start: int = 0,
    skip_unreadable: bool = True,
    workers: int = 0,
    processes: Processes | None = None,
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield this process's part of every batch from step ``start`` on.

    Args:
        images: Map-style, [channels, height, width] each.
        config: The run's: its batches, a multiple of the number of processes, and their order.
        start: Steps already done.
        skip_unreadable: Take the next readable image instead of one that cannot be read; otherwise its error.
        workers: Processes that read images; 0 reads in this one.
        processes: Those that train together; None is one.

    Yields:
        Numbers of the images drawn and of the images read, [part] each, and images [part, channels, height, width].

    Raises:
        DataError: An image cannot be read and is not to be skipped, none of all can be read, or the dataset cannot be
            sent to other processes.
        TrainingError: The batches of the processes that read images do not fit into shared memory.
    """
    processes = processes or Processes()
    part = config.batch_size // processes.count
    own = slice(processes.rank * part, (processes.rank + 1) * part)
    count = len(images)  # type: ignore[arg-type]  # map-style datasets have a length
    every = order(count, batch_size=config.batch_size, steps=config.steps, flip=config.flip, seed=config.seed)
    keys = (batch[own] for batch in islice(every, start, None))
    if workers and count:
        try:
            image = images[0]
        except Exception:  # a dataset may raise anything; whether the others are left out is said later
            image = torch.empty(0)
        _check_shared_memory(image, part, workers, config.steps)
    loader = DataLoader(
        _Keyed(images, skip_unreadable),
        batch_sampler=keys,
        num_workers=workers,
        multiprocessing_context=_reader_context() if workers else None,
        generator=torch.Generator().manual_seed(
            config.seed
        ),  # else it would draw from torch's own, out of turn on resuming
    )
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Got pickle error")  # the error below says it
            reading = iter(loader)
    except (AttributeError, TypeError, PicklingError) as error:
        raise DataError(
            f"The {type(images).__name__} cannot be sent to processes that are to read images: {error}. "
            "Define its class in a module, without lambdas and open files, or pass workers=0."
        ) from error
    yield from reading


def _check_shared_memory(image: Tensor, part: int, workers: int, steps: int, folder: str = "/dev/shm") -> None:
    """Check that the batches which wait fit into shared memory: a reader that finds none is killed by SIGBUS.

    Raises:
        TrainingError: They do not; a container has 64 MiB unless it is given more.
    """
    try:
        status = os.statvfs(folder)
    except OSError:  # no such folder, and so another way to share
        return
    free = status.f_bavail * status.f_frsize
    waiting = min(_PREFETCHED * workers + 1, steps)
    needed = waiting * part * image.numel() * image.element_size()
    if free < needed:
        raise TrainingError(
            f"{workers} processes that read images need {needed >> 10} KiB of shared memory for {waiting} batches; "
            f"{folder} has {free >> 10} KiB free. Give the container more (docker run --shm-size=1g), or pass "
            "--workers 0."
        )


def _reader_context() -> BaseContext:
    """Return how to start processes that read images: never by forking this one.

    It holds threads (of torch, of inference runtimes, of gRPC), and what they lock stays locked in a fork; CPython
    warns of it from 3.12 on.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])  # torch is imported once, not by every reader
    return context


def unreadable_between(drawn: Tensor, read: Tensor, count: int) -> set[int]:
    """Return the numbers of the images passed over on the way from those drawn, [batch], to those read, [batch]."""
    passed: set[int] = set()
    for first, last in zip(drawn.tolist(), read.tolist(), strict=True):
        while first != last:
            passed.add(first)
            first = (first + 1) % count
    return passed


def fingerprint(images: Dataset[Tensor]) -> str:
    """Return a sha256 over the file names of a dataset that has ``paths``, else an empty string.

    Names without folders: the same images in another folder are the same images.
    """
    paths = getattr(images, "paths", None)
    return hashlib.sha256("\n".join(path.name for path in paths).encode()).hexdigest() if paths else ""


class _Keyed(Dataset[tuple[int, int, Tensor]]):
    """Images by number and mirroring."""

    def __init__(self, images: Dataset[Tensor], skip_unreadable: bool) -> None:
        self._images, self._skip = images, skip_unreadable
        self._count: int = len(images)  # type: ignore[arg-type]

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, key: Key) -> tuple[int, int, Tensor]:
        drawn, mirrored = key
        for step in range(self._count):
            number = (drawn + step) % self._count
            try:
                image = self._images[number]
            except (DataError, OSError):
                if not self._skip:
                    raise
                continue
            return drawn, number, image.flip(-1) if mirrored else image
        raise DataError(f"None of the {self._count} images can be read. Pass --unreadable fail to see the reason.")
