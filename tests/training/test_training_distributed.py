"""Two Gloo processes under torchrun train what one process trains."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from small_vits import small_images, small_vit, spread_weights
from training_worker import CONFIG

from tocom.training.config import TrainingConfig
from tocom.training.trainer import StepReport, train


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
    _same(one.state_dict(), two)
    assert any(tensor.any() for name, tensor in two.items() if name.endswith("up")), "nothing was learnt"


@pytest.mark.slow
def test_the_command_under_torchrun_trains_what_it_trains_alone(tmp_path: Path) -> None:
    model = timm.create_model("vit_tiny_patch16_224", img_size=80, num_classes=10)
    spread_weights(model)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    (tmp_path / "images").mkdir()
    for number, image in enumerate(small_images(model, 11)):
        pixels = ((image.permute(1, 2, 0).clamp(-2, 2) + 2) * 63).to(torch.uint8).numpy()
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
    tocom = [str(Path(sys.executable).with_name("tocom")), "train"]
    tocom += shlex.split("--model vit_tiny_patch16_224 --image-size 80 --weights model.safetensors --images images")
    tocom += shlex.split("--groups 8 --source-degree 0 --steps 6 --learning-rate 2e-3 --relative --out")
    torchrun = [str(Path(sys.executable).with_name("torchrun")), "--nproc-per-node", "2", "--no-python"]
    made = []
    for name, processes in (("one", []), ("two", torchrun)):
        done = subprocess.run(
            [*processes, *tocom, f"{name}.safetensors"], cwd=tmp_path, capture_output=True, text=True, timeout=200
        )
        assert done.returncode == 0, done.stderr
        assert "Warning" not in done.stderr
        made.append(load_file(tmp_path / f"{name}.safetensors"))
    _same(*made)


def _same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> None:
    """AdamW makes a whole learning rate of an element whose gradient is nothing but rounding: so not each by itself."""
    first, second = (
        torch.cat([each[name].flatten() for name in sorted(one) if name.endswith("up")]) for each in (one, two)
    )
    assert float(first.abs().max()) > 5e-3, "nothing was learnt"
    assert float((first - second).norm()) <= 1e-3 * float(first.norm())
