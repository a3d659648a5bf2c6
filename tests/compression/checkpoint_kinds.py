"""Kinds of checkpoints that people have: each made small, with the real names of its keys, by its own library.

Where the library is no test dependency, the names are turned round here from timm's, and the source of them is cited.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import timm
import torch
from safetensors.torch import save_file
from small_vits import spread_weights
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from tocom import load_model
from tocom.errors import ModelError

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


@dataclass(frozen=True)
class Kind:
    """One row of the table.

    Attributes:
        library: Where it comes from.
        what: The kind.
        make: Writes one into an empty folder.
        refusal: Regular expression of the error, where it is refused.
    """

    library: str
    what: str
    make: Callable[[Path], Made]
    refusal: str = ""


@dataclass(frozen=True)
class Outcome:
    """What became of a kind: the words of the line, or of the refusal; and whether no name had to be passed."""

    words: str
    says_name: bool


def outcome(kind: Kind, folder: Path) -> Outcome:
    """Make a checkpoint of a kind and load it; its outputs must be those of its library, if it is not refused."""
    made = kind.make(folder)
    if kind.refusal:
        try:
            load_model(made.name, weights=made.path, **made.options)
        except ModelError as error:
            return Outcome(str(error), made.name is None)
        raise AssertionError(f"{kind.library}, {kind.what}: it is said to be refused, but is not")
    loaded = load_model(made.name, weights=made.path, **made.options)
    images = torch.randn(2, *loaded.input_entry["shape"][1:], generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        ours, theirs = loaded.model(images), made.model(images)
    assert ours.shape == theirs.shape
    # Outputs of these weights are about 1; where they are larger, so are their last digits.
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-5 * max(1.0, float(theirs.abs().max())))
    return Outcome(loaded.taken, made.name is None)


def timm_model(name: str = TIMM, **options: Any) -> VisionTransformer:
    torch.manual_seed(0)
    model = timm.create_model(name, pretrained=False, **{"num_classes": 3, "img_size": SIDE, **options})
    spread_weights(model)
    return model.eval()


def _state(wrap: Callable[[State], object], name: str = TIMM, **options: Any) -> Callable[[Path], Made]:
    """A file of torch.save; ``options`` make the model small, and are passed to ``load_model`` too."""

    def make(folder: Path) -> Made:
        model = timm_model(name, **options)
        torch.save(wrap(dict(model.state_dict())), folder / "model.pth")
        small = {key: value for key, value in options.items() if key not in ("num_classes", "global_pool")}
        return Made(folder / "model.pth", model, name, {**SMALL, "model_options": small})

    return make


def _prefixed(prefix: str) -> Callable[[State], State]:
    return lambda state: {f"{prefix}{key}": value for key, value in state.items()}


def _noise(state: State) -> State:
    return {key: torch.randn_like(value) for key, value in state.items()}


def _timm_safetensors(folder: Path) -> Made:
    model = timm_model()
    save_file(model.state_dict(), folder / "model.safetensors", metadata={"labels": "bolt\nnut\nwasher"})
    return Made(folder / "model.safetensors", model, TIMM)


def _timm_folder(folder: Path) -> Made:
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


def _timm_train(folder: Path) -> Made:
    """As timm/utils/checkpoint_saver.py writes it."""
    model = timm_model()
    args = argparse.Namespace(
        model=TIMM, img_size=SIDE, mean=[0.1, 0.2, 0.3], std=None, crop_pct=0.7, interpolation="bilinear", gp=None
    )
    content = {
        "epoch": 87, "arch": TIMM, "state_dict": _noise(model.state_dict()),
        "optimizer": {"state": {0: {"exp_avg": torch.ones(2)}}},
        "version": 2, "args": args, "state_dict_ema": _prefixed("module.")(model.state_dict()), "metric": 0.9,
    }  # fmt: skip
    torch.save(content, folder / "model_best.pth.tar")
    return Made(folder / "model_best.pth.tar", model)


def _deit_file(state: State) -> object:
    args = argparse.Namespace(model="deit_tiny_patch16_224", lr=1e-3)
    return {"model": state, "optimizer": {"param_groups": []}, "epoch": 299, "args": args}


def _deit3(state: State) -> object:
    """deit/models_v2.py calls the layer scales gamma_1 and gamma_2."""
    return {"model": {re.sub(r"ls([12])\.gamma", r"gamma_\1", key): value for key, value in state.items()}}


def _mae(state: State) -> object:
    """mae/models_mae.py: the decoder beside the encoder, whose names are timm's."""
    return {"model": {**state, "mask_token": torch.zeros(1, 1, 8), "decoder_embed.weight": torch.ones(8, 96)}}


