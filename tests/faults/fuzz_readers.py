"""Feed damaged manifests, profiles, alignments and compensators to their readers, by coverage (atheris, libFuzzer).

    python tests/faults/fuzz_readers.py {manifest,profile,alignment,compensator} [--seconds S] [--corpus FOLDER]

Every input must end in an object or in one of our errors, in one line. Anything else (another exception, more than a
gigabyte, more than ten seconds) ends the run with a traceback and the input in ``crash-…`` in the working directory.
Half of the inputs are bytes as libFuzzer makes them; the others are a valid file with a few places changed.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import struct
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import atheris
import numpy as np

with atheris.instrument_imports(include=["tocom", "json"]):
    from tocom.errors import AlignmentError, BundleError, CalibrationError, CompensatorError, TocomError
    from tocom.formats.bundle import Bundle
    from tocom.formats.device_alignment import DeviceAlignment, FittedDegree, Linear
    from tocom.formats.profile import DegreeProfile, Latency, Profile
    from tocom.formats.sealed_json import sealed

MANIFEST: dict[str, Any] = {
    "schema_version": 1,
    "created_by": "fuzz",
    "model": {"name": "vit", "fingerprint": "0" * 64, "weights": "file", "prefix_tokens": 1},
    "method": "merge",
    "family": "every",
    "fuse": False,
    "source_degree": 0,
    "compensator": None,
    "precision": "fp32",
    "batch": {"min": 1, "opt": 2, "max": 4},
    "input": {
        "name": "images", "dtype": "float32", "shape": ["batch", 3, 80, 64], "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5], "interpolation": "bicubic", "crop": 0.9,
        "crop_mode": "center",
    },
    "outputs": [{"name": "logits", "shape": ["batch", 10]}],
    "labels": ["a", "b"],
    "degrees": [
        {"degree": 0, "onnx": "degree-00.onnx", "token_counts": [26, 26], "macs": 1000},
        {
            "degree": 4, "onnx": "degree-04.onnx", "token_counts": [26, 22], "macs": 900,
            "check": {"max_abs_difference": 1e-6, "images": 4, "undecided": 0, "against": "torch"},
        },
    ],
    "files": {name: {"sha256": "0" * 64, "size": 5} for name in ("degree-00.onnx", "degree-04.onnx", "weights.bin")},
}  # fmt: skip


def read_manifest(folder: Path, data: bytes) -> None:
    (folder / "bundle.json").write_bytes(data)
    try:
        bundle = Bundle(folder, verify=False)
    except BundleError as error:
        return one_line(error)
    # Everything that a bundle tells must be there once it opened.
    for degree in bundle.degrees:
        assert bundle.onnx_path(degree).is_relative_to(folder)
    repr((bundle, bundle.batch, bundle.image_shape, bundle.output_names, bundle.labels, bundle.fingerprint))
    assert min(*bundle.batch, *bundle.image_shape) > 0
    try:
        bundle.require_verified()
    except BundleError as error:
        return one_line(error)
    return None


def read_profile(folder: Path, data: bytes) -> None:
    path = folder / "profile.json"
    path.write_bytes(data)
    try:
        profile = Profile.load(path)
    except CalibrationError as error:
        return one_line(error)
    assert Profile.from_json(json.loads(json.dumps(profile.to_json(), allow_nan=False))) == profile
    assert profile.mismatch(profile.identity) is None
    return None


def read_alignment(folder: Path, data: bytes) -> None:
    path = folder / "alignment.json"
    path.write_bytes(data)
    try:
        alignment, _ = DeviceAlignment.load(path)
    except AlignmentError as error:
        return one_line(error)
    alignment.describe()
    for linear in (*alignment.maps.values(), *([alignment.head] if alignment.head else [])):
        assert bool(np.isfinite(linear(np.zeros((1, len(linear.matrix)), np.float32))).all())
    return None


def read_compensator(folder: Path, data: bytes) -> None:
    from tocom import Compensator

    path = folder / "compensator.safetensors"
    path.write_bytes(data)
    try:
        compensator = Compensator.load(path)
    except CompensatorError as error:
        return one_line(error)
    compensator.describe()
    assert all(bool(tensor.isfinite().all()) for tensor in compensator.state_dict().values())
    return None


def one_line(error: TocomError) -> None:
    text = str(error)
    assert "\n" not in text, text
    assert len(text) < 2100, text


def seed_profile() -> dict[str, Any]:
    profile = Profile(
        device={"processor": "x", "cores": "2"}, backend="onnxruntime", precision="fp32", batch=1, threads=2,
        bundle_fingerprint="a" * 64, model="vit", interval="the engine",
        degrees={degree: DegreeProfile(Latency(10, 1.0, 2.0, 3.0, 4.0)) for degree in (0, 8)},
    )  # fmt: skip
    content: dict[str, Any] = profile.to_json()
    return content


def seed_alignment(folder: Path) -> dict[str, Any]:
    linear = Linear(np.ones((3, 3), np.float32), np.zeros(3, np.float32))
    head = Linear(np.ones((3, 2), np.float32), np.zeros(2, np.float32))
    saved = DeviceAlignment(
        identity={"bundle": "a" * 64, "precision": "int8", "backend": "onnxruntime", "device": {"processor": "x"}},
        aim={"bundle": "b" * 64, "precision": "fp32", "degree": 0}, images=30,
        checked_on=0,
        degrees={0: FittedDegree(False, 1.0, 0.1, 0.1, 3), 8: FittedDegree(True, 0.1, 0.2, 0.1, 3)},
        maps={8: linear}, head=head, fitted_by="fuzz",
    ).save(folder)  # fmt: skip
    content: dict[str, Any] = json.loads(saved.read_text(encoding="utf-8"))
    del content["sha256"]
    return content


def seed_compensator(folder: Path) -> bytes:
    from tocom import Compensator

    metadata = {"model": "vit", "image_size": "32x32", "base_sha256": "0" * 64}
    path = folder / "seed.safetensors"
    Compensator(depth=1, channels=4, groups=2, rank=1, metadata=metadata).save(path)
    return path.read_bytes()


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, each in items for place in places(each, (*path, key)))]


def any_value(draw: atheris.FuzzedDataProvider, content: Any, depth: int = 0) -> Any:
    kind = draw.ConsumeIntInRange(0, 9 if depth < 3 else 6)
    if kind == 0:
        return draw.ConsumeInt(8)
    if kind == 1:
        return draw.ConsumeRegularFloat()
    if kind == 2:
        return draw.PickValueInList([None, True, False, -1, 0, 1 << 62, 10**400, 1e308, -0.0, "", [], {}])
    if kind == 3:
        return draw.ConsumeUnicodeNoSurrogates(12)
    if kind == 4:
        return draw.PickValueInList(["../x", "/etc/passwd", "a\0b", "merge", "prune", "weights.bin", "degree-04.onnx"])
    if kind <= 6:  # what stands elsewhere in the file
        found = content
        for key in draw.PickValueInList(places(content)):
            found = found[key]
        return copy.deepcopy(found)
    if kind <= 8:
        return [any_value(draw, content, depth + 1) for _ in range(draw.ConsumeIntInRange(0, 3))]
    return {draw.ConsumeUnicodeNoSurrogates(6): any_value(draw, content, depth + 1)}


def changed(draw: atheris.FuzzedDataProvider, seed: Any) -> Any:
    """Return the JSON content with one to three places replaced, removed or added."""
    content = copy.deepcopy(seed)
    for _ in range(draw.ConsumeIntInRange(1, 3)):
        spots = [place for place in places(content) if place]
        if not spots:
            return content
        *path, last = draw.PickValueInList(spots)
        holder = content
        for key in path:
            holder = holder[key]
        if draw.ConsumeBool():
            holder[last] = any_value(draw, content)
        elif draw.ConsumeBool():
            del holder[last]
        elif isinstance(holder, dict):
            holder[draw.ConsumeUnicodeNoSurrogates(8)] = any_value(draw, content)
        else:
            holder.append(any_value(draw, content))
    return content


def of_json(seed: dict[str, Any]) -> Callable[[bytes], bytes]:
    def make(data: bytes) -> bytes:
        draw = atheris.FuzzedDataProvider(data)
        if draw.ConsumeBool():
            return draw.ConsumeBytes(len(data))
        content = changed(draw, seed)
        # Without its seal a file is refused before its fields are looked at.
        return sealed(content) if draw.ConsumeIntInRange(0, 9) else json.dumps(content).encode()

    return make


def of_safetensors(seed: bytes) -> Callable[[bytes], bytes]:
    """Change the header as JSON and keep the tensors, or change bytes anywhere."""
    length = struct.unpack("<Q", seed[:8])[0]
    header, tensors = json.loads(seed[8 : 8 + length]), seed[8 + length :]

    def make(data: bytes) -> bytes:
        draw = atheris.FuzzedDataProvider(data)
        if draw.ConsumeBool():
            content = json.dumps(changed(draw, header)).encode()
            return struct.pack("<Q", len(content)) + content + tensors
        if draw.ConsumeBool():
            return draw.ConsumeBytes(len(data))
        content = bytearray(seed)
        for _ in range(draw.ConsumeIntInRange(1, 4)):
            content[draw.ConsumeIntInRange(0, len(content) - 1)] = draw.ConsumeIntInRange(0, 255)
        return bytes(content[: draw.ConsumeIntInRange(0, len(content))] if draw.ConsumeBool() else content)

    return make


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("reader", choices=("manifest", "profile", "alignment", "compensator"))
    parser.add_argument("--seconds", type=int, default=200)
    parser.add_argument("--corpus", type=Path, help="folder that keeps inputs that reach new code, for the next run")
    arguments = parser.parse_args()
    memory = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    # Not removed by a context manager: libFuzzer ends the process itself.
    folder = Path(tempfile.mkdtemp(prefix="tocom-fuzz-", dir=memory))
    if arguments.reader == "compensator":
        with atheris.instrument_imports(include=["tocom"]):
            import tocom.compensator.compensator  # noqa: F401  brings torch, which the others do without
    make, read = {
        "manifest": lambda: (of_json(MANIFEST), read_manifest),
        "profile": lambda: (of_json(seed_profile()), read_profile),
        "alignment": lambda: (of_json(seed_alignment(folder)), read_alignment),
        "compensator": lambda: (of_safetensors(seed_compensator(folder)), read_compensator),
    }[arguments.reader]()
    options = [f"-max_total_time={arguments.seconds}", "-timeout=10", "-rss_limit_mb=2048", "-max_len=4096"]
    options += ["-print_final_stats=1", "-verbosity=0"]
    if arguments.corpus is not None:
        arguments.corpus.mkdir(parents=True, exist_ok=True)
        options.append(str(arguments.corpus))
    atheris.Setup([sys.argv[0], *options], lambda data: read(folder, make(data)))
    atheris.Fuzz()


if __name__ == "__main__":
    main()
