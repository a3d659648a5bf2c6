"""What checking a bundle costs when it is opened: verified against unverified, in one run.

    python benchmarks/open_verified.py BUNDLE [--rounds 20]

Both ways open every degree on ONNX Runtime's CPU backend through the very same code, in turns, with a warm file cache
and the packed weights at hand. Unverified means that the hashes of the bundle's files and of the packed weights are
taken as right without reading the bytes; tocom itself has no switch for that, so this script replaces the two
functions that hash. Two intervals are given: until the engines are loaded, which is all that hashing touches, and until
the first answer is possible (``Runtime.open`` with a saved profile, warm-up included).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

from tocom.cli.doctor import diagnose
from tocom.formats.bundle import Bundle
from tocom.runtime import Runtime
from tocom.runtime.backends.onnxruntime import weight_cache
from tocom.runtime.engine_set import EngineSet, OpenOptions
from tocom.system.files import file_state


@contextlib.contextmanager
def unverified(bundle: Path) -> Iterator[None]:
    """Take the hashes of the bundle's files and of the packed weights as right."""
    pieces = {
        # By size: the function that is replaced sees an open file, and there is one cache per bundle here.
        (path.parent / "weights.bin").stat().st_size: json.loads(path.read_text())["weights"]
        for path in Path(os.environ["TOCOM_CACHE"]).glob("onnxruntime/*/cache.json")
    }
    with (
        mock.patch.object(Bundle, "_check", lambda self, name: file_state((self.path / name).stat())),
        mock.patch.object(weight_cache, "_piece_hashes", lambda descriptor, size: pieces[size]),
    ):
        yield


def seconds_to_load(bundle: Path) -> float:
    begin = time.perf_counter()
    engines = EngineSet.load(bundle, OpenOptions(backend="onnxruntime"))
    taken = time.perf_counter() - begin
    engines.close()
    return taken


def seconds_to_open(bundle: Path, profile: object) -> float:
    begin = time.perf_counter()
    with Runtime.open(bundle, "onnxruntime", profile=profile):
        return time.perf_counter() - begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--out", type=Path, help="write the figures here as JSON too")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        os.environ["TOCOM_CACHE"] = cache
        # Fills the cache of packed weights and of the file system, and measures the profile that the rest uses.
        with Runtime.open(arguments.bundle, "onnxruntime") as runtime:
            profile, degrees = runtime.profile, list(runtime.degrees)
        taken: dict[str, dict[str, list[float]]] = {"load": {}, "open": {}}
        for _ in range(arguments.rounds):
            for name, context in (("verified", contextlib.nullcontext()), ("unverified", unverified(arguments.bundle))):
                with context:
                    taken["load"].setdefault(name, []).append(seconds_to_load(arguments.bundle))
                    taken["open"].setdefault(name, []).append(seconds_to_open(arguments.bundle, profile))
    manifest = Bundle(arguments.bundle, verify=False).manifest
    figures = {
        "model": manifest["model"]["name"],
        "degrees": degrees,
        "bundle_bytes": sum(entry["size"] for entry in manifest["files"].values()),
        "rounds": arguments.rounds,
        "machine": {finding.what: finding.found for finding in diagnose()[:2]},
        **{
            interval: {
                **{name: {"median_s": statistics.median(values)} for name, values in ways.items()},
                "ratio": statistics.median(ways["verified"]) / statistics.median(ways["unverified"]),
            }
            for interval, ways in taken.items()
        },
    }
    print(json.dumps(figures, indent=2))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    main()
