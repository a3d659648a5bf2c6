"""How a compensator is trained."""

from __future__ import annotations

import math
from dataclasses import dataclass

from tocom.errors import RequestError
from tocom.formats.families import EVERY
from tocom.formats.methods import check_method
from tocom.system.numbers import is_integer
from tocom.training.distillation import LOSSES, PRECISIONS

__all__ = ["TrainingConfig"]


@dataclass(frozen=True)
class TrainingConfig:
    """How to train.

    Attributes:
        groups: Degree steps; degrees 0 … ``groups`` will be within reach.
        rank: Rank of each group. The paper has 2.
        method: ``merge`` or ``prune``.
        family: Along which the degrees are: see :mod:`tocom.formats.families`.
        loss: ``kl`` on logits (the paper's), or ``cosine`` (one minus cosine) or ``mse`` on the pooled feature, for
            backbones without a classifier; or ``patch`` (one minus cosine, mean over the patches) on the feature of
            every patch, for dense heads. ``auto``: ``kl`` when the model has a classifier, else ``cosine``.
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
        activation_checkpointing: Keep no activation inside the student's blocks and compute them again in the backward
            pass: a twelfth of the memory between the passes for 1.26 times the step's time (DeiT-S on a CPU,
            ``benchmarks/training_step.py``).
        learning_rate: Highest learning rate of AdamW. The paper has 1e-3 per 512 images.
        final_learning_rate: Where the cosine ends.
        weight_decay: Weight decay of AdamW.
        scale: Factor of the deltas while training.
        source_degree: None draws both degrees of a step (the paper's way). A number keeps the source there: for models
            fine-tuned at one known degree, the same number of steps then closes more of the gap.
        far_targets: Of two drawn targets take the one farther from the source. Far targets have the larger gap: a short
            run closes more of it this way.
        flip: Mirror half of the images, from left to right.
        seed: Seed of weights, images, degrees and dropout.
    """

    groups: int = 16
    rank: int = 2
    method: str = "merge"
    family: str = EVERY
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
            if not is_integer(value, 1):
                raise RequestError(f"The {name!r} parameter must be a positive integer. Got {value!r} instead.")
        may_be_zero = ("final_learning_rate", "weight_decay", "hidden")
        for name in ("learning_rate", "scale", *may_be_zero):
            value = getattr(self, name)
            if not (math.isfinite(value) and (value > 0 or (value == 0 and name in may_be_zero))):
                wanted = "zero or a positive number" if name in may_be_zero else "a positive number"
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
