"""Many processes and threads open one bundle at once, and no cache is there yet, or none can be."""

from __future__ import annotations

import logging
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from small_bundles import SmallBundle, images_of, write_small_bundle

from tocom.runtime import Runtime

OPEN_AND_ANSWER = """
import sys, logging
import numpy as np
from tocom.runtime import Runtime
logging.basicConfig()
with Runtime.open(sys.argv[1], profile=sys.argv[2] if len(sys.argv) > 2 else None) as runtime:
    images = np.zeros((1, 3, 8, 8), np.float32)
    for degree in runtime.degrees:
        print(degree, runtime.infer(images, degree=degree).outputs["logits"][0, 0], runtime.backend.shares_weights)
"""


@pytest.fixture
def bundle(tmp_path: Path) -> SmallBundle:
    return write_small_bundle(tmp_path / "bundle", width=256)


def start(bundle: SmallBundle, environment: Mapping[str, str], wrapper: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [*wrapper, sys.executable, "-c", OPEN_AND_ANSWER, str(bundle.path)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    out, err = process.communicate(timeout=120)
    return process.returncode, out, err


def answers(bundle: SmallBundle, *, shared: bool = True) -> str:
    images = np.zeros((1, 3, 8, 8), np.float32)
    return "".join(f"{degree} {bundle.reference(images, degree)[0, 0]} {shared}\n" for degree in bundle.layers)


@pytest.mark.fault("several processes open a bundle whose cache is empty", outcome="one builds it, all open")
def test_processes(bundle: SmallBundle, tmp_path: Path) -> None:
    cold = tmp_path / "cold"
    for process in [start(bundle, {"TOCOM_CACHE": str(cold)}) for _ in range(4)]:
        code, out, err = ended(process)
        assert (code, out) == (0, answers(bundle)), err
        assert "do not share weights" not in err
    assert len([path for path in (cold / "onnxruntime").iterdir() if path.is_dir()]) == 1


@pytest.mark.fault("several threads open a bundle whose cache is empty", outcome="one builds it, all open")
def test_threads(bundle: SmallBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    images = images_of(1)

    def open_and_answer(place: int) -> None:
        # Some want other degrees, which then join the cache that the others open.
        with Runtime.open(bundle.path, degrees=None if place % 2 else [0, 4]) as runtime:
            for degree in runtime.degrees:
                logits = runtime.infer(images, degree=degree).outputs["logits"]
                np.testing.assert_allclose(logits, bundle.reference(images, degree), atol=1e-4)
            assert runtime.backend.shares_weights  # type: ignore[attr-defined]

    for turn in range(3):
        monkeypatch.setenv("TOCOM_CACHE", str(tmp_path / f"cold{turn}"))
        with ThreadPoolExecutor(6) as pool:
            list(pool.map(open_and_answer, range(6)))


def nowhere(tmp_path: Path, kind: str) -> Iterator[Path]:
    """Yield a home folder that holds no cache for this process."""
    home = tmp_path / "home"
    cache = home / ".cache"
    cache.mkdir(parents=True)
    if kind == "closed":
        cache.chmod(0)
    elif kind == "file":
        cache.rmdir()
        cache.touch()
    yield home
    if kind == "closed":
        cache.chmod(0o755)


@pytest.mark.parametrize("kind", ["closed", "file", "/proc"])
@pytest.mark.fault("a cache folder of another user, closed, or none at all", outcome="a warning; every degree serves")
def test_no_cache_is_no_error(bundle: SmallBundle, tmp_path: Path, kind: str) -> None:
    # Root may write everywhere, unless it gives that right away.
    wrapper: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to be like other users")
        wrapper = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")
    homes = nowhere(tmp_path, kind)
    home = kind if kind.startswith("/") else str(next(homes))
    environment = {key: value for key, value in os.environ.items() if key not in ("TOCOM_CACHE", "XDG_CACHE_HOME")}
    process = subprocess.run(
        [*wrapper, sys.executable, "-c", OPEN_AND_ANSWER, str(bundle.path)],
        env={**environment, "HOME": home},
        capture_output=True,
        text=True,
        timeout=120,
    )
    list(homes)
    assert process.stdout == answers(bundle, shared=False)
    assert "do not share weights" in process.stderr
    assert process.returncode == 0, process.stderr
    assert "Traceback" not in process.stderr


def test_a_cache_that_may_only_be_read_serves(
    bundle: SmallBundle, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("TOCOM_CACHE", str(tmp_path / "cache"))
    Runtime.open(bundle.path).close()
    lock = next((tmp_path / "cache" / "onnxruntime").glob("*.lock"))
    lock.unlink()
    with caplog.at_level(logging.WARNING), Runtime.open(bundle.path) as runtime:
        assert runtime.backend.shares_weights  # type: ignore[attr-defined]
    assert not lock.exists()
    assert "do not share weights" not in caplog.text


@pytest.mark.parametrize("asked", [None, "0"])
def test_what_onnxruntime_reports_is_the_users_choice(bundle: SmallBundle, tmp_path: Path, asked: str | None) -> None:
    names = ("ORT_DISABLE_TELEMETRY", "ORT_TELEMETRY_DISABLED")
    environment = {key: value for key, value in os.environ.items() if key not in (*names, "XDG_CACHE_HOME", "CI")}
    if asked is not None:
        environment |= dict.fromkeys(names, asked)
    script = f"{OPEN_AND_ANSWER}\nimport os; print([os.environ.get(name) for name in {names}])"
    home = tmp_path / "home"
    home.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", script, str(bundle.path)],
        env={**environment, "HOME": str(home), "TOCOM_CACHE": str(tmp_path / "cache")},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert done.stdout.splitlines()[-1] == str([asked or "1"] * 2)
    if asked is None:
        assert list(home.rglob("*")) == []
