"""A small fine-tuned checkpoint and its images, to follow the tutorial with before you take your own.

    python examples/own_checkpoint.py mine      # a minute or two on two cores

Draws photographs-to-be of three classes (bolt, nut, washer), trains timm's ``test_vit3`` on them, and writes what a
team has: the folder ``mine/model`` as timm's hub has it, with the model's name, its classes and its preprocessing, and
``mine/train``, ``mine/held-out`` and ``mine/test`` with one subfolder per class.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFilter
from torch.nn import functional as F
from torch.utils.data import DataLoader

from tocom import load_model
from tocom.compensator.tensor_file import save_tensors
from tocom.compression.loading.preprocessing import input_config
from tocom.training.image_files import ImageFiles

MODEL = "test_vit3"
LABELS = ("bolt", "nut", "washer")
SIDE = 160
# Bolts of steel, nuts of brass, washers of copper: what a small model learns in a minute.
METALS = {"bolt": (170, 180, 195), "nut": (200, 170, 80), "washer": (190, 105, 70)}


def draw(label: str, generator: random.Random) -> Image.Image:
    """Return a picture of a part: somewhere, of some size, turned somehow, not quite sharp."""
    grey = generator.randint(40, 110)
    image = Image.new("RGB", (SIDE, SIDE), (grey, grey, grey + 10))
    pen = ImageDraw.Draw(image)
    x, y = generator.randint(55, 105), generator.randint(55, 105)
    size, light = generator.randint(22, 42), generator.uniform(0.7, 1.2)
    fill, hole = tuple(int(light * value) for value in METALS[label]), (grey, grey, grey + 10)
    if label == "bolt":
        pen.regular_polygon((x, y, size * 0.7), 6, rotation=generator.randint(0, 59), fill=fill)
        pen.rectangle((x - size // 4, y, x + size // 4, y + size + 15), fill=fill)
    elif label == "nut":
        pen.regular_polygon((x, y, size), 6, rotation=generator.randint(0, 59), fill=fill)
        pen.ellipse((x - size // 2, y - size // 2, x + size // 2, y + size // 2), fill=hole)
    else:
        pen.ellipse((x - size, y - size, x + size, y + size), fill=fill)
        pen.ellipse((x - size // 2, y - size // 2, x + size // 2, y + size // 2), fill=hole)
    turned = image.rotate(generator.randint(0, 359), fillcolor=hole)
    blurred = turned.filter(ImageFilter.GaussianBlur(generator.uniform(0.5, 2.0)))
    # A sensor's noise: without it the background's patches were equal, and which of them merge a matter of rounding.
    noise = np.random.default_rng(generator.getrandbits(32)).normal(0, 5, (SIDE, SIDE, 1))
    return Image.fromarray((np.asarray(blurred) + noise).clip(0, 255).astype(np.uint8))


def write_images(folder: Path, per_class: int, generator: random.Random) -> None:
    for label in LABELS:
        (folder / label).mkdir(parents=True, exist_ok=True)
        for index in range(per_class):
            draw(label, generator).save(folder / label / f"{index:03d}.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=100, help="Optimizer steps of 16 images.")
    parser.add_argument("--images", type=int, default=80, help="Training images per class.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    generator = random.Random(options.seed)
    for part, count in (("train", options.images), ("held-out", 20), ("test", 20)):
        write_images(options.out / part, count, generator)

    model = load_model(MODEL, weights="random", num_classes=len(LABELS), seed=options.seed).model.train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):  # layer scale starts at 1e-5, which suits long trainings
                parameter.fill_(0.1)
    paths = sorted((options.out / "train").rglob("*.png"))
    images = torch.stack(list(ImageFiles(paths, input_config(model))))
    labels = torch.tensor([LABELS.index(path.parent.name) for path in paths])
    loader = DataLoader(list(zip(images, labels, strict=True)), batch_size=16, shuffle=True)
    optimizer = torch.optim.AdamW(model.parameters())
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=options.steps)
    done = 0
    while done < options.steps:
        for batch, target in loader:
            loss = F.cross_entropy(model(batch), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            done += 1
            if done == options.steps:
                break
    (options.out / "model").mkdir(exist_ok=True)
    save_tensors(options.out / "model" / "model.safetensors", model.state_dict(), {})
    entry = ("input_size", "mean", "std", "interpolation", "crop_pct")
    config = {
        "architecture": MODEL,
        "num_classes": len(LABELS),
        "label_names": LABELS,
        "pretrained_cfg": {name: model.pretrained_cfg[name] for name in entry},
    }
    (options.out / "model" / "config.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    print(f"last loss {loss.item():.2f}")
    print(f"wrote {options.out}/model ({MODEL}, {', '.join(LABELS)}) and its images")


if __name__ == "__main__":
    main()
