"""Images of any kind to inputs, batches that are too small, and the answer's classes."""

from __future__ import annotations

import io
import signal
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from small_bundles import CLASSES, SIZE, SmallBundle, images_of, write_small_bundle

from tocom.errors import DataError, RequestError
from tocom.images import preprocess
from tocom.runtime import Result, Runtime
from tocom.runtime.preprocessing import prepare


def entry(**other: Any) -> dict[str, Any]:
    return {
        "shape": ["batch", 3, 32, 32],
        "mean": [0.0] * 3,
        "std": [1.0] * 3,
        "interpolation": "bicubic",
        "crop": 0.875,
        "crop_mode": "center",
        **other,
    }


def noise(height: int, width: int, seed: int = 0, *, hard: bool = False) -> np.ndarray:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return (pixels > 127).astype(np.uint8) * 255 if hard else pixels


@settings(max_examples=60, deadline=None)
@given(
    size=st.tuples(st.integers(16, 300), st.integers(16, 300)),
    target=st.sampled_from([(32, 32), (32, 48), (31, 31)]),
    mode=st.sampled_from(["center", "squash", "border"]),
    interpolation=st.sampled_from(["bicubic", "bilinear", "lanczos"]),
    crop=st.sampled_from([0.7, 0.875, 1.0]),
    hard=st.booleans(),
)
def test_the_fast_way_is_within_one_grey_level(
    size: tuple[int, int], target: tuple[int, int], mode: str, interpolation: str, crop: float, hard: bool
) -> None:
    pixels = noise(*size, hard=hard)
    model = entry(shape=["batch", 3, *target], crop_mode=mode, interpolation=interpolation, crop=crop)
    exact = preprocess(Image.fromarray(pixels), model)
    np.testing.assert_allclose(prepare(pixels, model)[0], exact, atol=1.01 / 255)
    np.testing.assert_array_equal(prepare(pixels[..., ::-1], model, "bgr"), prepare(pixels, model))


