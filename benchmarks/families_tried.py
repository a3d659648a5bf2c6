"""Try other families than ``families_measure.py``'s; writes ``benchmarks/results/families-tried.json``.

    python benchmarks/families_tried.py        # forty minutes on one idle core; what is done is kept

On the 120 held-out cells, so that nothing is chosen on test cells: the gap to the dense model without a compensator,
for other blocks and for merges of unequal size; then what a compensator of the same budget leaves of it, one seed each.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from domains import cell_views, training_views
from families_measure import SPACED, training_config
from measuring import RESULTS, machine
from numpy.typing import NDArray
from results_train import FOLDER, backbone, train_to
from unseen import mean_interval

from tocom import Compensator, compress
from tocom.alignment.ridge import feature_gaps
from tocom.compression.features import pooled_features
from tocom.compression.loading.preprocessing import input_config
from tocom.compression.macs import count_macs
from tocom.compression.surgery import input_tokens
from tocom.compression.tokens import removal_schedule
from tocom.formats.families import EVERY
from tocom.system.files import write_json

RESULT, KEPT = RESULTS / "families-tried.json", FOLDER / "tried"
DEGREES = (16, 20)
BLOCKS = ("1,5,9", "2,5,8", "2,5,9", "2,6,10", "2,4,6,9", "2,5,8,11", "2,4,6,8,10")
# What blocks 1, 4, 7, 10 remove: the same share of the tokens each, and half-way from there to the same number; the
# products are those of ``every`` at the degree.
UNEQUAL = {
    "shares": {16: (59, 45, 35, 27), 20: (78, 55, 38, 26)},
    "half-way": {16: (53, 47, 42, 36), 20: (69, 59, 48, 38)},
}
# By way: the family, and what is changed of the recipe.
TRAINED: dict[str, tuple[str, dict[str, Any]]] = {
    "every": (EVERY, {}),
    "spaced": (SPACED, {}),
    "three-merges": ("spaced:1,5,9", {}),
    "other-blocks": ("spaced:2,4,6,9", {}),
    "every-rate": (EVERY, {"learning_rate": 1e-3}),
    "spaced-rate": (SPACED, {"learning_rate": 1e-3}),
    "every-relative": (EVERY, {"relative": True}),
    "spaced-relative": (SPACED, {"relative": True}),
}
STRONGER = 1.3  # times the deltas' scale


class Tried:
    """Gaps on the held-out cells, each set computed once."""

    def __init__(self) -> None:
        self.model = backbone()
        self.entry = input_config(self.model)

    def features(self, name: str, degree: Any, **options: Any) -> NDArray[Any]:
        """Return kept features [cells, channels], or compute them."""
        path = KEPT / f"features-{name}.npy"
        if not path.exists():
            images = cell_views("held_out", self.entry)
            np.save(path, pooled_features(compress(self.model, degree, **options), images).numpy())
        return np.load(path)

    def gaps(self, name: str, degree: Any, **options: Any) -> NDArray[Any]:
        """Return the gaps [cells] of the model compressed so."""
        path = KEPT / f"{name}.npy"
        if not path.exists():
            np.save(path, feature_gaps(self.features("dense", 0), self.features(name, degree, **options)))
        return np.load(path)

    def alone(self, family: str, degree: int) -> dict[str, Any]:
        """Return products and gap of a family, or of unequal merges, without a compensator."""
        model, depth = self.model, len(self.model.blocks)
        if family in UNEQUAL:
            counts = [0] * depth
            counts[1::3] = UNEQUAL[family][degree]
            removed, options = tuple(counts), {"degree": counts}
        else:
            removed = removal_schedule(input_tokens(model), depth, degree, model.num_prefix_tokens, family)
            options = {"degree": degree, "family": family}
        gap = mean_interval(self.gaps(f"{family}-{degree}", **options))
        return {"family": family, "degree": degree, "removed": removed, "macs": count_macs(model, removed), "gap": gap}

    def compensator(self, way: str) -> Compensator:
        """Return the compensator of a way, trained where it is not there yet."""
        path = KEPT / f"{way}.safetensors"
        if not path.exists():
            family, changes = TRAINED[way]
            train_to(path, self.model, training_views("cells", self.entry), replace(training_config(family), **changes))
        return Compensator.load(path)

    def trained(self, way: str, degree: int, stronger: float = 1.0) -> dict[str, Any]:
        """Return what the compensator of a way leaves of its family's gap."""
        compensator, name = self.compensator(way), f"{way} compensated-{degree}"
        name += f"-{stronger}" if stronger != 1 else ""
        left = self.gaps(name, degree, compensator=compensator, scale=compensator.scale * stronger)
        family, changes = TRAINED[way]
        row = {**self.alone(family, degree), "changes": changes, "scale": stronger, "left": mean_interval(left)}
        return {**row, "closed": 1 - row["left"][0] / row["gap"][0]}


def main() -> None:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    KEPT.mkdir(parents=True, exist_ok=True)
    tried = Tried()
    trained = [tried.trained(way, degree) for way in TRAINED for degree in DEGREES]
    trained.append(tried.trained("spaced", 20, STRONGER))
    families = [EVERY, SPACED, *(f"spaced:{blocks}" for blocks in BLOCKS), *UNEQUAL]
    alone = [tried.alone(family, degree) for family in families for degree in DEGREES]
    write_json(RESULT, {"machine": machine(), "alone": alone, "trained": trained})


if __name__ == "__main__":
    main()
