"""Where is a merged token? Two ways of merging rotary positions, on small rotary models trained here.

    python benchmarks/rotary_positions.py --only dinov3        # trains one kind, ten minutes; kept in build/rotary/
    python benchmarks/rotary_positions.py                      # the rest, and the figures

Each model (6 blocks, 192 channels, 8 × 8 patches) learns the class token and the patches of the quickstart's DINOv2
ViT-S/14 from photographs and solar cells. Then tokens are merged, and the features are compared with the same model's
dense ones: with the mean of the sines and cosines of what merged, with the sine and cosine of the mean position, and
with the position of the token that was merged into alone. Likewise whether tokens match by keys before or after
rotation.
Writes ``benchmarks/results/rotary_positions.json``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from typing import Any

import timm
import torch
import torch.nn.functional as F
from domains import test_views, training_views
from measuring import RESULTS, ROOT, machine
from timm.layers import resample_abs_pos_embed
from timm.models.eva import Eva
from torch import Tensor, nn
from torch.utils.data import DataLoader

from tocom.compression.merging import match_tokens
from tocom.quickstart.weights import read_backbone
from tocom.system.files import write_json

FOLDER, RESULT = ROOT / "build" / "rotary", RESULTS / "rotary_positions.json"
SIDE, PATCH = 112, 14
SIZES = {
    "depth": 6,
    "embed_dim": 192,
    "num_heads": 3,
    "img_size": SIDE,
    "patch_size": PATCH,
    "num_classes": 0,
    "init_values": 0.1,
}
MODELS = {
    "dinov3": "vit_small_patch16_dinov3",
    "axial": "vit_small_patch16_rope_224",
    "mixed": "vit_small_patch16_rope_mixed_224",
}
WAYS = ("channels", "position", "partner")
DEGREES = (2, 4, 6)
DOMAINS = ("photographs", "cells")
ENTRY = {
    "shape": [1, 3, SIDE, SIDE],
    "mean": [0.485, 0.456, 0.406],
    "std": [0.229, 0.224, 0.225],
    "interpolation": "bicubic",
    "crop": 1.0,
    "crop_mode": "center",
}
STEPS, BATCH, RATE = 300, 32, 1e-3


def student(kind: str) -> Eva:
    """Return a small rotary model, untrained."""
    torch.manual_seed(0)
    return timm.create_model(MODELS[kind], pretrained=False, **SIZES)


def train(kind: str) -> Eva:
    """Return the model of a kind, trained; the weights are kept."""
    path, model = FOLDER / f"{kind}.pt", student(kind)
    if path.exists():
        model.load_state_dict(torch.load(path, weights_only=True))
        return model.eval()
    images, tokens = taught()
    head = nn.Linear(SIZES["embed_dim"], tokens.shape[-1])
    parameters = [*model.parameters(), *head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=RATE, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, total_steps=STEPS)
    parts = {"model": model, "head": head, "optimizer": optimizer, "schedule": schedule}
    stopped, first = FOLDER / f"{kind}-stopped.pt", 0
    if stopped.exists():
        first, *states = torch.load(stopped, weights_only=True)
        for part, state in zip(parts.values(), states, strict=True):
            part.load_state_dict(state)
    for step in range(first, STEPS):
        chosen = torch.randint(len(images), (BATCH,), generator=torch.Generator().manual_seed(step))
        # The class token, and the patches behind it: registers teach nothing.
        found = head(model.forward_features(images[chosen]))
        found = torch.cat([found[:, :1], found[:, model.num_prefix_tokens :]], dim=1)
        loss = (1 - F.cosine_similarity(found, tokens[chosen], dim=-1)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % 25 == 24:
            print(f"{kind}: step {step}, loss {loss.item():.3f}", flush=True)
            torch.save((step + 1, *(part.state_dict() for part in parts.values())), stopped)
    torch.save(model.state_dict(), path)
    return model.eval()


def taught() -> tuple[Tensor, Tensor]:
    """Return training images, and the teacher's tokens of them less their mean; kept."""
    path = FOLDER / "taught.pt"
    if path.exists():
        return tuple(torch.load(path, weights_only=True))
    teacher = timm.create_model("vit_small_patch14_dinov2", pretrained=False, img_size=SIDE, num_classes=0)
    state = read_backbone()
    state["pos_embed"] = resample_abs_pos_embed(state["pos_embed"], [SIDE // PATCH] * 2)
    teacher.load_state_dict(state)
    views = [view for domain in DOMAINS for view in training_views(domain, ENTRY)]
    with torch.inference_mode():
        tokens = torch.cat(
            [teacher.eval().forward_features(torch.stack(batch)) for batch in DataLoader(views, 32, collate_fn=list)]
        )
    tokens = tokens - tokens.mean(dim=(0, 1))
    torch.save((torch.stack(views), tokens), path)
    return torch.stack(views), tokens


def angles(model: Eva, block: int) -> Tensor:
    """Return what a block turns each pair of channels by: [heads or 1, patches, head_channels / 2], not wrapped."""
    rope, (height, width) = model.rope, model.patch_embed.grid_size
    if model.rope_mixed:
        x, y = rope.freqs[:, block].unsqueeze(-2)
        return rope.t_x[:, None] * x + rope.t_y[:, None] * y
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    positions = torch.stack([rows, columns], dim=-1).flatten(0, 1).float()
    if hasattr(rope, "periods"):
        positions = 2 * (positions + 0.5) / torch.tensor([height, width]) - 1
        return (2 * torch.pi * positions[:, :, None] / rope.periods).flatten(1)[None]
    if rope.grid_indexing == "xy":
        positions = positions.flip(-1)
    return (positions[:, :, None] * rope.bands).flatten(1)[None]


def turned(x: Tensor, sine: Tensor, cosine: Tensor, *, half: bool) -> Tensor:
    """Return heads' channels [batch, heads, tokens, channels] turned; sine and cosine hold one value per pair."""
    first, second = x.chunk(2, dim=-1) if half else (x[..., ::2], x[..., 1::2])
    pairs = first * cosine - second * sine, second * cosine + first * sine
    return torch.cat(pairs, dim=-1) if half else torch.stack(pairs, dim=-1).flatten(-2)


def run(model: Eva, images: Tensor, degree: int, way: str, *, matched: str) -> tuple[Tensor, Tensor]:
    """Return the class token [batch, channels] and a feature for every patch [batch, patches, channels].

    Args:
        model: Trained.
        images: [batch, channels, height, width].
        degree: Tokens to merge in each block.
        way: One of ``WAYS``.
        matched: ``turned`` or ``plain`` keys.
    """
    x, _ = model._pos_embed(model.patch_embed(images))
    x = model.norm_pre(x)
    prefix, patches = model.num_prefix_tokens, int(model.patch_embed.num_patches)
    batch, tokens, _ = x.shape
    share = torch.eye(tokens).expand(batch, -1, -1)  # of each patch in each token: [batch, tokens, tokens at first]
    home = torch.arange(tokens).expand(batch, -1)  # where each token was before others merged into it
    for index, block in enumerate(model.blocks):
        size = share.sum(-1, keepdim=True)
        angle = F.pad(angles(model, index), (0, 0, prefix, 0))[None]
        mean = (share / size).unsqueeze(1)
        if way == "channels":
            sine, cosine = mean @ angle.sin(), mean @ angle.cos()
        elif way == "position":
            sine, cosine = (mean @ angle).sin(), (mean @ angle).cos()
        else:
            chosen = home[:, None, :, None].expand(-1, angle.shape[1], -1, angle.shape[-1])
            own = angle.expand(batch, -1, -1, -1).gather(2, chosen)
            sine, cosine = own.sin(), own.cos()
        attention, read = block.attn, block.norm1(x)
        shape = (batch, -1, attention.num_heads, attention.head_dim)
        q, k, v = (part.view(shape).transpose(1, 2) for part in projected(attention, read))
        half = attention.rotate_half
        q_turned, k_turned = turned(q, sine, cosine, half=half), turned(k, sine, cosine, half=half)
        out = F.scaled_dot_product_attention(q_turned, k_turned, v, attn_mask=size.log().view(batch, 1, 1, -1))
        out = attention.proj(attention.norm(out.transpose(1, 2).flatten(2)))
        x = x + (out if block.gamma_1 is None else block.gamma_1 * out)
        if degree:
            goes = match_tokens((k_turned if matched == "turned" else k).mean(1), degree, prefix)
            count = x.shape[1] - degree
            onto = F.one_hot(goes, count).float().transpose(1, 2)  # [batch, outputs, tokens]
            weighted = onto * size.transpose(1, 2)
            x = weighted / weighted.sum(-1, keepdim=True) @ x
            # Others merge into tokens at odd positions; where none merged, there is but one.
            index = torch.arange(onto.shape[-1])
            into = (onto * (1 + (index % 2) * (index >= prefix))).argmax(-1)
            home = home.gather(1, into)
            share = onto @ share
        mlp = block.mlp(block.norm2(x))
        x = x + (mlp if block.gamma_2 is None else block.gamma_2 * mlp)
    x = model.norm(x)
    spread = share.transpose(1, 2) @ x
    return spread[:, 0], spread[:, prefix : prefix + patches]


def projected(attention: nn.Module, x: Tensor) -> tuple[Tensor, ...]:
    """Return q, k and v [batch, tokens, channels] of timm's rotary attention."""
    if attention.qkv is None:
        return attention.q_proj(x), attention.k_proj(x), attention.v_proj(x)
    biases = getattr(attention, "q_bias", None)
    if biases is None:
        return attention.qkv(x).chunk(3, dim=-1)
    bias = torch.cat([attention.q_bias, attention.k_bias, attention.v_bias])
    return F.linear(x, attention.qkv.weight, bias).chunk(3, dim=-1)


def gaps(model: Eva, images: Tensor) -> Iterator[dict[str, Any]]:
    """Yield how far each way moves the features: 1 - cosine, of the class token and over all patches."""
    for matched in ("turned", "plain"):
        dense = run(model, images, 0, "channels", matched=matched)
        assert torch.allclose(dense[0], model.forward_features(images)[:, 0], atol=1e-4)
        for degree in DEGREES:
            for way in WAYS:
                found = run(model, images, degree, way, matched=matched)
                token, patches = (
                    (1 - F.cosine_similarity(a, b, dim=-1)).view(len(images), -1).mean(1)
                    for a, b in zip(found, dense, strict=True)
                )
                yield {
                    "degree": degree,
                    "way": way,
                    "matched": matched,
                    "class_token": token.mean().item(),
                    "patches": patches.mean().item(),
                }


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--only", choices=MODELS, help="train this kind and stop")
    only = options.parse_args().only
    FOLDER.mkdir(parents=True, exist_ok=True)
    if only:
        train(only)
        return
    found = []
    for kind in MODELS:
        model = train(kind)
        for domain in DOMAINS:
            images = torch.stack(list(test_views(domain, ENTRY))[:64])
            with torch.inference_mode():
                for entry in gaps(model, images):
                    found.append({"positions": kind, "images": domain, **entry})
                    print(found[-1], flush=True)
    write_json(RESULT, {"machine": machine(), "steps": STEPS, "gaps": found})


if __name__ == "__main__":
    sys.exit(main())
