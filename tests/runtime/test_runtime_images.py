"""Reading images: the same numbers as timm's evaluation transform, and readable errors."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from tocom.errors import DataError
from tocom.images import batches, class_folders, image_files, preprocess, read_image

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def entry(height: int = 32, width: int = 32, crop: float = 0.9, interpolation: str = "bicubic") -> dict[str, object]:
    return {
        "shape": ["batch", 3, height, width],
        "mean": MEAN,
        "std": STD,
        "interpolation": interpolation,
        "crop": crop,
    }


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@settings(max_examples=40, deadline=None)
@given(
    size=st.tuples(st.integers(20, 150), st.integers(20, 150)),
    crop=st.sampled_from([1.0, 0.9, 0.875, 0.95]),
    interpolation=st.sampled_from(["bicubic", "bilinear"]),
)
def test_equals_timms_evaluation_transform(size: tuple[int, int], crop: float, interpolation: str) -> None:
    data = pytest.importorskip("timm.data")
    image = noise(*size)
    transform = data.create_transform(
        input_size=(3, 32, 32), is_training=False, crop_pct=crop, interpolation=interpolation, mean=MEAN, std=STD
    )
    ours = preprocess(image, entry(crop=crop, interpolation=interpolation))
    np.testing.assert_allclose(ours, transform(image).numpy(), atol=1e-5)


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    target=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    crop=st.floats(0.3, 1.0),
)
def test_any_size_gives_the_target_shape(size: tuple[int, int], target: tuple[int, int], crop: float) -> None:
    result = preprocess(noise(*size), entry(*target, crop=crop))
    assert result.shape == (3, *target)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous


@pytest.mark.parametrize("mode", ["L", "RGBA", "P", "CMYK", "1", "LA"])
def test_other_modes_become_rgb(tmp_path: Path, mode: str) -> None:
    suffix = "tiff" if mode == "CMYK" else "png"
    noise(40, 40).convert(mode).save(tmp_path / f"x.{suffix}")
    assert read_image(tmp_path / f"x.{suffix}", entry()).shape == (3, 32, 32)


def test_sixteen_bit_grey_is_scaled_not_clipped(tmp_path: Path) -> None:
    ramp = np.linspace(0, 65535, 32 * 32).reshape(32, 32).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "x.png")
    result = read_image(tmp_path / "x.png", {**entry(crop=1.0), "mean": [0.0], "std": [1.0]})
    np.testing.assert_allclose(result[0], ramp / 65535, atol=1 / 255)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    whole = tmp_path / "whole.png"
    noise(64, 64).save(whole)
    for name, content in (
        ("truncated.png", whole.read_bytes()[:400]),
        ("text.jpg", b"no image"),
        ("empty.jpg", b""),
    ):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(DataError, match=f"Cannot read the image .*{name}") as caught:
            read_image(tmp_path / name, entry())
        assert "\n" not in str(caught.value)
    with pytest.raises(DataError, match="Cannot read the image"):
        read_image(tmp_path / "missing.png", entry())
    Image.fromarray(np.ones((8, 8), np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(DataError, match="floating-point pixels"):
        read_image(tmp_path / "float.tiff", entry())


def test_listing(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No image folder"):
        image_files(tmp_path / "none")
    with pytest.raises(DataError, match="holds no image"):
        image_files(tmp_path)
    for name in ("b.PNG", "a.jpg", "sub/c.webp", "notes.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    assert [path.name for path in image_files(tmp_path)] == ["a.jpg", "b.PNG", "c.webp"]
    assert image_files(tmp_path / "a.jpg") == [tmp_path / "a.jpg"]


def test_class_folders(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no class folders"):
        class_folders(tmp_path)
    for name in ("zebra", "ant"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").write_bytes(b"x")
    assert [(path.parent.name, index) for path, index in class_folders(tmp_path)] == [("ant", 0), ("zebra", 1)]
    assert [index for _, index in class_folders(tmp_path, ["zebra", "bee", "ant"])] == [2, 0]
    with pytest.raises(DataError, match=r"folder 'zebra' is no label of the model\. It has: ant, bee"):
        class_folders(tmp_path, ["ant", "bee"])
    (tmp_path / "ant" / "1.png").unlink()
    with pytest.raises(DataError, match="ant holds no image"):
        class_folders(tmp_path)


def test_batches(tmp_path: Path) -> None:
    for index in range(5):
        noise(32, 32, seed=index).save(tmp_path / f"{index}.png")
    groups = list(batches(image_files(tmp_path), entry(), 2))
    assert [len(paths) for paths, _ in groups] == [2, 2, 1]
    assert [images.shape for _, images in groups] == [(2, 3, 32, 32), (2, 3, 32, 32), (1, 3, 32, 32)]
