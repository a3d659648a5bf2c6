"""The runtime and the op plugins' arithmetic on an aarch64 Python, against this machine: ``make test-aarch64``.

    python tests/aarch64/check.py [--folder build/aarch64]

A bundle per method is opened and answers at every degree; ``doctor``, ``inspect``, ``run`` and ``calibrate`` run there;
the host harness of the op plugins runs 5,000 random cases. Nothing is skipped: what cannot be fetched is a failure in
one line.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from machine import ROOT, Machine, NotHere
from PIL import Image

HERE = Path(__file__).parent
SOURCES = ROOT / "export" / "op_plugin" / "native"
DEGREES = (0, 2, 4)
TOLERANCE = 1e-5
CASES = 5_000
CLI = "from tocom.cli import main; main()"


def export_bundle(path: Path, method: str) -> None:
    """Export a small ViT of random weights."""
    import torch
    from timm.models.vision_transformer import VisionTransformer

    from tocom.export import export

    torch.manual_seed(0)
    model = VisionTransformer(img_size=32, patch_size=8, embed_dim=64, depth=3, num_heads=4, num_classes=10)
    export(model.eval(), path, degrees=list(DEGREES), method=method, check=False)


def write_images(folder: Path, count: int = 4) -> Path:
    """Write random images; return the folder."""
    folder.mkdir()
    generator = np.random.default_rng(0)
    for index in range(count):
        Image.fromarray(generator.integers(0, 256, (32, 32, 3), np.uint8)).save(folder / f"{index}.png")
    return folder


def check_answers(machine: Machine, bundle: Path, folder: Path) -> str:
    images, here, there = folder / "images.npy", folder / "here.npz", folder / "there.npz"
    np.save(images, np.random.default_rng(1).standard_normal((1, 3, 32, 32), np.float32))
    subprocess.run([sys.executable, HERE / "answers.py", bundle, images, here], check=True)
    machine.run(HERE / "answers.py", bundle, images, there)
    expected, got = np.load(here), np.load(there)
    assert set(expected) == set(got) == {str(degree) for degree in DEGREES}
    worst = max(float(np.abs(expected[degree] - got[degree]).max()) for degree in expected)
    assert worst <= TOLERANCE, f"answers differ by {worst}"
    return f"degrees {', '.join(expected)} differ by {worst:.1e} at most"


def check_commands(machine: Machine, bundle: Path, images: Path) -> str:
    doctor = json.loads(machine.run("-c", CLI, "doctor", "--json").stdout)
    assert "aarch64" in json.dumps(doctor), doctor
    inspected = json.loads(machine.run("-c", CLI, "inspect", bundle, "--json").stdout)
    assert inspected, inspected
    measured = json.loads(machine.run("-c", CLI, "calibrate", bundle, "--samples", "30", "--json").stdout)
    assert {entry["degree"] for entry in measured["degrees"]} == set(DEGREES), measured["degrees"]
    ran = machine.run("-c", CLI, "run", bundle, "--images", images, "--budget-ms", "10000", "--json").stdout
    assert ran.count('"degree"') >= len(list(images.iterdir())), ran
    return "doctor, inspect, calibrate, run"


def check_harness(machine: Machine, folder: Path) -> str:
    sources = [SOURCES / "testing" / "host_harness.cpp", SOURCES / "common" / "errors.cpp"]
    sys.path.insert(0, str(ROOT / "tests" / "export" / "op_plugin"))
    from host_kernels import compile_host_kernels

    here, there = folder / "libhost-here.so", folder / "libhost-there.so"
    fused = machine.compile(sources, SOURCES, there)
    assert fused > 0, "the compiler made no fused multiply-add"
    compile_host_kernels(here)
    command = HERE / "harness_cases.py"
    done = subprocess.run([sys.executable, command, here, str(CASES)], capture_output=True, text=True, check=True)
    expected, got = done.stdout.split(), machine.run(command, there, str(CASES)).stdout.split()
    differing = [index for index, pair in enumerate(zip(expected, got, strict=True)) if pair[0] != pair[1]]
    assert len(expected) == CASES, len(expected)
    assert not differing, f"{len(differing)} of {CASES} cases differ, the first is {differing[0]}"
    return f"{CASES:,} cases equal, {fused} fused multiply-adds in the code"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=ROOT / "build" / "aarch64")
    folder = parser.parse_args().folder.resolve()
    begin = time.perf_counter()
    try:
        machine = Machine(folder)
    except NotHere as error:
        print(f"test-aarch64: {error}", file=sys.stderr)
        return 1
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        work = Path(scratch)
        images = write_images(work / "images")
        for method in ("merge", "prune"):
            export_bundle(work / method, method)
            print(f"{method}: {check_answers(machine, work / method, work)}", flush=True)
        print(f"commands: {check_commands(machine, work / 'merge', images)}", flush=True)
        print(f"host harness: {check_harness(machine, work)}", flush=True)
    print(f"{time.perf_counter() - begin:.0f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main())
