from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_calls import MODEL, Answer, Tocom
from PIL import Image
from safetensors.torch import save_file

from tocom import load_model
from tocom.cli import main
from tocom.cli.app import app

torch.set_num_threads(1)


@pytest.fixture
def tocom(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Tocom:
    """Run the command line in this process, as the console script does."""

    def run(*arguments: object) -> Answer:
        monkeypatch.setattr(sys, "argv", ["tocom", *map(str, arguments)])
        capsys.readouterr()
        # Every call of main() registers the commands; a process makes one.
        app.registered_commands.clear()
        app.registered_groups.clear()
        try:
            main()
            code = 0
        except SystemExit as done:
            code = done.code if isinstance(done.code, int) else int(done.code is not None)
        captured = capsys.readouterr()
        return Answer(code, captured.out, captured.err)

    return run


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of the small model, three classes with names, for images of 64 pixels."""
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    model = load_model(MODEL, weights="random", num_classes=3, image_size=64).model
    save_file(model.state_dict(), path, metadata={"labels": "bolt\nnut\nwasher"})
    return path


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Six smooth photographs of 80 pixels."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(0)
    for index in range(6):
        coarse = Image.fromarray(generator.integers(0, 256, (5, 5, 3), dtype=np.uint8))
        coarse.resize((80, 80), Image.Resampling.BICUBIC).save(folder / f"{index}.png")
    return folder
