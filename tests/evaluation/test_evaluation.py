"""``tocom evaluate``, against the same figures written out plainly."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from small_vits import busy_compensator, small_vit
from timm.models.vision_transformer import VisionTransformer
from typer.testing import CliRunner

from tocom import Compensator, compress, load_model
from tocom.cli import add_verbs
from tocom.cli.app import app
from tocom.compression.loading.preprocessing import input_config
from tocom.errors import CompensatorError, DataError, ModelError, RequestError
from tocom.evaluation.answers import Scores
from tocom.evaluation.heat_map import draw
from tocom.evaluation.held_out import split_samples
from tocom.evaluation.pairs import Evaluation, evaluate
from tocom.images import class_folders
from tocom.training.image_files import ImageFiles

add_verbs(app, "evaluate")
CLASSES, EACH = 3, 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return random images, one subfolder per class."""
    top = tmp_path_factory.mktemp("classes")
    generator = torch.Generator().manual_seed(0)
    for label in range(CLASSES):
        (top / f"class{label}").mkdir()
        for index in range(EACH):
            coarse = torch.randint(256, (5, 5, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(coarse.numpy()).resize((80, 80)).save(top / f"class{label}" / f"{index}.png")
    return top


@pytest.fixture(scope="module")
def sources(folder: Path) -> dict[int, VisionTransformer]:
    models = {0: small_vit(num_classes=CLASSES), 4: small_vit(num_classes=CLASSES, seed=1)}
    paths = [path for path, _ in class_folders(folder)]
    for model in models.values():
        images = torch.stack(list(ImageFiles(paths, input_config(model))))
        with torch.no_grad():  # random images are alike to a random model: without this all get one answer
            model.head.bias -= model(images).mean(0)
    return models


@pytest.fixture(scope="module")
def compensator(sources: dict[int, VisionTransformer]) -> Compensator:
    return busy_compensator(sources[0])


def _plain(model: VisionTransformer, at: VisionTransformer, source: int, samples: list[tuple[Path, int]]) -> Scores:
    """Measure image by image."""
    gap, right, loss = 0.0, 0, 0.0
    with torch.inference_mode():
        for path, label in samples:
            image = ImageFiles([path], input_config(model))[0][None]
            want = compress(model, source).forward_features(image)
            got = at.forward_features(image)
            a, b = (model.forward_head(tokens, pre_logits=True)[0].double() for tokens in (want, got))
            gap += 1 - float(a @ b / (a.norm() * b.norm()))
            share = at(image)[0].double().softmax(-1)
            right += int(share.argmax()) == label
            loss -= math.log(float(share[label]))
    count = len(samples)
    return Scores(gap / count, right / count, loss / count)


def _close(found: Scores, wanted: Scores) -> None:
    assert found.feature_gap == pytest.approx(wanted.feature_gap, abs=1e-5)
    assert found.accuracy == wanted.accuracy
    assert found.log_loss == pytest.approx(wanted.log_loss, abs=1e-4)


@pytest.fixture(scope="module")
def result(folder: Path, sources: dict[int, VisionTransformer], compensator: Compensator) -> Evaluation:
    held_out, test = split_samples(class_folders(folder), 0.5, 0)
    return evaluate(
        sources,
        compensator,
        input_config(sources[0]),
        test=test,
        held_out=held_out,
        targets=[0, 4, 6],
        scales=(0.05, 0.5),
        batch_size=4,
    )


def test_every_pair_is_what_a_plain_loop_finds(
    folder: Path, sources: dict[int, VisionTransformer], compensator: Compensator, result: Evaluation
) -> None:
    _, test = split_samples(class_folders(folder), 0.5, 0)
    assert [(pair.source, pair.target) for pair in result.pairs] == [(m, n) for m in (0, 4) for n in (0, 4, 6)]
    for pair in result.pairs:
        model = sources[pair.source]
        _close(pair.without, _plain(model, compress(model, pair.target), pair.source, test))
        at = compress(model, pair.target, compensator=compensator, source_degree=pair.source, scale=result.scale)
        _close(pair.compensated, _plain(model, at, pair.source, test))
    assert len({scores.accuracy for pair in result.pairs for scores in (pair.without, pair.compensated)}) > 2
    for pair in result.pairs:
        if pair.source == pair.target:
            assert pair.without == pair.compensated
            assert pair.without.feature_gap == pytest.approx(0, abs=1e-6)
        else:
            assert pair.without.feature_gap != pair.compensated.feature_gap


def test_the_scale_is_the_best_of_the_held_out_images_alone(
    folder: Path, sources: dict[int, VisionTransformer], compensator: Compensator, result: Evaluation
) -> None:
    held_out, _ = split_samples(class_folders(folder), 0.5, 0)
    pairs = [(m, n) for m in (0, 4) for n in (0, 4, 6) if m != n]
    found = {}
    for scale in (0.05, 0.5):
        each = [
            _plain(
                sources[m],
                compress(sources[m], n, compensator=compensator, source_degree=m, scale=scale),
                m,
                held_out,
            )
            for m, n in pairs
        ]
        found[scale] = (sum(s.accuracy or 0 for s in each) / 4, sum(s.log_loss or 0 for s in each) / 4)
        assert result.held_out[scale].accuracy == pytest.approx(found[scale][0])
        assert result.held_out[scale].log_loss == pytest.approx(found[scale][1], abs=1e-4)
    assert result.scale == max(found, key=lambda scale: (found[scale][0], -found[scale][1]))
    assert result.scale_chosen_by == "accuracy, then log-loss of 9 held-out images, none of them a test image"
    assert result.images == {"held_out": 9, "test": 9}


def test_ties_in_accuracy_go_to_the_lower_log_loss() -> None:
    from tocom.evaluation.pairs import _rank

    better = min((Scores(0.1, 0.5, 0.9), Scores(0.2, 0.5, 0.8), Scores(0.0, 0.4, 0.1)), key=_rank)
    assert better == Scores(0.2, 0.5, 0.8)
    assert min((Scores(0.3), Scores(0.2)), key=_rank) == Scores(0.2)


def test_without_a_classifier_the_feature_gap_is_all(folder: Path) -> None:
    model = small_vit(num_classes=0)
    held_out, test = split_samples(class_folders(folder), 0.3, 1)
    part = busy_compensator(model)
    found = evaluate(
        {0: model}, part, input_config(model), test=test, held_out=held_out, targets=[3], scales=(0.01, 5.0)
    )
    assert found.scale == 0.01  # the other one wrecks the model
    assert found.pairs[0].without.accuracy is None
    assert found.pairs[0].without.log_loss is None
    assert found.pairs[0].without.feature_gap > 0
    assert "feature gap of 6 held-out images" in found.scale_chosen_by


def test_splits_are_by_class_and_apart(folder: Path) -> None:
    samples = class_folders(folder)
    held_out, test = split_samples(samples, 0.34, 3)
    assert sorted(held_out + test) == samples
    assert [label for _, label in held_out] == [0, 0, 1, 1, 2, 2]
    assert (held_out, test) == split_samples(samples, 0.34, 3)
    assert held_out != split_samples(samples, 0.34, 4)[0]
    assert [len(part) for part in split_samples(samples, 0.01, 0)] == [3, 15]
    with pytest.raises(RequestError, match="between 0 and 1"):
        split_samples(samples, 1.0, 0)
    with pytest.raises(DataError, match="has one image"):
        split_samples(samples[:7], 0.5, 0)


def test_a_test_image_is_never_held_out(
    folder: Path, sources: dict[int, VisionTransformer], compensator: Compensator, tmp_path: Path
) -> None:
    samples = class_folders(folder)
    copy = tmp_path / "renamed.png"
    copy.write_bytes(samples[0][0].read_bytes())
    with pytest.raises(DataError, match=r"0\.png is held out as well .*renamed\.png"):
        evaluate(sources, compensator, input_config(sources[0]), test=samples, held_out=[(copy, 0)], targets=[0, 4])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"targets": []}, RequestError, "must each hold at least one"),
        ({"targets": [7]}, CompensatorError, "reaches degrees 0 to 6"),
        ({"scale": None}, RequestError, "Got both or neither"),
        ({"sources": {0: small_vit(num_classes=2)}}, DataError, "class index 2, the model has 2 classes"),
        ({"sources": {0: small_vit(num_classes=0), 4: small_vit()}}, RequestError, "or models without. Got both"),
        ({"sources": {0: small_vit(depth=2)}}, CompensatorError, "has depth 3"),
    ],
)
def test_bad_requests_are_refused(
    folder: Path,
    sources: dict[int, VisionTransformer],
    compensator: Compensator,
    options: dict[str, object],
    error: type[Exception],
    message: str,
) -> None:
    call = {"sources": sources, "targets": [2], "scale": 0.1, **options}
    with pytest.raises(error, match=message):
        evaluate(
            call.pop("sources"),  # type: ignore[arg-type]
            compensator,
            input_config(sources[0]),
            test=class_folders(folder),
            **call,  # type: ignore[arg-type]
        )


