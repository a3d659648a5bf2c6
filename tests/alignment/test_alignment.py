"""Alignments of small models: in torch, in their file, from the command line, and merged into exported graphs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.numpy import save_file
from small_vits import busy_compensator, small_images, small_vit
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from tocom import Alignment, compress
from tocom.alignment.alignment import aligned_head
from tocom.cli import add_verbs
from tocom.cli.app import app
from tocom.compression.features import pooled, pooled_features
from tocom.errors import AlignmentError
from tocom.export import export
from tocom.training.align import align

add_verbs(app, "align", "inspect")
DEGREES = [0, 2, 5]


def images_of(model: VisionTransformer, count: int = 60, seed: int = 0) -> list[torch.Tensor]:
    """Return images of one colour each: a random model's gaps on richer ones are not a linear map of few features."""
    colours = torch.randn(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    return list(colours.expand(-1, -1, *model.patch_embed.img_size))


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    return small_vit()


@pytest.fixture(scope="module")
def alignment(model: VisionTransformer) -> Alignment:
    return align(model, images_of(model), degrees=DEGREES)


def run_onnx(path: Path, images: np.ndarray) -> np.ndarray:
    return onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"images": images})[0]


def without_head(model: VisionTransformer, images: torch.Tensor, **options: Any) -> np.ndarray:
    with torch.inference_mode():
        return pooled(compress(model, **options), images).numpy()


def test_features_come_nearer_to_the_source_degrees(model: VisionTransformer, alignment: Alignment) -> None:
    images = torch.stack(images_of(model, seed=1))
    dense = without_head(model, images, degree=0)
    for degree in DEGREES[1:]:
        plain = without_head(model, images, degree=degree)
        aligned = without_head(model, images, degree=degree, alignment=alignment)
        np.testing.assert_allclose(aligned, alignment.maps[degree].apply(plain), rtol=0, atol=1e-4)
        assert np.square(aligned - dense).sum() < 0.5 * np.square(plain - dense).sum()
    assert alignment.at(0) is None
    assert sorted(alignment.maps) == [2, 5]


def test_the_model_stays_as_it_is(model: VisionTransformer, alignment: Alignment) -> None:
    names, images = list(model.state_dict()), small_images(model)
    with torch.inference_mode():
        before = model(images)
        aligned = compress(model, 2, alignment=alignment)
        found = aligned(images)
        assert torch.equal(model(images), before)
        assert torch.equal(compress(model, 0, alignment=alignment)(images), before)
        assert not torch.equal(found, compress(model, 2)(images))
        features = pooled(compress(model, 2), images)
        weight, bias = aligned_head(model.head, alignment.at(2))
        torch.testing.assert_close(features @ weight.T + bias, found, rtol=0, atol=1e-4)
    assert list(aligned.state_dict()) == names


@pytest.mark.parametrize(
    "options",
    [
        {"method": "prune"},
        {"method": "prune", "fuse": True},
        {"family": "spaced:0,2"},
        {"source_degree": 3},
        {"compensated": True, "source_degree": 1, "scale": 0.05},
    ],
)
def test_every_way_of_compressing(model: VisionTransformer, options: dict[str, Any]) -> None:
    options = dict(options)
    if options.pop("compensated", False):
        options["compensator"] = busy_compensator(model)
    fitted = align(model, images_of(model), degrees=[2, 4], **options)
    images = torch.stack(images_of(model, 4, seed=2))
    plain = without_head(model, images, degree=4, **options)
    aligned = without_head(model, images, degree=4, alignment=fitted, **options)
    np.testing.assert_allclose(aligned, fitted.maps[4].apply(plain), rtol=0, atol=1e-4)
    assert not np.array_equal(aligned, plain)


