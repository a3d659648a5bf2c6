"""DINOv3 as timm knows it: every name and every published checkpoint's, and a file with the names of Meta's own."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
import torch
from small_vits import small_images, small_vit, spread_weights
from torch import Tensor

from tocom import compress, load_model
from tocom.compression.surgery import input_tokens
from tocom.compression.tokens import removal_schedule, token_counts

NAMES = sorted({*timm.list_models("vit_*dinov3*"), *timm.list_pretrained("vit_*dinov3*")})
needs_dinov3 = pytest.mark.skipif(not NAMES, reason=f"timm {timm.__version__} has no DINOv3")


@needs_dinov3
def test_timm_has_all_sizes() -> None:
    assert {"small", "base", "large", "7b"} <= {name.split("_")[1] for name in NAMES}


@pytest.mark.parametrize("name", NAMES)
def test_every_name_runs_dense_and_merged(name: str) -> None:
    model = small_vit(name, dynamic_img_size=False)
    images, seen = small_images(model, 1), []
    with torch.inference_mode():
        assert torch.equal(compress(model, 0)(images), model(images))
        model.norm.register_forward_hook(lambda _, args, __: seen.append(args[0].shape[1]))
        assert compress(model, 4)(images).isfinite().all()
    assert model.num_prefix_tokens == 5, "the class token and four registers"
    assert seen == [token_counts(input_tokens(model), removal_schedule(input_tokens(model), 3, 4, 5))[-1]]


def metas(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict with the names that timm's ``checkpoint_filter_fn`` (timm/models/eva.py) takes from Meta."""
    found = {"mask_token": torch.zeros(1, 4), "rope_embed.periods": torch.ones(16)}
    for key, value in state.items():
        key = key.replace("reg_token", "storage_tokens").replace("gamma_1", "ls1.gamma").replace("gamma_2", "ls2.gamma")
        if key.endswith("attn.q_bias"):
            values = state[key.replace("q_bias", "v_bias")]
            found[key.replace("q_bias", "qkv.bias")] = torch.cat([value, torch.zeros_like(value), values])
            found[key.replace("q_bias", "qkv.bias_mask")] = torch.ones(3 * len(value))
        elif not key.endswith("attn.v_bias"):
            found[key] = value
    return found


@pytest.mark.skipif("vit_tiny_patch16_dinov3_qkvb" not in NAMES, reason="this timm has no such model")
def test_metas_own_file_is_read(tmp_path: Path) -> None:
    name = "vit_tiny_patch16_dinov3_qkvb"
    model = timm.create_model(name, img_size=80, dynamic_img_size=False, num_classes=0).eval()
    spread_weights(model)
    torch.save(metas(model.state_dict()), tmp_path / "dinov3.pth")
    loaded = load_model(name, weights=str(tmp_path / "dinov3.pth"), image_size=80)
    images = small_images(model, 1)
    with torch.inference_mode():
        assert torch.equal(loaded.model(images), model(images))
        assert compress(loaded.model, 2)(images).shape == (1, 192)
