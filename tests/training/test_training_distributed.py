"""Two Gloo processes under torchrun train what one process trains."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_vits import small_images, small_vit
from training_worker import CONFIG

from tocom.training import StepReport, TrainingConfig, train


@pytest.mark.timeout(120)
def test_two_processes_give_the_result_of_one(worker: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    steps, out = 6, tmp_path / "two.safetensors"
    process = worker(out, tmp_path / "two.ckpt", str(steps), "accumulation=2", processes=2)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 0, output
    lines = [json.loads(line) for line in output.splitlines() if line.startswith("[") and line.endswith("]")]

    reports: list[StepReport] = []
    model = small_vit(depth=2)
    config = TrainingConfig(**CONFIG, steps=steps)  # type: ignore[arg-type]
    one = train(model, list(small_images(model, 11)), config, progress=reports.append)
    # One line per step: the first process's alone, with the loss of the whole batch.
    assert [line[:3] for line in lines] == [[report.step, report.source, report.target] for report in reports]
    for line, report in zip(lines, reports, strict=True):
        assert line[3] == pytest.approx(report.loss, abs=1e-6)
    two = load_file(out)
    for name, tensor in one.state_dict().items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-5)
    assert any(tensor.any() for name, tensor in two.items() if name.endswith("up")), "nothing was learnt"
