"""Memory that really runs out, at one engine after another."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from small_bundles import images_of, write_small_bundle

HERE = Path(__file__).parent


@pytest.mark.fault(
    "the address space ends at one engine after another",
    outcome="right answers of the degrees that fit, or EngineError",
)
@pytest.mark.parametrize(
    ("backend", "sizes_mib"),
    [("onnxruntime", (4, 20, 50, 70, 110, 140, 170, 200, 400)), ("openvino", (50, 350, 450, 1200))],
)
def test_the_address_space_ends_at_one_engine_after_another(
    tmp_path: Path, backend: str, sizes_mib: tuple[int, ...]
) -> None:
    pytest.importorskip(backend, reason=f"{backend} is not installed")
    bundle = write_small_bundle(tmp_path / "bundle", width=1200, layers=[3, 2, 1])
    environment = {
        **os.environ,
        "PYTHONPATH": str(HERE.parent / "helpers"),
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    served: set[int] = set()
    ones = np.ones_like(images_of(1))
    for mib in sizes_mib:
        done = subprocess.run(
            [sys.executable, str(HERE / "memory_worker.py"), str(bundle.path), str(mib), backend],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env={**environment, "TOCOM_CACHE": str(tmp_path / f"cache-{mib}")},
        )
        assert done.returncode == 0, (mib, done.returncode, done.stderr[-2000:])
        assert "Traceback" not in done.stderr, (mib, done.stderr[-2000:])
        kind, *said = done.stdout.split()
        if kind == "refused":
            served.add(0)
            continue
        count, degree, *logits = map(float, said)
        served.add(int(count))
        expected = bundle.reference(ones, int(degree))[0]
        np.testing.assert_allclose(logits, expected, rtol=1e-3, atol=1e-3)
    assert {0, 3} <= served
