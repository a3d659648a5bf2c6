"""Train a compensator by self-distillation: no labels, and one frozen backbone that is teacher and student at once.

Source: ToCom, arXiv 2408.06798, section 3.3. Each step draws two degrees m and n; the teacher is the backbone at m, the
student the backbone at n with ``ToCom(m → n)``.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, RandomSampler

from tocom import __version__
from tocom.compensator import Compensator
from tocom.compression import check_supported, compress, input_tokens
from tocom.errors import DataError, RequestError, TrainingError
from tocom.tokens import check_method, removable

__all__ = ["LOSSES", "StepReport", "TrainingConfig", "draw_degrees", "train"]


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        groups: Degree steps; degrees 0 … ``groups`` will be within reach.
        rank: Rank of each group. The paper has 2.
        method: ``merge`` or ``prune``.
        loss: ``kl`` on logits (the paper's), or ``cosine`` (one minus cosine) or ``mse`` on the pooled feature, for
            backbones without a classifier. ``auto``: ``kl`` when the model has a classifier, else ``cosine``.
        steps: Optimizer steps.
        batch_size: Images per step.
        learning_rate: Highest learning rate of AdamW. The paper has 1e-3 per 512 images.
        final_learning_rate: Where the cosine ends.
        weight_decay: Of AdamW.
        scale: Factor of the deltas while training.
        source_degree: None draws both degrees of a step (the paper's way). A number keeps the source there: for models
            fine-tuned at one known degree, the same number of steps then closes more of the gap.
        flip: Mirror half of the images, from left to right.
        seed: Of weights, images and degrees.
    """

    groups: int = 16
    rank: int = 2
    method: str = "merge"
    loss: str = "auto"
    steps: int = 1000
    batch_size: int = 8
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    weight_decay: float = 0.05
    scale: float = 0.1
    source_degree: int | None = None
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_method(self.method)
        for name in ("groups", "rank", "steps", "batch_size"):
            value = getattr(self, name)
            if not isinstance(value, int) or value < 1:
                raise RequestError(f"The {name!r} parameter must be a positive integer. Got {value!r} instead.")
        for name in ("learning_rate", "scale"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise RequestError(f"The {name!r} parameter must be a positive number. Got {value!r} instead.")
        if self.source_degree is not None and not 0 <= self.source_degree <= self.groups:
            raise RequestError(
                f"The 'source_degree' parameter must be None or from 0 to {self.groups}, the groups. "
                f"Got {self.source_degree!r} instead."
            )
        if self.loss not in ("auto", *LOSSES):
            raise RequestError(f"The 'loss' parameter must be one of auto, {', '.join(LOSSES)}. Got {self.loss!r}.")


@dataclass(frozen=True)
class StepReport:
    """What one step did.

    Attributes:
        step: Steps done.
        steps: Steps in all.
        source: The teacher's degree.
        target: The student's degree.
        loss: Of this step.
        seconds: Since training began.
    """

    step: int
    steps: int
    source: int
    target: int
    loss: float
    seconds: float


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) at temperature 1, in float32."""
    return F.kl_div(
        student.float().log_softmax(-1), teacher.float().log_softmax(-1), reduction="batchmean", log_target=True
    )


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return (1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)).mean()


def _mse(student: Tensor, teacher: Tensor) -> Tensor:
    return F.mse_loss(student.float(), teacher.float())


LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": _kl, "cosine": _cosine, "mse": _mse}


def train(
    model: VisionTransformer,
    images: Dataset[Tensor],
    config: TrainingConfig | None = None,
    *,
    teacher: Tensor | None = None,
    progress: Callable[[StepReport], None] | None = None,
) -> Compensator:
    """Train a compensator for a backbone on unlabelled images.

    Args:
        model: Dense, supported; its parameters are frozen and shared by teacher and student, and left as they are.
        images: Images [channels, height, width], float32, normalised; at least two.
        config: How; the defaults are the paper's, sized for a small machine.
        teacher: What the teacher answers to each image, [count, channels], where that is known: with a fixed source
            degree and without flips. Saves the teacher's forward pass.
        progress: Called after every step.

    Returns:
        The compensator, in evaluation mode, with how it was trained in its metadata.

    Raises:
        ModelError: The model is not supported.
        DataError: Fewer than two images.
        RequestError: More groups than the model can remove tokens, or a loss that the model has no output for.
        TrainingError: The loss is not finite.
    """
    config = config or TrainingConfig()
    check_supported(model)
    has_classifier = not isinstance(model.head, nn.Identity)
    loss_name = config.loss if config.loss != "auto" else ("kl" if has_classifier else "cosine")
    if loss_name == "kl" and not has_classifier:
        raise RequestError("The 'loss' parameter cannot be 'kl': the model has no classifier. Use 'cosine' or 'mse'.")
    cap = removable(input_tokens(model), model.num_prefix_tokens)
    if config.groups > cap:
        raise RequestError(
            f"The 'groups' parameter must be at most {cap}, what one block can remove. Got {config.groups}."
        )
    count = len(images)  # type: ignore[arg-type]  # map-style datasets have a length
    if count < 2:
        raise DataError(f"Training needs at least 2 images. Got {count}.")

    if teacher is not None and (config.source_degree is None or config.flip or len(teacher) != count):
        raise RequestError(
            "The 'teacher' parameter must hold one answer per image, and needs a fixed 'source_degree' and flip=False. "
            f"Got {len(teacher)} answers for {count} images, source_degree={config.source_degree}, flip={config.flip}."
        )

    torch.manual_seed(config.seed)
    compensator = Compensator.for_model(
        model, groups=config.groups, rank=config.rank, scale=config.scale, method=config.method
    )
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    compensator.to(next(model.parameters()).device).train()
    was_training = model.training
    try:
        # Frozen for the time of training: no gradient is kept for what does not learn.
        for parameter in parameters:
            parameter.requires_grad_(False)
        model.eval()
        _run(model, compensator, _Numbered(images), config, LOSSES[loss_name], loss_name == "kl", teacher, progress)
    finally:
        for parameter in parameters:
            parameter.requires_grad_(True)
        model.train(was_training)
    compensator.metadata |= {
        "training": ", ".join(f"{name}={value}" for name, value in asdict(config).items()),
        "loss": loss_name,
        "images": str(count),
        "trained_by": f"tocom {__version__}",
    }
    return compensator.eval()


def draw_degrees(seed: int, step: int, groups: int, source: int | None = None) -> tuple[int, int]:
    """Return the source and target degree of a step: two different ones, uniform in 0 … ``groups``.

    A function of its arguments alone, so that every process and every resumed run draws the same.

    Args:
        seed: Of the run.
        step: Number of the step.
        groups: Highest degree.
        source: Keeps the source degree; None draws it.
    """
    generator = torch.Generator().manual_seed((seed << 32) + step)
    drawn = int(torch.randint(groups + 1, (1,), generator=generator))
    source = drawn if source is None else source
    target = int(torch.randint(groups, (1,), generator=generator))
    return source, target + (target >= source)


class _Numbered(Dataset[tuple[int, Tensor]]):
    """Images with their place, so that what is known of an image is found again."""

    def __init__(self, images: Dataset[Tensor]) -> None:
        self._images = images

    def __len__(self) -> int:
        return len(self._images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[int, Tensor]:
        return index, self._images[index]


def _run(
    model: VisionTransformer,
    compensator: Compensator,
    images: _Numbered,
    config: TrainingConfig,
    loss_function: Callable[[Tensor, Tensor], Tensor],
    logits: bool,
    teacher_outputs: Tensor | None,
    progress: Callable[[StepReport], None] | None,
) -> None:
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(config.seed)
    sampler = RandomSampler(images, num_samples=config.steps * config.batch_size, generator=generator)
    batches = DataLoader(images, batch_size=config.batch_size, sampler=sampler)
    optimizer = torch.optim.AdamW(compensator.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps, config.final_learning_rate)
    start = time.perf_counter()
    for step, (numbers, batch) in enumerate(batches):
        batch = batch.to(device)
        if config.flip:
            mirrored = torch.rand(len(batch), generator=generator) < 0.5
            batch = torch.where(mirrored.to(device)[:, None, None, None], batch.flip(-1), batch)
        source, target = draw_degrees(config.seed, step, config.groups, config.source_degree)
        student = compress(
            model, target, method=config.method, compensator=compensator, source_degree=source, merged=False
        )
        if teacher_outputs is not None:
            expected = teacher_outputs[numbers].to(device)
        else:
            with torch.no_grad():
                expected = _output(compress(model, source, method=config.method), batch, logits)
        loss = loss_function(_output(student, batch, logits), expected)
        if not torch.isfinite(loss):
            raise TrainingError(
                f"The loss is {loss.item()} at step {step} (degrees {source} to {target}). Lower the learning rate "
                f"(now {config.learning_rate}), or look for images that are not finite."
            )
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(StepReport(step + 1, config.steps, source, target, loss.item(), time.perf_counter() - start))


def _output(model: VisionTransformer, images: Tensor, logits: bool) -> Tensor:
    return model(images) if logits else model.forward_head(model.forward_features(images), pre_logits=True)
