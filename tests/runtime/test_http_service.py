"""examples/http_service.py, started as a program, asked by many at once."""

from __future__ import annotations

import ast
import io
import json
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from small_bundles import SmallBundle, write_small_bundle

from tocom.images import preprocess
from tocom.runtime import Runtime

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "http_service.py"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> SmallBundle:
    return write_small_bundle(tmp_path_factory.mktemp("served") / "bundle", labels=list("abcde"))


@pytest.fixture(scope="module")
def service(bundle: SmallBundle) -> Iterator[str]:
    process = subprocess.Popen(
        [sys.executable, EXAMPLE, bundle.path, "--port", "0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    yield f"http://127.0.0.1:{line.rsplit(' ', 1)[1].strip()}/"
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=30)
    assert process.returncode == -signal.SIGINT


def ask(address: str, body: bytes, budget_ms: str | None = None) -> tuple[int, Any]:
    headers = {} if budget_ms is None else {"X-Budget-Ms": budget_ms}
    try:
        with urllib.request.urlopen(urllib.request.Request(address, body, headers), timeout=30) as reply:
            return reply.status, json.load(reply)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def picture(seed: int) -> tuple[Image.Image, bytes]:
    pixels = np.random.default_rng(seed).integers(0, 256, (20, 30, 3), dtype=np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    return Image.fromarray(pixels), file.getvalue()


def test_many_clients_get_their_own_answers(service: str, bundle: SmallBundle) -> None:
    with Runtime.open(bundle.path, warm=False) as runtime:
        entry = runtime.bundle.manifest["input"]

    def check(seed: int) -> None:
        image, body = picture(seed)
        code, answer = ask(service, body, "10000" if seed % 2 else None)
        assert code == 200, answer
        logits = bundle.reference(preprocess(image, entry)[None], answer["degree"])[0]
        assert [each["class"] for each in answer["top"]] == np.argsort(-logits).tolist()
        assert answer["top"][0]["label"] == "abcde"[int(logits.argmax())]
        assert sum(each["probability"] for each in answer["top"]) == pytest.approx(1)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(check, range(40)))


@pytest.mark.parametrize(
    ("body", "budget_ms", "code"),
    [
        (b"no picture", None, 400),
        (b"", None, 400),
        (picture(0)[1][:60], None, 400),
        (picture(0)[1], "soon", 400),
        (picture(0)[1], "-1", 400),
        (picture(0)[1], "nan", 400),
        (picture(0)[1], "0.0001", 503),
    ],
)
def test_refusals(service: str, body: bytes, budget_ms: str | None, code: int) -> None:
    got, answer = ask(service, body, budget_ms)
    assert got == code, answer
    assert answer["error"]
    assert ask(service, picture(1)[1])[0] == 200


@pytest.mark.parametrize("length", ["-1", "many"])
def test_a_length_that_is_none_is_refused_at_once(service: str, length: str) -> None:
    request = urllib.request.Request(service, picture(0)[1], {"Content-Length": length})
    with pytest.raises(urllib.error.HTTPError, match="400"):
        urllib.request.urlopen(request, timeout=10)


def test_it_is_forty_lines() -> None:
    """Of code: what its docstring promises."""
    text = EXAMPLE.read_text()
    begin = ast.parse(text).body[0].end_lineno
    assert sum(bool(line.strip()) for line in text.splitlines()[begin:]) <= 40