def test_a_scale_needs_a_change_to_be_chosen_on(
    folder: Path, sources: dict[int, VisionTransformer], compensator: Compensator
) -> None:
    held_out, test = split_samples(class_folders(folder), 0.5, 0)
    with pytest.raises(RequestError, match="every target degree is the source degree"):
        evaluate({0: sources[0]}, compensator, input_config(sources[0]), test=test, held_out=held_out, targets=[0])


def test_the_heat_map_is_a_picture(result: Evaluation, tmp_path: Path) -> None:
    draw(result, tmp_path / "map.png")
    with Image.open(tmp_path / "map.png") as picture:
        assert picture.format == "PNG"
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50


def test_the_command_writes_what_the_function_finds(folder: Path, tmp_path: Path) -> None:
    name, size, files = "deit_tiny_patch16_224", 80, {}
    for degree in (0, 4):
        model = load_model(name, weights="random", num_classes=CLASSES, image_size=size, seed=degree).model
        files[degree] = tmp_path / f"{degree}.safetensors"
        save_file(model.state_dict(), files[degree])
    busy_compensator(model).save(tmp_path / "c.safetensors")
    out = tmp_path / "out"
    arguments = [
        "evaluate", "--model", name, "--image-size", str(size), "--compensator", str(tmp_path / "c.safetensors"),
        "--images", str(folder), "--degrees", "0,5", "--device", "cpu", "--out", str(out), "--held-out-share", "0.34",
        "--keep-scale",
        *(option for degree, file in files.items() for option in ("--weights", f"{degree}={file}")),
    ]  # fmt: skip
    ran = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert ran.exit_code == 0
    assert "12 test images" in ran.stdout
    assert "none of them a test image" in ran.stdout
    content = json.loads((out / "evaluation.json").read_text())
    assert (out / "evaluation.png").stat().st_size > 1000

    held_out, test = split_samples(class_folders(folder), 0.34, 0)
    models = {degree: load_model(name, weights=file, image_size=size).model for degree, file in files.items()}
    part = Compensator.load(tmp_path / "c.safetensors")
    wanted = evaluate(models, part, input_config(models[0]), test=test, held_out=held_out, targets=[0, 5]).to_json()
    for key in ("pairs", "scale", "scale_chosen_by", "held_out", "images", "method"):
        assert content[key] == json.loads(json.dumps(wanted[key])), key
    assert content["provenance"]["split"] == "0.34 of every class, seed 0"
    assert content["provenance"]["compensator_sha256"] == part.metadata["file_sha256"]
    assert len(content["held_out"]) == 6

    with pytest.raises(RequestError, match="'weights' option must be FILE or DEGREE=FILE"):
        CliRunner().invoke(app, [*arguments, "--weights", "four=x.pth"], catch_exceptions=False)
    with pytest.raises(ModelError, match="does not exist"):
        CliRunner().invoke(app, [*arguments, "--weights", f"2={tmp_path}/missing.pth"], catch_exceptions=False)


