"""A camera loop: every frame answered within its budget, the newest frame first.

    python examples/camera_loop.py BUNDLE SOURCE [--fps 30] [--frames 300]

SOURCE is a camera's number (0), a video file or a stream's address (both need opencv-python), or a folder of images,
which is played in a circle at ``--fps`` as a camera would. The budget of a frame is one frame interval. Prints what
each second brought: frames answered and dropped, degrees taken, misses.
"""

from __future__ import annotations

import argparse
import itertools
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from tocom.images import image_files, preprocess
from tocom.runtime import Runtime


def pictures(source: str) -> Iterator[Image.Image]:
    """Yield the source's pictures; a folder's come again and again."""
    if Path(source).is_dir():
        for path in itertools.cycle(image_files(source)):
            with Image.open(path) as image:
                yield image.convert("RGB")
    import cv2

    capture = cv2.VideoCapture(int(source) if source.isdigit() else source)
    try:
        while True:
            read, pixels = capture.read()
            if not read:
                return
            yield Image.fromarray(cv2.cvtColor(pixels, cv2.COLOR_BGR2RGB))
    finally:
        capture.release()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("source")
    parser.add_argument("--fps", type=float, default=30.0)
    parser.add_argument("--frames", type=int, default=300)
    options = parser.parse_args()

    with Runtime.open(options.bundle) as runtime:
        entry = runtime.bundle.manifest["input"]

        def frames() -> Iterator[np.ndarray]:
            # Cut to the model's size and normalised here, on the thread that reads the camera.
            for image in itertools.islice(pictures(options.source), options.frames):
                yield preprocess(image, entry)[None]

        degrees: Counter[int] = Counter()
        answered = missed = 0
        for frame in runtime.stream(frames(), fps=options.fps):
            result = frame.result
            answered += 1
            missed += not result.met_budget
            degrees[result.degree] += 1
            if answered % round(options.fps) == 0:
                print(f"{answered} answered, {frame.dropped} dropped, {missed} late, degrees {dict(degrees)}")
        labels = runtime.bundle.labels
        last = int(result.outputs["logits"][0].argmax())
        print(f"{answered} answered, {frame.dropped} dropped, {missed} late, degrees {dict(degrees)}")
        print(f"last answer: {labels[last] if labels else last} at degree {result.degree}")


if __name__ == "__main__":
    main()