def test_it_keeps_to_what_it_was_fitted_on(model: VisionTransformer, alignment: Alignment) -> None:
    with pytest.raises(AlignmentError, match=r"has degrees 2, 5, not 3\. Fit one with --degrees that names 3"):
        compress(model, 3, alignment=alignment)
    with pytest.raises(AlignmentError, match=r"not \[2, 2, 2\]"):
        compress(model, [2, 2, 2], alignment=alignment)
    with pytest.raises(AlignmentError, match="fitted with model_sha256"):
        compress(small_vit(seed=1), 2, alignment=alignment)
    for options, message in (
        ({"method": "prune"}, "fitted with method 'merge', asked for is 'prune'"),
        ({"family": "spaced:1"}, "fitted with family 'every', asked for is 'spaced:1'"),
        ({"source_degree": 1}, "fitted with source_degree 0, asked for is 1"),
        ({"compensator": busy_compensator(model)}, "fitted with compensator_sha256 ''"),
    ):
        with pytest.raises(AlignmentError, match=message):
            compress(model, 2, alignment=alignment, **options)  # type: ignore[arg-type]
    # Another classifier reads the same features.
    other = small_vit()
    other.reset_classifier(4)
    compress(other, 2, alignment=alignment)


def test_bad_requests_are_refused(model: VisionTransformer) -> None:
    with pytest.raises(AlignmentError, match=r"at least 25 images, better 200 or more\. Got 24"):
        align(model, images_of(model, 24), degrees=[2])
    with pytest.raises(AlignmentError, match=r"must name one beside the source degree\. Got \[0\]"):
        align(model, images_of(model), degrees=[0])
    bad = images_of(model)
    bad[4] = torch.full_like(bad[4], torch.nan)
    with pytest.raises(AlignmentError, match="not finite for 1 of 60 images, the first is image 4"):
        align(model, bad, degrees=[2])


