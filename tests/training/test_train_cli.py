"""``tocom train`` as a user runs it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from tocom import Compensator
from tocom.cli import add_verbs
from tocom.cli.app import app
from tocom.errors import DataError, DegreeError, ModelError, RequestError, TrainingError

add_verbs(app, "train")

MODEL = "deit_tiny_patch16_224"


@pytest.fixture
def images(tmp_path: Path) -> Path:
    folder = tmp_path / "images"
    folder.mkdir()
    generator = torch.Generator().manual_seed(0)
    for index in range(5):
        pixels = torch.randint(256, (64, 64, 3), generator=generator, dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(folder / f"{index}.png")
    return folder


def _train(images: Path, *options: str) -> list[str]:
    small = "--weights random --image-size 64 --groups 4 --batch-size 2 --device cpu"
    return ["train", "--model", MODEL, *small.split(), "--images", str(images), *options]


def test_train_resume_and_read(images: Path, tmp_path: Path) -> None:
    out, checkpoint = tmp_path / "c.safetensors", tmp_path / "run.ckpt"
    (images / "3.png").write_bytes(b"no image")
    options = _train(images, "--steps", "4", "--out", str(out), "--checkpoint", str(checkpoint), "--workers", "0")
    result = CliRunner().invoke(app, options, catch_exceptions=False)
    assert result.exit_code == 0
    assert "degrees 0 to 4, merge" in result.stdout
    assert "images/s" in result.stderr
    assert "training: 4 of 4" in result.stderr
    assert "1 of 5 images could not be read" in result.stderr
    trained = Compensator.load(out)
    assert trained.metadata["unreadable_images"] == "1"
    result = CliRunner().invoke(app, [*options, "--resume", "--json"], catch_exceptions=False)
    assert result.exit_code == 0
    assert json.loads(result.stdout)["groups"] == 4
    again = Compensator.load(out)
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in trained.state_dict().items())
    with pytest.raises(RequestError, match="is there already"):
        CliRunner().invoke(app, options, catch_exceptions=False)
    with pytest.raises(TrainingError, match="its 'seed' is 0, here it is 1"):
        CliRunner().invoke(app, [*options, "--resume", "--seed", "1"], catch_exceptions=False)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (["--unreadable", "ignore"], RequestError, "must be skip or fail"),
        (["--device", "abacus"], RequestError, "'device' parameter must be auto, cpu or cuda"),
        (["--precision", "fp8"], RequestError, "'precision' parameter"),
        (["--resume"], RequestError, "'resume' parameter needs 'checkpoint'"),
        (["--groups", "9"], RequestError, "at most 8"),
        (["--weights", "missing.pth"], ModelError, r"missing\.pth does not exist"),
        (["--unreadable", "fail"], DataError, r"Cannot read the image .*3\.png"),
    ],
)
def test_bad_options_say_so(
    images: Path, tmp_path: Path, options: list[str], error: type[Exception], message: str
) -> None:
    (images / "3.png").write_bytes(b"no image")
    arguments = _train(images, "--steps", "3", "--out", str(tmp_path / "c.safetensors"), *options)
    with pytest.raises(error, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert not (tmp_path / "c.safetensors").exists()


def test_families(images: Path, tmp_path: Path) -> None:
    options = _train(images, "--steps", "1", "--groups", "2", "--out", str(tmp_path / "c.safetensors"))
    result = CliRunner().invoke(app, [*options, "--every", "3"], catch_exceptions=False)
    assert "degrees 0 to 2, merge, spaced:1,4,7,10" in result.stdout
    assert Compensator.load(tmp_path / "c.safetensors").family == "spaced:1,4,7,10"
    for wrong, error, message in (
        (["--every", "3", "--merge-blocks", "1"], RequestError, "Give --merge-blocks or --every, not both"),
        (["--merge-blocks", "1,x"], RequestError, "'merge-blocks' option must be numbers of blocks"),
        (["--merge-blocks", "1,12"], DegreeError, "which has 12: 0 to 11. Got 12"),
        (["--merge-blocks", "4,4"], DegreeError, "Got block 4 twice"),
        (["--every", "13"], DegreeError, "from 1 to 12"),
        (["--every", "6"], RequestError, "at most 1, the largest degree of family 'spaced:2,8'"),
    ):
        with pytest.raises(error, match=message):
            CliRunner().invoke(app, [*options, *wrong], catch_exceptions=False)