def test_a_signal_handler_may_prepare_an_image_while_one_is_prepared(monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = noise(90, 120, 1), noise(90, 120, 2)
    expected, during = prepare(mine, entry()), list[np.ndarray]()
    copy, signals = np.copyto, [signal.SIGUSR1]

    def interrupted(target: np.ndarray, source: np.ndarray) -> None:
        copy(target, source)
        if signals:
            signal.raise_signal(signals.pop())

    before = signal.signal(signal.SIGUSR1, lambda number, frame: during.append(prepare(other, entry())))
    monkeypatch.setattr(np, "copyto", interrupted)
    try:
        found = prepare(mine, entry())
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert len(during) == 1
    np.testing.assert_array_equal(found, expected)
    np.testing.assert_array_equal(during[0], prepare(other, entry()))


def test_threads_prepare_images_at_once() -> None:
    pictures = [noise(90, 120, seed) for seed in range(4)]
    expected = [prepare(each, entry()) for each in pictures]
    with ThreadPoolExecutor(4) as threads:
        for _ in range(20):
            for found, wanted in zip(threads.map(lambda each: prepare(each, entry()), pictures), expected, strict=True):
                np.testing.assert_array_equal(found, wanted)


def test_every_kind_of_image(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(40, 50))
    exact = preprocess(picture, entry())[None]
    picture.save(tmp_path / "x.png")
    encoded = (tmp_path / "x.png").read_bytes()
    for image in (
        tmp_path / "x.png",
        str(tmp_path / "x.png"),
        encoded,
        bytearray(encoded),
        memoryview(encoded),
        picture,
    ):
        np.testing.assert_array_equal(prepare(image, entry()), exact)
    grey = np.asarray(picture.convert("L"))
    np.testing.assert_array_equal(prepare(grey, entry()), preprocess(Image.fromarray(grey), entry())[None])
    assert prepare([picture, encoded, noise(9, 99), exact[0]], entry()).shape == (4, 3, 32, 32)
    stream = io.BytesIO(encoded)
    for bad, kind in (
        (stream, RequestError),
        (None, RequestError),
        ([], RequestError),
        (noise(8, 8).astype(np.float64), RequestError),
        (np.zeros((8, 8, 4), np.uint8), RequestError),
        (np.zeros((0, 8, 3), np.uint8), RequestError),
        (b"no image", DataError),
        (encoded[:60], DataError),
        (tmp_path / "none.png", DataError),
        (Image.new("RGB", (0, 8)), DataError),
    ):
        with pytest.raises(kind) as caught:
            prepare(bad, entry())
        assert "0x" not in str(caught.value)
    with pytest.raises(RequestError, match="'order'"):
        prepare(noise(8, 8), entry(), "gbr")


def test_infer_takes_a_list_and_names_its_answers(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle", labels=list("abcde"))
    pictures = [noise(20, 30, seed) for seed in range(3)]
    with Runtime.open(bundle.path) as runtime:
        assert runtime.labels == list("abcde")
        result = runtime.infer(pictures, degree=0)
        ready = runtime.preprocess(pictures)
        np.testing.assert_allclose(result.outputs["logits"], bundle.reference(ready, 0), atol=1e-4)
        for place in range(3):
            logits = bundle.reference(ready, 0)[place].astype(np.float64)
            shares = np.exp(logits) / np.exp(logits).sum()
            top = result.top(2, image=place)
            assert [each.index for each in top] == np.argsort(-logits)[:2].tolist()
            assert [each.label for each in top] == ["abcde"[each.index] for each in top]
            np.testing.assert_allclose([each.probability for each in top], np.sort(shares)[::-1][:2], atol=1e-4)
        assert len(result.top(99)) == CLASSES
        for wrong in ({"k": 0}, {"k": True}, {"image": 3}, {"image": -4}, {"image": 0.0}):
            with pytest.raises(RequestError):
                result.top(**wrong)


def test_logits_that_overflow_an_exponential_have_probabilities() -> None:
    result = Result({"logits": np.array([[900.0, 900.0, -900.0]], np.float32)}, 0, 1, 0, True, 1, None, True)
    assert [(each.index, each.label, each.probability) for each in result.top(3)] == [
        (0, None, 0.5),
        (1, None, 0.5),
        (2, None, 0.0),
    ]
    with pytest.raises(RequestError, match="needs logits"):
        Result({"features": np.zeros((1, 3), np.float32)}, 0, 1, 0, True, 1, None, True).top()


@pytest.mark.parametrize("batch", [(4, 4, 4), (2, 4, 8)])
def test_a_batch_that_is_too_small_is_filled_up(tmp_path: Path, batch: tuple[int, int, int]) -> None:
    bundle: SmallBundle = write_small_bundle(tmp_path / "bundle", batch=batch)
    with Runtime.open(bundle.path) as runtime:
        for count in (1, 3, 4):
            images = images_of(count, seed=count)
            expected = bundle.reference(images, 4)
            np.testing.assert_allclose(runtime.infer(images, degree=4).outputs["logits"], expected, atol=1e-4)
            answered = runtime.submit(images).result()
            np.testing.assert_allclose(answered.outputs["logits"], bundle.reference(images, answered.degree), atol=1e-4)
        with pytest.raises(RequestError, match="batch of"):
            runtime.infer(images_of(0))
        with pytest.raises(RequestError, match="batch of"):
            runtime.infer(images_of(batch[2] + 1))


def test_images_are_prepared_as_the_bundle_says(tmp_path: Path) -> None:
    bundle = write_small_bundle(tmp_path / "bundle")
    with Runtime.open(bundle.path) as runtime:
        pixels = noise(30, 30)
        expected = preprocess(Image.fromarray(pixels), runtime.bundle.manifest["input"])
        np.testing.assert_allclose(runtime.preprocess(pixels)[0], expected, atol=2.1 / 255)
        assert runtime.preprocess(pixels).shape == (1, 3, SIZE, SIZE)
