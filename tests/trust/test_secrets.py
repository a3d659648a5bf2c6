"""Keys and environment values never stand in output, logs, metrics, reports or files."""

from __future__ import annotations

import base64
import logging
import os
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from prometheus_client import CollectorRegistry, generate_latest

from tocom.cli import app, main
from tocom.cli.run import _without_password
from tocom.runtime import Runtime
from tocom.runtime.metrics import register_metrics

GOLDEN = Path(__file__).parent / "golden" / "version-2"
# Of services that a build or a device may be logged in to, and one that nobody knows.
NAMES = ("HF_TOKEN", "AWS_SECRET_ACCESS_KEY", "GITHUB_TOKEN", "PIP_INDEX_URL", "WANDB_API_KEY", "MY_OWN_PASSWORD")


@pytest.fixture
def secrets(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    values = [f"hidden{index}value{os.urandom(6).hex()}" for index in range(len(NAMES))]
    for name, value in zip(NAMES, values, strict=True):
        monkeypatch.setenv(name, f"https://user:{value}@index.example" if "URL" in name else value)
    return values


def test_no_secret_is_told(
    secrets: list[str],
    tmp_path: Path,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    bundle = shutil.copytree(GOLDEN, tmp_path / "bundle")
    images = tmp_path / "images"
    images.mkdir()
    for index in range(2):
        pixels = np.full((48, 48, 3), 90 * index, np.uint8)
        Image.fromarray(pixels).save(images / f"{index}.png")
    key = tmp_path / "keys" / "key"
    calls = [
        ["sign", "--new-key", key],
        ["sign", bundle, "--key", key, "--json"],
        ["verify", bundle, "--key", f"{key}.pub"],
        ["verify", bundle, "--json"],
        ["inspect", bundle, "--json"],
        ["calibrate", bundle, "--samples", 20, "--threads", 1, "--json"],
        ["run", bundle, "--images", images, "--threads", 1, "--trusted-key", f"{key}.pub"],
        ["bench", bundle, "--duration", 0.05, "--threads", 1, "--json"],
        ["doctor"],
        ["doctor", "--json"],
        # What goes wrong must not tell either.
        ["sign", "--new-key", key],
        ["verify", bundle, "--key", key],
        ["sign", bundle, "--key", f"{key}.pub"],
        ["run", bundle, "--images", images, "--trusted-key", key],
    ]
    codes = []
    with caplog.at_level(logging.DEBUG):
        for call in calls:
            monkeypatch.setattr(sys, "argv", ["tocom", *map(str, call)])
            app.registered_commands.clear()
            app.registered_groups.clear()
            try:
                main()
                codes.append(0)
            except SystemExit as done:
                codes.append(int(done.code or 0))
        with Runtime.open(bundle, threads=1, trusted_keys=[f"{key}.pub"]) as runtime:
            registry = CollectorRegistry()
            register_metrics(runtime, registry=registry)
            runtime.infer(np.zeros((1, 3, 48, 48), np.float32), budget_ms=1000.0)
            told = [repr(runtime), str(runtime.stats()), generate_latest(registry).decode()]
    assert codes == [0] * 10 + [1] * 4
    captured = capfd.readouterr()
    told += [captured.out, captured.err, caplog.text]
    written = [path for path in tmp_path.rglob("*") if path.is_file() and path != key]
    told += [path.read_bytes().decode("latin-1") for path in written]
    lines = key.read_text().splitlines()
    seed = base64.b64decode("".join(lines[1:-1]))[-32:]
    hidden = [*secrets, *lines[1:-1], seed.hex(), base64.b64encode(seed).decode(), seed.decode("latin-1")]
    text = "\n".join(told)
    assert "bundle.json" in text  # it looked at something
    for secret in hidden:
        assert secret not in text


@pytest.mark.parametrize(
    ("address", "shown"),
    [
        ("rtsp://admin:pass@10.0.0.7/stream", "rtsp://…@10.0.0.7/stream"),
        ("rtsp://admin:p@ss@10.0.0.7/a@b", "rtsp://…@10.0.0.7/a@b"),
        ("clip.mp4", "clip.mp4"),
        ("http://host/a", "http://host/a"),
    ],
)
def test_a_cameras_password_is_not_shown(address: str, shown: str) -> None:
    assert _without_password(address) == shown