def _dino(folder: Path) -> Made:
    """dino/main_dino.py: student and teacher with projection heads; the student in DistributedDataParallel."""
    model = timm_model("vit_small_patch16_224", depth=2, num_classes=0)
    heads = {"head.mlp.0.weight": torch.ones(8, 384), "head.last_layer.weight_g": torch.ones(8, 1)}
    teacher = {**_prefixed("backbone.")(model.state_dict()), **heads}
    student = _prefixed("module.")({**_prefixed("backbone.")(_noise(model.state_dict())), **heads})
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


def _dinov2(name: str, **options: Any) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        model = timm_model(name, num_classes=0, depth=2, img_size=70, **options)
        torch.save(dinov2_state(model), folder / "dinov2.pth")
        return Made(folder / "dinov2.pth", model)

    return make


def _dinov2_teacher(folder: Path) -> Made:
    """dinov2/train/train.py: the teacher, with blocks in chunks that are numbered through."""
    model = timm_model("vit_small_patch14_dinov2", num_classes=0, depth=4, img_size=70)
    state = {
        re.sub(r"^blocks\.(\d+)", lambda found: f"blocks.{int(found[1]) // 2}.{found[1]}", key): value
        for key, value in dinov2_state(model).items()
    }
    teacher = {**_prefixed("backbone.")(state), "dino_head.mlp.0.weight": torch.ones(8, 384)}
    torch.save({"teacher": teacher}, folder / "teacher_checkpoint.pth")
    return Made(folder / "teacher_checkpoint.pth", model)


def _ijepa(folder: Path) -> Made:
    """ijepa/src/train.py: context encoder, predictor and target encoder; timm takes the first."""
    model = timm_model("vit_base_patch16_gap_224", num_classes=0, depth=2)
    wrapped = _prefixed("module.")
    content = {
        "encoder": wrapped(model.state_dict()), "predictor": {"module.predictor_embed.weight": torch.ones(2, 2)},
        "target_encoder": wrapped(_noise(model.state_dict())), "epoch": 300,
    }  # fmt: skip
    torch.save(content, folder / "ijepa.pth.tar")
    options = {**SMALL, "model_options": {"depth": 2}}
    return Made(folder / "ijepa.pth.tar", model, "vit_base_patch16_gap_224", options)


def _lightning(folder: Path) -> Made:
    model = timm_model()
    content = {
        "state_dict": {**_prefixed("model.")(model.state_dict()), "criterion.weight": torch.ones(3)},
        "pytorch-lightning_version": "2.5.0", "epoch": 9, "hyper_parameters": {"lr": 1e-3}, "optimizer_states": [],
    }  # fmt: skip
    torch.save(content, folder / "epoch=9.ckpt")
    return Made(folder / "epoch=9.ckpt", model, TIMM, SMALL)


def _loose_head(folder: Path) -> Made:
    backbone = timm_model(num_classes=0)
    state = {**_prefixed("backbone.")(backbone.state_dict()), "classifier.weight": torch.ones(3, 96)}
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


def _mmpretrain(folder: Path) -> Made:
    model = timm_model("vit_tiny_patch16_224", depth=2)
    content = {
        "meta": {"epoch": 100, "dataset_meta": {"classes": ["a", "b", "c"]}},
        "state_dict": mmpretrain_state(model.state_dict()),
    }
    torch.save(content, folder / "epoch_100.pth")
    return Made(folder / "epoch_100.pth", model)


def _torchvision(folder: Path) -> Made:
    from torchvision.models import VisionTransformer as TorchvisionViT

    model = TorchvisionViT(
        image_size=64, patch_size=16, num_layers=2, num_heads=3, hidden_dim=192, mlp_dim=384, num_classes=3
    ).eval()
    spread_weights(model)
    torch.save(model.state_dict(), folder / "vit.pth")
    return Made(folder / "vit.pth", model)


def _hugging_face(
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


def _hugging_face_shards(folder: Path) -> Made:
    made = _hugging_face("ViTConfig", "ViTForImageClassification", "logits", num_labels=3)(folder)
    from safetensors.torch import load_file

    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    places = {key: f"model-0000{1 + index % 2}-of-00002.safetensors" for index, key in enumerate(state)}
    for file in set(places.values()):
        save_file({key: value for key, value in state.items() if places[key] == file}, folder / file)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return made


def _open_clip(quick_gelu: bool) -> Callable[[Path], Made]:
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


def _open_clip_timm(folder: Path) -> Made:
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


def _augreg(folder: Path) -> Made:
    model = timm_model("vit_tiny_patch16_224", depth=2)
    np.savez(folder / "Ti_16.npz", **augreg_arrays(model))
    return Made(folder / "Ti_16.npz", model, "vit_tiny_patch16_224", {**SMALL, "model_options": {"depth": 2}})


def _peft(**options: Any) -> Callable[[Path], Made]:
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


def _peft_hugging_face(folder: Path) -> Made:
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


def _adapter_alone(folder: Path) -> Made:
    made = _peft()(folder)
    return Made(folder / "adapter", made.model, TIMM)


def _file(name: str, content: Callable[[Path], object]) -> Callable[[Path], Made]:
    def make(folder: Path) -> Made:
        content(folder / name)
        return Made(folder / name, nn.Identity(), TIMM)

    return make


def _strange(*keys: str) -> Callable[[Path], object]:
    return lambda path: torch.save({key: torch.ones(2, 2) for key in keys}, path)


def _openai_clip(path: Path) -> object:
    return torch.jit.save(torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)), path)


