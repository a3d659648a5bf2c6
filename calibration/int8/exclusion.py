"""Which layers cost the accuracy: a sensitivity per block and layer, and a list of those that stay in float32.

For each part the model is quantized all but that part, on few images; what the divergence from float32 falls by is the
part's sensitivity. First block by block, then layer by layer in the most sensitive blocks. The list takes the most
sensitive layers until the held-out accuracy is above the floor.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping

from tocom.calibration.int8.qdq import Range
from tocom.calibration.int8.trial import DegreeModel, Trial

__all__ = ["search_exclusions"]

_IMAGES = 16
_BLOCKS_IN_DETAIL = 3
# In float32 a weight takes four times the bytes: a tenth of the weights makes the degree 1.3 times as large.
_MOST_FLOAT_SHARE = 0.1


def search_exclusions(
    model: DegreeModel,
    start: Trial,
    ranges: Mapping[str, Range],
    floor_points: float,
    *,
    seconds: float,
    progress: Callable[[str], None],
) -> tuple[Trial, dict[str, float], str]:
    """Look for the layers that have to stay in float32.

    Args:
        model: The degree.
        start: With every layer quantized.
        ranges: Ranges of its activations.
        floor_points: Most accuracy that may be lost, in points.
        seconds: Time after which nothing more is begun.
        progress: Called with what is being measured.

    Returns:
        The first trial that is above the floor, else the best; per part what the divergence falls by when it stays in
        float32, the most sensitive first; and how the search ended, in words.
    """
    end = time.monotonic() + seconds
    base = model.trial(ranges, (), _IMAGES).divergence
    blocks: dict[str, list[str]] = {}
    weights: dict[str, int] = {}
    for layer in model.layers:
        weights[layer.group] = weights.get(layer.group, 0) + layer.weight_count
        members = blocks.setdefault(".".join(layer.name.split(".")[:2]), [])
        if layer.group not in members:
            members.append(layer.group)

    def measure(parts: Mapping[str, list[str]]) -> dict[str, float]:
        found = {}
        for index, (name, groups) in enumerate(parts.items()):
            if time.monotonic() > end:
                break
            progress(f"sensitivity of {name} ({index + 1} of {len(parts)})")
            found[name] = base - model.trial(ranges, groups, _IMAGES).divergence
        return dict(sorted(found.items(), key=lambda entry: -entry[1]))

    by_block = measure(blocks)
    detail = {group: [group] for name in list(by_block)[:_BLOCKS_IN_DETAIL] for group in blocks[name]}
    by_layer = measure(detail)
    sensitivity = {**by_block, **by_layer}
    best, chosen, total = start, list[str](), sum(weights.values())
    for group, gain in by_layer.items():
        if gain <= 0:
            return best, sensitivity, "no further layer helps"
        if sum(weights[each] for each in [*chosen, group]) > _MOST_FLOAT_SHARE * total:
            continue
        if time.monotonic() > end:
            return best, sensitivity, f"out of time after {seconds:g} s"
        chosen.append(group)
        progress(f"held-out accuracy with {len(chosen)} layers in float32")
        trial = model.trial(ranges, chosen)
        if (trial.loss_points, trial.divergence) < (best.loss_points, best.divergence):
            best = trial
        if trial.loss_points <= floor_points:
            return trial, sensitivity, f"{len(chosen)} layers in float32 suffice"
    if time.monotonic() > end and not chosen:
        return best, sensitivity, f"out of time after {seconds:g} s"
    return best, sensitivity, f"not more than {_MOST_FLOAT_SHARE:.0%} of the weights may stay in float32"
