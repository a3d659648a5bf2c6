"""A run that is killed and resumed is the run that was never stopped."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from small_vits import small_images, small_vit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from training_worker import CONFIG

from tocom.errors import OutputError, RequestError, TrainingError
from tocom.training.config import TrainingConfig
from tocom.training.trainer import StepReport, train

STEPS = 24
SMALL = {"groups": 4, "steps": 6, "batch_size": 4}


def _lines(process: subprocess.Popen[str], until: int | None = None) -> list[list[float]]:
    """Read the worker's steps; at step ``until`` kill it without a chance to clean up."""
    seen: list[list[float]] = []
    rest: list[str] = []
    assert process.stdout is not None
    for line in process.stdout:
        if not line.startswith("["):
            rest.append(line)
            continue
        seen.append(json.loads(line))
        if seen[-1][0] == until:
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    code = process.wait(timeout=60)
    assert code == (0 if until is None else -signal.SIGKILL), "".join(rest)
    return seen


@pytest.mark.timeout(120)
@pytest.mark.fault(
    "a training killed three times", outcome="it ends with the weights of the run that was never killed, bit for bit"
)
@pytest.mark.slow
def test_killed_the_run_ends_the_same(worker: Callable[..., subprocess.Popen[str]], tmp_path: Path) -> None:
    model = small_vit(depth=2)
    config = TrainingConfig(**CONFIG, steps=STEPS)  # type: ignore[arg-type]
    expected: dict[int, list[float]] = {}

    def keep(done: StepReport) -> None:
        expected[done.step] = [done.step, done.source, done.target, done.loss]

    whole = train(model, list(small_images(model, 11)), config, progress=keep).state_dict()

    out, checkpoint = tmp_path / "killed.safetensors", tmp_path / "killed.ckpt"
    kills = sorted(random.SystemRandom().sample(range(4, STEPS), 3))
    first = 1
    for kill in kills:
        lines = _lines(worker(out, checkpoint, str(STEPS)), until=kill)
        # Between kills at most the steps since the last checkpoint are done again; reading may lag behind the worker.
        assert lines[0][0] >= first, kills
        first = 3 * (kill // 3) + 1
        assert all(line == expected[line[0]] for line in lines), kills
        assert not out.exists()
    lines = _lines(worker(out, checkpoint, str(STEPS)))
    assert lines[0][0] >= first
    assert lines[-1][0] == STEPS
    assert all(line == expected[line[0]] for line in lines), kills
    killed = load_file(out)
    assert killed.keys() == whole.keys()
    assert all(torch.equal(killed[name], whole[name]) for name in killed), kills


class Stop(Exception):
    """Stands for whatever ends a run between two steps."""


def _stop_at(step: int) -> Callable[[StepReport], None]:
    def report(done: StepReport) -> None:
        if done.step == step:
            raise Stop

    return report


@pytest.mark.parametrize(
    "options",
    [
        {"accumulation": 2},
        {"precision": "bf16"},
        {"precision": "fp16"},
        {"activation_checkpointing": True, "method": "prune"},
        {"source_degree": 2, "loss": "mse", "flip": False},
    ],
    ids=lambda options: "-".join(options),
)
def test_every_option_resumes_exactly(
    model: VisionTransformer, images: list[Tensor], options: dict[str, object], tmp_path: Path
) -> None:
    config = TrainingConfig(**SMALL, **options)  # type: ignore[arg-type]
    whole = train(model, images, config)
    place = {"checkpoint": tmp_path / "run.ckpt", "checkpoint_every": 2}
    with pytest.raises(Stop):
        train(model, images, config, **place, progress=_stop_at(5))  # type: ignore[arg-type]
    seen: list[int] = []
    resumed = train(model, images, config, **place, resume=True, progress=lambda done: seen.append(done.step))  # type: ignore[arg-type]
    assert seen == [5, 6]
    for name, tensor in whole.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name]), name
    again = train(model, images, config, **place, resume=True, progress=_stop_at(6))  # type: ignore[arg-type]
    assert all(torch.equal(again.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


class Noisy(torch.utils.data.Dataset[Tensor]):
    """Images that are augmented at random, from torch's own generator."""

    def __init__(self, images: list[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index] + torch.rand(())


def test_random_augmentation_resumes_exactly(model: VisionTransformer, images: list[Tensor], tmp_path: Path) -> None:
    config = TrainingConfig(**SMALL)  # type: ignore[arg-type]
    whole = train(model, Noisy(images), config)
    with pytest.raises(Stop):
        train(model, Noisy(images), config, checkpoint=tmp_path / "c", checkpoint_every=1, progress=_stop_at(3))
    resumed = train(model, Noisy(images), config, checkpoint=tmp_path / "c", resume=True)
    assert all(torch.equal(resumed.state_dict()[name], tensor) for name, tensor in whole.state_dict().items())


@pytest.fixture(scope="module")
def checkpoint(model: VisionTransformer, images: list[Tensor], tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("run") / "run.ckpt"
    train(model, images, TrainingConfig(**SMALL), checkpoint=path)  # type: ignore[arg-type]
    return path


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("groups", 5),
        ("rank", 3),
        ("method", "prune"),
        ("loss", "mse"),
        ("steps", 7),
        ("batch_size", 2),
        ("accumulation", 2),
        ("precision", "bf16"),
        ("activation_checkpointing", True),
        ("learning_rate", 1e-4),
        ("final_learning_rate", 1e-6),
        ("weight_decay", 0.1),
        ("scale", 0.2),
        ("source_degree", 1),
        ("flip", False),
        ("seed", 1),
    ],
)
def test_a_checkpoint_of_another_configuration_is_refused(
    model: VisionTransformer, images: list[Tensor], checkpoint: Path, field: str, value: object
) -> None:
    before = checkpoint.read_bytes()
    config = TrainingConfig(**{**SMALL, field: value})  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match=f"another run: its '{field}' is .*, here it is {value!r}"):
        train(model, images, config, checkpoint=checkpoint, resume=True)
    assert checkpoint.read_bytes() == before


def test_a_checkpoint_of_another_backbone_or_other_images_is_refused(
    model: VisionTransformer, images: list[Tensor], checkpoint: Path
) -> None:
    config = TrainingConfig(**SMALL)  # type: ignore[arg-type]
    with pytest.raises(TrainingError, match="its 'backbone' is"):
        train(small_vit(seed=1), images, config, checkpoint=checkpoint, resume=True)
    with pytest.raises(TrainingError, match="its 'images' is 11, here it is 12"):
        train(model, list(small_images(model, 12)), config, checkpoint=checkpoint, resume=True)


@pytest.mark.fault(
    "a checkpoint that is cut, empty, of another version, or a pickle that runs code",
    outcome="TrainingError; no code of it runs, and it is kept",
)
def test_a_checkpoint_is_neither_overwritten_nor_invented(
    model: VisionTransformer, images: list[Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    config = TrainingConfig(**SMALL)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match=r"is there already\. Resume that run"):
        train(model, images, config, checkpoint=checkpoint)
    with pytest.raises(RequestError, match="'resume' parameter needs 'checkpoint'"):
        train(model, images, config, resume=True)
    with pytest.raises(RequestError, match="'checkpoint_every' parameter"):
        train(model, images, config, checkpoint=tmp_path / "c", checkpoint_every=0)
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="Cannot write"):
        train(model, images, config, checkpoint=tmp_path / "file" / "c")
    # Cut off, no checkpoint at all, and one that would run code.
    for content in (checkpoint.read_bytes()[:-200], b"", b"cos\nsystem\n(S'touch ran'\ntR."):
        (tmp_path / "bad").write_bytes(content)
        with pytest.raises(TrainingError, match="Cannot read the checkpoint"):
            train(model, images, config, checkpoint=tmp_path / "bad", resume=True)
        assert (tmp_path / "bad").read_bytes() == content
    torch.save({"format": "tocom-training", "version": 2}, tmp_path / "newer")
    with pytest.raises(TrainingError, match="version 2, not 'tocom-training' version 1"):
        train(model, images, config, checkpoint=tmp_path / "newer", resume=True)


@pytest.mark.fault(
    "Ctrl-C or SIGTERM in a training",
    outcome="the checkpoint is saved after the step, the signal acts; resumed, it ends as the undisturbed run",
)
def test_interrupts_keep_the_steps() -> None:
    """The cases of interrupts.py, where no other test has loaded anything."""
    file = Path(__file__).with_name("interrupts.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stdout
    assert "3 passed" in done.stdout