def test_round_trip(model: VisionTransformer, alignment: Alignment, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    alignment.save(path)
    loaded = Alignment.load(path)
    assert (loaded.binding, loaded.images) == (alignment.binding, 60)
    for degree, each in alignment.maps.items():
        np.testing.assert_array_equal(loaded.maps[degree].linear.matrix, each.linear.matrix)
        np.testing.assert_array_equal(loaded.maps[degree].linear.offset, each.linear.offset)
        assert loaded.maps[degree].closed == each.closed
    compress(model, 2, alignment=loaded)


DAMAGE = {
    "another format": (lambda t, m: m.update(format="lora"), "'lora' version '1', not 'tocom-alignment'"),
    "another version": (lambda t, m: m.update(version="2"), "version .2., not .tocom-alignment. version .1."),
    "no content": (lambda t, m: m.pop("alignment"), "is inconsistent"),
    "content no JSON": (lambda t, m: m.update(alignment="{"), "is inconsistent"),
    "content a list": (lambda t, m: m.update(alignment="[]"), "is inconsistent"),
    "a tensor missing": (lambda t, m: t.pop("degree.2.offset"), "is inconsistent"),
    "a tensor more": (lambda t, m: t.update(x=np.ones(3, np.float32)), "holds 'x', which no degree has"),
    "another shape": (lambda t, m: t.update({"degree.2.offset": np.ones(3, np.float32)}), "degree 2: shapes"),
    "NaN": (lambda t, m: t["degree.2.matrix"].fill(np.nan), "degree 2: values must be float32 and finite"),
    "two widths": (
        lambda t, m: t.update({"degree.2.matrix": np.ones((3, 3), "f4"), "degree.2.offset": np.ones(3, "f4")}),
        r"have widths \[3, 64\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", DAMAGE)
@pytest.mark.fault("an alignment whose tensors or metadata are wrong", outcome="AlignmentError in one line")
def test_damage_is_one_readable_line(kind: str, alignment: Alignment, tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    alignment.save(path)
    with safe_open(path, framework="np") as file:
        metadata, tensors = dict(file.metadata()), {name: file.get_tensor(name).copy() for name in file.keys()}  # noqa: SIM118
    change, message = DAMAGE[kind]
    change(tensors, metadata)
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(AlignmentError, match=message):
        Alignment.load(path)
    with pytest.raises(AlignmentError, match="Cannot read the alignment"):
        Alignment.load(tmp_path / "none.safetensors")


@pytest.mark.parametrize(
    ("features", "source_degree"), [pytest.param(False, 0, marks=pytest.mark.slow), (True, 0), (True, 2)]
)
def test_exported_graphs_hold_it(model: VisionTransformer, features: bool, source_degree: int, tmp_path: Path) -> None:
    compensator = busy_compensator(model)
    options: dict[str, Any] = {"compensator": compensator, "source_degree": source_degree}
    fitted = align(model, images_of(model), degrees=DEGREES, **options)
    bundle = export(
        model, tmp_path / "bundle", degrees=DEGREES, alignment=fitted, features=features, batch=2, **options
    )
    plain = export(model, tmp_path / "plain", degrees=DEGREES, features=features, batch=2, check=False, **options)
    images = small_images(model, 2, seed=4)
    for degree in DEGREES:
        with torch.inference_mode():
            want = compress(model, degree, alignment=fitted, **options)(images).numpy()
        found = run_onnx(bundle.onnx_path(degree), images.numpy())
        np.testing.assert_allclose(found, want, rtol=0, atol=1e-4 * max(1.0, np.abs(want).max()))
        is_mapped = degree != source_degree
        assert np.array_equal(found, run_onnx(plain.onnx_path(degree), images.numpy())) is not is_mapped
        more = model.num_features**2 if features and is_mapped else 0
        assert bundle.degrees[degree].macs == plain.degrees[degree].macs + more
    assert bundle.manifest["alignment"]["degrees"].keys() == {str(d) for d in DEGREES if d != source_degree}
    assert bundle.manifest["alignment"]["images"] == 60


def test_half_precision_and_a_model_without_a_classifier(tmp_path: Path) -> None:
    model = small_vit(num_classes=0)
    fitted = align(model, images_of(model), degrees=[3])
    bundle = export(model, tmp_path / "bundle", degrees=[3], alignment=fitted, precision="fp16")  # checks itself
    assert bundle.output_names == ("features",)
    assert bundle.manifest["degrees"][0]["check"] is not None


def test_the_command(tmp_path: Path) -> None:
    folder, out = tmp_path / "images", tmp_path / "a.safetensors"
    folder.mkdir()
    for index in range(30):
        coarse = np.random.default_rng(index).integers(0, 255, (5, 5, 3), np.uint8)
        Image.fromarray(coarse).resize((80, 80)).save(folder / f"{index}.png")
    arguments = [
        "align", "--model", "deit_tiny_patch16_224", "--weights", "random", "--image-size", "80", "--images",
        str(folder), "--degrees", "0,3", "--device", "cpu", "--out", str(out),
    ]  # fmt: skip
    ran = CliRunner().invoke(app, [*arguments, "--json"], catch_exceptions=False)
    assert ran.exit_code == 0
    facts = json.loads(ran.stdout)
    assert (facts["images"], list(facts["degrees"])) == (30, ["3"])
    assert Alignment.load(out).describe()["degrees"] == facts["degrees"]
    ran = CliRunner().invoke(app, ["inspect", str(out)], catch_exceptions=False)
    assert "source_degree" in ran.stdout
    ran = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "30 images; each fifth judged" in ran.stdout
    others = tmp_path / "others"
    others.mkdir()
    for index in range(25):  # all alike: compression hardly moves them, so no map helps
        Image.new("RGB", (80, 80), (9, 99, 199)).save(others / f"{index}.png")
    ran = CliRunner().invoke(app, [*arguments, "--check", str(others), "--json"], catch_exceptions=False)
    checked = json.loads(ran.stdout)
    assert (checked["images"], checked["checked_on"]) == (30, 25)
    assert checked["degrees"]["3"]["strength"] == facts["degrees"]["3"]["strength"]
    assert checked["degrees"]["3"]["gap"] != facts["degrees"]["3"]["gap"]
    assert Alignment.load(out).checked_on == 25
    for index in range(30):
        Image.new("RGB", (80, 80), (9, 99, 199)).save(folder / f"{index}.png")
    ran = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert "so alike that their features differ in 0 directions only" in " ".join(ran.stdout.split())


def test_pooled_features_are_what_the_head_reads(model: VisionTransformer) -> None:
    images = images_of(model, 5)
    with torch.inference_mode():
        want = model(torch.stack(images))
        torch.testing.assert_close(model.head(pooled_features(model, images, batch_size=2)), want, rtol=0, atol=1e-4)
