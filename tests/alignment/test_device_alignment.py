"""On-device alignments: fitted from engines' answers, used by the runtime, and bound to what they were fitted for."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from small_vits import small_vit
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from tocom.alignment.ridge import feature_gaps, fit_map
from tocom.calibration import align_engines
from tocom.cli import add_verbs
from tocom.errors import AlignmentError, BundleError, DegreeError
from tocom.export import export
from tocom.formats.device_alignment import DeviceAlignment, find_alignments
from tocom.formats.sealed_json import sealed
from tocom.formats.signatures import new_key, sign
from tocom.formats.verification import verify
from tocom.runtime import Runtime

DEGREES = [0, 2, 5]


def pictures(model: VisionTransformer, count: int = 60, seed: int = 0) -> list[np.ndarray]:
    """Return images of one colour each: a random model's gaps on richer ones are not a linear map of few features."""
    colours = torch.randn(count, 3, 1, 1, generator=torch.Generator().manual_seed(seed))
    return [each.numpy() for each in colours.expand(-1, -1, *model.patch_embed.img_size)]


def outputs(path: Path, images: list[np.ndarray], degree: int, **options: Any) -> dict[str, np.ndarray]:
    with Runtime.open(path, "onnxruntime", **options) as runtime:
        found = [runtime.infer(image[None], degree=degree).outputs for image in images]
        return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


@pytest.fixture(scope="module")
def model() -> VisionTransformer:
    return small_vit()


