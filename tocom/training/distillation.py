"""What one training step computes: a teacher and a student that share one frozen backbone, and the loss between them.

Source: ToCom, arXiv 2408.06798, section 3.3.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from tocom.compensator.compensator import Compensator
from tocom.compression.features import patch_features, pooled
from tocom.compression.surgery import compress
from tocom.errors import RequestError
from tocom.system.progress import Progress, silent

__all__ = ["LOSSES", "PRECISIONS", "Distillation", "TeacherAnswers", "dense_answers", "draw_degrees", "loss_for"]

# What the logarithm of a loss is taken above: an image that merging leaves (almost) as it is has nothing to teach.
_LEAST_LOSS = 1e-5
PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def _kl(student: Tensor, teacher: Tensor) -> Tensor:
    """KL(teacher ‖ student) at temperature 1, in float32."""
    return F.kl_div(
        student.float().log_softmax(-1), teacher.float().log_softmax(-1), reduction="none", log_target=True
    ).sum(-1)


def _cosine(student: Tensor, teacher: Tensor) -> Tensor:
    return 1 - F.cosine_similarity(student.float(), teacher.float(), dim=-1)


def _mse(student: Tensor, teacher: Tensor) -> Tensor:
    return (student.float() - teacher.float()).square().mean(-1)


def _patch(student: Tensor, teacher: Tensor) -> Tensor:
    return _cosine(student, teacher).mean(-1)


def _relative(losses: Tensor) -> Tensor:
    return (losses + _LEAST_LOSS).log()


# Of student and teacher outputs [batch, channels], of ``patch`` [batch, patches, channels]: the loss of each image,
# [batch].
LOSSES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {"kl": _kl, "cosine": _cosine, "mse": _mse, "patch": _patch}


def loss_for(model: VisionTransformer, loss: str, method: str = "merge") -> str:
    """Return the loss that a request comes to for a model: ``auto`` is ``kl`` with a classifier, else ``cosine``.

    Raises:
        RequestError: ``kl`` for a model without a classifier, ``patch`` for pruning.
    """
    if loss == "patch" and method == "prune":
        raise RequestError(
            "The 'loss' parameter cannot be 'patch' with method 'prune': nothing stands for the patches that are gone. "
            "Train with method 'merge'."
        )
    has_classifier = not isinstance(model.head, nn.Identity)
    if loss == "kl" and not has_classifier:
        raise RequestError("The 'loss' parameter cannot be 'kl': the model has no classifier. Use 'cosine' or 'mse'.")
    return loss if loss != "auto" else ("kl" if has_classifier else "cosine")


def draw_degrees(seed: int, step: int, groups: int, source: int | None = None, *, far: bool = False) -> tuple[int, int]:
    """Return the source and target degree of a step: two different ones, uniform in 0 … ``groups``.

    A function of its arguments alone, so that every process and every resumed run draws the same.

    Args:
        seed: Seed of the run.
        step: Number of the step.
        groups: Highest degree.
        source: Keeps the source degree; None draws it.
        far: Draw two targets and keep the one farther from the source.
    """
    # The CPU's generator takes 32 bits of a seed: an odd factor spreads the runs' seeds over them.
    generator = torch.Generator().manual_seed((seed * 0x9E3779B1 + step) & 0xFFFFFFFF)
    drawn = int(torch.randint(groups + 1, (1,), generator=generator))
    source = drawn if source is None else source
    targets = torch.randint(groups, (1 + far,), generator=generator).tolist()
    return source, max((target + (target >= source) for target in targets), key=lambda target: abs(target - source))


@dataclass(frozen=True)
class TeacherAnswers:
    """What a teacher gives for every image of a data set, worked out once.

    Attributes:
        outputs: What the loss compares, [images, channels].
        tokens: Class tokens behind the first norm of each block from the second on, [blocks - 1, images, channels];
            None where nothing compares them.
    """

    outputs: Tensor
    tokens: Tensor | None = None

    def of(self, numbers: Tensor, device: torch.device) -> TeacherAnswers:
        """Return the answers to the images of these indices, [batch]."""
        tokens = None if self.tokens is None else self.tokens[:, numbers].to(device)
        return TeacherAnswers(self.outputs[numbers].to(device), tokens)


@torch.no_grad()
def dense_answers(
    model: VisionTransformer,
    images: Dataset[Tensor],
    *,
    batch_size: int = 8,
    progress: Progress = silent,
) -> TeacherAnswers:
    """Return a model's pooled features, and its class tokens on the way there: a teacher of source degree 0.

    Args:
        model: In evaluation mode, with a class token.
        images: Images [channels, height, width].
        batch_size: Images at a time.
        progress: Called with what is done, the images done and all.

    Returns:
        The answers, float32, on the CPU.
    """
    device = next(model.parameters()).device
    outputs, tokens, done = [], [], 0
    for batch in DataLoader(images, batch_size):
        with _class_tokens(model, record=True) as seen:
            outputs.append(pooled(model, batch.to(device)).float().cpu())
        tokens.append(torch.stack(seen).float().cpu())
        done += len(batch)
        progress("the teacher's answers", done, len(images))  # type: ignore[arg-type]  # map-style datasets have one
    return TeacherAnswers(torch.cat(outputs), torch.cat(tokens, dim=1))


class Distillation(nn.Module):
    """Images to the loss between the backbone at two degrees.

    Its one child is the compensator. The backbone is not one: its weights are nobody's to synchronise or to save.

    Args:
        model: Frozen, in evaluation mode.
        compensator: What learns.
        loss: A key of ``LOSSES``.
        hidden: Weight of the loss between the class tokens on the way: :class:`tocom.training.config.TrainingConfig`.
        relative: Average the logarithms of the images' losses, not the losses.
        precision: ``fp32``, ``bf16`` or ``fp16``: what autocast computes products in.
    """

    def __init__(
        self,
        model: VisionTransformer,
        compensator: Compensator,
        *,
        loss: str,
        hidden: float,
        precision: str,
        relative: bool = False,
    ) -> None:
        super().__init__()
        self.compensator = compensator
        self._backbone = (model,)
        self._hidden, self._relative = hidden, relative
        self._name, self._loss = loss, LOSSES[loss]
        self._dtype = PRECISIONS[precision]

    def forward(self, images: Tensor, source: int, target: int, expected: TeacherAnswers | None = None) -> Tensor:
        """Return the loss of ``ToCom(source → target)``, a scalar, float32.

        Args:
            images: [batch, channels, height, width].
            source: The teacher's degree.
            target: The student's degree.
            expected: The teacher's answers where they are known.
        """
        model, method = self._backbone[0], self.compensator.method
        student = compress(
            model, target, method=method, compensator=self.compensator, source_degree=source, merged=False
        )
        with (
            torch.autocast(images.device.type, self._dtype, enabled=self._dtype is not None),
            _class_tokens(model, record=self._hidden > 0) as tokens,
        ):
            if expected is None:
                with torch.no_grad():
                    output = self._output(
                        compress(model, source, method=method, family=self.compensator.family), images
                    )
                expected = TeacherAnswers(output, torch.stack(tokens) if tokens else None)
            tokens.clear()
            found = self._output(student, images)
        losses = [self._loss(found, expected.outputs)]
        known = expected.tokens if self._hidden > 0 else None
        if known is not None:
            losses.append(_cosine(torch.stack(tokens), known).mean(0))
        means = [(_relative(each) if self._relative else each).mean() for each in losses]
        return means[0] + self._hidden * means[1] if known is not None else means[0]

    def _output(self, model: VisionTransformer, images: Tensor) -> Tensor:
        if self._name == "kl":
            logits: Tensor = model(images)
            return logits
        return patch_features(model, images) if self._name == "patch" else pooled(model, images)


@contextlib.contextmanager
def _class_tokens(model: VisionTransformer, *, record: bool) -> Iterator[list[Tensor]]:
    """Yield a list that grows by a class token [batch, channels] for every block from the second on that runs.

    Teacher and student share the blocks' norms, so the same hooks see both.
    """
    tokens: list[Tensor] = []
    norms = [block.norm1 for index, block in model.blocks.named_children() if index != "0"] if record else []
    hooks = [norm.register_forward_hook(lambda _, __, output: tokens.append(output[:, 0])) for norm in norms]
    try:
        yield tokens
    finally:
        for hook in hooks:
            hook.remove()
