"""The distillation loop: it learns, it is the same every time, and it leaves the backbone as it was."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace

import pytest
import torch
from small_vits import busy_compensator, small_images, small_vit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tocom import Compensator, compress, train
from tocom.compression.features import patch_features
from tocom.errors import DataError, DegreeError, ModelError, RequestError, TocomError, TrainingError
from tocom.training.config import TrainingConfig
from tocom.training.distillation import TeacherAnswers, dense_answers
from tocom.training.trainer import LOSSES, StepReport, draw_degrees

QUICK = TrainingConfig(groups=4, steps=3, batch_size=4, learning_rate=1e-2)


def dataset(model: VisionTransformer, count: int = 8) -> list[Tensor]:
    return list(small_images(model, count))


def gap(
    model: VisionTransformer, images: list[Tensor], compensator: Compensator | None, loss: str, **options: str
) -> float:
    """Return the mean loss of the student against the dense teacher over degrees 1 … 4."""
    batch = torch.stack(images)
    with torch.inference_mode():
        want = model(batch)
        return sum(
            float(LOSSES[loss](compress(model, degree, compensator=compensator, **options)(batch), want).mean())
            for degree in range(1, 5)
        )


@pytest.mark.parametrize("method", ["merge", "prune"])
@pytest.mark.parametrize(("loss", "classes"), [("kl", 10), ("cosine", 0), ("mse", 0)])
def test_the_gap_gets_smaller(method: str, loss: str, classes: int) -> None:
    model = small_vit(num_classes=classes)
    images = dataset(model)
    config = TrainingConfig(groups=4, method=method, loss=loss, steps=40, batch_size=8, learning_rate=2e-2, flip=False)
    compensator = train(model, images, config)
    assert gap(model, images, compensator, loss, method=method) < 0.9 * gap(model, images, None, loss, method=method)


@pytest.mark.parametrize("name", ["vit_tiny_patch16_224", "vit_small_patch16_rope_224"])
def test_the_loss_of_patches_is_between_every_patch_of_teacher_and_student(name: str) -> None:
    model = small_vit(name, num_classes=0)
    images = dataset(model)
    config = TrainingConfig(groups=1, loss="patch", steps=2, batch_size=8, source_degree=0, flip=False)
    losses: list[float] = []
    compensator = train(model, images, config, progress=lambda report: losses.append(report.loss))
    batch = torch.stack(images)
    with torch.inference_mode():
        found, want = patch_features(compress(model, 1), batch), patch_features(model, batch)
    # An untrained compensator adds nothing.
    expected = (1 - torch.nn.functional.cosine_similarity(found, want, dim=-1)).mean()
    assert losses[0] == pytest.approx(float(expected), rel=1e-4)
    assert compensator.metadata["loss"] == "patch"
    with pytest.raises(RequestError, match="cannot be 'patch' with method 'prune'"):
        train(model, images, TrainingConfig(groups=1, loss="patch", method="prune", steps=1))


def test_the_same_seed_gives_the_same_compensator_and_another_does_not() -> None:
    model = small_vit()
    runs = [
        train(model, dataset(model), config) for config in (QUICK, QUICK, TrainingConfig(**{**vars(QUICK), "seed": 1}))
    ]
    first, second, other = (run.state_dict() for run in runs)
    assert all(torch.equal(tensor, second[name]) for name, tensor in first.items())
    assert not any(torch.equal(tensor, other[name]) for name, tensor in first.items())


def test_the_backbone_is_left_as_it_was() -> None:
    model = small_vit().train()
    model.cls_token.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    compensator = train(model, dataset(model), QUICK)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(module.training for module in model.modules())
    assert [name for name, each in model.named_parameters() if not each.requires_grad] == ["cls_token"]
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module.training for module in compensator.modules())
    assert any(tensor.any() for name, tensor in compensator.state_dict().items() if name.endswith("up"))


def test_a_loss_that_is_not_finite_stops_and_restores() -> None:
    model = small_vit().train()
    images = dataset(model)
    images[3] = torch.full_like(images[3], torch.nan)
    config = TrainingConfig(groups=4, steps=20, batch_size=4)
    with pytest.raises(
        TrainingError, match=r"The loss is nan at step \d+ \(degrees \d to \d\)\. Lower the learning rate"
    ):
        train(model, images, config)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_progress_tells_every_step() -> None:
    model, seen = small_vit(), []
    train(model, dataset(model), QUICK, progress=seen.append)
    assert [report.step for report in seen] == [1, 2, 3]
    for index, report in enumerate(seen):
        assert isinstance(report, StepReport)
        assert (report.source, report.target) == draw_degrees(0, index, 4)
        assert report.steps == 3
        assert report.loss >= 0
        assert report.seconds > 0


def test_how_it_was_trained_stands_in_the_metadata() -> None:
    model = small_vit(num_classes=0)
    compensator = train(model, dataset(model), QUICK)
    assert compensator.metadata["loss"] == "cosine"
    assert compensator.metadata["images"] == "8"
    assert re.search(r"groups=4, rank=2, method=merge, .*steps=3, .*seed=0", compensator.metadata["training"])
    assert compensator.metadata["base_sha256"] == Compensator.for_model(model).metadata["base_sha256"]
    assert train(small_vit(), dataset(model), QUICK).metadata["loss"] == "kl"


def test_a_known_teacher_gives_the_same_as_asking_it() -> None:
    model = small_vit()
    images = dataset(model)
    config = TrainingConfig(groups=4, steps=4, batch_size=4, source_degree=0, flip=False)
    with torch.no_grad():
        answers = TeacherAnswers(torch.cat([model(image[None]) for image in images]))
    known, asked = train(model, images, config, teacher=answers), train(model, images, config)
    for name, tensor in asked.state_dict().items():
        torch.testing.assert_close(known.state_dict()[name], tensor, rtol=0, atol=1e-4)
    for wrong in (TrainingConfig(groups=4, source_degree=0), TrainingConfig(groups=4, flip=False)):
        with pytest.raises(RequestError, match="'teacher' parameter must hold one answer per image"):
            train(model, images, wrong, teacher=answers)
    with pytest.raises(RequestError, match="Got 3 answers without tokens for 8 images"):
        train(model, images, config, teacher=TeacherAnswers(answers.outputs[:3]))
    with pytest.raises(RequestError, match=r"8 answers without tokens for 8 images.*hidden=1\.0"):
        train(model, images, replace(config, hidden=1.0), teacher=answers)


def test_dense_answers_are_what_the_teacher_would_give_on_the_way_too() -> None:
    model = small_vit(num_classes=0).eval()
    images, seen = dataset(model), []
    config = TrainingConfig(groups=4, steps=4, batch_size=4, source_degree=0, flip=False, hidden=1.0)
    answers = dense_answers(model, images, batch_size=3, progress=lambda *step: seen.append(step))
    assert [(done, count) for _, done, count in seen] == [(3, 8), (6, 8), (8, 8)]
    assert answers.tokens is not None
    assert answers.tokens.shape == (len(model.blocks) - 1, 8, model.embed_dim)
    known, asked = train(model, images, config, teacher=answers), train(model, images, config)
    other = train(model, images, replace(config, hidden=0.0), teacher=answers)
    for name, tensor in asked.state_dict().items():
        torch.testing.assert_close(known.state_dict()[name], tensor, rtol=0, atol=1e-4)
    assert any(not torch.equal(tensor, other.state_dict()[name]) for name, tensor in known.state_dict().items())


def test_degrees_are_drawn_uniformly_never_equal_and_from_seed_and_step_alone() -> None:
    drawn = [draw_degrees(7, step, 4) for step in range(4000)]
    torch.manual_seed(99)
    assert drawn[::500] == [draw_degrees(7, step, 4) for step in range(0, 4000, 500)]
    counts = Counter(drawn)
    pairs = {(m, n) for m in range(5) for n in range(5) if m != n}
    assert counts.keys() == pairs
    assert all(abs(count - 200) < 5 * 200**0.5 for count in counts.values())
    fixed = [draw_degrees(7, step, 4, source=2) for step in range(200)]
    assert {source for source, _ in fixed} == {2}
    assert {target for _, target in fixed} == {0, 1, 3, 4}


def test_another_seed_draws_other_degrees() -> None:
    assert [draw_degrees(7, step, 4) for step in range(50)] != [draw_degrees(8, step, 4) for step in range(50)]


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"groups": 0}, RequestError, "'groups' parameter must be a positive integer"),
        ({"steps": 1.5}, RequestError, "'steps' parameter must be a positive integer"),
        ({"batch_size": -1}, RequestError, "'batch_size' parameter must be a positive integer"),
        ({"learning_rate": 0.0}, RequestError, "'learning_rate' parameter must be a positive number"),
        ({"scale": float("nan")}, RequestError, "'scale' parameter must be a positive number"),
        ({"source_degree": 17}, RequestError, "'source_degree' parameter must be None or from 0 to 16"),
        ({"loss": "l1"}, RequestError, "'loss' parameter must be one of auto, kl, cosine, mse"),
        ({"method": "drop"}, DegreeError, "one of merge, prune"),
    ],
)
def test_bad_configs(options: dict[str, object], error: type[TocomError], message: str) -> None:
    with pytest.raises(error, match=message):
        TrainingConfig(**options)  # type: ignore[arg-type]


def test_bad_input() -> None:
    model = small_vit()
    with pytest.raises(
        RequestError,
        match=r"'groups' parameter must be at most 12, the largest degree of family 'every' for this model\. Got 13",
    ):
        train(model, dataset(model), TrainingConfig(groups=13))
    with pytest.raises(RequestError, match="cannot be 'kl': the model has no classifier"):
        train(small_vit(num_classes=0), dataset(model), TrainingConfig(groups=4, loss="kl"))
    with pytest.raises(DataError, match=r"at least 2 images\. Got 1"):
        train(model, dataset(model, 1), QUICK)
    with pytest.raises(ModelError, match="compressed already"):
        train(compress(model, 2, compensator=busy_compensator(model)), dataset(model), QUICK)