@pytest.fixture(scope="module")
def one_source(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], Path]:
    """Return the command's arguments for one small model on many views of the images, and its compensator."""
    top = tmp_path_factory.mktemp("one")
    for path in folder.rglob("*.png"):
        with Image.open(path) as image:
            for index in range(8):
                target = top / "views" / path.parent.name / f"{path.stem}-{index}.png"
                target.parent.mkdir(parents=True, exist_ok=True)
                image.crop((index, index, 70 + index, 70 + index)).save(target)
    model = load_model("test_vit3", weights="random", num_classes=CLASSES).model
    save_file(model.state_dict(), top / "model.safetensors")
    busy_compensator(model).save(top / "c.safetensors")
    arguments = [
        "evaluate", "--model", "test_vit3", "--weights", str(top / "model.safetensors"),
        "--images", str(top / "views"), "--degrees", "0,2,4", "--device", "cpu",
    ]  # fmt: skip
    return arguments, top / "c.safetensors"


def test_one_source_gets_verdicts_a_chart_and_every_answer(one_source: tuple[list[str], Path], tmp_path: Path) -> None:
    arguments, _ = one_source
    ran = CliRunner().invoke(
        app, [*arguments, "--out", str(tmp_path), "--answers", str(tmp_path / "answers.csv")], catch_exceptions=False
    )
    assert ran.exit_code == 0
    assert "verdict" in ran.stdout
    content = json.loads((tmp_path / "evaluation.json").read_text())
    assert [pair["verdict"] and pair["verdict"]["degree"] for pair in content["pairs"]] == [None, 2, 4]
    assert all(pair["compensated"] is None for pair in content["pairs"])
    assert content["allowed"] == 0.01
    for pair in content["pairs"][1:]:  # so few images cannot tell, and the words say so below the table
        assert pair["verdict"]["words"] in ran.stdout
        assert pair["verdict"]["note"] in ran.stdout.replace("\n", " ")
    assert "these images cannot tell" in ran.stdout
    lines = (tmp_path / "answers.csv").read_text().splitlines()
    assert len(lines) == 1 + 3 * content["images"]["test"]
    for entry in content["confusions"]:
        table = torch.tensor(entry["confusion"])
        accuracy = next(p["without"]["accuracy"] for p in content["pairs"] if p["target"] == entry["target"])
        assert float(table.trace() / table.sum()) == pytest.approx(accuracy)
    with Image.open(tmp_path / "evaluation.png") as picture:
        assert len(picture.convert("RGB").getcolors(1 << 20) or ()) > 50


