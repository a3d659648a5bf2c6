"""The example's client over Triton's protocol: the budget decides which degree's model is asked."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from small_bundles import write_small_bundle

from tocom.export.triton.repository import write_triton_repository

pytest.importorskip("tritonclient.grpc", reason="needs the extra tocom[triton]")

CLIENT = Path(__file__).parents[3] / "examples" / "triton_client.py"


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    return write_small_bundle(tmp_path_factory.mktemp("bundle") / "bundle", labels=[f"class {n}" for n in range(5)])


@pytest.fixture
def served(small, tmp_path):
    repository = write_triton_repository(small.path, tmp_path / "repository", name="vit")
    from triton_protocol import serve

    server, address, servicer = serve(repository.path, {"vit-r00": 0.02})
    yield address, servicer
    server.stop(None)


def ask(small, address, folder, *options):
    Image.new("RGB", (20, 20), (40, 80, 120)).save(folder / "photo.png")
    command = [sys.executable, str(CLIENT), str(small.path), str(folder / "photo.png"), "--url", address, *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(("budget_ms", "degree", "late"), [("10000", 0, 0), ("0.001", 8, 20)])
def test_it_keeps_a_budget(small, served, tmp_path, budget_ms, degree, late):
    address, servicer = served
    done = ask(small, address, tmp_path, "--name", "vit", "--requests", "20", "--budget-ms", budget_ms)
    assert done.returncode == 0, done.stdout + done.stderr
    # Ten rounds measure every degree.
    assert servicer.asked[:30] == ["vit-r00", "vit-r04", "vit-r08"] * 10
    if late == 0:
        assert servicer.asked[30:] == [f"vit-r{degree:02d}"] * 20
        assert "20 answered, 0 late, degrees {0: 20}" in done.stdout
    else:
        assert "20 answered, 20 late" in done.stdout
        assert "vit-r00" not in servicer.asked[30:]
    assert re.search(r"last answer: class [0-4]$", done.stdout.strip())


def test_a_server_without_the_models_is_said_in_one_line(small, served, tmp_path):
    done = ask(small, served[0], tmp_path, "--name", "another")
    assert done.returncode != 0
    assert done.stderr.startswith(f"{served[0]} serves no model another-r*.")
    assert "Traceback" not in done.stderr
