"""What loading makes of a checkpoint: sizes, statistics, sets of weights, and bad input."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from checkpoint_files import SMALL, TIMM, Made, dinov2_state, timm_model
from checkpoint_kinds import KINDS
from checkpoint_libraries import augreg_arrays
from PIL import Image
from safetensors.torch import save_file
from timm.data import create_transform
from timm.models.vision_transformer import checkpoint_filter_fn
from torch import nn

from tocom import load_model
from tocom.compression.loading.preprocessing import Preprocessing
from tocom.errors import ModelError
from tocom.images import preprocess

IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225), "interpolation": "bilinear", "crop_pct": 1.0}


def made(library: str, what: str, folder: Path) -> Made:
    return next(kind for kind in KINDS if (kind.library, kind.what) == (library, what)).make(folder)


def test_the_arguments_of_a_training_say_what_images_are(tmp_path: Path) -> None:
    loaded = load_model(weights=made("timm", "`timm/train.py` (arguments, EMA)", tmp_path).path)
    entry, origins = loaded.input_entry, loaded.origins
    assert (entry["mean"], entry["crop"], entry["interpolation"]) == ([0.1, 0.2, 0.3], 0.7, "bilinear")
    assert origins["mean"] == origins["crop"] == "the checkpoint's args"
    assert origins["std"] == f"timm's config of {TIMM}"
    assert (entry["shape"][2:], origins["size"]) == ([64, 64], "the checkpoint")
    asked = load_model(
        weights=tmp_path / "model_best.pth.tar", preprocessing=Preprocessing(mean=(0.9,) * 3, origin="as asked")
    )
    assert (asked.input_entry["mean"], asked.origins["mean"]) == ([0.9] * 3, "as asked")


def test_which_weights_are_taken_is_said_and_can_be_chosen(tmp_path: Path) -> None:
    checkpoint = made("timm", "`timm/train.py` (arguments, EMA)", tmp_path)
    averaged = load_model(weights=checkpoint.path)
    assert "averaged (EMA) weights of epoch 87 under state_dict_ema" in averaged.taken
    assert "not those under state_dict." in averaged.taken
    plain = load_model(weights=checkpoint.path, weights_key="state_dict")
    assert not torch.equal(plain.model.head.weight, averaged.model.head.weight)
    with pytest.raises(ModelError, match=r"no set of weights under 'nothing'\. It has: state_dict, state_dict_ema"):
        load_model(weights=checkpoint.path, weights_key="nothing")


@pytest.mark.parametrize(
    ("says", "entry"),
    [
        (
            {"size": {"height": 64, "width": 64}, "resample": 2, "image_mean": [0.5] * 3, "image_std": [0.4] * 3},
            {"crop_mode": "squash", "crop": 1.0, "interpolation": "bilinear", "mean": [0.5] * 3, "std": [0.4] * 3},
        ),
        (
            {"size": {"shortest_edge": 256}, "crop_size": {"height": 224, "width": 224}, "resample": 3},
            {"crop_mode": "center", "crop": 224 / 256, "interpolation": "bicubic"},
        ),
        ({"size": 224, "do_center_crop": False, "resample": 3}, {"crop_mode": "squash", "crop": 1.0}),
        ({"size": 64, "do_normalize": False}, {"mean": [0.0] * 3, "std": [1.0] * 3}),
        (
            {"size": 64, "rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
            {"mean": [0.5] * 3, "std": [0.5] * 3},
        ),
    ],
)
def test_a_processors_configuration(tmp_path: Path, says: dict[str, Any], entry: dict[str, Any]) -> None:
    pytest.importorskip("transformers")
    path = made("Hugging Face", "ViT, features", tmp_path).path
    (path / "preprocessor_config.json").write_text(json.dumps(says))
    loaded = load_model(weights=path)
    for key, value in entry.items():
        want = value if isinstance(value, str) else pytest.approx(value)
        assert loaded.input_entry[key] == want, key
    assert loaded.origins["crop_mode"] == "preprocessor_config.json"


def test_labels_of_a_folder(tmp_path: Path) -> None:
    path = made("timm", "folder of its hub", tmp_path).path
    loaded = load_model(weights=path)
    assert loaded.labels == ["bolt", "nut", "washer"]
    assert loaded.input_entry["crop_mode"] == "squash"
    config = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps({**config, "label_names": ["a"]}))
    with pytest.raises(ModelError, match="has 3 classes, but there are 1 labels"):
        load_model(weights=path)


@pytest.mark.parametrize("size", [64, (32, 96)])
def test_positions_are_resampled_as_timm_does(tmp_path: Path, size: int | tuple[int, int]) -> None:
    source = timm_model(img_size=80)
    torch.save(source.state_dict(), tmp_path / "m.pth")
    loaded = load_model(TIMM, weights=tmp_path / "m.pth", image_size=size)
    want = timm_model(img_size=size)
    want.load_state_dict(checkpoint_filter_fn(source.state_dict(), want))
    images = torch.randn(2, *loaded.input_entry["shape"][1:])
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), want(images))
    assert "positions 5×5 → " in loaded.taken


@pytest.mark.slow
@pytest.mark.parametrize("size", [384, (224, 448)])
def test_augreg_at_its_real_size(tmp_path: Path, size: int | tuple[int, int]) -> None:
    """AugReg's ViT-B/16 of 224 pixels at another size: what timm's own reader of the same file computes."""
    name = "vit_base_patch16_224"
    np.savez(tmp_path / "B_16.npz", **augreg_arrays(timm_model(name, img_size=224, depth=12)))
    loaded = load_model(name, weights=tmp_path / "B_16.npz", image_size=size)
    want = timm.create_model(name, img_size=size, num_classes=3).eval()
    want.load_pretrained(str(tmp_path / "B_16.npz"))
    images = torch.randn(1, *loaded.input_entry["shape"][1:])
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), want(images))


@pytest.mark.slow
def test_official_dinov2_at_its_real_size(tmp_path: Path) -> None:
    """DINOv2's ViT-S/14 of 518 pixels, by its official names, at 224: what timm's filter makes of it."""
    name = "vit_small_patch14_dinov2"
    source = timm_model(name, img_size=518, num_classes=0)
    torch.save(dinov2_state(source), tmp_path / "dinov2_vits14_pretrain.pth")
    loaded = load_model(weights=tmp_path / "dinov2_vits14_pretrain.pth", image_size=224)
    assert loaded.name == name
    assert "positions 37×37 → 16×16 by bicubic" in loaded.taken
    want = timm.create_model(name, img_size=224, num_classes=0).eval()
    want.load_state_dict(checkpoint_filter_fn(dinov2_state(source), want))
    images = torch.randn(1, 3, 224, 224)
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), want(images))


def test_a_model_trained_with_other_statistics_keeps_every_answer(tmp_path: Path) -> None:
    """Real images, a head fitted under ImageNet's statistics, as timm/train.py would store it."""
    digits = pytest.importorskip("sklearn.datasets").load_digits()
    pictures = [Image.fromarray((image * 15.9).astype(np.uint8)).convert("RGB") for image in digits.images[:300]]
    config = {**IMAGENET, "input_size": (3, 64, 64), "crop_mode": "center"}
    transform = create_transform(**config)
    backbone = timm_model(num_classes=0)
    with torch.inference_mode():
        features = backbone(torch.stack([transform(picture) for picture in pictures]))
    target = torch.tensor(digits.target[:300])
    model = timm_model(num_classes=10)
    solution = torch.linalg.lstsq(
        torch.cat([features, torch.ones(300, 1)], 1), nn.functional.one_hot(target, 10).float()
    ).solution
    state = {**model.state_dict(), "head.weight": solution[:-1].T.contiguous(), "head.bias": solution[-1]}
    args = argparse.Namespace(model=TIMM, crop_mode="center", **IMAGENET)
    torch.save({"arch": TIMM, "state_dict": state, "args": args}, tmp_path / "last.pth.tar")
    model.load_state_dict(state)
    loaded = load_model(weights=tmp_path / "last.pth.tar")
    ours = torch.from_numpy(np.stack([preprocess(picture, loaded.input_entry) for picture in pictures]))
    plain = load_model(TIMM, weights="random", num_classes=10, image_size=64).input_entry
    wrong = torch.from_numpy(np.stack([preprocess(picture, plain) for picture in pictures]))
    with torch.inference_mode():
        want = model(torch.stack([transform(picture) for picture in pictures])).argmax(1)
        answers, otherwise = loaded.model(ours).argmax(1), loaded.model(wrong).argmax(1)
    assert (want == target).float().mean() > 0.6, "the head has learnt nothing, so this shows nothing"
    assert torch.equal(answers, want)
    assert not torch.equal(otherwise, want), "timm's own statistics answer alike, so this shows nothing"