def test_alignments_have_rows_answers_a_picture_and_a_say_in_the_verdict(
    one_source: tuple[list[str], Path], tmp_path: Path
) -> None:
    arguments, file = one_source
    options = ["--align", "--compensator", str(file), "--keep-scale", "--held-out-share", "0.4"]
    outputs = ["--out", str(tmp_path), "--answers", str(tmp_path / "answers.csv")]
    ran = CliRunner().invoke(app, [*arguments, *options, *outputs], catch_exceptions=False)
    assert ran.exit_code == 0
    content = json.loads((tmp_path / "evaluation.json").read_text())
    ways = ["without", "compensated", "aligned", *(["both"] if content["scale"] else [])]
    for pair in content["pairs"][1:]:
        assert [way for way in ("without", "compensated", "aligned", "both") if pair[way]] == ways
        assert pair["verdict"]["way"] in ways
    rows = [line.split(",") for line in (tmp_path / "answers.csv").read_text().splitlines()[1:]]
    for way in ways:
        found = [float(row[-1]) for row in rows if row[1:3] == ["4", way]]
        assert sum(found) / len(found) == pytest.approx(content["pairs"][2][way]["feature_gap"], abs=1e-12)
    for word in ("alone", "compensator", "alignment"):
        assert ran.stdout.count(word) >= 2
    with Image.open(tmp_path / "evaluation.png") as picture:
        colours = {colour for _, colour in picture.convert("RGB").getcolors(1 << 20) or ()}
    assert (0x4F, 0x9D, 0x5D) in colours


def test_the_chosen_scale_goes_on_to_export_in_the_compensator(one_source: tuple[list[str], Path]) -> None:
    arguments, file = one_source
    before = Compensator.load(file)
    ran = CliRunner().invoke(app, [*arguments, "--compensator", str(file)], catch_exceptions=False)
    after = Compensator.load(file)
    if "helps at none of its scales" in ran.stdout:
        assert after.metadata["file_sha256"] == before.metadata["file_sha256"]
    else:
        assert f"scale {after.scale}, accuracy" in ran.stdout
        assert f"--compensator {file} takes" in ran.stdout.replace("\n", "")
    for name, tensor in before.state_dict().items():
        assert torch.equal(tensor, after.state_dict()[name])


def test_alignments_are_fitted_on_held_out_images_and_measured_on_others(
    folder: Path, sources: dict[int, VisionTransformer], tmp_path: Path
) -> None:
    from tocom.alignment.ridge import feature_gaps, fit_map
    from tocom.compression.features import pooled_features

    paths = []
    for index in range(32):  # of one colour each: a random model's gaps on richer ones are not a linear map
        colour = tuple(torch.randint(256, (3,), generator=torch.Generator().manual_seed(index)).tolist())
        paths.append(tmp_path / f"{index}.png")
        Image.new("RGB", (80, 80), colour).save(paths[-1])
    samples = [(path, index % CLASSES) for index, path in enumerate(paths)]
    model, part = sources[0], busy_compensator(sources[0])
    entry, options = input_config(model), {"test": samples[26:], "targets": [0, 4], "align": True}
    result = evaluate({0: model}, part, entry, held_out=samples[:26], scales=(0.1,), **options)  # type: ignore[arg-type]
    dense, pair = result.pairs
    assert (dense.aligned, dense.both) == (None, None)
    for found, compensator in ((pair.aligned, None), (pair.both, part)):
        at = compress(model, 4, compensator=compensator, scale=0.1 if compensator else None)
        known = {
            (name, kind): pooled_features(each, ImageFiles(paths[rows], entry)).numpy()
            for kind, rows in (("fit", slice(0, 26)), ("test", slice(26, 32)))
            for name, each in (("dense", model), ("at", at))
        }
        fitted = fit_map(known["at", "fit"], known["dense", "fit"])
        want = feature_gaps(known["dense", "test"], fitted.apply(known["at", "test"])).mean()
        assert found is not None
        assert found.feature_gap == pytest.approx(want, rel=1e-4, abs=1e-7)
    assert pair.both.feature_gap < pair.compensated.feature_gap  # type: ignore[union-attr]
    with pytest.raises(RequestError, match="needs 'held_out' images"):
        evaluate({0: model}, part, entry, scale=0.1, **options)  # type: ignore[arg-type]
