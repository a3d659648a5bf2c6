"""Alignments in engines, on the quickstart's model and cells; writes ``benchmarks/results/alignment-engines.json``.

    python benchmarks/alignment_measure.py --only features --of merge compensated
    python benchmarks/alignment_engines.py [--part merged latency int8]

``merged``: an alignment in the heads of a bundle, against torch. ``latency``: that bundle against the one without, in
turns; wants an otherwise idle machine. ``int8``: an INT8 bundle with and without an alignment that was fitted on this
machine from its own answers to the float32 bundle's at degree 0; measured on cells that nothing learned from.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any

import numpy as np
import onnxruntime
import torch
from alignment_measure import RECIPE, Fit, compensator_path
from domains import cell_views, quickstart_cells
from families_measure import interval
from measuring import RESULTS, interleave, machine, median_interval, paired_ratio
from results_train import FOLDER, backbone
from timm.models.vision_transformer import VisionTransformer

from tocom import Alignment, Compensator, compress
from tocom.alignment.alignment import Binding
from tocom.alignment.ridge import feature_gaps, fit_map
from tocom.calibration import align_engines
from tocom.calibration.int8.quantizer import quantize
from tocom.calibration.int8.trial import compare
from tocom.compression.loading.model import LoadedModel
from tocom.compression.loading.preprocessing import input_config
from tocom.export import export
from tocom.formats.bundle import Bundle
from tocom.images import read_image
from tocom.quickstart.cells import LABELS, Cell
from tocom.quickstart.head import fit_head
from tocom.quickstart.weights import BACKBONE
from tocom.runtime import Runtime
from tocom.system.files import write_json

RESULT = RESULTS / "alignment-engines.json"
PARTS = ("merged", "latency", "int8")
DEGREES, AT = (0, 8, 16), 16
CHECKED, FITTED_ON, UNSEEN = 32, 200, 400
Outputs = dict[str, np.ndarray]


def fitted() -> tuple[VisionTransformer, Compensator, Fit]:
    """Return the quickstart's model with its head, its compensator, and the features that alignments are fitted on."""
    model = backbone()
    fit = Fit(backbone())
    head = fit_head(torch.from_numpy(fit.parts[1].at(0)), [cell.label for cell in quickstart_cells().train])
    model.reset_classifier(len(LABELS))
    model.head.load_state_dict(head.state_dict())
    return model.eval(), Compensator.load(compensator_path(RECIPE, 0)), fit


def exported(name: str, model: VisionTransformer, compensator: Compensator, **options: Any) -> Bundle:
    """Export once; what is there is taken."""
    path = FOLDER / "bundles" / name
    if path.exists():
        return Bundle(path)
    real = torch.stack([cell_views("test", input_config(model))[index] for index in range(4)]).numpy()
    loaded = LoadedModel(model, BACKBONE, "file", LABELS)
    return export(loaded, path, compensator=compensator, check_images=real, **options)


def merged() -> tuple[Bundle, Bundle, VisionTransformer, Compensator, Alignment]:
    """Return the bundle without and with an alignment in its heads, and what they were made of."""
    model, compensator, fit = fitted()
    along = {"method": "merge", "fuse": False, "family": "every", "source_degree": 0}
    binding = Binding.of(model, compensator=compensator, scale=None, **along)
    aim = fit.at(0)
    maps = {degree: fit_map(fit.at(degree, recipe=RECIPE), aim) for degree in DEGREES[1:]}
    alignment = Alignment(binding, maps, len(aim))
    plain = exported("compensated-heads", model, compensator, degrees=DEGREES)
    aligned = exported("aligned-heads", model, compensator, degrees=DEGREES, alignment=alignment)
    return plain, aligned, model, compensator, alignment


def measure_merged() -> dict[str, Any]:
    """Return how far ONNX Runtime's answers are from torch's, per degree."""
    _, bundle, model, compensator, alignment = merged()
    images = torch.stack([cell_views("test", input_config(model))[index] for index in range(CHECKED)])
    rows = []
    for degree in DEGREES:
        with torch.inference_mode():
            want = compress(model, degree, compensator=compensator, alignment=alignment)(images).numpy()
        session = onnxruntime.InferenceSession(str(bundle.onnx_path(degree)))
        found = np.concatenate([session.run(None, {"images": image[None]})[0] for image in images.numpy()])
        rows.append({"degree": degree, "difference": float(np.abs(found - want).max()), "largest": float(want.max())})
    return {"images": CHECKED, "degrees": rows}


