from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_vits import small_images, small_vit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

# The models here are tiny: a second thread costs more than it brings, and tests run side by side.
torch.set_num_threads(1)

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def _no_handler_of_child_signals(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep torch's data loader from installing a handler of SIGCHLD, which would stay for all tests that follow.

    In a process that also holds gRPC, OpenVINO and ONNX Runtime it ended with a segmentation fault when a later child
    ended. Without it a reader's death is noticed by polling.
    """
    monkeypatch.setattr("torch.utils.data._utils.signal_handling._set_SIGCHLD_handler", lambda: None)


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    return small_vit()


@pytest.fixture(scope="module")
def images(model: VisionTransformer) -> list[Tensor]:
    return list(small_images(model, 11))


@pytest.fixture
def worker() -> Callable[..., subprocess.Popen[str]]:
    """Return what starts training_worker.py in a process of its own, or in several under torchrun."""

    def start(*arguments: str | Path, processes: int = 1) -> subprocess.Popen[str]:
        script = [str(HERE / "training_worker.py"), *map(str, arguments)]
        launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(processes)]
        command = [sys.executable, *(launcher if processes > 1 else []), *script]
        helpers = str(HERE.parent / "helpers")
        return subprocess.Popen(
            command,
            env={**os.environ, "PYTHONPATH": helpers, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start
