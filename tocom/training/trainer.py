"""Train a compensator by self-distillation: no labels, and one frozen backbone that is teacher and student at once.

Source: ToCom, arXiv 2408.06798, section 3.3. Each step draws two degrees m and n; the teacher is the backbone at m, the
student the backbone at n with ``ToCom(m → n)``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import Dataset

from tocom.compensator.compensator import Compensator
from tocom.compression.surgery import check_supported, input_tokens
from tocom.compression.tokens import largest_degree
from tocom.errors import DataError, RequestError, TrainingError
from tocom.training.config import TrainingConfig
from tocom.training.distillation import LOSSES, TeacherAnswers, draw_degrees, loss_for
from tocom.training.distributed import Processes
from tocom.training.reports import StepReport
from tocom.training.run import Run, RunFiles
from tocom.version import __version__

__all__ = ["LOSSES", "StepReport", "draw_degrees", "train"]


def train(
    model: VisionTransformer,
    images: Dataset[Tensor],
    config: TrainingConfig | None = None,
    *,
    teacher: TeacherAnswers | None = None,
    checkpoint: Path | str | None = None,
    checkpoint_every: int = 100,
    resume: bool = False,
    skip_unreadable: bool = True,
    workers: int = 0,
    scalars: Path | str | None = None,
    progress: Callable[[StepReport], None] | None = None,
) -> Compensator:
    """Train a compensator for a backbone on unlabelled images.

    Where torch.distributed is initialised (see :func:`tocom.training.distributed.joined`), its processes share every
    batch, and each returns the same compensator; checkpoints and scalars are the first process's, and a resumed run
    needs the checkpoint within reach of all.

    Args:
        model: Dense, supported; its parameters are frozen and shared by teacher and student, and left as they are.
        images: Images [channels, height, width], float32, normalised; at least two.
        config: How; the defaults are the paper's, sized for a small machine.
        teacher: What the teacher answers to each image, where that is known: with a fixed source degree and without
            flips; with ``hidden`` it holds the class tokens too. Saves the teacher's forward pass.
        checkpoint: File to keep the state of the run in; replaced as a whole.
        checkpoint_every: Steps between two of them; there is always one at the end.
        resume: Go on from ``checkpoint`` when it is there, as if the run had never stopped; on a CPU to the last bit.
        skip_unreadable: Train on the next readable image instead of one that cannot be read, and count those;
            otherwise the first of them is an error.
        workers: Processes that read images; 0 reads between steps. They are new processes, not forks: the dataset must
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
    loss = loss_for(model, config.loss, config.method)
    _check_groups(model, config)
    count = len(images)  # type: ignore[arg-type]  # map-style datasets have a length
    if count < 2:
        raise DataError(f"Training needs at least 2 images. Got {count}.")
    if teacher is not None and (
        config.source_degree is None
        or config.flip
        or (config.hidden and teacher.tokens is None)
        or len(teacher.outputs) != count
    ):
        raise RequestError(
            "The 'teacher' parameter must hold one answer per image, and needs a fixed 'source_degree' and flip=False; "
            f"with 'hidden' also 'tokens'. Got {len(teacher.outputs)} answers "
            f"{'with' if teacher.tokens is not None else 'without'} tokens for {count} images, "
            f"source_degree={config.source_degree}, flip={config.flip}, hidden={config.hidden}."
        )
    if config.hidden and model.cls_token is None:
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
    files = RunFiles(
        checkpoint=Path(checkpoint) if checkpoint is not None else None,
        checkpoint_every=checkpoint_every,
        resume=resume,
        scalars=Path(scalars) if scalars is not None else None,
    )

    torch.manual_seed(config.seed)
    compensator = Compensator.for_model(
        model,
        groups=config.groups,
        rank=config.rank,
        scale=config.scale,
        method=config.method,
        family=config.family,
    )
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    compensator.to(next(model.parameters()).device).train()
    was_training, was_checkpointing = model.training, model.grad_checkpointing
    run = Run(model, compensator, images, config, loss=loss, teacher=teacher, files=files, processes=processes)
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
    cap = largest_degree(tokens, len(model.blocks), model.num_prefix_tokens, config.family)
    if cap == 0:
        raise TrainingError(
            f"The model has {tokens} tokens, {model.num_prefix_tokens} of them protected: no degree has anything to "
            "remove. Use larger images or smaller patches."
        )
    if config.groups > cap:
        raise RequestError(
            f"The 'groups' parameter must be at most {cap}, the largest degree of family {config.family!r} for this "
            f"model. Got {config.groups}."
        )