def measure_latency() -> dict[str, Any]:
    """Return the paired ratio of the latencies with and without the alignment, at degree 16."""
    plain, aligned, *_ = merged()
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    sessions = {
        name: onnxruntime.InferenceSession(str(bundle.onnx_path(AT)))
        for name, bundle in (("without", plain), ("with", aligned))
    }
    run = {name: lambda each=each: each.run(None, {"images": image}) for name, each in sessions.items()}
    times = interleave(run, seconds=100, most_rounds=500)
    return {
        "degree": AT,
        "rounds": len(times["with"]),
        "ms": {name: median_interval(each) for name, each in times.items()},
        "ratio": paired_ratio(times["with"], times["without"]),
    }


def answers(bundle: Bundle, degree: int, cells: Sequence[Cell], *, alignment: bool) -> Outputs:
    """Return the outputs for all cells, as the runtime gives them."""
    with Runtime.open(bundle.path, "onnxruntime", degrees=[degree], alignment=alignment) as runtime:
        print(f"{bundle.path.name}, degree {degree}, alignment {alignment}", file=sys.stderr, flush=True)
        entry = bundle.manifest["input"]
        found = [runtime.infer(read_image(cell.path, entry)[None], degree=degree).outputs for cell in cells]
    return {name: np.concatenate([each[name] for each in found]) for name in found[0]}


def measure_int8() -> dict[str, Any]:
    """Return how far INT8 is from float32 at degree 0, at degrees 16 and 0, with and without the alignment."""
    model, compensator, _ = fitted()
    split = quickstart_cells()
    dense = exported("features-fp32", model, compensator, degrees=(0, AT), features=True)
    path = FOLDER / "bundles" / "features-int8"
    if not path.exists():
        ranges = [(cell.path, cell.label) for cell in split.train[:64]]
        chosen_on = [(cell.path, cell.label) for cell in split.held_out[:100]]
        # Every layer in INT8: what is measured is what the alignment mends, not what the floor leaves to mend.
        quantize(dense, path, ranges, held_out=chosen_on, floor_points=100.0)
    int8 = Bundle(path)
    fitting = [cell.path for cell in split.train[:FITTED_ON]]
    found = align_engines(int8.path, fitting, against=dense.path, backend="onnxruntime")
    cells = split.rest[len(split.rest) - UNSEEN :]
    wanted, rows = answers(dense, 0, cells, alignment=False), []
    compared = (("fp32", dense, AT, (False,)), ("int8", int8, AT, (False, True)), ("int8", int8, 0, (False, True)))
    for precision, bundle, degree, ways in compared:
        per_cell = {}
        for alignment in ways:
            got = answers(bundle, degree, cells, alignment=alignment)
            per_cell[alignment] = {
                "divergence": compare(wanted["logits"], got["logits"], True),
                "gap": feature_gaps(wanted["features"], got["features"]),
                "agreement": (wanted["logits"].argmax(-1) == got["logits"].argmax(-1)).astype(float),
            }
        row: dict[str, Any] = {"precision": precision, "degree": degree}
        for alignment, scores in per_cell.items():
            row["aligned" if alignment else "alone"] = {name: interval(each) for name, each in scores.items()}
        if True in per_cell:
            row["change"] = {name: interval(per_cell[True][name] - each) for name, each in per_cell[False].items()}
        rows.append(row)
    return {"fitted_on": FITTED_ON, "unseen": UNSEEN, "alignment": found.describe()["degrees"], "rows": rows}


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", choices=PARTS, nargs="+", help="these alone, the others stay as they were measured")
    chosen = options.parse_args()
    measures = {"merged": measure_merged, "latency": measure_latency, "int8": measure_int8}
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for part in chosen.part or PARTS:
        result[part] = {"machine": machine(), **measures[part]()}
        write_json(RESULT, result)
    print(RESULT, file=sys.stderr)


if __name__ == "__main__":
    main()
