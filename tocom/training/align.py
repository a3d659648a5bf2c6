"""Fit an alignment: features of every degree and of the source degree, in one pass over unlabelled images."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from tocom.alignment.alignment import Alignment, Binding
from tocom.alignment.ridge import LEAST_IMAGES, FeatureMap, fit_map
from tocom.compensator.compensator import Compensator
from tocom.compression.features import pooled
from tocom.compression.surgery import compress
from tocom.errors import AlignmentError
from tocom.formats.families import EVERY
from tocom.version import __version__

__all__ = ["align"]


def align(
    model: VisionTransformer,
    images: Dataset[Tensor],
    *,
    degrees: Sequence[int],
    compensator: Compensator | None = None,
    scale: float | None = None,
    source_degree: int = 0,
    method: str = "merge",
    family: str | None = None,
    fuse: bool = False,
    batch_size: int = 8,
    seed: int = 0,
    progress: Callable[[int, int], None] | None = None,
) -> Alignment:
    """Fit linear maps from the pooled features of degrees to those of the source degree.

    Args:
        model: Dense, supported; with a classifier or without, which takes no part.
        images: Of [channels, height, width] each, of the kind that will be answered; no label is needed.
        degrees: To fit; the source degree needs no map.
        compensator: That the degrees will run with.
        scale: Of the compensator; None is its own.
        source_degree: Whose features are the aim.
        method: ``merge`` or ``prune``.
        family: Of the degrees; None is the compensator's, without one ``every``.
        fuse: Of pruning.
        batch_size: Images per forward pass.
        seed: Of the fifths of the images that are held out in turn.
        progress: Called with the images done, and all of them.

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
    count = len(images)  # type: ignore[arg-type]  # map-style datasets have a length
    if count < LEAST_IMAGES:  # before the slow part
        raise AlignmentError(f"Alignment needs at least {LEAST_IMAGES} images, better 200 or more. Got {count}.")
    device = next(model.parameters()).device
    wanted: list[np.ndarray] = []
    found: dict[int, list[np.ndarray]] = {degree: [] for degree in at}
    done = 0
    with torch.no_grad():
        for batch in DataLoader(images, batch_size=batch_size):
            inputs = batch.to(device)
            wanted.append(pooled(source, inputs).float().cpu().numpy())
            for degree, compressed in at.items():
                found[degree].append(pooled(compressed, inputs).float().cpu().numpy())
            done += len(batch)
            if progress is not None:
                progress(done, count)
    aim = np.concatenate(wanted)
    maps: dict[int, FeatureMap] = {
        degree: fit_map(np.concatenate(parts), aim, seed=seed) for degree, parts in found.items()
    }
    return Alignment(Binding.of(model, **compensated), maps, done, {"fitted_by": f"tocom {__version__}"})
