"""Accuracy, log-loss and feature gap of every (source, target) pair of degrees, with and without the compensator.

The scale is chosen on held-out images and the figures are of test images; one image in both is an error.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tocom.compensator.compensator import Compensator
from tocom.compression.features import pooled_features
from tocom.compression.surgery import compress
from tocom.errors import DataError, RequestError
from tocom.evaluation.held_out import Samples, check_apart
from tocom.training.image_files import ImageFiles

__all__ = ["SCALES", "Evaluation", "Pair", "Scores", "evaluate"]

# ToCom, arXiv 2408.06798, section 4: what the paper chooses from.
SCALES = (0.05, 0.08, 0.1, 0.12, 0.15)
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Scores:
    """How a model does on a set of images.

    Attributes:
        feature_gap: Mean of one minus cosine between the pooled features and those at the source degree.
        accuracy: Share of right answers; None without a classifier.
        log_loss: Mean of the negative logarithm of the right class's probability; None without a classifier.
    """

    feature_gap: float
    accuracy: float | None = None
    log_loss: float | None = None


@dataclass(frozen=True)
class Pair:
    """One source degree at one target degree; at equal degrees the compensator is nothing, and both are the same."""

    source: int
    target: int
    without: Scores
    compensated: Scores


@dataclass(frozen=True)
class Evaluation:
    """What ``tocom evaluate`` found.

    Attributes:
        pairs: By source, then target; of the test images.
        scale: The scale in use.
        scale_chosen_by: How it was chosen, in words.
        held_out: Mean scores of the held-out images over all pairs of different degrees, per scale tried.
        images: How many of each kind: ``test``, ``held_out``.
        method: ``merge`` or ``prune``.
        family: Along which the degrees are.
        provenance: What the figures are of: compensator, models, seed of the split.
    """

    pairs: tuple[Pair, ...]
    scale: float
    scale_chosen_by: str
    held_out: Mapping[float, Scores]
    images: Mapping[str, int]
    method: str
    family: str
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Return the content of ``evaluation.json``."""
        return {
            "format": "tocom-evaluation",
            "version": 1,
            "method": self.method,
            "family": self.family,
            "scale": self.scale,
            "scale_chosen_by": self.scale_chosen_by,
            "held_out": [{"scale": scale, **asdict(scores)} for scale, scores in self.held_out.items()],
            "images": dict(self.images),
            "pairs": [asdict(pair) for pair in self.pairs],
            "provenance": dict(self.provenance),
        }


