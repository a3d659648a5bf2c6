"""The reference answers in Polygraphy's JSON: ``polygraphy run --load-inputs … --load-outputs …``.

The format is that of Polygraphy 0.53 (polygraphy/json/serde.py, polygraphy/comparator/struct.py): an object's type
stands beside its members, an array is what ``numpy.save`` writes, in base64.
"""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tocom.formats.bundle import Bundle
from tocom.formats.pixels import full_batches
from tocom.formats.references import read_references
from tocom.system.files import atomic_path

__all__ = ["write_polygraphy"]

_TYPE = "polygraphy_class"
# Under this name the references stand beside the runners that Polygraphy compares.
_RUNNER = "tocom-references"


def write_polygraphy(bundle: Bundle | Path | str, folder: Path) -> list[Path]:
    """Write the reference images and, per degree, the reference answers; return the files.

    One iteration holds one batch of the optimal size. ``inputs-08.json`` goes with ``outputs-08.json``: a degree has
    its own conclusive images.

    Args:
        bundle: The bundle, or its folder.
        folder: Where to write; made if it is missing.

    Raises:
        BundleError: The bundle is damaged, or has no reference answers.
        OutputError: A file cannot be written.
    """
    bundle = bundle if isinstance(bundle, Bundle) else Bundle(bundle)
    references, batch = read_references(bundle), bundle.batch[1]
    # Of features for every patch the references hold sums alone; Polygraphy compares the other outputs.
    whole = [output["name"] for output in bundle.manifest["outputs"] if len(output["shape"]) == 2]
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for degree, conclusive in references.conclusive.items():
        rows = [filled for filled, _ in full_batches(np.array(conclusive), batch)]
        inputs = [{"images": _array(references.images[part])} for part in rows]
        answers = [references.split(references.answers[degree][part]) for part in rows]
        outputs = [_iteration({name: answer[name] for name in whole}) for answer in answers]
        results = {"lst": [[_RUNNER, outputs]], _TYPE: "RunResults"}
        for name, content in ((f"inputs-{degree:02d}.json", inputs), (f"outputs-{degree:02d}.json", results)):
            with atomic_path(folder / name) as beside:
                beside.write_text(json.dumps(content), encoding="utf-8")
            files.append(folder / name)
    return files


def _iteration(outputs: Mapping[str, NDArray[Any]]) -> dict[str, Any]:
    values = {name: {"values": _array(value), _TYPE: "LazyArray"} for name, value in outputs.items()}
    return {"outputs": values, "runtime": 0.0, "runner_name": _RUNNER, _TYPE: "IterationResult"}


def _array(value: NDArray[Any] | Sequence[Any]) -> dict[str, str]:
    content = io.BytesIO()
    np.save(content, np.ascontiguousarray(value), allow_pickle=False)
    return {"array": base64.b64encode(content.getvalue()).decode("ascii"), _TYPE: "ndarray"}
