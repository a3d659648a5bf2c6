"""A disk that is really full (a small tmpfs, where one can be mounted): one readable line, and the old state stays."""

from __future__ import annotations

import contextlib
import logging
import subprocess
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from small_bundles import write_small_bundle
from small_vits import busy_compensator, small_images, small_vit

from tocom import Compensator
from tocom.calibration import calibrate
from tocom.errors import EngineError, OutputError
from tocom.export import export
from tocom.export.engines.backend import find_backend, find_device
from tocom.export.engines.builder import build
from tocom.formats.bundle import Bundle
from tocom.formats.profile import find_profiles
from tocom.runtime import Runtime
from tocom.training.config import TrainingConfig
from tocom.training.trainer import train

DISK_BYTES = 2 << 20


class Disk:
    """A small file system."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @contextlib.contextmanager
    def full(self, *, but_for_bytes: int = 0) -> Iterator[None]:
        """Leave no room for the block, or only so much."""
        filler = self.path / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while file.write(bytes(1 << 12)):
                pass
        if but_for_bytes:
            with filler.open("ab") as file:
                file.truncate(filler.stat().st_size - but_for_bytes)
        try:
            yield
        finally:
            filler.unlink()


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    path = tmp_path / "disk"
    path.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES}", "tmpfs", str(path)]
    try:
        subprocess.run(command, check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no tmpfs can be mounted here; the tests with a limit on file sizes cover the same paths")
    yield Disk(path)
    subprocess.run(["umount", "-l", str(path)], check=True)


def parts(folder: Path) -> list[Path]:
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


def one_line(error: BaseException) -> None:
    assert "No space left on device" in str(error)
    assert "\n" not in str(error)


@pytest.mark.fault("no room on the disk during an export", outcome="OutputError; the old bundle stays, no part is left")
def test_export(disk: Disk) -> None:
    model, out = small_vit(side=32, depth=1), disk.path / "bundle"
    export(model, out, degrees=(0,), check=False)
    before = Bundle(out).fingerprint
    for room in (0, 40_000):
        with disk.full(but_for_bytes=room), pytest.raises(OutputError, match="Cannot write") as caught:
            export(model, out, degrees=(0,), check=False, overwrite=True)
        one_line(caught.value)
        assert Bundle(out).fingerprint == before
        assert list(disk.path.iterdir()) == [out]


@pytest.mark.fault("no room on the disk during a build", outcome="OutputError; no engine and no sidecar is left half")
def test_build(disk: Disk) -> None:
    try:
        find_backend("tensorrt-rtx")
    except EngineError as error:
        pytest.skip(str(error))
    if find_device() is not None:
        pytest.skip("builds portable engines, on a machine without a GPU")
    export(small_vit(side=32, depth=1), disk.path / "bundle", degrees=(0,), check=False)
    with disk.full(but_for_bytes=16_000), pytest.raises(OutputError, match="Cannot write") as caught:
        build(disk.path / "bundle", backend="tensorrt-rtx", lowering="native")
    one_line(caught.value)
    assert not list(disk.path.glob("bundle/engines/*/degree-*"))
    assert parts(disk.path) == []
    Bundle(disk.path / "bundle")


@pytest.mark.fault(
    "no room on the disk during training", outcome="OutputError; the last checkpoint stays, and resumes to the same end"
)
def test_training(disk: Disk) -> None:
    model = small_vit(side=32, depth=1)
    images = list(small_images(model, 5))
    config = TrainingConfig(groups=2, steps=6, batch_size=2)
    whole = train(model, images, config).state_dict()
    checkpoint = disk.path / "run.ckpt"
    fill = contextlib.ExitStack()

    def fill_at_three(report: object) -> None:
        if report.step == 3:  # type: ignore[attr-defined]
            fill.enter_context(disk.full())

    with fill, pytest.raises(OutputError, match=r"Cannot write .*run\.ckpt") as caught:
        train(model, images, config, checkpoint=checkpoint, checkpoint_every=1, progress=fill_at_three)
    one_line(caught.value)
    assert list(disk.path.iterdir()) == [checkpoint]
    assert torch.load(checkpoint, weights_only=True)["state"]["step"] == 3
    resumed = train(model, images, config, checkpoint=checkpoint, resume=True).state_dict()
    assert all(torch.equal(resumed[name], tensor) for name, tensor in whole.items())


@pytest.mark.fault("no room on the disk for a compensator", outcome="OutputError; the old file stays")
def test_compensator(disk: Disk) -> None:
    model = small_vit(side=32, depth=1)
    path = disk.path / "compensator.safetensors"
    busy_compensator(model, groups=2).save(path)
    with disk.full(), pytest.raises(OutputError, match="Cannot write") as caught:
        busy_compensator(model, groups=2, seed=1).save(path)
    one_line(caught.value)
    kept, first = Compensator.load(path).state_dict(), busy_compensator(model, groups=2).state_dict()
    assert all(torch.equal(kept[name], first[name]) for name in first)
    assert list(disk.path.iterdir()) == [path]


@pytest.mark.fault(
    "no room on the disk during a calibration", outcome="OutputError; the old profile stays, the bundle serves on"
)
def test_calibration(disk: Disk, tmp_path: Path) -> None:
    bundle = write_small_bundle(disk.path / "bundle", width=16)
    calibrate(bundle.path, samples=5, threads=1)
    (profile,) = find_profiles(bundle.path)
    before = profile.read_bytes()
    with disk.full(), pytest.raises(OutputError, match="Cannot write") as caught:
        calibrate(bundle.path, samples=5, threads=1)
    one_line(caught.value)
    assert find_profiles(bundle.path) == [profile]
    assert profile.read_bytes() == before
    assert parts(disk.path) == []


@pytest.mark.fault(
    "no room on the disk for the cache of packed weights", outcome="a warning; every degree serves from its own copy"
)
def test_cache(disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    monkeypatch.setenv("TOCOM_CACHE", str(disk.path / "cache"))
    images = np.ones((1, 3, 8, 8), np.float32)
    with (
        disk.full(but_for_bytes=20_000),
        caplog.at_level(logging.WARNING),
        Runtime.open(bundle.path, threads=1) as runtime,
    ):
        logits = runtime.infer(images, degree=4).outputs["logits"]
        np.testing.assert_allclose(logits, bundle.reference(images, 4), atol=1e-4)
    assert "do not share weights" in caplog.text
    assert not [path for path in (disk.path / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
