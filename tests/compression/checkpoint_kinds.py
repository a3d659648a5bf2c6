"""Kinds of checkpoints that people have: each made small, with the real names of its keys, by its own library.

Where the library is not a test dependency, the names are turned round from timm's, and the source of them is cited.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from checkpoint_files import (
    Made,
    deit3,
    deit_file,
    dino_file,
    dinov2_file,
    dinov2_teacher,
    ijepa_file,
    lightning_file,
    loose_head,
    mae_file,
    mmpretrain_file,
    prefixed,
    saved,
    timm_folder,
    timm_safetensors,
    timm_train,
)
from checkpoint_libraries import (
    adapter_alone,
    augreg_file,
    hugging_face,
    hugging_face_shards,
    nested,
    open_clip_folder,
    open_clip_timm,
    openai_clip,
    other,
    peft_hugging_face,
    peft_lora,
    strange,
    torchvision_file,
    two_families,
)
from torch import nn

from tocom import load_model
from tocom.errors import ModelError


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


_CLASSES = {"num_labels": 3}
_TEXT = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64, "vocab_size": 50}
KINDS = (
    Kind("timm", "state dict of `torch.save`", saved(lambda state: state)),
    Kind("timm", "safetensors with labels", timm_safetensors),
    Kind("timm", "folder of its hub", timm_folder),
    Kind("timm", "`timm/train.py` (arguments, EMA)", timm_train),
    Kind("torch", "DistributedDataParallel (`module.`)", saved(prefixed("module."))),
    Kind("torch", "`torch.compile` (`_orig_mod.`)", saved(prefixed("_orig_mod."))),
    Kind("torch", "FSDP (`_fsdp_wrapped_module.`)", saved(prefixed("_fsdp_wrapped_module."))),
    Kind("DeepSpeed", "`mp_rank_00_model_states.pt`", saved(nested)),
    Kind("Lightning", "`.ckpt`, the model under `model.`", lightning_file),
    Kind("DeiT", "training file", saved(deit_file, "deit_tiny_patch16_224", depth=2)),
    Kind("DeiT", "distilled", saved(deit_file, "deit_tiny_distilled_patch16_224", depth=2)),
    Kind("DeiT-3", "`gamma_1` and `gamma_2`", saved(deit3, "deit3_small_patch16_224", depth=2)),
    Kind("MAE", "pre-training, with decoder", saved(mae_file, "vit_tiny_patch16_224", depth=2, num_classes=0)),
    Kind("MAE", "fine-tuned, mean of patches", saved(deit_file, "vit_tiny_patch16_224", depth=2, global_pool="avg")),
    Kind("DINO", "`teacher` and `student`", dino_file),
    Kind("I-JEPA", "`encoder`, `predictor`, `target_encoder`", ijepa_file),
    Kind("DINOv2", "official names", dinov2_file("vit_small_patch14_dinov2")),
    Kind("DINOv2", "official, registers", dinov2_file("vit_small_patch14_reg4_dinov2")),
    Kind("DINOv2", "official, SwiGLU", dinov2_file("vit_giant_patch14_dinov2", embed_dim=384, num_heads=6)),
    Kind("DINOv2", "`teacher_checkpoint.pth`, blocks in chunks", dinov2_teacher),
    Kind(
        "Hugging Face",
        "ViT, classifier",
        hugging_face("ViTConfig", "ViTForImageClassification", "logits", **_CLASSES),
    ),
    Kind("Hugging Face", "ViT, features", hugging_face("ViTConfig", "ViTModel", "token")),
    Kind(
        "Hugging Face",
        "ViT, names that transformers 5 has in memory",
        hugging_face("ViTConfig", "ViTForImageClassification", "logits", in_memory=True, **_CLASSES),
    ),
    Kind("Hugging Face", "ViT in shards", hugging_face_shards),
    Kind("Hugging Face", "ViT-MAE", hugging_face("ViTMAEConfig", "ViTMAEModel", "token", mask_ratio=0.0)),
    Kind("Hugging Face", "DeiT", hugging_face("DeiTConfig", "DeiTForImageClassification", "logits", **_CLASSES)),
    Kind(
        "Hugging Face",
        "DeiT, distilled",
        hugging_face("DeiTConfig", "DeiTForImageClassificationWithTeacher", "logits", **_CLASSES),
    ),
    Kind(
        "Hugging Face",
        "I-JEPA",
        hugging_face("IJepaConfig", "IJepaForImageClassification", "logits", **_CLASSES),
    ),
    Kind("Hugging Face", "DINOv2", hugging_face("Dinov2Config", "Dinov2Model", "token")),
    Kind(
        "Hugging Face",
        "DINOv2, SwiGLU",
        hugging_face("Dinov2Config", "Dinov2Model", "token", use_swiglu_ffn=True),
    ),
    Kind(
        "Hugging Face",
        "DINOv2, registers",
        hugging_face("Dinov2WithRegistersConfig", "Dinov2WithRegistersModel", "token"),
    ),
    Kind(
        "Hugging Face",
        "DINOv2, classifier of class token and mean",
        hugging_face("Dinov2Config", "Dinov2ForImageClassification", "logits", **_CLASSES),
        "has a head of its own beside the backbone, classifier.weight, .*--num-classes 0",
    ),
    Kind(
        "Hugging Face",
        "CLIP, vision tower",
        hugging_face("CLIPVisionConfig", "CLIPVisionModel", "pooler_output"),
    ),
    Kind(
        "Hugging Face",
        "CLIP, vision tower with projection",
        hugging_face("CLIPVisionConfig", "CLIPVisionModelWithProjection", "image_embeds", projection_dim=24),
    ),
    Kind(
        "Hugging Face",
        "CLIP, the whole",
        hugging_face(
            "CLIPConfig", "CLIPModel", "get_image_features", vision_config={}, text_config=_TEXT, projection_dim=24
        ),
    ),
    Kind(
        "Hugging Face",
        "CLIP, classifier",
        hugging_face(
            "CLIPConfig", "CLIPForImageClassification", "logits", vision_config={}, text_config=_TEXT, **_CLASSES
        ),
    ),
    Kind(
        "Hugging Face",
        "SigLIP, vision tower",
        hugging_face("SiglipVisionConfig", "SiglipVisionModel", "pooler_output"),
    ),
    Kind(
        "Hugging Face",
        "SigLIP, classifier",
        hugging_face("SiglipConfig", "SiglipForImageClassification", "logits", vision_config={}, **_CLASSES),
    ),
    Kind(
        "Hugging Face",
        "BEiT",
        hugging_face("BeitConfig", "BeitForImageClassification", "logits", use_relative_position_bias=True, **_CLASSES),
        "This is Hugging Face's BEiT or Data2Vec: its attention needs each token's position",
    ),
    Kind("torchvision", "`vit_b_16` and its kin", torchvision_file),
    Kind("mmpretrain", "`epoch_100.pth`", mmpretrain_file),
    Kind("open_clip", "folder, its own tower", open_clip_folder(quick_gelu=False)),
    Kind("open_clip", "folder, QuickGELU", open_clip_folder(quick_gelu=True)),
    Kind("open_clip", "folder, timm's tower", open_clip_timm),
    Kind("AugReg", "`.npz` of JAX", augreg_file),
    Kind("peft", "LoRA on timm, with a trained head", peft_lora()),
    Kind("peft", "LoRA on Hugging Face, rank-stabilised", peft_hugging_face),
    Kind("peft", "DoRA", peft_lora(use_dora=True), "is LoRA with DoRA, which is not merged here"),
    Kind(
        "peft", "the adapter's folder alone", adapter_alone, "is an adapter, not a model: pass the weights that it was"
    ),
    Kind(
        "loralib",
        "LoRA that is not merged",
        other("model.pth", strange("blocks.0.attn.qkv.lora_A", "blocks.0.attn.qkv.lora_B")),
        "looks like LoRA weights that are not merged .*merge_and_unload",
    ),
    Kind("Lightning", "a head of one's own beside the backbone", loose_head, "classifier.weight, and what it reads"),
    Kind("OpenAI", "CLIP's TorchScript archive", other("ViT-B-32.pt", openai_clip), "it is a TorchScript archive"),
    Kind(
        "torch",
        "a whole model, pickled",
        other("m.pt", lambda path: torch.save(nn.Linear(2, 2), path)),
        "would execute",
    ),
    Kind("any", "two models in one file", two_families, "holds 2 models, under 'a.', 'b.'.*--weights-key"),
    Kind(
        "Swin",
        "state dict",
        other("swin.pth", strange("layers.0.blocks.0.attn.relative_position_bias_table")),
        "looks like a Swin Transformer",
    ),
    Kind(
        "ResNet",
        "state dict",
        other("resnet.pth", strange("conv1.weight", "layer1.0.conv1.weight")),
        "a ResNet",
    ),
    Kind("ONNX", "a model", other("m.onnx", lambda path: path.write_bytes(b"\x08")), "is an ONNX model"),
    Kind("Keras", "HDF5 weights", other("m.h5", lambda path: path.write_bytes(b"\x89HDF")), "is a Keras file"),
)
