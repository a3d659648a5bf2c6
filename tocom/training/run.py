"""The loop of a training run: steps, checkpoints, reports."""

from __future__ import annotations

import contextlib
import logging
import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import Dataset

from tocom.compensator.compensator import Compensator
from tocom.errors import RequestError, TrainingError
from tocom.system.files import check_writable
from tocom.training.checkpoint import load_checkpoint, restore_rng, rng_state, save_checkpoint
from tocom.training.distillation import Distillation, TeacherAnswers, draw_degrees
from tocom.training.distributed import Processes
from tocom.training.image_order import batches, fingerprint, unreadable_between
from tocom.training.interrupts import Interrupts
from tocom.training.reports import StepReport, scalars

if TYPE_CHECKING:
    from tocom.training.config import TrainingConfig

__all__ = ["Run", "RunFiles"]

log = logging.getLogger("tocom.training")


@dataclass(frozen=True)
class RunFiles:
    """Where a run keeps its state and its scalars.

    Attributes:
        checkpoint: The file; None keeps none.
        checkpoint_every: Steps between two.
        resume: Go on from it when it is there.
        scalars: TensorBoard's folder; None writes none.
    """

    checkpoint: Path | None = None
    checkpoint_every: int = 100
    resume: bool = False
    scalars: Path | None = None

    def __post_init__(self) -> None:
        if not isinstance(self.checkpoint_every, int) or self.checkpoint_every < 1:
            raise RequestError(
                f"The 'checkpoint_every' parameter must be a positive integer. Got {self.checkpoint_every!r} instead."
            )
        if self.checkpoint is None:
            if self.resume:
                raise RequestError("The 'resume' parameter needs 'checkpoint', the file to resume from. Got none.")
            return
        if self.checkpoint.exists() and not self.resume:
            raise RequestError(
                f"The checkpoint {self.checkpoint} is there already. Resume that run, or name another file."
            )
        check_writable(self.checkpoint.parent)


