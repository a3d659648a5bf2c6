"""Which family of schedules suits a model: feature gaps on unlabelled images, at equal products."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import Dataset

from tocom.compression.features import pooled_features
from tocom.compression.macs import count_macs
from tocom.compression.surgery import check_supported, compress, input_tokens
from tocom.compression.tokens import largest_degree, removal_schedule
from tocom.errors import DataError, DegreeError
from tocom.formats.families import EVERY, every_nth, named_family
from tocom.system.progress import Progress, silent

__all__ = ["FamilyRow", "compare_families", "spacings", "suggest_family"]

_Z = 1.96  # of the normal distribution: two-sided, 95 %


@dataclass(frozen=True)
class FamilyRow:
    """A family at the degree whose products are nearest to those of ``every`` at the degree asked for.

    Attributes:
        family: Its name.
        asked: The degree of ``every`` that it is compared at.
        degree: Its own.
        macs: Multiply-accumulates of one image.
        removing_blocks: Blocks that remove tokens at this degree.
        gap: Mean of one minus cosine between its pooled features and the dense model's.
        difference: Mean over the images of its gap minus that of ``every``, and the ends of its 95 % interval.
        latency_ms: p50 of a profile, where one was given.
    """

    family: str
    asked: int
    degree: int
    macs: int
    removing_blocks: int
    gap: float
    difference: tuple[float, float, float]
    latency_ms: float | None = None


def spacings(depth: int) -> list[str]:
    """Return the families that are tried where none are named: every block, every second, up to every sixth."""
    return list(dict.fromkeys(every_nth(spacing, depth) for spacing in range(1, min(depth, 6) + 1)))


def compare_families(
    model: VisionTransformer,
    images: Dataset[Tensor],
    *,
    degrees: Sequence[int],
    families: Sequence[str] | None = None,
    method: str = "merge",
    latencies: Mapping[str, Mapping[int, float]] | None = None,
    batch_size: int = 8,
    progress: Progress = silent,
) -> list[FamilyRow]:
    """Measure families of schedules without a compensator, on images of which no label is needed.

    Args:
        model: Dense, supported.
        images: At least two, of [channels, height, width].
        degrees: Degrees of ``every``; each family runs at the degrees whose products are nearest to these.
        families: Their names; :func:`spacings` without. ``every`` is always among them.
        method: ``merge`` or ``prune``.
        latencies: Latencies of a family, per degree, in milliseconds.
        batch_size: Images per forward pass.
        progress: Called with what is measured, the passes done, and all of them.

    Returns:
        Rows by degree, ``every`` first.

    Raises:
        ModelError: The model is not supported.
        DataError: Fewer than two images.
        DegreeError: A family or a degree that the model cannot take.
    """
    check_supported(model)
    count = len(images)  # type: ignore[arg-type]  # map-style datasets have a length
    if count < 2:
        raise DataError(f"Families are compared on at least 2 images. Got {count}.")
    tokens, depth, prefix = input_tokens(model), len(model.blocks), model.num_prefix_tokens
    if not degrees or 0 in degrees:
        raise DegreeError(f"The 'degrees' parameter must be of degrees above 0: 0 is dense in all. Got {degrees!r}.")
    named = [named_family(name, depth) for name in (spacings(depth) if families is None else families)]
    wanted = [(degree, family) for degree in degrees for family in dict.fromkeys((EVERY, *named))]

    def macs(family: str, degree: int) -> int:
        return count_macs(model, removal_schedule(tokens, depth, degree, prefix, family), method=method)

    def features(family: str, degree: int, done: int) -> Tensor:
        progress(f"{family}, degree {degree}", done, 1 + len(wanted))
        return pooled_features(
            compress(model, degree, method=method, family=family), images, batch_size=batch_size
        ).double()

    dense, rows, gaps = features(EVERY, 0, 0), [], {}
    for done, (asked, family) in enumerate(wanted, start=1):
        target = macs(EVERY, asked)
        own = range(1, largest_degree(tokens, depth, prefix, family) + 1)
        degree = min(own, key=lambda each, family=family, target=target: abs(macs(family, each) - target))
        gap = 1 - F.cosine_similarity(features(family, degree, done), dense, dim=-1)
        gaps[asked, family] = gap
        change = gap - gaps[asked, EVERY]
        mean, error = float(change.mean()), float(change.std()) / count**0.5
        rows.append(
            FamilyRow(
                family=family,
                asked=asked,
                degree=degree,
                macs=macs(family, degree),
                removing_blocks=sum(r > 0 for r in removal_schedule(tokens, depth, degree, prefix, family)),
                gap=float(gap.mean()),
                difference=(mean, mean - _Z * error, mean + _Z * error),
                latency_ms=(latencies or {}).get(family, {}).get(degree),
            )
        )
    return rows


def suggest_family(rows: Sequence[FamilyRow]) -> str:
    """Return the family to use: of those that no degree shows to be worse than ``every``, the fastest.

    Fastest is the lowest mean latency where all of these have one at every degree, else the fewest blocks that remove
    tokens.
    """
    of = {name: [row for row in rows if row.family == name] for name in dict.fromkeys(row.family for row in rows)}
    fit = {name: own for name, own in of.items() if all(row.difference[1] <= 0 for row in own)}
    times = {name: [row.latency_ms for row in own if row.latency_ms is not None] for name, own in fit.items()}
    if all(len(times[name]) == len(own) for name, own in fit.items()):
        return min(fit, key=lambda name: sum(times[name]))
    return min(fit, key=lambda name: sum(row.removing_blocks for row in fit[name]))
