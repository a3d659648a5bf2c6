"""Processes that read images: they start clean, and say why when they cannot start."""

from __future__ import annotations

import os
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from tocom.errors import DataError, TrainingError
from tocom.training.config import TrainingConfig
from tocom.training.image_order import batches

forked_from_here = False


class Images(Dataset[Tensor]):
    """Images that cannot be read in a fork of the process that said so."""

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Tensor:
        if forked_from_here:
            raise RuntimeError("read in a fork")
        return torch.full((1, 2, 2), float(index))


def test_readers_are_not_forks_and_read_what_this_process_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    plan = TrainingConfig(batch_size=2, steps=4, flip=False, seed=3)
    here = [images for _, _, images in batches(Images(), plan)]
    monkeypatch.setattr(f"{__name__}.forked_from_here", True)
    there = [images for _, _, images in batches(Images(), plan, workers=2)]
    assert torch.equal(torch.stack(there), torch.stack(here))


def test_a_dataset_that_cannot_be_sent_is_named_with_the_cure() -> None:
    class Local(Images):
        pass

    feed = batches(Local(), TrainingConfig(batch_size=2, steps=1, flip=False), workers=1)
    with pytest.raises(DataError, match=r"The Local cannot be sent to processes.*Local.*or pass workers=0"):
        next(feed)


@pytest.mark.fault(
    "too little shared memory for the processes that read images", outcome="TrainingError before the work"
)
def test_little_shared_memory_is_told_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    little = os.statvfs_result((4096, 4096, 256, 256, 16, 0, 0, 0, 0, 255))  # 64 KiB free

    def statvfs(path: object) -> os.statvfs_result:
        return little

    monkeypatch.setattr(os, "statvfs", statvfs)
    images: Any = [torch.zeros(3, 64, 64)] * 8
    plan = TrainingConfig(batch_size=4, steps=3, flip=False)
    with pytest.raises(TrainingError, match=r"shared memory .* --shm-size=1g\), or pass --workers 0"):
        next(iter(batches(images, plan, workers=2)))
    assert len(next(iter(batches(images, plan)))[2]) == 4
