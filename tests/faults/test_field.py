"""Faults of the field: from the command line, as a user meets them, and where the tests of each kind are.

kind                                                    tests
cold caches, several processes and threads              faults/test_cold_cache.py, benchmarks/cold_opens.py
caches that cannot be had, that grow, are removed        faults/test_cold_cache.py, runtime/backends/*weight_cache.py
signals, ends, forks, pools, event loops                faults/test_process_ends.py
EXIF, ranges, lines, links, hidden files, classes       runtime/test_runtime_images.py
timm's evaluation transform in every mode               runtime/test_runtime_images.py, compression/
unreadable images, several videos, terminals' width     runtime/test_runtime_cli.py
batches that are too small                              here, runtime/test_runtime_preprocess.py
volumes, '.', links, file systems that sync no folders  system/test_files.py
bundles that may only be read, or are laid out as links here
names of any bytes, terminals of any encoding           here
CPU quotas and memory limits of containers              system/test_cgroups.py
little shared memory                                    training/test_image_readers.py
Ctrl-C and SIGTERM in a training                        training/test_training_resume.py
telemetry of what we bring along                        faults/test_cold_cache.py
cameras: fair, urgent, stalled, broken, too many        runtime/test_runtime_streams.py, runtime/policy/test_load.py
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_bundles import SmallBundle, write_small_bundle

from tocom.errors import BundleError
from tocom.formats.bundle import Bundle

UNPRIVILEGED = ("setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-all")


def tocom(*words: object, encoding: str = "utf-8", wrapper: Sequence[str] = ()) -> subprocess.CompletedProcess[bytes]:
    command = [
        *wrapper,
        sys.executable,
        "-c",
        "from tocom.cli import main; main()",
        *map(os.fspath, map(str_of, words)),
    ]
    environment = {**os.environ, "PYTHONIOENCODING": encoding}
    done = subprocess.run(command, capture_output=True, env=environment, timeout=120)
    assert b"Traceback" not in done.stderr, done.stderr.decode(errors="replace")
    return done


def str_of(word: object) -> str | bytes:
    return word if isinstance(word, bytes) else str(word)


@pytest.mark.parametrize("encoding", [pytest.param("utf-8", marks=pytest.mark.slow), "latin-1"])
def test_names_of_any_bytes_on_terminals_of_any_encoding(tmp_path: Path, encoding: str) -> None:
    place = os.fsencode(tmp_path) + b"/\xe9[bold]:smile:"
    bundle = write_small_bundle(Path(os.fsdecode(place)) / "bundle", labels=["Ω", "[b]", "c", "d", "e"])
    images = Path(os.fsdecode(place)) / "images"
    images.mkdir()
    for name in (b"caf\xe9.png", b"[red]x.png", b":smile:.png", "Ω.png".encode()):
        Image.fromarray(np.zeros((9, 9, 3), np.uint8)).save(os.fsencode(images) + b"/" + name, "PNG")
    done = tocom("run", os.fsencode(bundle.path), "--images", os.fsencode(images), encoding=encoding)
    assert done.returncode == 0, done.stderr
    assert b"[red]x.png" in done.stdout
    assert b":smile:.png" in done.stdout
    assert done.stdout.count(b"degree 0") == 4
    shown = tocom("inspect", os.fsencode(bundle.path), encoding=encoding)
    assert shown.returncode == 0, shown.stderr
    assert b"[bold]" in b"".join(shown.stdout.split())
    missing = tocom("run", "/no[/x]where", "--images", os.fsencode(images), encoding=encoding)
    assert (missing.returncode, missing.stderr.count(b"\n")) == (1, 1)
    assert b"/no[/x]where" in missing.stderr


@pytest.mark.fault("a bundle that cannot be written to, calibrated", outcome="told first; the figures are shown")
def test_figures_that_were_measured_are_shown(tmp_path: Path) -> None:
    wrapper: tuple[str, ...] = ()
    if os.geteuid() == 0:
        if shutil.which("setpriv") is None:
            pytest.skip("root needs setpriv to be like other users")
        wrapper = UNPRIVILEGED
    bundle: SmallBundle = write_small_bundle(tmp_path / "bundle")
    bundle.path.chmod(0o555)
    done = tocom("calibrate", bundle.path, "--samples", 3, wrapper=wrapper)
    asked = tocom("calibrate", bundle.path, "--samples", 3, "--report", wrapper=wrapper)
    bundle.path.chmod(0o755)
    assert done.returncode == 1
    assert b"p95" in done.stdout
    said = done.stderr.decode()
    assert said.index("the figures are shown, not saved") < said.index("warm") if "warm" in said else True
    assert said.rstrip().splitlines()[-1].startswith("error: OutputError: Cannot write")
    assert (asked.returncode, asked.stdout) == (1, b"")


def test_a_bundle_with_six_images_for_batches_of_four(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", batch=(4, 4, 4), labels=list("abcde"))
    for name in "ab":
        (tmp_path / "images" / name).mkdir(parents=True)
        for index in range(3):
            pixels = np.random.default_rng(index).integers(0, 256, (9, 9, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{index}.png")
    (tmp_path / "images" / "a" / "._0.png").write_bytes(b"of another system")
    measured = tocom("calibrate", bundle.path, "--images", tmp_path / "images", "--samples", 3, "--json")
    assert measured.returncode == 0, measured.stderr
    assert {entry["accuracy"]["count"] for entry in json.loads(measured.stdout)["degrees"]} == {6}
    done = tocom("run", bundle.path, "--images", tmp_path / "images", "--json")
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["answers"]) == 6


@pytest.mark.parametrize("linked", ["all", "weights"])
def test_a_bundle_laid_out_as_links(tmp_path: Path, linked: str) -> None:
    bundle = write_small_bundle(tmp_path / "blobs")
    snapshot = tmp_path / "a snapshot"
    snapshot.mkdir()
    for file in bundle.path.iterdir():
        if linked == "all" or file.name == "weights.bin":
            (snapshot / file.name).symlink_to(file)
        else:
            shutil.copy(file, snapshot)
    with pytest.raises(BundleError, match=r"is a link out of the bundle.* cp -rL '.*a snapshot' COPY"):
        Bundle(snapshot)
    subprocess.run(["cp", "-rL", snapshot, tmp_path / "COPY"], check=True)
    Bundle(tmp_path / "COPY")
