"""Training: what it computes, what it reports, and what it refuses."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from small_vits import small_images, small_vit
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from tocom import Compensator, compress
from tocom.compression.loading.preprocessing import input_config
from tocom.errors import DataError, ModelError, RequestError, TrainingError
from tocom.training.config import TrainingConfig
from tocom.training.distillation import Distillation, TeacherAnswers
from tocom.training.image_files import ImageFiles
from tocom.training.image_order import order
from tocom.training.trainer import LOSSES, StepReport, draw_degrees, train

SMALL = {"groups": 4, "steps": 4, "batch_size": 4}


def _distance(a: Compensator, b: Compensator) -> float:
    pairs = zip(a.state_dict().values(), b.state_dict().values(), strict=True)
    return max(float((one - other).abs().max()) for one, other in pairs)


def test_degrees_are_two_different_ones_drawn_uniformly() -> None:
    drawn = [draw_degrees(7, step, 4) for step in range(4000)]
    assert drawn == [draw_degrees(7, step, 4) for step in range(4000)]
    assert drawn != [draw_degrees(8, step, 4) for step in range(4000)]
    counts = {pair: drawn.count(pair) for pair in set(drawn)}
    assert set(counts) == {(m, n) for m in range(5) for n in range(5) if m != n}
    assert all(130 < count < 270 for count in counts.values())  # 200 expected, five standard deviations
    assert {source for source, _ in (draw_degrees(0, step, 4, 2) for step in range(50))} == {2}


def test_every_image_is_seen_once_before_any_is_seen_again() -> None:
    batches = list(order(10, batch_size=4, steps=5, flip=True, seed=3))
    numbers = [number for batch in batches for number, _ in batch]
    assert sorted(numbers[:10]) == sorted(numbers[10:]) == list(range(10))
    assert numbers[:10] != numbers[10:]
    assert {mirrored for batch in batches for _, mirrored in batch} == {True, False}
    assert not any(mirrored for batch in order(10, batch_size=4, steps=5, flip=False, seed=3) for _, mirrored in batch)


def test_one_step_is_adamw_on_the_distillation_loss(model: VisionTransformer, images: list[Tensor]) -> None:
    """The loop's first steps, against the same steps written out plainly."""
    config = TrainingConfig(groups=4, steps=3, batch_size=2, flip=False, learning_rate=1e-2)
    reports: list[StepReport] = []
    found = train(model, images, config, progress=reports.append)

    torch.manual_seed(0)
    plain = Compensator.for_model(model, groups=4).train()
    optimizer = torch.optim.AdamW(plain.parameters(), lr=1e-2, weight_decay=0.05)
    for step, keys in enumerate(order(len(images), batch_size=2, steps=3, flip=False, seed=0)):
        source, target = draw_degrees(0, step, 4)
        batch = torch.stack([images[number] for number, _ in keys])
        optimizer.param_groups[0]["lr"] = 1e-5 + (1e-2 - 1e-5) * (1 + _cos(step / 3)) / 2
        with torch.no_grad():
            teacher = compress(model, source)(batch).softmax(-1)
        student = compress(model, target, compensator=plain, source_degree=source, merged=False)(batch).log_softmax(-1)
        loss = (teacher * (teacher.log() - student)).sum(-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert reports[step].loss == pytest.approx(loss.item(), abs=1e-6)
        assert (reports[step].source, reports[step].target) == (source, target)
        assert reports[step].learning_rate == pytest.approx(optimizer.param_groups[0]["lr"])
    assert _distance(found, plain) < 5e-5  # a two-hundredth of one learning rate


def _cos(share: float) -> float:
    return float(torch.tensor(share * torch.pi).cos())


@pytest.mark.parametrize("method", ["merge", "prune"])
def test_training_lowers_the_loss(model: VisionTransformer, images: list[Tensor], method: str) -> None:
    config = TrainingConfig(
        groups=8, method=method, source_degree=0, steps=60, batch_size=11, flip=False, learning_rate=1e-2, scale=1.0
    )
    compensator = train(model, images, config)
    batch = torch.stack(images)
    with torch.inference_mode():
        dense = model(batch)
        plain = LOSSES["kl"](compress(model, 8, method=method)(batch), dense).mean()
        with_it = LOSSES["kl"](compress(model, 8, method=method, compensator=compensator)(batch), dense).mean()
    assert with_it < 0.9 * plain


@pytest.mark.parametrize(
    ("options", "atol"),
    [
        ({"accumulation": 2}, 1e-5),
        ({"accumulation": 4}, 1e-5),
        ({"activation_checkpointing": True}, 0),
        ({"activation_checkpointing": True, "hidden": 0.5}, 0),
        ({"accumulation": 2, "hidden": 0.5, "relative": True}, 1e-5),
        ({"accumulation": 2, "activation_checkpointing": True, "method": "prune"}, 1e-5),
        # Eight bits of mantissa in products; AdamW makes of a sign that turns one learning rate.
        ({"precision": "bf16"}, 8e-3),
        ({"precision": "fp16"}, 8e-3),
    ],
    ids=str,
)
def test_how_a_batch_is_computed_does_not_change_the_result(
    model: VisionTransformer, images: list[Tensor], options: dict[str, object], atol: float
) -> None:
    base = {**SMALL, **{name: options[name] for name in ("method", "hidden", "relative") if name in options}}
    plain = train(model, images, TrainingConfig(**base))  # type: ignore[arg-type]
    other = train(model, images, TrainingConfig(**{**base, **options}))  # type: ignore[arg-type]
    assert _distance(plain, other) <= atol
    assert _distance(plain, train(model, images, TrainingConfig(**{**base, "seed": 1}))) > 1e-2  # type: ignore[arg-type]


def test_a_relative_loss_is_the_mean_logarithm_of_the_images_losses(
    model: VisionTransformer, images: list[Tensor]
) -> None:
    batch = torch.stack(images)
    compensator = Compensator.for_model(model, groups=8).eval()
    with torch.inference_mode():
        means = [
            Distillation(model, compensator, loss="kl", hidden=0.0, precision="fp32", relative=relative)(batch, 0, 8)
            for relative in (False, True)
        ]
        teacher, student = (compress(model, degree)(batch).double().softmax(-1).numpy() for degree in (0, 8))
    losses = (teacher * (np.log(teacher) - np.log(student))).sum(-1)
    assert float(means[0]) == pytest.approx(losses.mean(), rel=1e-4)
    assert float(means[1]) == pytest.approx(np.log(losses + 1e-5).mean(), abs=1e-3)


def test_the_choice_of_tokens_stays_in_float32_under_autocast(
    model: VisionTransformer, images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from tocom.compression import merging

    seen: list[torch.dtype] = []
    match = merging.match_tokens
    monkeypatch.setattr(
        merging, "match_tokens", lambda metric, *rest: (seen.append(metric.dtype), match(metric, *rest))[1]
    )
    train(model, images, TrainingConfig(**SMALL, precision="bf16"))  # type: ignore[arg-type]
    assert seen
    assert set(seen) == {torch.float32}


def test_the_model_is_left_as_it_was(images: list[Tensor]) -> None:
    model = small_vit().train()
    model.blocks[0].requires_grad_(False)
    before = {name: (tensor.clone(), tensor.requires_grad) for name, tensor in model.named_parameters()}
    train(model, images, TrainingConfig(**SMALL, activation_checkpointing=True))  # type: ignore[arg-type]
    assert model.training
    assert not model.grad_checkpointing
    for name, tensor in model.named_parameters():
        assert torch.equal(tensor, before[name][0])
        assert tensor.requires_grad == before[name][1]
        assert tensor.grad is None


def test_reports_tell_rate_and_time_left(model: VisionTransformer, images: list[Tensor]) -> None:
    reports: list[StepReport] = []
    train(model, images, TrainingConfig(**SMALL), progress=reports.append)  # type: ignore[arg-type]
    assert [report.step for report in reports] == [1, 2, 3, 4]
    for report in reports:
        assert report.images_per_second == pytest.approx(4 * report.step / report.seconds)
        assert report.seconds_left == pytest.approx(report.seconds / report.step * (4 - report.step))
        assert report.gradient_norm > 0


def test_scalars_reach_tensorboard(model: VisionTransformer, images: list[Tensor], tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    reports: list[StepReport] = []
    config = TrainingConfig(**SMALL)  # type: ignore[arg-type]
    train(model, images, config, scalars=tmp_path, progress=reports.append)
    events = event_accumulator.EventAccumulator(str(tmp_path))
    events.Reload()
    assert {"loss", "learning_rate", "gradient_norm", "images_per_second"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("loss")] == [1, 2, 3, 4]
    assert [event.value for event in events.Scalars("loss")] == pytest.approx([report.loss for report in reports])


# Bad input.


@pytest.fixture
def folder(tmp_path: Path) -> Callable[[int], Path]:
    def make(count: int) -> Path:
        generator = torch.Generator().manual_seed(0)
        for index in range(count):
            pixels = torch.randint(256, (80, 80, 3), generator=generator, dtype=torch.uint8)
            Image.fromarray(pixels.numpy()).save(tmp_path / f"{index}.png")
        return tmp_path

    return make


def test_an_empty_folder_and_a_single_image_are_refused(
    model: VisionTransformer, folder: Callable[[int], Path]
) -> None:
    with pytest.raises(DataError, match="holds no image"):
        ImageFiles(folder(0), input_config(model))
    with pytest.raises(DataError, match=r"at least 2 images\. Got 1"):
        train(model, ImageFiles(folder(1), input_config(model)), TrainingConfig(**SMALL))  # type: ignore[arg-type]


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.fault("images that cannot be read while training", outcome="they are passed over and counted")
def test_corrupt_images_are_passed_over_and_counted(
    model: VisionTransformer, folder: Callable[[int], Path], workers: int
) -> None:
    path = folder(6)
    (path / "2.png").write_bytes((path / "2.png").read_bytes()[:300])
    (path / "3.png").write_bytes(b"no image")
    files = ImageFiles(path, input_config(model))
    reports: list[StepReport] = []
    config = TrainingConfig(groups=4, steps=6, batch_size=4)
    compensator = train(model, files, config, workers=workers, progress=reports.append)
    assert reports[-1].unreadable == 2
    assert compensator.metadata["unreadable_images"] == "2"
    # In their place stands the next readable image: the same run as on a dataset where it stands there twice.
    readable = [files[number if number not in (2, 3) else 4] for number in range(6)]
    assert _distance(compensator, train(model, readable, config)) == 0
    with pytest.raises(DataError, match=r"Cannot read the image .*[23]\.png"):
        train(model, files, config, skip_unreadable=False)
    for file in path.iterdir():
        file.write_bytes(b"")
    with pytest.raises(DataError, match="None of the 6 images can be read"):
        train(model, files, config)


@pytest.mark.fault("a loss that is not finite", outcome="TrainingError; the last good checkpoint stays")
def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(
    model: VisionTransformer, images: list[Tensor], tmp_path: Path
) -> None:
    config = TrainingConfig(groups=4, steps=8, batch_size=2, flip=False)
    batches = list(order(len(images), batch_size=2, steps=8, flip=False, seed=0))
    spoiled = list(images)
    spoiled[batches[3][0][0]] = torch.full_like(images[0], float("nan"))
    path = tmp_path / "run.ckpt"
    with pytest.raises(TrainingError, match=r"The loss is nan at step 3 .*run\.ckpt is of an earlier step and good"):
        train(model, spoiled, config, checkpoint=path, checkpoint_every=1)
    # The images mended, the run goes on from step 3 and ends where one without the accident ends.
    seen: list[int] = []
    mended = train(model, images, config, checkpoint=path, resume=True, progress=lambda done: seen.append(done.step))
    assert seen == [4, 5, 6, 7, 8]
    assert _distance(mended, train(model, images, config)) == 0


def test_a_gradient_that_is_not_finite_stops_before_it_is_used(
    model: VisionTransformer, images: list[Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    # sqrt's slope at zero is infinite while the value is not.
    monkeypatch.setitem(LOSSES, "mse", lambda student, teacher: (student - student.detach()).square().sum().sqrt())
    with pytest.raises(TrainingError, match="The gradient is nan at step 0"):
        train(model, images, TrainingConfig(**SMALL, loss="mse"))  # type: ignore[arg-type]


def test_a_model_with_nothing_to_remove_is_refused() -> None:
    model = small_vit(side=16)  # one patch
    with pytest.raises(TrainingError, match="no degree has anything to remove"):
        train(model, list(small_images(model, 3)), TrainingConfig(**SMALL))  # type: ignore[arg-type]
    model = small_vit()
    with pytest.raises(RequestError, match=r"'groups' parameter must be at most 12.*Got 13"):
        train(model, list(small_images(model, 3)), TrainingConfig(groups=13))


def test_a_model_that_is_compressed_already_is_refused(model: VisionTransformer, images: list[Tensor]) -> None:
    with pytest.raises(ModelError, match="compressed already"):
        train(compress(model, 2), images, TrainingConfig(**SMALL))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"groups": 0}, "'groups' parameter must be a positive integer"),
        ({"rank": True}, "'rank' parameter must be a positive integer"),
        ({"steps": 1.5}, "'steps' parameter must be a positive integer"),
        ({"accumulation": 3}, "'accumulation' parameter must divide the batch of 8"),
        ({"learning_rate": 0.0}, "'learning_rate' parameter must be a positive number"),
        ({"scale": float("nan")}, "'scale' parameter must be a positive number"),
        ({"hidden": -1.0}, "'hidden' parameter must be zero or a positive number"),
        ({"weight_decay": -0.1}, "'weight_decay' parameter must be zero or a positive number"),
        ({"final_learning_rate": float("inf")}, "'final_learning_rate' parameter"),
        ({"precision": "int8"}, "'precision' parameter must be one of fp32, bf16, fp16"),
        ({"loss": "l1"}, "'loss' parameter must be one of auto, kl, cosine, mse"),
        ({"source_degree": 17}, "'source_degree' parameter must be None or from 0 to 16"),
        ({"seed": -1}, "'seed' parameter must be from 0"),
    ],
)
def test_configurations_check_themselves(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        TrainingConfig(**options)  # type: ignore[arg-type]


def test_losses_need_what_they_compare(images: list[Tensor]) -> None:
    model = small_vit(num_classes=0)
    with pytest.raises(RequestError, match="cannot be 'kl': the model has no classifier"):
        train(model, images, TrainingConfig(**SMALL, loss="kl"))  # type: ignore[arg-type]
    assert train(model, images, TrainingConfig(**SMALL)).metadata["loss"] == "cosine"  # type: ignore[arg-type]


def test_known_answers_take_the_teachers_place(images: list[Tensor], model: VisionTransformer) -> None:
    config = TrainingConfig(**SMALL, source_degree=0, flip=False)  # type: ignore[arg-type]
    with torch.inference_mode():
        answers = TeacherAnswers(torch.stack([model(image[None])[0] for image in images]).clone())
    assert _distance(train(model, images, config), train(model, images, config, teacher=answers)) < 1e-5
    with pytest.raises(RequestError, match="one answer per image"):
        train(model, images, config, teacher=TeacherAnswers(answers.outputs[:3]))
    with pytest.raises(RequestError, match="needs a fixed 'source_degree' and flip=False"):
        train(model, images, TrainingConfig(**SMALL), teacher=answers)  # type: ignore[arg-type]


def test_hidden_compares_the_class_tokens_behind_every_later_norm(
    model: VisionTransformer, images: list[Tensor]
) -> None:
    def class_tokens(degree: int) -> list[Tensor]:
        """Return what each later block's first norm makes of the class token."""
        compressed, found = compress(model, degree), []
        hooks = [
            compressed.blocks[index].norm1.register_forward_hook(lambda _, __, tokens: found.append(tokens[:, 0]))
            for index in range(1, len(model.blocks))
        ]
        compressed(batch)
        for hook in hooks:
            hook.remove()
        return found

    batch = torch.stack(images)
    compensator = Compensator.for_model(model, groups=4)  # untrained: it changes nothing
    plain, both = (Distillation(model, compensator, loss="kl", hidden=hidden, precision="fp32") for hidden in (0, 0.5))
    with torch.no_grad():
        expected = torch.stack(
            [1 - torch.cosine_similarity(a, b, dim=-1).mean() for a, b in zip(*map(class_tokens, (1, 4)), strict=True)]
        ).mean()
        assert expected > 1e-4
        torch.testing.assert_close(both(batch, 1, 4) - plain(batch, 1, 4), 0.5 * expected)
    assert not any(module._forward_hooks for module in model.modules())
    pooled = small_vit(class_token=False, global_pool="avg")
    with pytest.raises(RequestError, match="the model has none"):
        train(pooled, images, TrainingConfig(**SMALL, hidden=1.0))  # type: ignore[arg-type]
