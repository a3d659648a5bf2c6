"""A training that is interrupted by signals: run by test_training_resume.py in a process of its own.

In pytest's own process other tests have loaded libraries with handlers and threads, and a signal there can end it.
"""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import torch
from small_vits import small_images, small_vit

from tocom.errors import TrainingError
from tocom.training.config import TrainingConfig
from tocom.training.trainer import StepReport, train

SMALL = {"groups": 4, "steps": 6, "batch_size": 4}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_keeps_its_steps(tmp_path: Path, number: int, caplog: pytest.LogCaptureFixture) -> None:
    model, images = small_vit(depth=2), list(small_images(small_vit(depth=2), 11))
    config = TrainingConfig(**SMALL)  # type: ignore[arg-type]
    whole = train(model, images, config).state_dict()
    kept = tmp_path / "run.ckpt"

    def interrupt(done: StepReport) -> None:
        if done.step == 3:
            signal.raise_signal(number)

    def end(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises((KeyboardInterrupt, SystemExit)) as caught:
            train(model, images, config, checkpoint=kept, progress=interrupt)
        assert signal.getsignal(signal.SIGTERM) is end
        assert caught.type is (KeyboardInterrupt if number == signal.SIGINT else SystemExit)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert "interrupted at step 3 of 6" in caplog.text
    steps: list[int] = []
    again = train(
        model, images, config, checkpoint=kept, resume=True, progress=lambda done: steps.append(done.step)
    ).state_dict()
    assert steps == [4, 5, 6]
    for name, value in whole.items():
        torch.testing.assert_close(again[name], value, rtol=0, atol=0)


def test_a_handler_that_returns_does_not_make_half_a_run_a_whole_one(tmp_path: Path) -> None:
    model = small_vit(depth=2)
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with pytest.raises(TrainingError, match="interrupted at step 1 of 6"):
            train(
                model,
                list(small_images(model, 11)),
                TrainingConfig(**SMALL),  # type: ignore[arg-type]
                checkpoint=tmp_path / "run.ckpt",
                progress=lambda done: signal.raise_signal(signal.SIGTERM),
            )
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [signal.SIGTERM]
