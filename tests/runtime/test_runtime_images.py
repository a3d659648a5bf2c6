"""Reading images: the same numbers as timm's evaluation transform, and readable errors."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from tocom.errors import DataError
from tocom.formats.manifest import CROP_MODES
from tocom.images import class_folders, image_files, preprocess, read_image

MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


def entry(height: int = 32, width: int = 32, crop: float = 0.9, interpolation: str = "bicubic") -> dict[str, object]:
    return {
        "shape": ["batch", 3, height, width],
        "mean": MEAN,
        "std": STD,
        "interpolation": interpolation,
        "crop": crop,
        "crop_mode": "center",
    }


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@given(
    size=st.tuples(st.integers(1, 60), st.integers(1, 60)),
    target=st.tuples(st.integers(4, 40), st.integers(4, 40)),
    crop=st.floats(0.3, 1.0),
    mode=st.sampled_from(CROP_MODES),
)
def test_any_size_gives_the_target_shape(
    size: tuple[int, int], target: tuple[int, int], crop: float, mode: str
) -> None:
    result = preprocess(noise(*size), {**entry(*target, crop=crop), "crop_mode": mode})
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
    os.mkfifo(tmp_path / "pipe.png")  # opening it would wait for ever
    with pytest.raises(DataError, match=r"pipe\.png: a pipe or a device"):
        read_image(tmp_path / "pipe.png", entry())
    with pytest.raises(DataError, match=r": a folder\. Remove it"):
        read_image(tmp_path, entry())
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
    with pytest.raises(DataError, match=r"folder 'zebra' is not a label of the model\. It has: ant, bee"):
        class_folders(tmp_path, ["ant", "bee"])
    (tmp_path / "ant" / "1.png").unlink()
    with pytest.raises(DataError, match="ant holds no image"):
        class_folders(tmp_path)


def plain(size: int = 32) -> dict[str, object]:
    return {**entry(size, size, crop=1.0), "mean": [0.0] * 3, "std": [1.0] * 3}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_is_turned_as_its_exif_says(tmp_path: Path, orientation: int) -> None:
    seen = noise(40, 32)
    # The pixels as a camera that is held so stores them: those that its orientation turns into what was seen.
    undo = {2: 0, 3: 3, 4: 1, 5: 5, 6: 2, 7: 6, 8: 4}
    stored = seen if orientation == 1 else seen.transpose(Image.Transpose(undo[orientation]))
    exif = Image.Exif()
    exif[274] = orientation
    for suffix in ("png", "webp", "tiff"):
        stored.save(tmp_path / f"x.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {}))
        np.testing.assert_array_equal(read_image(tmp_path / f"x.{suffix}", plain()), preprocess(seen, plain()))


def test_damaged_exif_is_no_reason_to_refuse(tmp_path: Path) -> None:
    noise(32, 32).save(tmp_path / "x.png", exif=b"Exif\0\0II*\0\x08\0\0\0\xff\xff\x12\x01")
    np.testing.assert_array_equal(read_image(tmp_path / "x.png", plain()), preprocess(noise(32, 32), plain()))


def twelve_bit_tiff(grey: np.ndarray) -> bytes:
    """Return a TIFF of 12 bits a pixel, two pixels in three bytes, as microscopes write; Pillow writes none."""
    first, second = grey.reshape(-1, 2).astype(np.uint32).T
    packed = np.stack([first >> 4, (first & 15) << 4 | second >> 8, second & 255], -1).astype(np.uint8).tobytes()
    # Width, height, bits per sample, compression, black is zero, offset, samples, rows per strip, bytes per strip.
    height, width = grey.shape
    tags = {256: width, 257: height, 258: 12, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: len(packed)}
    fields = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    header = struct.pack("<2sHI", b"II", 42, 8 + len(packed))
    return header + packed + struct.pack("<H", len(tags)) + fields + struct.pack("<I", 0)


@pytest.mark.parametrize("kind", ["uint16.tiff", "uint16.png", "12bit.tiff", "10bit.pgm"])
def test_ranges_that_a_file_tells_are_scaled(tmp_path: Path, kind: str) -> None:
    white = {"12bit.tiff": 4095, "10bit.pgm": 1023}.get(kind, 65535)
    ramp = np.linspace(0, white, 32 * 32).reshape(32, 32).astype(np.uint16)
    path = tmp_path / kind
    if kind == "12bit.tiff":
        path.write_bytes(twelve_bit_tiff(ramp))
    elif kind == "10bit.pgm":
        path.write_bytes(b"P5 32 32 1023\n" + ramp.astype(">u2").tobytes())
    else:
        Image.fromarray(ramp).save(path)
    np.testing.assert_allclose(read_image(path, plain())[0], ramp / white, atol=1.01 / 255)


@pytest.mark.parametrize("dtype", [np.int32, np.float32])
def test_ranges_that_nobody_knows_are_refused(tmp_path: Path, dtype: type) -> None:
    Image.fromarray(np.arange(32 * 32).reshape(32, 32).astype(dtype) % 256).save(tmp_path / "x.tiff")
    with pytest.raises(DataError, match=r"x\.tiff: .*pixels have no agreed range"):
        read_image(tmp_path / "x.tiff", plain())


@pytest.mark.parametrize("size", [(1, 60000), (60000, 1)])
def test_an_image_that_is_a_line_takes_no_gigabytes(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("RGB", size).save(tmp_path / "line.png")
    assert (tmp_path / "line.png").stat().st_size < 1000
    with pytest.raises(DataError, match=r"line\.png: of \d+ x \d+ pixels .* crop the image"):
        read_image(tmp_path / "line.png", plain(224))


def test_links_are_followed_and_hidden_files_are_not_images(tmp_path: Path) -> None:
    there, folder = tmp_path / "there", tmp_path / "images"
    for path in (there / "deep" / "c.png", folder / "a.png", folder / "._a.png", folder / ".trash" / "b.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        noise(8, 8).save(path)
    (folder / "linked").symlink_to(there)
    (there / "back").symlink_to(folder)
    (folder / "d.png").symlink_to(folder / "a.png")
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    found = [path.relative_to(folder).as_posix() for path in image_files(folder)]
    assert found == ["a.png", "d.png", "gone.png", "linked/deep/c.png"]
    with pytest.raises(DataError, match=r"gone\.png"):
        read_image(folder / "gone.png", entry())


def test_no_class_index_is_guessed(tmp_path: Path) -> None:
    for name in ("nut", "washer", ".ipynb_checkpoints"):
        (tmp_path / name).mkdir()
        noise(8, 8).save(tmp_path / name / "1.png")
    assert [index for _, index in class_folders(tmp_path, classes=2)] == [0, 1]
    assert [index for _, index in class_folders(tmp_path, ["bolt", "nut", "washer"], classes=3)] == [1, 2]
    with pytest.raises(DataError, match=r"2 class folders \(nut, washer\), the model has 3 classes and no labels"):
        class_folders(tmp_path, classes=3)
    noise(8, 8).save(tmp_path / "loose.png")
    with pytest.raises(DataError, match=r"loose\.png lie beside the class folders"):
        class_folders(tmp_path, classes=2)
    (tmp_path / "loose.png").unlink()
    (tmp_path / "nut").rename(tmp_path / "2")
    (tmp_path / "washer").rename(tmp_path / "10")
    assert sorted(index for _, index in class_folders(tmp_path, classes=11)) == [2, 10]
    with pytest.raises(DataError, match=r"the folders 10 are not classes of a model of 10, counted from 0"):
        class_folders(tmp_path, classes=10)


def test_names_are_compared_as_people_see_them(tmp_path: Path) -> None:
    """macOS writes an accent as a character of its own."""
    for name in ("Mu\u0308tze", "Mutter"):
        (tmp_path / name).mkdir()
        noise(8, 8).save(tmp_path / name / "1.png")
    assert {path.parent.name: index for path, index in class_folders(tmp_path, ["M\u00fctze ", "Mutter"])} == {
        "Mu\u0308tze": 0,
        "Mutter": 1,
    }