def evaluate(
    sources: Mapping[int, VisionTransformer],
    compensator: Compensator,
    input_entry: Mapping[str, Any],
    *,
    test: Samples,
    held_out: Samples = (),
    targets: Sequence[int],
    scales: Sequence[float] = SCALES,
    scale: float | None = None,
    batch_size: int = 16,
    progress: Progress | None = None,
) -> Evaluation:
    """Measure every (source, target) pair with and without the compensator.

    Args:
        sources: The model fine-tuned at each source degree, dense; all with a classifier or all without.
        compensator: Of their backbone.
        input_entry: From :func:`tocom.compression.loading.preprocessing.input_config`.
        test: Paths and class indices that the figures are of.
        held_out: Others, that the scale is chosen on: the one with the best mean accuracy over all pairs of different
            degrees, the lower log-loss on a tie; without a classifier the smallest feature gap.
        targets: Target degrees.
        scales: To choose from.
        scale: Use this one and choose nothing; then ``held_out`` must be empty.
        batch_size: Images per forward pass.
        progress: Called with the stage, the passes done, and all passes.

    Raises:
        DataError: No images, an unreadable one, one that is in both sets, or a class that the model does not have.
        RequestError: No source or target, a scale beside held-out images, or neither of the two.
        CompensatorError: The compensator does not fit a model, or a degree is out of its range.
    """
    if not sources or not targets or not test:
        raise RequestError("The 'sources', 'targets' and 'test' parameters must each hold at least one entry.")
    if (scale is None) != bool(held_out):
        raise RequestError("Give either 'held_out' images to choose the scale on, or the 'scale'. Got both or neither.")
    if len({isinstance(model.head, nn.Identity) for model in sources.values()}) > 1:
        raise RequestError("The 'sources' parameter must hold models with a classifier, or models without. Got both.")
    compensator.check_degrees(*sources, *targets)
    check_apart(held_out, test)
    along = {"method": compensator.method, "family": compensator.family}
    pairs = [(source, target) for source in sources for target in targets]
    changed = [(source, target) for source, target in pairs if source != target]
    if scale is None and (not scales or not changed):
        raise RequestError("A scale cannot be chosen: no 'scales', or every target degree is the source degree.")
    total = len(sources) + len(pairs) + len(changed) + (len(sources) + len(scales) * len(changed) if held_out else 0)
    done = 0

    def advance(stage: str) -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(stage, done, total)

    def measure(samples: Samples, stage: str) -> Callable[[int, int, float | None], Scores]:
        labels = torch.tensor([label for _, label in samples])
        images = ImageFiles([path for path, _ in samples], input_entry)
        dense = {}
        for source, model in sources.items():
            dense[source] = pooled_features(compress(model, source, **along), images, batch_size=batch_size)
            advance(stage)

        def scores(source: int, target: int, scale: float | None) -> Scores:
            part = None if scale is None else compensator
            at = compress(sources[source], target, compensator=part, source_degree=source, scale=scale, **along)
            features = pooled_features(at, images, batch_size=batch_size)
            advance(stage)
            return _scores(features, at.head, dense[source], labels)

        return scores

    chosen_by, tried = "given", {}
    if scale is None:
        scores = measure(held_out, "choosing the scale on held-out images")
        tried = {each: _mean([scores(*pair, each) for pair in changed]) for each in scales}
        scale = min(tried, key=lambda each: _rank(tried[each]))
        criterion = "feature gap" if tried[scale].accuracy is None else "accuracy, then log-loss"
        chosen_by = f"{criterion} of {len(held_out)} held-out images, none of them a test image"
    scores = measure(test, "measuring test images")
    rows = []
    for source, target in pairs:
        without = scores(source, target, None)
        rows.append(Pair(source, target, without, scores(source, target, scale) if source != target else without))
    return Evaluation(
        pairs=tuple(rows),
        scale=scale,
        scale_chosen_by=chosen_by,
        held_out=tried,
        images={"held_out": len(held_out), "test": len(test)},
        **along,
        provenance={"compensator_sha256": compensator.metadata.get("file_sha256"), "model": _name(sources)},
    )


def _scores(features: Tensor, head: nn.Module, dense: Tensor, labels: Tensor) -> Scores:
    """Return the scores of pooled features [count, channels], float32, on the CPU."""
    gap = float((1 - F.cosine_similarity(features.double(), dense.double(), dim=-1)).mean())
    if isinstance(head, nn.Identity):
        return Scores(gap)
    with torch.no_grad():
        logits = head(features.to(next(head.parameters()))).float().cpu()
    if int(labels.max()) >= logits.shape[-1]:
        raise DataError(
            f"An image has the class index {int(labels.max())}, the model has {logits.shape[-1]} classes. Give the "
            "class folders the names of the model's labels."
        )
    right = int((logits.argmax(-1) == labels).sum())
    return Scores(gap, right / len(labels), float(F.cross_entropy(logits.double(), labels)))


def _mean(scores: Sequence[Scores]) -> Scores:
    def mean(name: str) -> float | None:
        values = [getattr(each, name) for each in scores]
        return None if values[0] is None else sum(values) / len(values)

    return Scores(mean("feature_gap") or 0.0, mean("accuracy"), mean("log_loss"))


def _rank(scores: Scores) -> tuple[float, float]:
    """Return what the best scale has the least of."""
    if scores.accuracy is None or scores.log_loss is None:
        return scores.feature_gap, 0.0
    return -scores.accuracy, scores.log_loss


def _name(sources: Mapping[int, VisionTransformer]) -> str:
    config = getattr(next(iter(sources.values())), "pretrained_cfg", None) or {}
    return str(config.get("architecture", "unknown"))