class Run:
    """One training run, from its first step or from a checkpoint.

    Args:
        model: Frozen, in evaluation mode.
        compensator: What learns, on the model's device.
        images: Map-style.
        config: How to train.
        loss: A key of ``LOSSES``.
        teacher: The teacher's answers, or None.
        files: Files.
        processes: Those that train together.
    """

    def __init__(
        self,
        model: VisionTransformer,
        compensator: Compensator,
        images: Dataset[Tensor],
        config: TrainingConfig,
        *,
        loss: str,
        teacher: TeacherAnswers | None,
        files: RunFiles,
        processes: Processes,
    ) -> None:
        self.config, self.processes, self.files = config, processes, files
        self.images, self.compensator, self.teacher = images, compensator, teacher
        self.device = next(compensator.parameters()).device
        self.unreadable: set[int] = set()
        self._model, self._loss, self._done = model, loss, 0
        self.optimizer = torch.optim.AdamW(
            compensator.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.CosineAnnealingLR(
            self.optimizer, config.steps, config.final_learning_rate
        )
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")

    def go(
        self, *, skip_unreadable: bool = True, workers: int = 0, progress: Callable[[StepReport], None] | None = None
    ) -> None:
        """Run all steps that are left.

        Raises:
            TrainingError: See :func:`tocom.training.trainer.train`.
            KeyboardInterrupt: Ctrl-C came, after the step and the checkpoint; SIGTERM does as it would have without us.
        """
        config, count = self.config, len(self.images)  # type: ignore[arg-type]
        distill: nn.Module = Distillation(
            self._model,
            self.compensator,
            loss=self._loss,
            hidden=config.hidden,
            relative=config.relative,
            precision=config.precision,
        )
        if self.processes.count > 1:
            distill = DistributedDataParallel(distill)
        self._resume()
        feed = batches(
            self.images,
            config,
            start=self._done,
            skip_unreadable=skip_unreadable,
            workers=workers,
            processes=self.processes,
        )
        begin, first = time.perf_counter(), self._done
        with Interrupts() as interrupts, scalars(self.files.scalars if self.processes.first else None, first) as record:
            for drawn, read, images in self._until_interrupted(feed, interrupts):
                self.unreadable |= unreadable_between(drawn, read, count)
                source, target = draw_degrees(
                    config.seed, self._done, config.groups, config.source_degree, far=config.far_targets
                )
                rate = self.schedule.get_last_lr()[0]
                loss, norm = self.step(distill, read, images, source, target)
                self._done += 1
                if self._done % self.files.checkpoint_every == 0 or self._done == config.steps:
                    self._save()
                seconds = time.perf_counter() - begin
                per_step = seconds / (self._done - first)
                report = StepReport(
                    step=self._done,
                    steps=config.steps,
                    source=source,
                    target=target,
                    loss=loss,
                    seconds=seconds,
                    images_per_second=config.batch_size / per_step,
                    seconds_left=per_step * (config.steps - self._done),
                    learning_rate=rate,
                    gradient_norm=norm,
                    unreadable=len(self.unreadable),
                )
                record(report)
                if progress is not None and self.processes.first:
                    progress(report)
        if interrupts.noted is not None:  # and its handler returned: a run that was cut off has not ended
            raise TrainingError(f"The training was interrupted at step {self._done} of {config.steps}.")
        self.compensator.share_dropout(None)
        self.unreadable = set().union(*self.processes.gather(self.unreadable))

    def _until_interrupted(
        self, feed: Iterable[tuple[Tensor, Tensor, Tensor]], interrupts: Interrupts
    ) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the batches up to the last, or until a signal came to any process: then save, which all do together."""
        batches_ = iter(feed)
        while True:
            came = {interrupts.noted} - {None}
            if self.processes.count > 1:
                came = set().union(*self.processes.gather(came))
            if not came:
                try:
                    yield next(batches_)
                    continue
                except StopIteration:
                    return
                except Exception:  # Ctrl-C goes to the processes that read the images, too
                    if interrupts.noted is None or self.processes.count > 1:
                        raise
            self._save()
            interrupts.noted = interrupts.noted or came.pop()
            kept = self.files.checkpoint
            log.warning(
                "interrupted at step %d of %d%s",
                self._done,
                self.config.steps,
                f"; {kept} holds it: go on with --resume" if kept is not None else ", and no --checkpoint keeps it",
            )
            return

    def step(
        self, distill: nn.Module, numbers: Tensor, images: Tensor, source: int, target: int
    ) -> tuple[float, float]:
        """Make one optimizer step; return its loss and the norm of its gradient.

        ``numbers`` [batch] are the images' indices in the data set, ``images`` [batch, channels, height, width].
        """
        config, own = self.config, len(images)
        part = own // config.accumulation
        split = part < config.batch_size
        start = rng_state(self.device) if split else None
        total = torch.zeros((), device=self.device)
        self.optimizer.zero_grad(set_to_none=True)
        for index in range(config.accumulation):
            rows = slice(index * part, (index + 1) * part)
            if start is not None:
                # Each part draws the dropout of the whole batch and uses its rows: see Compensator.share_dropout.
                restore_rng(start, self.device)
                self.compensator.share_dropout((self.processes.rank * own + rows.start, config.batch_size))
            expected = None if self.teacher is None else self.teacher.of(numbers[rows], self.device)
            last = index == config.accumulation - 1
            quiet = contextlib.nullcontext() if last or self.processes.count == 1 else distill.no_sync()
            with quiet:
                loss = distill(images[rows].to(self.device), source, target, expected) / config.accumulation
                self.scaler.scale(loss).backward()
            total += loss.detach()
        value = float(self.processes.mean(total))
        self._check_finite("loss", value, source, target)
        self.scaler.unscale_(self.optimizer)
        norm = float(nn.utils.get_total_norm([p.grad for p in self.compensator.parameters() if p.grad is not None]))
        if not self.scaler.is_enabled():  # with a scaler a gradient past float16 is skipped and the scale lowered
            self._check_finite("gradient", norm, source, target)
        scale = self.scaler.get_scale()
        self.scaler.step(self.optimizer)
        self.scaler.update()
        if self.scaler.get_scale() >= scale:  # lowered when it skipped the step
            self.schedule.step()
        return value, norm

    def _check_finite(self, what: str, value: float, source: int, target: int) -> None:
        if math.isfinite(value):
            return
        kept = self.files.checkpoint
        good = f" The checkpoint {kept} is of an earlier step and good." if kept is not None and kept.exists() else ""
        raise TrainingError(
            f"The {what} is {value} at step {self._done} (degrees {source} to {target}). Lower the learning rate "
            f"(now {self.config.learning_rate}), or look for images that are not finite.{good}"
        )

    def _identity(self) -> dict[str, Any]:
        """Return what makes this run this run and no other."""
        return {
            **asdict(self.config),
            "loss": self._loss,
            "backbone": self.compensator.metadata["base_sha256"],
            "images": len(self.images),  # type: ignore[arg-type]
            "image_names": fingerprint(self.images),
            "known_teacher": self.teacher is not None,
        }

    def _save(self) -> None:
        if self.files.checkpoint is None:
            return
        self.unreadable = set().union(*self.processes.gather(self.unreadable))
        if self.processes.first:
            state = {
                "step": self._done,
                "compensator": self.compensator.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "schedule": self.schedule.state_dict(),
                "scaler": self.scaler.state_dict(),
                "rng": rng_state(self.device),
                "unreadable": sorted(self.unreadable),
            }
            save_checkpoint(self.files.checkpoint, self._identity(), state)

    def _resume(self) -> None:
        """Load the checkpoint if there is one to resume from."""
        path = self.files.checkpoint
        if self.files.resume and path is not None and path.exists():
            state = load_checkpoint(path, self._identity())
            self.compensator.load_state_dict(state["compensator"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.schedule.load_state_dict(state["schedule"])
            self.scaler.load_state_dict(state["scaler"])
            restore_rng(state["rng"], self.device)
            self._done, self.unreadable = state["step"], set(state["unreadable"])
        self.processes.check_equal("the step to go on from", self._done)
