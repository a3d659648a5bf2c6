"""Fit an alignment: features of every degree and of the source degree, in one pass over unlabelled images."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import ConcatDataset, DataLoader, Dataset

from tocom.alignment.alignment import Alignment, Binding
from tocom.alignment.ridge import check_counts, fit_first
from tocom.compensator.compensator import Compensator
from tocom.compression.features import pooled
from tocom.compression.surgery import compress
from tocom.errors import AlignmentError
from tocom.formats.families import EVERY
from tocom.system.progress import Progress, silent
from tocom.version import __version__

__all__ = ["align"]


def align(
    model: VisionTransformer,
    images: Dataset[Tensor],
    *,
    degrees: Sequence[int],
    check: Dataset[Tensor] | None = None,
    compensator: Compensator | None = None,
    scale: float | None = None,
    source_degree: int = 0,
    method: str = "merge",
    family: str | None = None,
    fuse: bool = False,
    batch_size: int = 8,
    seed: int = 0,
    progress: Progress = silent,
) -> Alignment:
    """Fit linear maps from the pooled features of degrees to those of the source degree.

    Args:
        model: Dense, supported; with a classifier or without, which takes no part.
        images: [channels, height, width] each, of the kind that will be answered; no label is needed.
        degrees: To fit; the source degree needs no map.
        check: Images of what will be answered, none of ``images``: a degree that its map does not help on these is
            refused, so that a map of another kind of images harms none. None takes each fifth of ``images`` in turn.
        compensator: Compensator that the degrees will run with.
        scale: Scale of the compensator; None is its own.
        source_degree: Whose features are the aim.
        method: ``merge`` or ``prune``.
        family: Family of the degrees; None is the compensator's, without one ``every``.
        fuse: Whether pruning fuses the removed tokens.
        batch_size: Images per forward pass.
        seed: Seed of the fifths of the images that are held out in turn.
        progress: Called with what is done, the images done, and all of them.

    Raises:
        ModelError: The model is not supported.
        DegreeError: A degree, the method or the family is out of range.
        CompensatorError: The compensator does not fit.
        AlignmentError: Fewer than 25 images, features that are not finite, or no degree but the source degree.
    """
    family = family or (EVERY if compensator is None else compensator.family)
    along = {"method": method, "family": family, "fuse": fuse}
    compensated = {"compensator": compensator, "scale": scale, "source_degree": source_degree, **along}
    source = compress(model, source_degree, **along)
    at = {degree: compress(model, degree, **compensated) for degree in sorted({*degrees} - {source_degree})}
    if not at:
        raise AlignmentError(f"The 'degrees' parameter must name one beside the source degree. Got {list(degrees)}.")
    parts = [images] if check is None else [images, check]
    counts = [len(each) for each in parts]  # type: ignore[arg-type]  # map-style datasets have a length
    check_counts(*counts)  # before the slow part
    count = sum(counts)
    device = next(model.parameters()).device
    wanted: list[np.ndarray] = []
    found: dict[int, list[np.ndarray]] = {degree: [] for degree in at}
    done = 0
    with torch.no_grad():
        for batch in DataLoader(ConcatDataset(parts), batch_size=batch_size):
            inputs = batch.to(device)
            wanted.append(pooled(source, inputs).float().cpu().numpy())
            for degree, compressed in at.items():
                found[degree].append(pooled(compressed, inputs).float().cpu().numpy())
            done += len(batch)
            progress("features of every degree", done, count)
    aim = np.concatenate(wanted)
    maps = {degree: fit_first(np.concatenate(each), aim, counts[0], seed=seed) for degree, each in found.items()}
    metadata = {"fitted_by": f"tocom {__version__}"}
    return Alignment(Binding.of(model, **compensated), maps, counts[0], sum(counts[1:]), metadata)
