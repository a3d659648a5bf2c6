"""SIGKILL at random points of export, build, calibration and training: the old state or the new one, and no litter."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_bundles import write_small_bundle

from tocom.errors import EngineError
from tocom.export.engines.backend import find_backend, find_device
from tocom.formats.bundle import Bundle
from tocom.formats.profile import Profile, find_profiles
from tocom.runtime import Runtime
from tocom.system.files import sha256_file

HERE = Path(__file__).parent


class Killer:
    """Speaks with kill_server.py."""

    def __init__(self, log: Path) -> None:
        self._log = log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, str(HERE / "kill_server.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
            env={**os.environ, "PYTHONPATH": str(HERE.parent / "helpers"), "OMP_NUM_THREADS": "1"},
        )
        self.log = log

    def run(self, job: str, folder: Path, **when: float) -> dict[str, Any]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps({"job": job, "folder": str(folder), **when}) + "\n")
        self._process.stdin.flush()
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        assert answer["status"] in (0, -signal.SIGKILL), self.log.read_text()
        return answer

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(60)
        self._log.close()


@pytest.fixture(scope="module")
def killer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Killer]:
    killer = Killer(tmp_path_factory.mktemp("kills") / "log")
    yield killer
    killer.close()


def hidden(folder: Path) -> list[Path]:
    """Return what a killed process left; a lock file stays on purpose."""
    return [path for path in folder.rglob(".*") if path.name != ".lock"]


def kill_often(
    killer: Killer, job: str, folder: Path, kills: int, check: Callable[[bool], None], reset: Callable[[], None]
) -> None:
    """Kill a job at ``kills`` random points, half of them by time and half just before a file event.

    Args:
        killer: Runs the job.
        job: Its name.
        folder: Where it works.
        kills: How often.
        check: Looks at the folder after every kill, and after every run that came to its end first (True).
        reset: Makes work to do again.
    """
    whole = killer.run(job, folder)
    assert whole["status"] == 0, killer.log.read_text()
    assert whole["events"] > 0
    check(True)
    reset()
    draw, done = random.SystemRandom(), 0
    for _ in range(10 * kills):
        if done % 2:
            when: dict[str, float] = {"after_s": draw.uniform(0, whole["seconds"])}
        else:
            when = {"at_event": draw.randint(1, whole["events"])}
        killed = killer.run(job, folder, **when)["status"] != 0
        done += killed
        try:
            check(not killed)
        except Exception as error:
            raise AssertionError(f"killed with {when}") from error
        # What is left by one is removed by the next: it does not pile up.
        assert len(hidden(folder)) <= 3, hidden(folder)
        if not killed or draw.random() < 0.3:
            reset()
        if done == kills:
            break
    assert done == kills
    reset()
    assert killer.run(job, folder)["status"] == 0
    check(True)
    assert hidden(folder) == []


counts = pytest.mark.parametrize("kills", [2, pytest.param(50, marks=pytest.mark.slow)])


@counts
@pytest.mark.timeout(1200)
@pytest.mark.fault(
    "SIGKILL at random points of an export", outcome="no bundle, the old one or the new one; the next export works"
)
def test_export(killer: Killer, tmp_path: Path, kills: int) -> None:
    path, again = tmp_path / "bundle", [True]

    def check(ended: bool) -> None:
        if ended or not again[0] or path.exists():
            assert list(Bundle(path).degrees) in ([0], [2])
        again[0] = not path.exists()

    def reset() -> None:
        if random.random() < 0.3:
            shutil.rmtree(path, ignore_errors=True)
            again[0] = True

    kill_often(killer, "export", tmp_path, kills, check, reset)


@counts
@pytest.mark.timeout(1200)
@pytest.mark.fault(
    "SIGKILL at random points of a calibration",
    outcome="no profile, the old one or the new one; the bundle and the cache of weights serve on",
)
def test_calibrate(killer: Killer, tmp_path: Path, kills: int, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    monkeypatch.setenv("TOCOM_CACHE", str(tmp_path / "cache"))

    def check(ended: bool) -> None:
        profiles = [Profile.load(path) for path in find_profiles(bundle.path)]
        assert len(profiles) <= 1
        assert profiles or not ended
        images = np.ones((1, 3, 8, 8), np.float32)
        with Runtime.open(bundle.path, threads=1) as runtime:
            logits = runtime.infer(images, degree=4).outputs["logits"]
        np.testing.assert_allclose(logits, bundle.reference(images, 4), atol=1e-4)

    def reset() -> None:
        shutil.rmtree(tmp_path / "cache", ignore_errors=True)
        if random.random() < 0.5:
            shutil.rmtree(bundle.path / "profiles", ignore_errors=True)

    kill_often(killer, "calibrate", tmp_path, kills, check, reset)


@counts
@pytest.mark.timeout(1200)
@pytest.mark.fault(
    "SIGKILL at random points of training",
    outcome="a checkpoint that resumes; in the end the weights of the run that was never killed, bit for bit",
)
def test_train(killer: Killer, tmp_path: Path, kills: int) -> None:
    expected: dict[str, torch.Tensor] = {}
    checkpoint, out = tmp_path / "run.ckpt", tmp_path / "compensator.safetensors"

    def check(ended: bool) -> None:
        if checkpoint.exists():
            assert torch.load(checkpoint, weights_only=True)["state"]["step"] >= 1
        if ended and not expected:
            expected.update(load_file(out))
        assert out.exists() or not ended
        if out.exists():
            found = load_file(out)
            assert found.keys() == expected.keys()
            assert all(torch.equal(found[name], expected[name]) for name in expected)

    def reset() -> None:
        if out.exists():  # else go on from the checkpoint, through all kills
            out.unlink()
            checkpoint.unlink()

    kill_often(killer, "train", tmp_path, kills, check, reset)


@counts
@pytest.mark.timeout(1200)
@pytest.mark.fault(
    "SIGKILL at random points of a build",
    outcome="every engine that has a sidecar is whole; the next build makes the others",
)
def test_build(killer: Killer, tmp_path: Path, kills: int) -> None:
    try:
        find_backend("tensorrt-rtx")
    except EngineError as error:
        pytest.skip(str(error))
    if find_device() is not None:
        pytest.skip("builds portable engines, on a machine without a GPU")
    killer.run("export", tmp_path)

    def check(ended: bool) -> None:
        sidecars = list(tmp_path.glob("bundle/engines/*/degree-*.json"))
        assert sidecars or not ended
        for sidecar in sidecars:
            engine = json.loads(sidecar.read_text())["engine"]
            assert engine["sha256"] == sha256_file(sidecar.with_name(engine["file"]))

    def reset() -> None:
        for sidecar in tmp_path.glob("bundle/engines/*/degree-*.json"):
            sidecar.unlink()

    kill_often(killer, "build", tmp_path, kills, check, reset)
