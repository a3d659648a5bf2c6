"""Train a compensator by self-distillation: no labels, and one frozen backbone that is teacher and student at once.

Source: ToCom, arXiv 2408.06798, section 3.3. Each step draws two degrees m and n; the teacher is the backbone at m, the
student the backbone at n with ``ToCom(m → n)``.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import Dataset

from tocom import __version__
from tocom.compensator import Compensator
from tocom.compression import check_supported, input_tokens
from tocom.distillation import LOSSES, PRECISIONS, draw_degrees, loss_for
from tocom.distributed import Processes
from tocom.errors import DataError, RequestError, TrainingError
from tocom.tokens import check_method, removable
from tocom.training_report import StepReport
from tocom.training_run import Places, Run

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
        hidden: Weight of a second loss, on the way there: one minus cosine between the class tokens of teacher and
            student behind the first norm of each block, averaged over the blocks from the second on. Hidden states as
            further targets of distillation are FitNets' (arXiv 1412.6550), not ToCom's; a short run closes more of the
            gap with them. 0 computes nothing; needs a class token.
        relative: Minimise the mean *logarithm* of the images' losses (and of ``hidden``'s), not their mean. Every image
            then counts by the share of its own gap that is closed, where the mean is that of the few images with the
            largest gaps: for mixes of kinds of images, whose gaps may differ by a factor of 100. Not ToCom's.
        steps: Optimizer steps.
        batch_size: Images per step, over all processes.
        accumulation: Parts that a process computes its images in, one after the other: memory of one part, the same
            result up to rounding.
        precision: ``fp32``, or ``bf16`` or ``fp16`` by autocast; the compensator and the choice of tokens stay in
            float32. ``fp16`` scales the loss.
        activation_checkpointing: Keep no activation inside the student's blocks and compute them anew in the backward
            pass: a twelfth of the memory between the passes for 1.26 times the step's time (DeiT-S on a CPU,
            ``benchmarks/training_step.py``).
        learning_rate: Highest learning rate of AdamW. The paper has 1e-3 per 512 images.
        final_learning_rate: Where the cosine ends.
        weight_decay: Of AdamW.
        scale: Factor of the deltas while training.
        source_degree: None draws both degrees of a step (the paper's way). A number keeps the source there: for models
            fine-tuned at one known degree, the same number of steps then closes more of the gap.
        far_targets: Of two drawn targets take the one farther from the source. Far targets have the larger gap: a short
            run closes more of it this way.
        flip: Mirror half of the images, from left to right.
        seed: Of weights, images, degrees and dropout.
    """

    groups: int = 16
    rank: int = 2
    method: str = "merge"
    loss: str = "auto"
    hidden: float = 0.0
    relative: bool = False
    steps: int = 1000
    batch_size: int = 8
    accumulation: int = 1
    precision: str = "fp32"
    activation_checkpointing: bool = False
    learning_rate: float = 1e-3
    final_learning_rate: float = 1e-5
    weight_decay: float = 0.05
    scale: float = 0.1
    source_degree: int | None = None
    far_targets: bool = False
    flip: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        check_method(self.method)
        for name in ("groups", "rank", "steps", "batch_size", "accumulation"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise RequestError(f"The {name!r} parameter must be a positive integer. Got {value!r} instead.")
        for name, least in (
            ("learning_rate", None),
            ("scale", None),
            ("final_learning_rate", 0),
            ("weight_decay", 0),
            ("hidden", 0),
        ):
            value = getattr(self, name)
            if not (math.isfinite(value) and (value > 0 or value == least)):
                wanted = "a positive number" if least is None else "zero or a positive number"
                raise RequestError(f"The {name!r} parameter must be {wanted}. Got {value!r} instead.")
        if self.batch_size % self.accumulation:
            raise RequestError(
                f"The 'accumulation' parameter must divide the batch of {self.batch_size} images. "
                f"Got {self.accumulation!r} instead."
            )
        if not 0 <= self.seed < 2**31:
            raise RequestError(f"The 'seed' parameter must be from 0 to {2**31 - 1}. Got {self.seed!r} instead.")
        if self.source_degree is not None and not 0 <= self.source_degree <= self.groups:
            raise RequestError(
                f"The 'source_degree' parameter must be None or from 0 to {self.groups}, the groups. "
                f"Got {self.source_degree!r} instead."
            )
        for name, known in (("loss", ("auto", *LOSSES)), ("precision", tuple(PRECISIONS))):
            if getattr(self, name) not in known:
                raise RequestError(
                    f"The {name!r} parameter must be one of {', '.join(known)}. Got {getattr(self, name)!r}."
                )


def train(
    model: VisionTransformer,
    images: Dataset[Tensor],
    config: TrainingConfig | None = None,
    *,
    teacher: Tensor | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    skip_unreadable: bool = True,
    workers: int = 0,
    scalars: Path | str | None = None,
    progress: Callable[[StepReport], None] | None = None,
) -> Compensator:
    """Train a compensator for a backbone on unlabelled images.

    Where torch.distributed is initialised (see :func:`tocom.distributed.joined`), its processes share every batch, and
    each returns the same compensator; checkpoints and scalars are the first process's, and a resumed run needs the
    checkpoint within reach of all.

    Args:
        model: Dense, supported; its parameters are frozen and shared by teacher and student, and left as they are.
        images: Images [channels, height, width], float32, normalised; at least two.
        config: How; the defaults are the paper's, sized for a small machine.
        teacher: What the teacher answers to each image, [count, channels], where that is known: with a fixed source
            degree, without flips and without ``hidden``. Saves the teacher's forward pass.
        checkpoint: File to keep the state of the run in; replaced as a whole.
        checkpoint_every: Steps between two of them; there is always one at the end.
        resume: Go on from ``checkpoint`` when it is there, as if the run had never stopped; on a CPU to the last bit.
        skip_unreadable: Train on the next readable image in place of one that cannot be read, and count those;
            otherwise the first of them is an error.
        workers: Processes that read images; 0 reads between steps. They are started anew, not forked: the dataset must
            pickle, and a script that trains needs ``if __name__ == "__main__":``. A dataset that augments at random is
            resumed exactly with 0 alone.
        scalars: Folder for TensorBoard's event files (needs the extra ``tensorboard``).
        progress: Called after every step, in the first process.

    Returns:
        The compensator, in evaluation mode, with how it was trained in its metadata.

    Raises:
        ModelError: The model is not supported.
        DataError: Fewer than two images, none that can be read, one that cannot and is not to be skipped, or a dataset
            that cannot be sent to ``workers``.
        RequestError: More groups than the model can remove tokens, a loss that the model has no output for, or
            arguments that do not go together.
        OutputError: A checkpoint cannot be written.
        TrainingError: The loss or its gradient is not finite, the model has no token to remove, or the checkpoint is
            not of this run.
    """
    config = config or TrainingConfig()
    check_supported(model)
    loss = loss_for(model, config.loss)
    _check_groups(model, config)
    count = len(images)  # type: ignore[arg-type]  # map-style datasets have a length
    if count < 2:
        raise DataError(f"Training needs at least 2 images. Got {count}.")
    if teacher is not None and (config.source_degree is None or config.flip or config.hidden or len(teacher) != count):
        raise RequestError(
            "The 'teacher' parameter must hold one answer per image, and needs a fixed 'source_degree', flip=False and "
            f"hidden=0. Got {len(teacher)} answers for {count} images, source_degree={config.source_degree}, "
            f"flip={config.flip}, hidden={config.hidden}."
        )
    if config.hidden and not model.has_class_token:
        raise RequestError(
            "The 'hidden' parameter compares class tokens, and the model has none. "
            f"Got {config.hidden!r}; leave it at 0."
        )
    processes = Processes.current()
    if config.batch_size % (processes.count * config.accumulation):
        raise RequestError(
            f"The 'batch_size' parameter must be a multiple of {processes.count * config.accumulation} for "
            f"{processes.count} processes and accumulation {config.accumulation}. Got {config.batch_size} instead."
        )
    places = Places(
        checkpoint=Path(checkpoint) if checkpoint is not None else None,
        checkpoint_every=checkpoint_every,
        resume=resume,
        scalars=Path(scalars) if scalars is not None else None,
    )

    torch.manual_seed(config.seed)
    compensator = Compensator.for_model(
        model, groups=config.groups, rank=config.rank, scale=config.scale, method=config.method
    )
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    compensator.to(next(model.parameters()).device).train()
    was_training, was_checkpointing = model.training, model.grad_checkpointing
    run = Run(model, compensator, images, config, loss=loss, teacher=teacher, places=places, processes=processes)
    try:
        # Frozen for the time of training: no gradient is kept for what does not learn.
        for parameter in learning:
            parameter.requires_grad_(False)
        model.eval()
        model.grad_checkpointing = config.activation_checkpointing
        run.go(skip_unreadable=skip_unreadable, workers=workers, progress=progress)
    finally:
        for parameter in learning:
            parameter.requires_grad_(True)
        model.train(was_training)
        model.grad_checkpointing = was_checkpointing
    compensator.metadata |= {
        "training": ", ".join(f"{name}={value}" for name, value in asdict(config).items()),
        "loss": loss,
        "images": str(count),
        "unreadable_images": str(len(run.unreadable)),
        "trained_by": f"tocom {__version__}",
    }
    return compensator.eval()


def _check_groups(model: VisionTransformer, config: TrainingConfig) -> None:
    tokens = input_tokens(model)
    cap = removable(tokens, model.num_prefix_tokens)
    if cap == 0:
        raise TrainingError(
            f"The model has {tokens} tokens, {model.num_prefix_tokens} of them protected: no degree has anything to "
            "remove. Use larger images or smaller patches."
        )
    if config.groups > cap:
        raise RequestError(
            f"The 'groups' parameter must be at most {cap}, what one block can remove. Got {config.groups}."
        )
