"""Checkpoints of timm's models, by timm's names and by those that trainings and other projects give them.

Where a library is not a test dependency, names are turned round here from timm's, and the source of them is cited.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import save_file
from small_vits import spread_weights
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

State = dict[str, Tensor]
TIMM = "test_vit3"  # timm's own small model: nine blocks of 96 channels
SIDE = 64
SMALL = {"image_size": SIDE}
HUGGING_FACE = {
    "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 3, "intermediate_size": 96, "image_size": 64,
    "patch_size": 16,
}  # fmt: skip


@dataclass(frozen=True)
class Made:
    """A checkpoint on disk, and what it must compute.

    Attributes:
        path: The file or folder.
        model: Gives the outputs of the library that the checkpoint comes from.
        name: timm name to pass; None where the checkpoint says what it is.
        options: For ``load_model``.
    """

    path: Path
    model: Callable[[Tensor], Tensor]
    name: str | None = None
    options: dict[str, Any] = field(default_factory=dict)


def timm_model(name: str = TIMM, **options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **{"num_classes": 3, "img_size": SIDE, **options})
    spread_weights(model)
    return model.eval()


def saved(wrap: Callable[[State], object], name: str = TIMM, **options: Any) -> Callable[[Path], Made]:
    """A file of torch.save; ``options`` make the model small, and are passed to ``load_model`` too."""

    def make(folder: Path) -> Made:
        model = timm_model(name, **options)
        torch.save(wrap(dict(model.state_dict())), folder / "model.pth")
        small = {key: value for key, value in options.items() if key not in ("num_classes", "global_pool")}
        return Made(folder / "model.pth", model, name, {**SMALL, "model_options": small})

    return make


def prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def noise(state: State) -> State:
    return {key: torch.randn_like(value) for key, value in state.items()}


def timm_safetensors(folder: Path) -> Made:
    model = timm_model()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"labels": "bolt\nnut\nwasher"})
    return Made(folder / "model.safetensors", model, TIMM)


def timm_folder(folder: Path) -> Made:
    model = timm_model()
    save_file(model.state_dict(), folder / "model.safetensors")
    config = {  # timm/models/_hub.py, save_config_for_hf
        "architecture": TIMM, "num_classes": 3, "num_features": 96, "label_names": ["bolt", "nut", "washer"],
        "model_args": {"img_size": SIDE},
        "pretrained_cfg": {
            "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.2, 0.3], "interpolation": "bilinear", "crop_pct": 0.8,
            "crop_mode": "squash", "num_classes": 3,
        },
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return Made(folder, model)


def timm_train(folder: Path) -> Made:
    """As timm/utils/checkpoint_saver.py writes it."""
    model = timm_model()
    args = argparse.Namespace(
        model=TIMM, img_size=SIDE, mean=[0.1, 0.2, 0.3], std=None, crop_pct=0.7, interpolation="bilinear", gp=None
    )
    content = {
        "epoch": 87, "arch": TIMM, "state_dict": noise(model.state_dict()),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "version": 2, "args": args, "state_dict_ema": prefixed("module.")(model.state_dict()), "metric": 0.9,
    }  # fmt: skip
    torch.save(content, folder / "model_best.pth.tar")
    return Made(folder / "model_best.pth.tar", model)


def deit_file(state: State) -> object:
    args = argparse.Namespace(model="deit_tiny_patch16_224", lr=1e-3)
    return {"model": state, "optimizer": {"param_groups": []}, "epoch": 299, "args": args}


def deit3(state: State) -> object:
    """deit/models_v2.py calls the layer scales gamma_1 and gamma_2."""
    return {"model": {re.sub(r"ls([12])\.gamma", r"gamma_\1", key): value for key, value in state.items()}}


def mae_file(state: State) -> object:
    """mae/models_mae.py: the decoder beside the encoder, whose names are timm's."""
    return {"model": {**state, "mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.ones(8, 96)}}


def dino_file(folder: Path) -> Made:
    """dino/main_dino.py: student and teacher with projection heads; the student in DistributedDataParallel."""
    model = timm_model("vit_small_patch16_224", depth=2, num_classes=0)
    heads = {"head.mlp.0.weight": torch.ones(8, 384), "head.last_layer.weight_g": torch.ones(8, 1)}
    teacher = {**prefixed("backbone.")(model.state_dict()), **heads}
    student = prefixed("module.")({**prefixed("backbone.")(noise(model.state_dict())), **heads})
    content = {"student": student, "teacher": teacher, "epoch": 100, "args": argparse.Namespace(arch="vit_small")}
    torch.save(content, folder / "checkpoint.pth")
    return Made(folder / "checkpoint.pth", model)


def dinov2_state(model: VisionTransformer) -> State:
    """Return timm's DINOv2 by the names of dinov2/models/vision_transformer.py."""
    state = {**model.state_dict(), "mask_token": torch.zeros(1, model.embed_dim)}
    if model.reg_token is not None:
        state["register_tokens"] = state.pop("reg_token")
        state["pos_embed"] = torch.cat([torch.zeros(1, 1, model.embed_dim), state["pos_embed"]], dim=1)
    if "giant" in model.pretrained_cfg["architecture"]:
        state = {key.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): value for key, value in state.items()}
    return state


def dinov2_file(name: str, **options: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        model = timm_model(name, num_classes=0, depth=2, img_size=70, **options)
        torch.save(dinov2_state(model), folder / "dinov2.pth")
        return Made(folder / "dinov2.pth", model)

    return make


def dinov2_teacher(folder: Path) -> Made:
    """dinov2/train/train.py: the teacher, with blocks in chunks that are numbered through."""
    model = timm_model("vit_small_patch14_dinov2", num_classes=0, depth=4, img_size=70)
    state = {
        re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{int(found[1]) // 2}.{found[1]}", key): value
        for key, value in dinov2_state(model).items()
    }
    teacher = {**prefixed("backbone.")(state), "dino_head.mlp.0.weight": torch.ones(8, 384)}
    torch.save({"teacher": teacher}, folder / "teacher_checkpoint.pth")
    return Made(folder / "teacher_checkpoint.pth", model)


def ijepa_file(folder: Path) -> Made:
    """ijepa/src/train.py: context encoder, predictor and target encoder; timm takes the first."""
    model = timm_model("vit_base_patch16_gap_224", num_classes=0, depth=2)
    wrapped = prefixed("module.")
    content = {
        "encoder": wrapped(model.state_dict()), "predictor": {"module.predictor_embed.weight": torch.ones(2, 2)},
        "target_encoder": wrapped(noise(model.state_dict())), "epoch": 300,
    }  # fmt: skip
    torch.save(content, folder / "ijepa.pth.tar")
    options = {**SMALL, "model_options": {"depth": 2}}
    return Made(folder / "ijepa.pth.tar", model, "vit_base_patch16_gap_224", options)


def lightning_file(folder: Path) -> Made:
    model = timm_model()
    content = {
        "state_dict": {**prefixed("model.")(model.state_dict()), "criterion.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.5.0", "epoch": 9, "hyper_parameters": {"lr": 1e-3}, "optimizer_states": [],
    }  # fmt: skip
    torch.save(content, folder / "epoch=9.ckpt")
    return Made(folder / "epoch=9.ckpt", model, TIMM, SMALL)


def loose_head(folder: Path) -> Made:
    backbone = timm_model(num_classes=0)
    state = {**prefixed("backbone.")(backbone.state_dict()), "classifier.weight": torch.ones(3, 96)}
    torch.save({"state_dict": state}, folder / "last.ckpt")
    return Made(folder / "last.ckpt", backbone, TIMM, SMALL)


def mmpretrain_state(state: State) -> State:
    """Return timm's names by mmpretrain/models/backbones/vision_transformer.py and heads/vision_transformer_head.py."""
    renamed = {}
    for key, value in state.items():
        key = re.sub(r"^blocks\.(\d+)\.", r"layers.\1.", key)
        key = key.replace("patch_embed.proj.", "patch_embed.projection.").replace(".norm1.", ".ln1.")
        key = (
            key.replace(".norm2.", ".ln2.")
            .replace(".mlp.fc1.", ".ffn.layers.0.0.")
            .replace(".mlp.fc2.", ".ffn.layers.1.")
        )
        key = re.sub(r"^norm\.", "ln1.", key)
        renamed[re.sub(r"^head\.", "head.layers.head.", key) if key.startswith("head.") else f"backbone.{key}"] = value
    return renamed


def mmpretrain_file(folder: Path) -> Made:
    model = timm_model("vit_tiny_patch16_224", depth=2)
    content = {
        "meta": {"epoch": 100, "dataset_meta": {"classes": ["a", "b", "c"]}},
        "state_dict": mmpretrain_state(model.state_dict()),
    }
    torch.save(content, folder / "epoch_100.pth")
    return Made(folder / "epoch_100.pth", model)