def nan(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {**state, "blocks.3.attn.qkv.weight": state["blocks.3.attn.qkv.weight"] * torch.nan}


BAD: dict[str, tuple[Any, dict[str, Any], str]] = {
    "NaN weights": (nan, {}, "NaN or infinity in blocks.3.attn.qkv.weight"),
    "another head": (
        dict,
        {"num_classes": 5},
        r"must be 3 \(or 0 for features\), as .* has a head of 3 classes. Got 5",
    ),
    "other channels": (dict, {"in_chans": 1}, "'in_chans' parameter must be 3"),
    "an indivisible size": (dict, {"image_size": 70}, "multiple of the patch, 16 pixels. Got 70 × 70"),
    "a mean of two": (dict, {"preprocessing": Preprocessing(mean=(0.5, 0.5))}, "takes 3 channels, but its mean has 2"),
    "an option that nobody has": (dict, {"model_options": {"qk_nrom": True}}, "Cannot create test_vit3 with"),
    "other options": (
        dict,
        {"model_options": {"qk_norm": True}},
        "does not fit test_vit3: missing blocks.0.attn.q_norm",
    ),
    "a set in a plain file": (dict, {"weights_key": "ema"}, "no set of weights under 'ema'"),
}


@pytest.mark.parametrize("kind", BAD)
@pytest.mark.fault("backbone weights or options that do not belong together", outcome="ModelError in one line")
def test_bad_input(kind: str, tmp_path: Path) -> None:
    change, options, message = BAD[kind]
    save_file(change(timm_model().state_dict()), tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=message) as caught:
        load_model(TIMM, weights=tmp_path / "m.safetensors", **{**SMALL, **options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"no archive"])
def test_damaged_archives_of_arrays(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "m.npz").write_bytes(content)
    with pytest.raises(ModelError, match=r"Cannot read the checkpoint .*m\.npz"):
        load_model("vit_tiny_patch16_224", weights=tmp_path / "m.npz")


def test_no_name_where_the_file_says_none(tmp_path: Path) -> None:
    save_file(timm_model().state_dict(), tmp_path / "m.safetensors")
    with pytest.raises(ModelError, match=r"looks like timm's names, which does not say which model it is.*--model"):
        load_model(weights=tmp_path / "m.safetensors")