def _two_families(folder: Path) -> Made:
    made = _torchvision(folder)
    state = {**_prefixed("a.")(torch.load(made.path, weights_only=True)), **_prefixed("b.")(timm_model().state_dict())}
    torch.save(state, folder / "two.pth")
    return Made(folder / "two.pth", nn.Identity(), TIMM)


def _nested(state: State) -> object:
    return {"module": _prefixed("_orig_mod.")(state), "ds_config": {"zero": 1}}


_CLASSES = {"num_labels": 3}
_TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
KINDS = (
    Kind("timm", "state dict of `torch.save`", _state(lambda state: state)),
    Kind("timm", "safetensors with labels", _timm_safetensors),
    Kind("timm", "folder of its hub", _timm_folder),
    Kind("timm", "`timm/train.py` (arguments, EMA)", _timm_train),
    Kind("torch", "DistributedDataParallel (`module.`)", _state(_prefixed("module."))),
    Kind("torch", "`torch.compile` (`_orig_mod.`)", _state(_prefixed("_orig_mod."))),
    Kind("torch", "FSDP (`_fsdp_wrapped_module.`)", _state(_prefixed("_fsdp_wrapped_module."))),
    Kind("DeepSpeed", "`mp_rank_00_model_states.pt`", _state(_nested)),
    Kind("Lightning", "`.ckpt`, the model under `model.`", _lightning),
    Kind("DeiT", "training file", _state(_deit_file, "deit_tiny_patch16_224", depth=2)),
    Kind("DeiT", "distilled", _state(_deit_file, "deit_tiny_distilled_patch16_224", depth=2)),
    Kind("DeiT-3", "`gamma_1` and `gamma_2`", _state(_deit3, "deit3_small_patch16_224", depth=2)),
    Kind("MAE", "pre-training, with decoder", _state(_mae, "vit_tiny_patch16_224", depth=2, num_classes=0)),
    Kind("MAE", "fine-tuned, mean of patches", _state(_deit_file, "vit_tiny_patch16_224", depth=2, global_pool="avg")),
    Kind("DINO", "`teacher` and `student`", _dino),
    Kind("I-JEPA", "`encoder`, `predictor`, `target_encoder`", _ijepa),
    Kind("DINOv2", "official names", _dinov2("vit_small_patch14_dinov2")),
    Kind("DINOv2", "official, registers", _dinov2("vit_small_patch14_reg4_dinov2")),
    Kind("DINOv2", "official, SwiGLU", _dinov2("vit_giant_patch14_dinov2", embed_dim=384, num_heads=6)),
    Kind("DINOv2", "`teacher_checkpoint.pth`, blocks in chunks", _dinov2_teacher),
    Kind(
        "Hugging Face", "ViT, classifier", _hugging_face("ViTConfig", "ViTForImageClassification", "logits", **_CLASSES)
    ),
    Kind("Hugging Face", "ViT, features", _hugging_face("ViTConfig", "ViTModel", "token")),
    Kind(
        "Hugging Face",
        "ViT, names that transformers 5 has in memory",
        _hugging_face("ViTConfig", "ViTForImageClassification", "logits", in_memory=True, **_CLASSES),
    ),
    Kind("Hugging Face", "ViT in shards", _hugging_face_shards),
    Kind("Hugging Face", "ViT-MAE", _hugging_face("ViTMAEConfig", "ViTMAEModel", "token", mask_ratio=0.0)),
    Kind("Hugging Face", "DeiT", _hugging_face("DeiTConfig", "DeiTForImageClassification", "logits", **_CLASSES)),
    Kind(
        "Hugging Face",
        "DeiT, distilled",
        _hugging_face("DeiTConfig", "DeiTForImageClassificationWithTeacher", "logits", **_CLASSES),
    ),
    Kind("Hugging Face", "I-JEPA", _hugging_face("IJepaConfig", "IJepaForImageClassification", "logits", **_CLASSES)),
    Kind("Hugging Face", "DINOv2", _hugging_face("Dinov2Config", "Dinov2Model", "token")),
    Kind("Hugging Face", "DINOv2, SwiGLU", _hugging_face("Dinov2Config", "Dinov2Model", "token", use_swiglu_ffn=True)),
    Kind(
        "Hugging Face",
        "DINOv2, registers",
        _hugging_face("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", "token"),
    ),
    Kind(
        "Hugging Face",
        "DINOv2, classifier of class token and mean",
        _hugging_face("Dinov2Config", "Dinov2ForImageClassification", "logits", **_CLASSES),
        "has a head of its own beside the backbone, classifier.weight, .*--num-classes 0",
    ),
    Kind("Hugging Face", "CLIP, vision tower", _hugging_face("CLIPVisionConfig", "CLIPVisionModel", "pooler_output")),
    Kind(
        "Hugging Face",
        "CLIP, vision tower with projection",
        _hugging_face("CLIPVisionConfig", "CLIPVisionModelWithProjection", "image_embeds", projection_dim=24),
    ),
    Kind(
        "Hugging Face",
        "CLIP, the whole",
        _hugging_face(
            "CLIPConfig", "CLIPModel", "get_image_features", vision_config={}, text_config=_TEXT, projection_dim=24
        ),
    ),
    Kind(
        "Hugging Face",
        "CLIP, classifier",
        _hugging_face(
            "CLIPConfig", "CLIPForImageClassification", "logits", vision_config={}, text_config=_TEXT, **_CLASSES
        ),
    ),
    Kind(
        "Hugging Face",
        "SigLIP, vision tower",
        _hugging_face("SiglipVisionConfig", "SiglipVisionModel", "pooler_output"),
    ),
    Kind(
        "Hugging Face",
        "SigLIP, classifier",
        _hugging_face("SiglipConfig", "SiglipForImageClassification", "logits", vision_config={}, **_CLASSES),
    ),
    Kind(
        "Hugging Face",
        "BEiT",
        _hugging_face(
            "BeitConfig", "BeitForImageClassification", "logits", use_relative_position_bias=True, **_CLASSES
        ),
        "This is Hugging Face's BEiT or Data2Vec: its attention needs each token's place",
    ),
    Kind("torchvision", "`vit_b_16` and its kin", _torchvision),
    Kind("mmpretrain", "`epoch_100.pth`", _mmpretrain),
    Kind("open_clip", "folder, its own tower", _open_clip(quick_gelu=False)),
    Kind("open_clip", "folder, QuickGELU", _open_clip(quick_gelu=True)),
    Kind("open_clip", "folder, timm's tower", _open_clip_timm),
    Kind("AugReg", "`.npz` of JAX", _augreg),
    Kind("peft", "LoRA on timm, with a trained head", _peft()),
    Kind("peft", "LoRA on Hugging Face, rank-stabilised", _peft_hugging_face),
    Kind("peft", "DoRA", _peft(use_dora=True), "is LoRA with DoRA, which is not merged here"),
    Kind(
        "peft", "the adapter's folder alone", _adapter_alone, "is an adapter, not a model: pass the weights that it was"
    ),
    Kind(
        "loralib",
        "LoRA that is not merged",
        _file("model.pth", _strange("blocks.0.attn.qkv.lora_A", "blocks.0.attn.qkv.lora_B")),
        "looks like LoRA weights that are not merged .*merge_and_unload",
    ),
    Kind("Lightning", "a head of one's own beside the backbone", _loose_head, "classifier.weight, and what it reads"),
    Kind("OpenAI", "CLIP's TorchScript archive", _file("ViT-B-32.pt", _openai_clip), "it is a TorchScript archive"),
    Kind(
        "torch",
        "a whole model, pickled",
        _file("m.pt", lambda path: torch.save(nn.Linear(2, 2), path)),
        "would execute",
    ),
    Kind("any", "two models in one file", _two_families, "holds 2 models, under 'a.', 'b.'.*--weights-key"),
    Kind(
        "Swin",
        "state dict",
        _file("swin.pth", _strange("layers.0.blocks.0.attn.relative_position_bias_table")),
        "looks like a Swin Transformer",
    ),
    Kind("ResNet", "state dict", _file("resnet.pth", _strange("conv1.weight", "layer1.0.conv1.weight")), "a ResNet"),
    Kind("ONNX", "a model", _file("m.onnx", lambda path: path.write_bytes(b"\x08")), "is an ONNX model"),
    Kind("Keras", "HDF5 weights", _file("m.h5", lambda path: path.write_bytes(b"\x89HDF")), "is a Keras file"),
)
