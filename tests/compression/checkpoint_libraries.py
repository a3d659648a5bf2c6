"""Checkpoints that other libraries write, small ones, and files that are none: each by the library itself."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from checkpoint_files import HUGGING_FACE, SMALL, TIMM, Made, State, prefixed, timm_model
from safetensors.torch import save_file
from small_vits import spread_weights
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn


def torchvision_file(folder: Path) -> Made:
    from torchvision.models import VisionTransformer as TorchvisionViT

    model = TorchvisionViT(
        image_size=64, patch_size=16, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=384, num_classes=3
    ).eval()
    spread_weights(model)
    torch.save(model.state_dict(), folder / "vit.pth")
    return Made(folder / "vit.pth", model)


def hugging_face(
    config: str, model: str, output: str, *, file_only: bool = False, in_memory: bool = False, **options: Any
) -> Callable[[Path], Made]:
    """A checkpoint of ``transformers``.

    Args:
        config: Class of the configuration.
        model: Class of the model.
        output: Attribute of its output that the timm model must give; ``token`` and ``mean`` are of the last state.
        file_only: Give the file without its folder, and a timm name.
        in_memory: Save ``model.state_dict()``, by the names that transformers 5 has in memory.
        options: Of the configuration.
    """

    def make(folder: Path) -> Made:
        import transformers

        torch.manual_seed(0)
        nested = (
            {"vision_config": {**HUGGING_FACE, **options.get("vision_config", {})}}
            if "vision_config" in options
            else HUGGING_FACE
        )
        whole = getattr(transformers, model)(
            getattr(transformers, config)(**{**nested, **{k: v for k, v in options.items() if k != "vision_config"}})
        ).eval()
        spread_weights(whole)
        if in_memory:
            torch.save(whole.state_dict(), folder / "model.safetensors.pth")
            (folder / "model.safetensors.pth").rename(folder / "pytorch_model.bin")
            whole.config.save_pretrained(folder)
        else:
            whole.save_pretrained(folder)

        def run(images: Tensor) -> Tensor:
            if output == "get_image_features":
                features = whole.get_image_features(pixel_values=images)
                return features if isinstance(features, Tensor) else features.pooler_output
            result = whole(images)
            if output == "token":
                return result.last_hidden_state[:, 0]
            if output == "mean":
                return result.last_hidden_state.mean(1)
            return getattr(result, output)

        return Made(folder, run)

    return make


def hugging_face_shards(folder: Path) -> Made:
    made = hugging_face("ViTConfig", "ViTForImageClassification", "logits", num_labels=3)(folder)
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(state)}
    for file in set(places.values()):
        save_file({key: value for key, value in state.items() if places[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return made


def open_clip_folder(quick_gelu: bool) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        import open_clip

        config = {
            "embed_dim": 24, "quick_gelu": quick_gelu,
            "vision_cfg": {"image_size": 64, "layers": 2, "width": 192, "patch_size": 16},
            "text_cfg": {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1},
        }  # fmt: skip
        torch.manual_seed(0)
        model = open_clip.model.CLIP(**config).eval()
        spread_weights(model)
        torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
        preprocess = {
            "mean": [0.4, 0.4, 0.4],
            "std": [0.2, 0.2, 0.2],
            "interpolation": "bicubic",
            "resize_mode": "squash",
        }
        (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": config, "preprocess_cfg": preprocess}))
        return Made(folder, model.encode_image)

    return make


def open_clip_timm(folder: Path) -> Made:
    import open_clip

    vision = {"timm_model_name": TIMM, "timm_pool": "", "timm_proj": "linear", "image_size": 160}
    text = {"context_length": 8, "vocab_size": 50, "width": 32, "heads": 2, "layers": 1}
    torch.manual_seed(0)
    model = open_clip.CustomTextCLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()
    spread_weights(model)
    torch.save(model.state_dict(), folder / "open_clip_pytorch_model.bin")
    config = {"model_cfg": {"embed_dim": 24, "vision_cfg": vision, "text_cfg": text}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    return Made(folder, model.encode_image)


def augreg_arrays(model: VisionTransformer) -> dict[str, np.ndarray]:
    """Return timm's weights by the names of vision_transformer/vit_jax/models_vit.py, as AugReg's files have them."""
    state = {key: value.numpy() for key, value in model.state_dict().items()}
    heads, width = model.blocks[0].attn.num_heads, model.embed_dim
    arrays = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for index in range(len(model.blocks)):
        ours, theirs = f"blocks.{index}", f"Transformer/encoderblock_{index}"
        for part, name in enumerate(("query", "key", "value")):
            weight = np.split(state[f"{ours}.attn.qkv.weight"], 3)[part]
            attention = f"{theirs}/MultiHeadDotProductAttention_1/{name}"
            arrays[f"{attention}/kernel"] = weight.T.reshape(width, heads, -1)
            arrays[f"{attention}/bias"] = np.split(state[f"{ours}.attn.qkv.bias"], 3)[part].reshape(heads, -1)
        out = f"{theirs}/MultiHeadDotProductAttention_1/out"
        arrays[f"{out}/kernel"] = state[f"{ours}.attn.proj.weight"].T.reshape(heads, -1, width)
        arrays[f"{out}/bias"] = state[f"{ours}.attn.proj.bias"]
        for layer in (0, 1):
            dense = f"{theirs}/MlpBlock_3/Dense_{layer}"
            arrays[f"{dense}/kernel"] = state[f"{ours}.mlp.fc{layer + 1}.weight"].T
            arrays[f"{dense}/bias"] = state[f"{ours}.mlp.fc{layer + 1}.bias"]
        for ours_norm, theirs_norm in (("norm1", "LayerNorm_0"), ("norm2", "LayerNorm_2")):
            arrays[f"{theirs}/{theirs_norm}/scale"] = state[f"{ours}.{ours_norm}.weight"]
            arrays[f"{theirs}/{theirs_norm}/bias"] = state[f"{ours}.{ours_norm}.bias"]
    return arrays


def augreg_file(folder: Path) -> Made:
    model = timm_model("vit_tiny_patch16_224", depth=2)
    np.savez(folder / "Ti_16.npz", **augreg_arrays(model))
    return Made(folder / "Ti_16.npz", model, "vit_tiny_patch16_224", {**SMALL, "model_options": {"depth": 2}})


def peft_lora(**options: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        import peft

        base = timm_model()
        save_file(base.state_dict(), folder / "model.safetensors")
        config = peft.LoraConfig(
            **{"r": 4, "lora_alpha": 6, "target_modules": r".*attn\.(qkv|proj)", "modules_to_save": ["head"], **options}
        )
        model = peft.get_peft_model(base, config).eval()
        generator = torch.Generator().manual_seed(1)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.requires_grad:
                    parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)
        model.save_pretrained(folder / "adapter")
        return Made(folder / "model.safetensors", model, TIMM, {**SMALL, "adapter": folder / "adapter"})

    return make


def peft_hugging_face(folder: Path) -> Made:
    import peft
    import transformers

    torch.manual_seed(0)
    base = transformers.ViTForImageClassification(transformers.ViTConfig(**HUGGING_FACE, num_labels=3))
    spread_weights(base)
    base.save_pretrained(folder)
    targets = [
        name
        for name, module in base.named_modules()
        if re.search(r"(query|value|[qv]_proj)$", name) and isinstance(module, nn.Linear)
    ]
    model = peft.get_peft_model(
        base, peft.LoraConfig(r=2, lora_alpha=4, target_modules=targets, use_rslora=True)
    ).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape) * 0.2)
    model.save_pretrained(folder / "adapter")
    return Made(folder, lambda images: model(pixel_values=images).logits, None, {"adapter": folder / "adapter"})


def adapter_alone(folder: Path) -> Made:
    made = peft_lora()(folder)
    return Made(folder / "adapter", made.model, TIMM)


def other(name: str, content: Callable[[Path], object]) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        content(folder / name)
        return Made(folder / name, nn.Identity(), TIMM)

    return make


def strange(*keys: str) -> Callable[[Path], object]:
    return lambda path: torch.save({key: torch.ones(2, 2) for key in keys}, path)


def openai_clip(path: Path) -> object:
    return torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


def two_families(folder: Path) -> Made:
    made = torchvision_file(folder)
    state = {**prefixed("a.")(torch.load(made.path, weights_only=True)), **prefixed("b.")(timm_model().state_dict())}
    torch.save(state, folder / "two.pth")
    return Made(folder / "two.pth", nn.Identity(), TIMM)


def nested(state: State) -> object:
    return {"module": prefixed("_orig_mod.")(state), "ds_config": {"zero": 1}}