@pytest.fixture(scope="module")
def exported(model: VisionTransformer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(model, tmp_path_factory.mktemp("aligned") / "bundle", degrees=DEGREES, features=True).path


@pytest.fixture
def bundle(exported: Path) -> Iterator[Path]:
    yield exported
    for file in exported.glob("alignments/*"):
        file.unlink()


def test_the_runtime_answers_aligned(model: VisionTransformer, bundle: Path) -> None:
    fitted = align_engines(bundle, pictures(model), backend="onnxruntime")
    assert sorted(fitted.maps) == [2, 5]
    others = pictures(model, seed=1)
    dense = outputs(bundle, others, 0)
    for degree in (2, 5):
        plain, found = outputs(bundle, others, degree, alignment=False), outputs(bundle, others, degree)
        assert list(found) == list(plain) == ["logits", "features"]
        assert found["features"].dtype == np.float32
        np.testing.assert_allclose(found["features"], fitted.maps[degree](plain["features"]), rtol=0, atol=1e-5)
        gap = feature_gaps(dense["features"], plain["features"]).mean()
        assert feature_gaps(dense["features"], found["features"]).mean() < 0.5 * gap
        with torch.inference_mode():
            logits = model.head(torch.from_numpy(found["features"])).numpy()
        np.testing.assert_allclose(found["logits"], logits, rtol=0, atol=1e-4)


def test_it_is_the_ridge_of_the_engines_answers(model: VisionTransformer, bundle: Path) -> None:
    images = pictures(model, 40)
    fitted = align_engines(bundle, images, degrees=[5], seed=3, backend="onnxruntime", save=False)
    assert not find_alignments(bundle)
    given, aim = (outputs(bundle, images, degree)["features"] for degree in (5, 0))
    expected = fit_map(given, aim, seed=3)
    np.testing.assert_allclose(fitted.maps[5].matrix, expected.linear.matrix, rtol=0, atol=1e-4)
    assert fitted.degrees[5].strength == expected.strength
    assert fitted.aim["degree"] == 0
    assert fitted.images == 40


def test_other_images_judge_it(bundle: Path, model: VisionTransformer) -> None:
    drawn = torch.randn(25, 3, *model.patch_embed.img_size, generator=torch.Generator().manual_seed(2))
    noise = [each.numpy() for each in drawn]
    judged = align_engines(bundle, pictures(model, 30), check=noise, degrees=[5], backend="onnxruntime")
    assert (judged.images, judged.checked_on) == (30, 25)
    found, aim = (outputs(bundle, noise, degree, alignment=False)["features"] for degree in (5, 0))
    assert judged.degrees[5].gap == pytest.approx(feature_gaps(aim, found).mean(), rel=1e-3)
    assert (5 in judged.maps) is judged.degrees[5].used
    assert DeviceAlignment.load(find_alignments(bundle)[0])[0].checked_on == 25


def test_against_higher_precision_the_source_degree_too(model: VisionTransformer, bundle: Path, tmp_path: Path) -> None:
    coarse = export(model, tmp_path / "fp16", degrees=[0, 5], features=True, precision="fp16").path
    fitted = align_engines(coarse, pictures(model), against=bundle, backend="onnxruntime")
    assert sorted(fitted.degrees) == [0, 5]
    assert fitted.aim["precision"] == "fp32"
    assert fitted.identity["precision"] == "fp16"
    others = pictures(model, seed=1)
    wanted = outputs(bundle, others, 0)["features"]
    plain = feature_gaps(wanted, outputs(coarse, others, 5, alignment=False)["features"]).mean()
    assert feature_gaps(wanted, outputs(coarse, others, 5)["features"]).mean() < 0.5 * plain


def test_a_model_without_a_head(tmp_path: Path) -> None:
    model = small_vit(num_classes=0, depth=2)
    bundle = export(model, tmp_path / "bundle", degrees=[0, 4], batch=(1, 2, 4)).path
    images = pictures(model, 31)  # no multiple of the batch
    fitted = align_engines(bundle, images, backend="onnxruntime")
    assert fitted.head is None
    plain, found = (outputs(bundle, images, 4, alignment=on)["features"] for on in (False, True))
    np.testing.assert_allclose(found, fitted.maps[4](plain), rtol=0, atol=1e-5)
    with Runtime.open(bundle, "onnxruntime") as runtime:
        assert runtime.stats()["aligned"] == [4]
        batch = np.stack(images[:3])
        np.testing.assert_allclose(runtime.infer(batch, degree=4).outputs["features"], found[:3], rtol=0, atol=1e-4)


def test_refusals(model: VisionTransformer, bundle: Path, tmp_path: Path) -> None:
    images = pictures(model)
    with pytest.raises(AlignmentError, match=r"at least 25 images, better 200 or more\. Got 24"):
        align_engines(bundle, images[:24])
    with pytest.raises(DegreeError, match="Got 3"):
        align_engines(bundle, images, degrees=[3])
    with pytest.raises(AlignmentError, match="no degree to align beside degree 0"):
        align_engines(bundle, images, degrees=[0])
    closed = export(model, tmp_path / "logits", degrees=[2], check=False).path
    with pytest.raises(AlignmentError, match=r"gives logits, no features.*tocom export … --features"):
        align_engines(closed, images)
    alone = export(model, tmp_path / "alone", degrees=[2, 5], features=True, check=False).path
    with pytest.raises(AlignmentError, match=r"has no degree 0, the source degree.*It has \[2, 5\].*--against"):
        align_engines(alone, images)
    align_engines(alone, images, against=bundle, backend="onnxruntime", save=False)
    reheaded = small_vit()
    reheaded.reset_classifier(model.num_classes)
    other = export(reheaded.eval(), tmp_path / "other", degrees=[0, 2], features=True, check=False).path
    with pytest.raises(AlignmentError, match="not of one model"):
        align_engines(bundle, images, against=other)
    bad = [np.full_like(images[0], np.nan), *images[1:]]
    with pytest.raises((AlignmentError, ValueError), match=r"NaN|finite"):
        align_engines(bundle, bad, backend="onnxruntime")


def test_images_that_are_all_alike_leave_a_shift(model: VisionTransformer, bundle: Path) -> None:
    fitted = align_engines(bundle, pictures(model)[:1] * 30, backend="onnxruntime", save=False)
    for degree in (2, 5):
        assert fitted.degrees[degree].directions == 0
        assert fitted.degrees[degree].strength == 100
        np.testing.assert_array_equal(fitted.maps[degree].matrix, np.eye(len(fitted.maps[degree].offset)))


def test_it_comes_back_as_it_was_written(model: VisionTransformer, bundle: Path) -> None:
    fitted = align_engines(bundle, pictures(model), backend="onnxruntime")
    (path,) = find_alignments(bundle)
    found, _ = DeviceAlignment.load(path)
    assert found.describe() == fitted.describe()
    for degree, each in fitted.maps.items():
        np.testing.assert_array_equal(found.maps[degree].matrix, each.matrix)
        np.testing.assert_array_equal(found.maps[degree].offset, each.offset)
    assert [each.kind for each in verify(bundle).files].count("alignment") == 1
    assert not verify(bundle).problems


@pytest.mark.fault(
    "an on-device alignment that is cut off, changed, unsealed, or of a later version",
    outcome="AlignmentError in one line when the bundle is opened; with `alignment=False` it is served without",
)
@pytest.mark.parametrize("damage", ["cut", "flip", "numbers", "version", "unsealed", "channels"])
def test_damage(model: VisionTransformer, bundle: Path, damage: str) -> None:
    align_engines(bundle, pictures(model, 30), backend="onnxruntime")
    (path,) = find_alignments(bundle)
    data, content = path.read_bytes(), json.loads(path.read_text())
    content.pop("sha256")
    if damage == "cut":
        path.write_bytes(data[:-4])
    elif damage == "numbers":
        path.write_bytes(sealed({**content, "numbers": content["numbers"][8:]}))
    elif damage == "flip":
        path.write_bytes(data.replace(b'"images": 30', b'"images": 31'))
    elif damage == "version":
        path.write_bytes(sealed({**content, "version": 2}))
    elif damage == "unsealed":
        path.write_text(json.dumps(content))
    else:
        path.write_bytes(sealed({**content, "channels": 1 << 40}))
    with pytest.raises(AlignmentError, match=path.name) as raised:
        Runtime.open(bundle, "onnxruntime")
    assert "\n" not in str(raised.value)
    assert "tocom calibrate" in str(raised.value)
    assert next(each.file for each in verify(bundle).problems).startswith("alignments/")
    with Runtime.open(bundle, "onnxruntime", alignment=False) as runtime:
        assert runtime.stats()["aligned"] == []


def test_one_of_other_engines_is_not_used(
    model: VisionTransformer, bundle: Path, caplog: pytest.LogCaptureFixture
) -> None:
    align_engines(bundle, pictures(model, 30), backend="onnxruntime")
    (path,) = find_alignments(bundle)
    content = json.loads(path.read_text())
    content.pop("sha256")
    content["identity"]["device"]["onnxruntime"] = "0.1"
    path.write_bytes(sealed(content))
    with pytest.raises(AlignmentError, match=r"does not hold here: device is"):
        Runtime.open(bundle, "onnxruntime")
    path.rename(path.with_name("0123456789abcdef.json"))
    with Runtime.open(bundle, "onnxruntime") as runtime:
        assert runtime.stats()["aligned"] == []
    assert "no alignment of" in caplog.text


def test_with_trusted_keys_it_must_be_signed(model: VisionTransformer, bundle: Path, tmp_path: Path) -> None:
    new_key(tmp_path / "key.pem")
    sign(bundle, tmp_path / "key.pem")
    align_engines(bundle, pictures(model, 30), backend="onnxruntime")
    keys = [tmp_path / "key.pem.pub"]
    with pytest.raises(BundleError, match="no trusted key signed alignments/"):
        Runtime.open(bundle, "onnxruntime", trusted_keys=keys)
    sign(bundle, tmp_path / "key.pem")
    with Runtime.open(bundle, "onnxruntime", trusted_keys=keys) as runtime:
        assert runtime.stats()["aligned"] == [2, 5]


def test_command(model: VisionTransformer, bundle: Path, tmp_path: Path) -> None:
    from PIL import Image

    app = typer.Typer()
    add_verbs(app, "calibrate", "inspect")
    folder = tmp_path / "images" / "sub"
    folder.mkdir(parents=True)
    for place, colour in enumerate(np.random.default_rng(0).integers(0, 255, (30, 3))):
        Image.new("RGB", (40, 40), tuple(map(int, colour))).save(folder / f"{place}.png")
    run = ["calibrate", str(bundle), "--align", "--backend", "onnxruntime"]
    none = CliRunner().invoke(app, run)
    assert "needs --images FOLDER" in str(none.exception)
    done = CliRunner().invoke(app, [*run, "--images", str(tmp_path / "images")])
    assert done.exit_code == 0, done.output
    assert "30 images; each fifth judged by a map of the others" in " ".join(done.stdout.split())
    as_json = CliRunner().invoke(app, [*run, "--images", str(tmp_path / "images"), "--json"])
    content = json.loads(as_json.stdout)
    assert sorted(content["degrees"]) == ["2", "5"]
    (path,) = find_alignments(bundle)
    shown = CliRunner().invoke(app, ["inspect", str(path), "--json"])
    assert json.loads(shown.stdout) == content
    assert not list(bundle.glob("profiles/*"))
