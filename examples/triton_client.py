"""A client of Triton that keeps a latency budget: each request goes to the most accurate degree that fits it.

    python examples/triton_client.py BUNDLE PICTURE [--url localhost:8001] [--budget-ms 30] [--requests 50]

It needs a server with the repository that ``tocom pack BUNDLE --layout triton`` writes, and tritonclient:
``pip install 'tocom[runtime,triton]'``. What counts is the round trip, network and server included: a few requests per
degree measure it first, and the controller learns from each answer. Accuracies come from the bundle's newest profile
(``tocom calibrate --images``), else lower degrees count as more accurate.
"""

from __future__ import annotations

import argparse
import time
from collections import Counter
from pathlib import Path

import numpy as np

from tocom.formats.bundle import Bundle
from tocom.formats.profile import Profile, find_profiles
from tocom.images import read_image
from tocom.runtime import Controller
from tocom.runtime.policy.choice import rank_accuracies
from tocom.runtime.profiles import latency_of

FIRST_REQUESTS = 10


class Client:
    """One connection; the model of a degree is ``<name>-r<degree>``."""

    def __init__(self, url: str, name: str, bundle: Bundle) -> None:
        import tritonclient.grpc

        self._triton = tritonclient.grpc
        self._server = tritonclient.grpc.InferenceServerClient(url)
        self._models = {degree: f"{name}-r{degree:02d}" for degree in bundle.degrees}
        self._models = {d: model for d, model in self._models.items() if self._server.is_model_ready(model)}
        if not self._models:
            raise SystemExit(f"{url} serves no model {name}-r*. Start it with the repository of {bundle.path}.")
        self._outputs = bundle.output_names
        self._type = {"float32": "FP32", "uint8": "UINT8"}[bundle.input_type]

    @property
    def degrees(self) -> list[int]:
        return list(self._models)

    def infer(self, images: np.ndarray, degree: int) -> tuple[dict[str, np.ndarray], float]:
        """Return the outputs, and the milliseconds of the round trip."""
        begin = time.perf_counter()
        tensor = self._triton.InferInput("images", list(images.shape), self._type)
        tensor.set_data_from_numpy(images)
        answer = self._server.infer(self._models[degree], [tensor])
        outputs = {name: answer.as_numpy(name) for name in self._outputs}
        return outputs, (time.perf_counter() - begin) * 1e3


def accuracies(bundle: Bundle, degrees: list[int]) -> dict[int, float]:
    """Return a number per degree that orders them by accuracy."""
    profiles = sorted(find_profiles(bundle.path), key=lambda path: path.stat().st_mtime)
    entries = Profile.load(profiles[-1]).degrees if profiles else {}
    return rank_accuracies(degrees, entries)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--url", default="localhost:8001", help="the server's gRPC address")
    parser.add_argument("--budget-ms", type=float, default=30.0)
    parser.add_argument("--requests", type=int, default=50)
    parser.add_argument("--name", help="what the models' names begin with; default: the model's")
    options = parser.parse_args()

    bundle = Bundle(options.bundle)
    picture = read_image(options.picture, bundle.manifest["input"])
    images = np.stack([picture] * bundle.batch[0])
    client = Client(options.url, options.name or bundle.model_name, bundle)
    # In turns, so that a busy moment meets all degrees alike.
    rounds = [{d: client.infer(images, d)[1] for d in client.degrees} for _ in range(FIRST_REQUESTS)]
    latencies = {d: latency_of([each[d] for each in rounds]) for d in client.degrees}
    for degree, latency in latencies.items():
        print(f"degree {degree}: {latency.p50_ms:.1f} ms p50, {latency.p95_ms:.1f} ms p95, round trip")

    controller = Controller(latencies, accuracies(bundle, client.degrees))
    degrees: Counter[int] = Counter()
    missed = 0
    for _ in range(options.requests):
        degree = controller.decide(options.budget_ms).degree
        outputs, round_trip_ms = client.infer(images, degree)
        met = round_trip_ms <= options.budget_ms
        controller.observe(degree, round_trip_ms, met)
        degrees[degree] += 1
        missed += not met
    print(f"{options.requests} answered, {missed} late, degrees {dict(degrees)}")
    last = int(outputs[bundle.output_names[0]][0].argmax())
    print(f"last answer: {bundle.labels[last] if bundle.labels else last}")


if __name__ == "__main__":
    main()
