"""Alignments in engines, on the quickstart's model and cells; writes ``benchmarks/results/alignment-engines.json``.

    python benchmarks/alignment_measure.py --only features --of merge compensated
    python benchmarks/alignment_engines.py [--part merged latency int8 patches]

``merged``: an alignment in the heads of a bundle, against torch. ``latency``: that bundle against the one without, in
turns; wants an otherwise idle machine. ``int8``: an INT8 bundle with and without an alignment that was fitted on this
machine from its own answers to the float32 bundle's at degree 0; measured on cells that nothing learned from.
``patches``: one map for the features of all patches, in torch.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any
from unittest import mock

import numpy as np
import onnx
import onnxruntime
import torch
from alignment_measure import RECIPE, Fit, compensator_path
from domains import cell_views, quickstart_cells
from measuring import RESULTS, interleave, machine, median_interval, paired_ratio
from results_train import FOLDER, backbone
from saliency import features as patch_rows
from saliency import patch_gaps
from timm.models.vision_transformer import VisionTransformer
from unseen import CELLS, Unseen

from tocom import Alignment, Compensator, compress
from tocom.alignment.alignment import Binding
from tocom.alignment.ridge import feature_gaps, fit_map
from tocom.calibration import align_engines
from tocom.calibration.int8.quantizer import quantize
from tocom.calibration.int8.trial import compare
from tocom.compression import merging
from tocom.compression.loading.model import LoadedModel
from tocom.compression.loading.preprocessing import input_config
from tocom.export import export
from tocom.formats.bundle import Bundle
from tocom.formats.device_alignment import DeviceAlignment, find_alignments
from tocom.images import read_image
from tocom.quickstart.cells import LABELS, Cell
from tocom.quickstart.head import fit_head
from tocom.quickstart.weights import BACKBONE
from tocom.runtime import Runtime
from tocom.system.files import atomic_path, write_json

RESULT = RESULTS / "alignment-engines.json"
PARTS = ("merged", "latency", "int8", "patches")
DEGREES, AT = (0, 8, 16), 16
NEAR = 1e-4
CHECKED, FEW = 64, 150
PATCHES_OF = 200, 60  # images that a map of patches is fitted on, and measured on
THREADS = 1  # where answers count; latency takes what ONNX Runtime takes
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


def nearest_tie(net: torch.nn.Module, image: torch.Tensor) -> dict[str, Any]:
    """Return by how little, and in which block, the least similar pair that merges beats the next one, as cosines."""
    margins, merge = [], merging.token_merge_mapped

    def watched(x: Any, keys: torch.Tensor, size: Any, r: int, prefix: int) -> Any:
        unit = torch.nn.functional.normalize(merging.key_metric(keys).double(), dim=-1)[0, prefix:]
        first = prefix % 2  # tokens at even positions of the whole sequence are matched with those at odd ones
        best = (unit[first::2] @ unit[1 - first :: 2].T).amax(dim=-1).sort(descending=True).values
        margins.append(float(best[r - 1] - best[r]))
        return merge(x, keys, size, r, prefix)

    with mock.patch.object(merging, "token_merge_mapped", watched), torch.inference_mode():
        net(image[None])
    block = int(np.argmin(margins))
    return {"block": block, "margin": margins[block]}


def measure_merged() -> dict[str, Any]:
    """Return how far ONNX Runtime's answers are from torch's, per degree.

    Where two pairs are as similar but for rounding, torch and ONNX Runtime may merge different ones: such cells are
    told apart, and differ without the alignment too.
    """
    plain, aligned, model, compensator, alignment = merged()
    images = torch.stack([cell_views("test", input_config(model))[index] for index in range(CHECKED)])
    rows = []
    for degree in DEGREES:
        difference, nets = {}, {}
        for way, bundle, given in (("with", aligned, alignment), ("without", plain, None)):
            nets[way] = compress(model, degree, compensator=compensator, alignment=given)
            with torch.inference_mode():
                want = nets[way](images).numpy()
            session = onnxruntime.InferenceSession(str(bundle.onnx_path(degree)))
            found = np.concatenate([session.run(None, {"images": image[None]})[0] for image in images.numpy()])
            difference[way] = np.abs(found - want).max(axis=-1)
        near = difference["with"] <= NEAR
        beyond = [
            {
                "cell": int(cell),
                **{way: float(each[cell]) for way, each in difference.items()},
                **nearest_tie(nets["with"], images[cell]),
            }
            for cell in np.flatnonzero(~near)
        ]
        largest = float(difference["with"][near].max())
        rows.append({"degree": degree, "near": int(near.sum()), "difference": largest, "beyond": beyond})
    return {"images": CHECKED, "allowed": NEAR, "degrees": rows}


def measure_latency() -> dict[str, Any]:
    """Return the paired ratio of the latencies with and without the alignment, at degree 16."""
    plain, aligned, *_ = merged()
    graphs = [onnx.load(bundle.onnx_path(AT), load_external_data=False).graph for bundle in (plain, aligned)]
    image = np.random.default_rng(0).standard_normal((1, 3, 224, 224), np.float32)
    sessions = {
        name: onnxruntime.InferenceSession(str(bundle.onnx_path(AT)))
        for name, bundle in (("without", plain), ("with", aligned))
    }
    run = {name: lambda each=each: each.run(None, {"images": image}) for name, each in sessions.items()}
    times = interleave(run, seconds=80, most_rounds=500)
    return {
        "degree": AT,
        "same_nodes": list(graphs[0].node) == list(graphs[1].node),
        "rounds": len(times["with"]),
        "ms": {name: median_interval(each) for name, each in times.items()},
        "ratio": paired_ratio(times["with"], times["without"]),
    }


def answers(bundle: Bundle, degree: int, cells: Sequence[Cell], *, alignment: bool) -> Outputs:
    """Return the outputs for all cells, as the runtime gives them; they are kept, as features are."""
    way = "aligned" if alignment else "alone"
    kept = FOLDER / "features" / f"{bundle.path.name}-{bundle.fingerprint[:8]}-{degree}-{way}-{len(cells)}.npz"
    if kept.exists():
        return dict(np.load(kept))
    with Runtime.open(bundle.path, "onnxruntime", degrees=[degree], threads=THREADS, alignment=alignment) as runtime:
        print(f"{bundle.path.name}, degree {degree}, alignment {alignment}", file=sys.stderr, flush=True)
        assert bool(runtime.stats()["aligned"]) is alignment
        entry = bundle.manifest["input"]
        found = [runtime.infer(read_image(cell.path, entry)[None], degree=degree).outputs for cell in cells]
    outputs = {name: np.concatenate([each[name] for each in found]) for name in found[0]}
    with atomic_path(kept) as beside, beside.open("wb") as file:
        np.savez(file, **outputs)
    return outputs


def measure_int8() -> dict[str, Any]:
    """Return how far degree 16 in INT8 is from float32 at degree 0, with and without the alignment.

    The alignment is fitted and applied as on a device; beside it stands one that was fitted on fewer images.
    """
    model, compensator, fit = fitted()
    split, unseen = quickstart_cells(), Unseen(model, CELLS)
    dense = exported("features-fp32", model, compensator, degrees=(0, AT), features=True)
    path = FOLDER / "bundles" / "features-int8"
    if not path.exists():
        ranges = [(cell.path, cell.label) for cell in split.train[:64]]
        chosen_on = [(cell.path, cell.label) for cell in split.held_out[:100]]
        # Every layer in INT8: what is measured is what the alignment mends, not what the floor leaves to mend.
        quantize(dense, path, ranges, held_out=chosen_on, degrees=[AT], floor_points=100.0)
    int8, fitting, cells = Bundle(path), [*split.held_out, *split.train], unseen.chosen
    if not find_alignments(path):  # as bundles are: what is there is taken
        align_engines(path, [cell.path for cell in fitting], against=dense.path, backend="onnxruntime", threads=THREADS)
    found, _ = DeviceAlignment.load(find_alignments(path)[0])
    few, aim = np.random.default_rng(0).permutation(len(fitting))[:FEW], fit.at(0)
    fewer = fit_map(answers(int8, AT, fitting, alignment=False)["features"][few], aim[few])

    plain, wanted = answers(int8, AT, cells, alignment=False)["features"], unseen.at(0)
    features = {
        ("int8", 0): plain,
        ("int8", FEW): fewer.apply(plain),
        ("int8", found.images): found.maps[AT](plain),
        ("fp32", 0): unseen.at(AT, recipe=RECIPE),
    }
    served = answers(int8, AT, cells[:CHECKED], alignment=True)["features"]
    np.testing.assert_allclose(served, features["int8", found.images][:CHECKED], rtol=0, atol=1e-3)
    classes, logits = unseen.classes, {key: logits_of(model, each) for key, each in features.items()}
    expected, rows = logits_of(model, wanted), []
    scores = {
        key: {
            "divergence": compare(expected, logits[key], True),
            "gap": feature_gaps(wanted, each),
            "agreement": (expected.argmax(-1) == logits[key].argmax(-1)).astype(float),
        }
        for key, each in features.items()
    }
    for (precision, images), own in scores.items():
        row: dict[str, Any] = {name: classes.interval(each) for name, each in own.items()}
        row.update(precision=precision, fitted_on=images)
        if images:
            row["change"] = {name: classes.interval(own[name] - each) for name, each in scores["int8", 0].items()}
        rows.append(row)
    return {"degree": AT, "unseen": len(cells), "alignment": found.describe()["degrees"], "rows": rows}


def measure_patches() -> dict[str, Any]:
    """Return what one map for all patches closes of their gap per degree, and the most that sharing rows lets close."""
    model, rows = backbone(), []
    entry = input_config(model)
    parts = [(cell_views(part, entry), count) for part, count in zip(("train", "test"), PATCHES_OF, strict=True)]
    given, met = (torch.stack([views[index] for index in range(count)]) for views, count in parts)
    aim, dense = patch_rows(model, given), patch_rows(model, met)
    for degree in (8, 12, 16, 20):
        compressed = compress(model, degree)
        found = patch_rows(compressed, met)
        fitted = fit_map(patch_rows(compressed, given).flatten(0, 1).numpy(), aim.flatten(0, 1).numpy())
        aligned = torch.from_numpy(fitted.apply(found.flatten(0, 1).numpy())).view_as(found)
        plain = patch_gaps(found, dense)
        rows.append({"degree": degree, **plain, "aligned_patch_gap": patch_gaps(aligned, dense)["patch_gap"]})
    return {"fitted_on": len(given), "measured_on": len(met), "rows": rows}


def logits_of(model: VisionTransformer, features: np.ndarray) -> np.ndarray:
    """Return what the model's head makes of features, [cells, classes]."""
    with torch.inference_mode():
        return model.head(torch.from_numpy(features)).numpy()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--part", choices=PARTS, nargs="+", help="these alone, the others stay as they were measured")
    chosen = options.parse_args()
    torch.set_num_threads(THREADS)
    measures = dict(zip(PARTS, (measure_merged, measure_latency, measure_int8, measure_patches), strict=True))
    result = json.loads(RESULT.read_text(encoding="utf-8")) if RESULT.exists() else {}
    for part in chosen.part or PARTS:
        result[part] = {"machine": machine(), **measures[part]()}
        write_json(RESULT, result)
    print(RESULT, file=sys.stderr)


if __name__ == "__main__":
    main()
