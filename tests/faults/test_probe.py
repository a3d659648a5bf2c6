"""Engines that are tried apart: what ends the child is one error here."""

from __future__ import annotations

import hashlib
import json
import time
from pathlib import Path

import pytest
from small_bundles import SmallBundle

from tocom.errors import EngineError, TocomError
from tocom.formats.sealed_json import write_sealed_json
from tocom.runtime.probe import probe

PROLOGUE = """
import json, os, signal, sys, time
degrees = json.loads(sys.stdin.read())["degrees"]
print(json.dumps({"degree": degrees[0]}), flush=True)
print(json.dumps({"degree": degrees[1]}), flush=True)
print("last words", file=sys.stderr, flush=True)
"""


def tried(bundle: SmallBundle, script: str, **options: float) -> str:
    with pytest.raises(EngineError) as caught:
        probe(bundle.path, worker=("-c", PROLOGUE + script), **options)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)
    assert "at degree 4" in str(caught.value)
    assert str(caught.value).endswith("Its log: last words")
    return str(caught.value)


def test_good_engines_pass(bundle: SmallBundle) -> None:
    probe(bundle.path, "onnxruntime", threads=1, memory_limit_bytes=4 << 30)


@pytest.mark.parametrize("signal", ["SIGSEGV", "SIGABRT", "SIGKILL"])
@pytest.mark.fault("an engine that crashes the process that loads it", outcome="EngineError with the log")
def test_a_crash(bundle: SmallBundle, signal: str) -> None:
    assert f"was killed by {signal}" in tried(bundle, f"os.kill(os.getpid(), signal.{signal})")


@pytest.mark.fault("an engine that hangs while it is tried", outcome="EngineError; its process is killed")
def test_a_hang(bundle: SmallBundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hangs = tmp_path / "hangs"

    class Clock:
        """Stands for the module time where limits are looked at: an hour passes as soon as the child hangs."""

        @staticmethod
        def monotonic() -> float:
            return 3600.0 * hangs.exists()

    begin = time.monotonic()
    monkeypatch.setattr("tocom.system.child_process.time", Clock)
    said = tried(bundle, f"open({str(hangs)!r}, 'w').close(); time.sleep(600)", timeout_s=3599)
    assert "took longer than 3599 s" in said
    assert time.monotonic() - begin < 60


@pytest.mark.fault("an engine that takes too much memory", outcome="EngineError; its process is killed")
def test_memory(bundle: SmallBundle) -> None:
    limit = 200 << 20
    said = tried(bundle, "hog = bytes(range(256)) * (400 << 12); time.sleep(600)", memory_limit_bytes=limit)
    assert f"allowed are {limit}" in said


def test_an_error_of_ours_keeps_its_kind(bundle: SmallBundle) -> None:
    content = b"no protobuf \xff"
    (bundle.path / "degree-04.onnx").write_bytes(content)
    manifest = json.loads((bundle.path / "bundle.json").read_text())
    manifest["files"]["degree-04.onnx"] = {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content)}
    write_sealed_json(bundle.path / "bundle.json", manifest)
    with pytest.raises(TocomError, match=r"degree-04\.onnx") as caught:
        probe(bundle.path, "onnxruntime", threads=1)
    assert "process of their own" not in str(caught.value)


def test_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(TocomError, match="No bundle at"):
        probe(tmp_path)
